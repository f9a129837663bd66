"""`python -m uniclip_kernels.info` tells what is built and why a backend is not usable."""

import subprocess
import sys

import torch

from uniclip_kernels import _C, __version__, backends


def test_the_report():
    command = [sys.executable, "-m", "uniclip_kernels.info"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    facts = {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}
    assert facts["uniclip-kernels"] == __version__
    assert torch.__version__ in facts["torch"]
    assert _C.cpu_instruction_set() in " ".join(lines)
    for name, reason in backends().items():
        assert facts[name] == ("usable" if reason is None else " ".join(reason.split()))
