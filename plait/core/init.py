"""From a model on the meta device to one with declared, seeded initial weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def linear(module: nn.Linear) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def spread(module: nn.Linear) -> None:
    """Weights that keep the variance (Glorot and Bengio 2010): at the widths of small models the usual 0.02 would whisper for epochs."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def convolution(module: nn.Module) -> None:
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def embedding(module: nn.Embedding) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)


def own(module: nn.Module) -> None:
    """torch's own initialisation of this module: right for norms, whose start is ones and zeros."""
    module.reset_parameters()


SCHEME: dict[type, Callable] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: own,
    nn.RMSNorm: own,
    nn.GroupNorm: own,
    nn.BatchNorm1d: own,
    nn.BatchNorm2d: own,
}


def initialise(model: nn.Module, *, seed: int = 0, device: str | torch.device = "cpu") -> nn.Module:
    """Materialise `model` (built on meta) on `device` and fill every parameter and buffer, children before parents.

    A module that owns parameters or buffers is initialised by its own `reset()`, else by its type in `model.scheme` (a dict like
    `SCHEME`, which is the default). One that has neither raises ValueError: weights nobody declared are never left to chance.
    The global random state is left as it was.
    """
    scheme = {**SCHEME, **getattr(model, "scheme", {})}
    model.to_empty(device=device)
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in reversed(list(model.named_modules())):
            if hasattr(module, "reset"):
                module.reset()
            elif type(module) in scheme:
                scheme[type(module)](module)
            elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) owns weights but declares no initialisation: "
                    "give it a reset() method or add its type to the model's scheme"
                )
    return model
