"""The clock that a GPU runs at, as its driver says: a reading takes microseconds, and changes nothing."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess

_SM_CLOCK = 1  # NVML_CLOCK_SM


def sm_clock_mhz(uuid: str) -> int | None:
    """Of the multiprocessors now; None where neither NVML nor nvidia-smi tells."""
    library, handle = _handle(uuid)
    if handle is None:
        return _by_command(uuid)
    reading = ctypes.c_uint()
    return reading.value if library.nvmlDeviceGetClockInfo(handle, _SM_CLOCK, ctypes.byref(reading)) == 0 else None


@functools.cache
def _handle(uuid: str) -> tuple[ctypes.CDLL | None, ctypes.c_void_p | None]:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, None
    handle = ctypes.c_void_p()
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    found = library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) == 0
    return library, handle if found else None


@functools.cache
def _by_command(uuid: str) -> int | None:
    """Read once: it takes too long to be asked beside each measurement."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", "--query-gpu=clocks.sm"]
    done = subprocess.run([*command, "--format=csv,noheader,nounits"], capture_output=True, text=True)
    text = done.stdout.strip()
    return int(text) if done.returncode == 0 and text.isdigit() else None
