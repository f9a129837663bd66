"""Builds uniclip_kernels._C from csrc/cpu and uniclip_kernels._cuda from csrc/cuda.

Whether a GPU is present makes no difference. Without a C++ compiler the package installs without both extensions, without
a CUDA compiler without the second; its `backends()` says so. The CUDA compiler is that of CUDA_HOME, of NVIDIA's pip
packages, or nvcc on the PATH: the first one of the CUDA version that torch was built for.

    UNICLIP_BUILD_CUDA=0   leaves the CUDA kernels out, which are two thirds of the build
    UNICLIP_BUILD_CUDA=1   makes it an error if they cannot be built
    UNICLIP_CUDA_ARCHITECTURES=80,90   builds them for these alone
    CXX, MAX_JOBS          the C++ compiler; how many files are compiled at once
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = os.environ.get("UNICLIP_CUDA_ARCHITECTURES") or "80,90,100,120"
if not re.fullmatch(r"\d+(,\d+)*", ARCHITECTURES):
    raise SystemExit(f"uniclip-kernels: UNICLIP_CUDA_ARCHITECTURES must be like 80,90, got {ARCHITECTURES!r}")
CUDA_ARCHITECTURES = tuple(map(int, ARCHITECTURES.split(",")))
HOPPER = "csrc/cuda/hopper"  # kernels made of instructions that only sm_90a has
CUDA_PACKAGE = "cuda-toolkit[nvcc,cccl]"
# The oldest PyTorch whose stable ABI has what csrc/ calls, as its headers encode it. They leave out what came later and
# what isn't stable, so that what was built beside one version works beside any other from here on.
OLDEST_TORCH = (2, 10)
# Not fast-math: only what lets vector loops be made, with results unchanged.
CXX_FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--resource-usage"]
RESOURCES = re.compile(
    r"entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)a?'"
    r".*?(?P<stack>\d+) bytes stack frame.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class NoCUDAError(Exception):
    """Why the CUDA kernels cannot be built, and what to install."""


def files(folder: str, *suffixes: str) -> list[str]:
    found = (p.relative_to(ROOT) for s in suffixes for p in (ROOT / folder).rglob(f"*.{s}"))
    return sorted(str(p) for p in found)


def complaint(compiler: list[str], source: str) -> str | None:
    """The first error of a compiler that reads a source from its input, or None."""
    done = subprocess.run([*compiler, "-"], input=source, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error|fatal|not found", line)]
    return None if done.returncode == 0 else (errors or lines or [f"exit status {done.returncode}"])[0]


def find_cxx() -> str | None:
    """The C++ compiler as a command, or None if there is none."""
    cxx = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if cxx is None:
        return None
    if shutil.which(shlex.split(cxx)[0]) is None:
        raise SystemExit(f"uniclip-kernels: CXX is {cxx!r}, and there is no such program")
    error = complaint([*shlex.split(cxx), *CXX_FLAGS, "-fsyntax-only", "-x", "c++"], "#include <concepts>\n")
    if error is not None:
        raise SystemExit(
            f"uniclip-kernels: {cxx} does not compile C++20 ({error}); install a newer one, such as GCC 12, and set CXX to it"
        )
    return cxx


class CUDAToolkit:
    """nvcc, and the runtime library to link with, which torch loads too."""

    def __init__(self, cxx: str) -> None:
        import torch

        if torch.version.cuda is None:
            raise NoCUDAError(f"torch {torch.__version__} was built without CUDA; install one that was built with it")
        major = torch.version.cuda.split(".")[0]
        install = f"set CUDA_HOME, or pip install '{CUDA_PACKAGE}=={torch.version.cuda}.*'"
        homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
        spec = importlib.util.find_spec("nvidia")
        homes += [Path(p) / f"cu{major}" for p in (spec.submodule_search_locations if spec else [])]
        compilers = [found for h in homes if (found := shutil.which("nvcc", path=h / "bin"))]
        compilers += filter(None, [shutil.which("nvcc")])
        versions = {nvcc: self._version(nvcc) for nvcc in compilers}
        fitting = [nvcc for nvcc, version in versions.items() if version.split(".")[0] == major]
        if not fitting:
            found = ", ".join(f"{nvcc} is of CUDA {version}" for nvcc, version in versions.items()) or "there is none"
            raise NoCUDAError(f"torch {torch.__version__} needs an nvcc of CUDA {major}, and {found}; {install}")
        self.nvcc = fitting[0]
        self.version = versions[self.nvcc]
        host = shlex.split(cxx)
        self.flags = [*NVCC_FLAGS, "-ccbin", host[0]] if len(host) == 1 else NVCC_FLAGS
        kernel = "#include <cuda_fp16.h>\n__global__ void kernel(__half*) {}\n"
        newest = f"-arch=sm_{CUDA_ARCHITECTURES[-1]}"
        error = complaint([self.nvcc, *self.flags, newest, "-cubin", "-o", os.devnull, "-x", "cu"], kernel)
        if error is not None:
            raise NoCUDAError(f"{self.nvcc} (CUDA {self.version}) does not compile a kernel ({error}); {install}")
        homes.append(Path(self.nvcc).resolve().parent.parent)
        libraries = [h / lib / f"libcudart.so{s}" for h in homes for lib in ("lib64", "lib") for s in (f".{major}", "")]
        self.runtime = next((str(p) for p in libraries if p.exists()), None)
        if self.runtime is None:
            raise NoCUDAError(f"there is no libcudart.so.{major} beside {self.nvcc}; {install}")

    @staticmethod
    def _version(nvcc: str) -> str:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+\.\d+)", text)
        return found[1] if found else "an unknown version"

    def compile(self, sources: list[str], folder: Path) -> list[str]:
        """Objects with machine code for every architecture, and PTX of the last one for those to come.

        Writes what the compiler says of each kernel into kernels.inc, for csrc/cuda/module.cpp.
        """
        folder.mkdir(parents=True, exist_ok=True)
        targets = [f"arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        targets.append(f"arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}")
        hopper = ["arch=compute_90a,code=sm_90a"]

        def one(source: str) -> tuple[str, str]:
            target = str(folder / f"{Path(source).stem}.o")
            chosen = hopper if source.startswith(HOPPER) else targets
            command = [
                self.nvcc,
                *self.flags,
                *(x for t in chosen for x in ("-gencode", t)),
                "-I",
                str(ROOT / "csrc/cuda"),
            ]
            done = subprocess.run([*command, "-c", source, "-o", target], capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"uniclip-kernels: nvcc failed on {source}\n{done.stdout}{done.stderr}")
            return target, done.stdout + done.stderr

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects, logs = zip(*pool.map(one, sources), strict=True)
        kernels = [m.groupdict() for log in logs for m in RESOURCES.finditer(log)]
        lines = ('{{"{name}", {architecture}, {registers}, {stack}}},\n'.format(**kernel) for kernel in kernels)
        (folder / "kernels.inc").write_text("".join(lines))
        return list(objects)


def find_cuda(cxx: str) -> CUDAToolkit | None:
    wanted = os.environ.get("UNICLIP_BUILD_CUDA", "")
    if wanted == "0":
        return None
    try:
        return CUDAToolkit(cxx)
    except NoCUDAError as reason:
        if wanted == "1":
            raise SystemExit(f"uniclip-kernels: UNICLIP_BUILD_CUDA=1, but {reason}") from None
        print(f"uniclip-kernels: the `cuda` backend is left out: {reason}", file=sys.stderr)
        return None


def extension(name: str, sources: list[str], depends: list[str], macros: dict[str, str], library: str) -> Extension:
    import pybind11
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    major, minor = OLDEST_TORCH
    target = f"0x{major << 56 | minor << 48:016x}"
    macros = {"UNICLIP_TORCH_VERSION": f'"{torch.__version__}"', "TORCH_TARGET_VERSION": target} | macros
    # Messages of checks carry file names: the same ones wherever it was built.
    prefixes = {ROOT: "uniclip-kernels", Path(torch.__file__).parent: "torch"}
    return Extension(
        f"uniclip_kernels.{name}",
        sources,
        depends=depends,
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include(), *include_paths()],
        define_macros=list(macros.items()),
        extra_compile_args=CXX_FLAGS + [f"-ffile-prefix-map={path}={name}" for path, name in prefixes.items()],
        library_dirs=library_paths(),
        libraries=[library],
        language="c++",
    )


def cpu_extension(cxx: str) -> Extension:
    command = [*shlex.split(cxx), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    sources = ["csrc/module.cpp", *files("csrc/cpu", "cpp")]
    return extension("_C", sources, files("csrc/cpu", "h", "inc"), {"UNICLIP_COMPILER": f'"{version}"'}, "torch_cpu")


def cuda_extension(toolkit: CUDAToolkit) -> Extension:
    macros = {
        "UNICLIP_CUDA_ARCHITECTURES": ",".join(map(str, CUDA_ARCHITECTURES)),
        "UNICLIP_CUDA_VERSION": f'"{toolkit.version}"',
    }
    headers = files("csrc/cuda", "h", "cuh", "cu")
    return extension("_cuda", files("csrc/cuda", "cpp"), headers, macros, "torch_cuda")


def build() -> dict:
    if (wanted := os.environ.get("UNICLIP_BUILD_CUDA", "")) not in ("", "0", "1"):
        raise SystemExit(f"uniclip-kernels: UNICLIP_BUILD_CUDA must be 0 or 1, got {wanted!r}")
    cxx = find_cxx()
    if cxx is None:
        message = "no C++ compiler is found; install one, such as GCC 12, or set CXX"
        if wanted == "1":
            raise SystemExit(f"uniclip-kernels: UNICLIP_BUILD_CUDA=1, but {message}")
        print(f"uniclip-kernels: the `cpu` and `cuda` backends are left out: {message}", file=sys.stderr)
        return {}
    os.environ["CXX"] = cxx  # for torch and setuptools
    cuda = find_cuda(cxx)
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extension(self, ext) -> None:
            if ext.name.endswith("._cuda"):
                folder = Path(self.build_temp).resolve() / "cuda"
                # The library comes last: a linker may drop one that nothing before it asks for.
                ext.extra_objects = [*cuda.compile(files("csrc/cuda", "cu"), folder), cuda.runtime]
                ext.include_dirs.append(str(folder))
            super().build_extension(ext)

    return {
        "ext_modules": [cpu_extension(cxx)] + ([cuda_extension(cuda)] if cuda else []),
        "cmdclass": {"build_ext": Build.with_options(no_python_abi_suffix=False)},
    }


if __name__ == "__main__":
    setup(**build())
