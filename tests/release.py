"""Wheels of the sdist in dist/ for some versions of Python, each installed beside the newest torch and tested.

python -m tests.release 3.10 3.11 3.12 3.13 3.14
"""

import sys
import tempfile
from pathlib import Path

from tests.wheels import ROOT, copy_tests, run

DIST = ROOT / "dist"
NEEDED = ("torch", "setuptools>=77", "wheel", "pybind11>=2.13", "ninja", "cuda-toolkit[nvcc,cccl]")
FOR_TESTS = ("pytest>=8", "hypothesis", "expecttest")
TESTS = ("test_mp_nce.py", "test_domain_similarity.py", "test_modules.py", "test_inputs.py", "test_stable_abi.py")


def main(*versions: str) -> None:
    (sdist,) = DIST.glob("*.tar.gz")
    for version in versions:
        home = ROOT / "build" / "release" / version
        python, pip = home / "bin" / "python", ("-m", "pip", "--quiet", "--disable-pip-version-check")
        run(f"python{version}", "-m", "venv", "--clear", home, cwd=ROOT)
        run(python, *pip, "install", *NEEDED, *FOR_TESTS, cwd=ROOT)
        run(python, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", DIST, sdist, cwd=ROOT)
        (wheel,) = DIST.glob(f"*-cp{version.replace('.', '')}-*.whl")
        run(python, *pip, "install", wheel, cwd=ROOT)
        with tempfile.TemporaryDirectory() as folder:
            elsewhere = copy_tests(Path(folder) / "elsewhere")
            tests = [f"tests/{name}" for name in TESTS]
            found = run(python, "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=elsewhere)
        print(f"{wheel.name}: {found.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
