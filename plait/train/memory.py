"""How much memory a run takes, and how to stop the C library from giving it back after every step."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT, GIVEN = 1 << 30, 1 << 20  # bytes


def peak_memory(device: torch.device) -> float:
    """The most bytes held so far: by the accelerator's tensors or, on the CPU, by the process (0 where the system does
    not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory for its next step. Returns whether the C library understood
    (glibc does).

    By default glibc returns large tensors to the system when they are freed and asks for them again a moment later,
    page by page: 4 to 8% of the time of a training step on the CPU. The setting is the process's and cannot be taken
    back, so whoever owns the process calls this (the command line does), not the trainer.
    """
    return _told(M_MMAP_THRESHOLD, KEPT) and _told(M_TRIM_THRESHOLD, KEPT)


def return_memory() -> bool:
    """Let this process give back whatever is large as soon as it is freed: what looks at a table once needs no room for
    the next time. Returns whether the C library understood. To be called as `keep_memory` is, before Arrow has made
    anything."""
    import pyarrow as pa

    if "jemalloc" in pa.supported_memory_backends():  # mimalloc keeps half as much again as it has given out
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(0)
    return _told(M_MMAP_THRESHOLD, GIVEN) and _told(M_ARENA_MAX, 1)


def _told(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(option, value))
