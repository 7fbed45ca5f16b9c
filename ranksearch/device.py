"""Device selection, device descriptions, synchronization and heap trimming."""

import ctypes
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ranksearch.errors import SettingError, first_line


def choose_device(name: str, worker: int = 0) -> torch.device:
    """Return a device by name; ``auto`` is the first available of CUDA, Apple's MPS and the CPU.

    Args:
        name: ``auto``, or a torch device name.
        worker: index of this process; if no index of a GPU is named, several GPUs are assigned to workers in turn.

    Raises:
        SettingError: the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        advice = f"cannot be used ({first_line(error)}): use auto, cpu, or a device of this machine"
        raise SettingError("device", name, advice) from None
    return device


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return the device properties that measured times depend on, as plain JSON values."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    name = _processor() if device.type == "cpu" else platform.machine()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    """Return the processor's model name, or the platform's name if that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def trim_heap() -> None:
    """Call glibc's malloc_trim to release fragmented heap."""
    with suppress(OSError, TypeError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
