"""Builds the wheel beside one torch, and tests it, installed, beside another one: a wheel is not bound to a torch.

    python -m tests.other_torch .venv/bin/python .venv-torch-2.11.0/bin/python tests/test_modules.py

The first interpreter's torch is the one to build beside, the second's the one to test beside; the rest is for pytest.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import wheels

FACTS = """
import sys, torch
from uniclip_kernels import _C, backends
assert _C.__file__.startswith(sys.argv[1]), _C.__file__
assert _C.torch_version != torch.__version__, torch.__version__
print(f"built beside torch {_C.torch_version}, tested beside {torch.__version__}; backends: {backends()}", flush=True)
"""


def main(builder: str, user: str, *options: str) -> int:
    # Not resolved: a virtual environment's interpreter is a link.
    builder, user = os.path.abspath(builder), os.path.abspath(user)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "installed"
        wheels.install(user, wheels.build(builder, folder), target)
        elsewhere = wheels.copy_tests(folder / "elsewhere")
        cache = {"TRITON_CACHE_DIR": str(wheels.ROOT / "build" / "triton-cache")}
        environment = os.environ | cache | {"PYTHONPATH": str(target)}
        subprocess.run([user, "-c", FACTS, str(target)], cwd=elsewhere, env=environment, check=True)
        tests = [user, "-m", "pytest", "-p", "no:cacheprovider", *options]
        return subprocess.run(tests, cwd=elsewhere, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
