"""What plait raises on purpose: each says what was got, what was expected and how to mend it. All are ValueErrors; the
command line turns them into exit codes, and calls every other error a defect."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PlaitError(ValueError):
    """What was asked of a function or a model does not fit it (exit code 2)."""


class DataError(PlaitError):
    """The user's data cannot be used as it is (exit code 3)."""


class UsageError(PlaitError):
    """The user asked for something that does not exist or does not fit together (exit code 2)."""


def panicked(error: BaseException) -> bool:
    """Whether a library in Rust gave up: its exception is no Exception, so that it ends what would outlive errors."""
    return type(error).__name__ == "PanicException"


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the closest known name, or lists what is known: ``Did you mean 'photo'?``"""
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    if not close:
        folded = {k.lower(): k for k in known}
        close = [folded[k] for k in get_close_matches(str(name).lower(), folded, n=1, cutoff=0.6)]
    if close:
        return f"Did you mean {close[0]!r}?"
    listed = ", ".join(repr(k) for k in known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"Known: {listed}." if known else "None is known."
