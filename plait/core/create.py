"""From a name to a model, and from public weights to its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from plait.core.catalog import ModelInfo, model_info
from plait.core.init import initialise
from plait.core.weights import State, convert, load_strict, read_state


def build(name: str, **arguments) -> nn.Module:
    """The model of `name` on the meta device: shapes without storage. `arguments` override those of its size."""
    info = model_info(name)
    model = importlib.import_module(info.system.module).MODEL
    with torch.device("meta"):
        return model(**{**info.arguments, **arguments})


def create_model(
    name: str, *, pretrained: bool | str | Path = False, seed: int = 0, device: str | torch.device = "cpu", **arguments
) -> nn.Module:
    """Build the model of `name` with its declared initialisation.

    name: a size ("crossvit_small") or a system ("crossvit": its default size); see `list_models`.
    pretrained: True fetches the published weights from the hub; a path or URL reads them there, in the layout that the
        size's weights row names, or in ours. Every key must fit.
    arguments: constructor arguments that override the size's own, such as num_classes=10.

    Raises ValueError for an unknown name, an unknown argument, or weights that do not fit.
    """
    info = model_info(name)
    try:
        model = build(name, **arguments)
    except TypeError as error:
        raise ValueError(f"{info.name}: {error}; its arguments are {', '.join(info.arguments) or 'none'}") from error
    initialise(model, seed=seed, device=device)
    if not pretrained:
        return model
    heads = getattr(model, "classifier", ())
    if heads and "num_classes" in arguments:  # the published classifier is for other classes: everything but it is taken over
        rest = {k: v for k, v in arguments.items() if k != "num_classes"}
        full = _published(info, initialise(build(name, **rest), device=device), pretrained).state_dict()
        own = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in heads}
        load_strict(model, {k: v for k, v in full.items() if k.split(".")[0] not in heads} | own)
        return model
    return _published(info, model, pretrained)


def _published(info: ModelInfo, model: nn.Module, source: bool | str | Path) -> nn.Module:
    """`model` with the published weights of its size (True), or those of a path or URL."""
    row = info.weights
    if source is True:
        if "hub" not in row and "url" not in row:
            raise ValueError(f"{info.name} has no published weights: give pretrained= a path or a URL")
        path = fetch(row["hub"], row["file"]) if "hub" in row else _local(row["url"])
    else:
        path = _local(source)
    state = read_state(path)
    ours = state.keys() == model.state_dict().keys()
    part = model if ours else model.get_submodule(row.get("part", ""))  # some publish only a part, such as a shared encoder
    load_weights(part, state, source="plait" if ours else row.get("source", "plait"))
    return model


def load_weights(model: nn.Module, state: State, source: str = "plait") -> nn.Module:
    """Load a state dict of the layout `source` ("plait" is ours; the others are the keys of the system's RULES).

    Strict: an unknown, missing or reshaped key raises ValueError and leaves the model as it was.
    """
    load_strict(model, state if source == "plait" else convert(state, _rules(model, source)))
    return model


def save_weights(model: nn.Module, source: str = "plait") -> State:
    """The state dict of `model` in the layout `source`, so that the peer can load what was trained here."""
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return state if source == "plait" else convert(state, _rules(model, source), reverse=True)


def _rules(model: nn.Module, source: str):
    rules = getattr(sys.modules[type(model).__module__], "RULES", {})
    if source not in rules:
        raise ValueError(f"{type(model).__name__} has no rules for the layout {source!r}: expected one of {', '.join(['plait', *rules])}")
    return rules[source]


def fetch(hub: str, file: str) -> Path:
    """A file of a repository on the Hugging Face hub, from its cache or downloaded."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(hub, file))


def _local(source: str | Path) -> Path:
    if not str(source).startswith(("http://", "https://")):
        return Path(source)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / str(source).split("?")[0].rsplit("/", 1)[-1]
    if not target.exists():
        torch.hub.download_url_to_file(str(source), str(target))
    return target
