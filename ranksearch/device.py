"""Where everything runs."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ranksearch.errors import SettingError, first_line


def choose_device(name: str, worker: int = 0) -> torch.device:
    """Read a device's name; ``auto`` is a GPU, or else Apple's, or else the CPU.

    Args:
        name: ``auto``, or as torch has it.
        worker: number of this process; where there are several GPUs and none is named, they are dealt out by it.

    Raises:
        SettingError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise SettingError(
            "device", name, f"cannot be used ({reason}): use auto, cpu, or a device of this machine"
        ) from None
    return device


def describe_device(device: torch.device) -> dict[str, Any]:
    """What times measured on a device depend on, as plain JSON values."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    name = _processor() if device.type == "cpu" else platform.machine()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def device_in_words(device: torch.device) -> str:
    """The device's name and, where it has them, its threads, for people."""
    return in_words(describe_device(device))


def in_words(found: Mapping[str, Any]) -> str:
    """What `describe_device` found, for people."""
    return f"{found['name']}, {found['threads']} threads" if "threads" in found else str(found["name"])


def _processor() -> str:
    """The processor's name as it gives it itself, where that can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library keeps it in pieces between what is in use."""
    with suppress(OSError, TypeError, AttributeError):  # other systems than GNU's
        ctypes.CDLL(None).malloc_trim(0)
