"""plait: multimodal transformers. Every system by name, your own table in, a working model out.

Importing plait imports nothing heavy: each name below arrives when it is first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "create_model": "plait.core.create",
    "load_weights": "plait.core.create",
    "save_weights": "plait.core.create",
    "reset_classifier": "plait.core.create",
    "list_models": "plait.tasks",
    "model_info": "plait.core.catalog",
    "list_methods": "plait.core.methods",
    "method_info": "plait.core.methods",
    "apply_method": "plait.core.methods",
    "fit": "plait.runs.fit",
    "load": "plait.runs.saved",
    "use": "plait.runs.use",
    "Reader": "plait.runs.reading",
    "rocketqa": "plait.runs.rocketqa",
    "change": "plait.runs.change",
    "compare": "plait.runs.compare",
    "drift": "plait.runs.drift",
    "verify": "plait.runs.manifest",
    "Run": "plait.runs.run",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
