"""Parity with public implementations: one module per system."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules() -> list[ModuleType]:
    """The modules of this folder that check a system: those with CASES."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name != "__main__" and not m.name.startswith("test_")]
    found = [importlib.import_module(f"tests.parity.{name}") for name in names]
    return [m for m in found if hasattr(m, "CASES")]
