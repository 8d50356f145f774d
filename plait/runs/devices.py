"""What a run computes on."""

from __future__ import annotations

import os
import platform

import torch

from plait.errors import UsageError


def pick_device(name: str) -> torch.device:
    """ "auto" takes the accelerator of this machine, if there is one. Raises UsageError for a device that is not
    there."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = found or torch.device("cpu")
    expected = "auto or cpu" if here.type == "cpu" else f"auto, cpu or {here.type}"
    if name == "auto":
        return here
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: expected {expected}") from None
    if device.type not in ("cpu", here.type) or (
        device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count()
    ):
        raise UsageError(f"this machine has no device {name!r}: expected {expected}")
    return device


def machine(device: torch.device) -> str:
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}"
