"""From a name to a model, and from public weights to its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from plait.core.catalog import ModelInfo, build, model_info
from plait.core.fetch import hub_file, url_file
from plait.core.init import initialise
from plait.core.weights import State, convert, load_strict, read_state


def create_model(
    name: str, *, pretrained: bool | str | Path = False, seed: int = 0, device: str | torch.device = "cpu", **arguments
) -> nn.Module:
    """Build the model of `name` with its declared initialisation.

    name: a size ("crossvit_small") or a system ("crossvit": its default size); see `list_models`.
    pretrained: True fetches the published weights from the hub; a path or URL reads them there, in the layout that the
        size's weights row names, or in ours. Every key must fit; but where `num_classes` is given and the file's
        classifier is for another number, or the file has none, the classifier starts anew.
    arguments: constructor arguments that override the size's own, such as num_classes=10.

    Raises ValueError for an unknown name, an unknown argument, weights that do not fit or that cannot be had.
    """
    info = model_info(name)
    try:
        model = build(name, **arguments)
    except TypeError as error:
        raise ValueError(f"{info.name}: {error}; its arguments are {', '.join(info.arguments) or 'none'}") from error
    path = _find(info, pretrained) if pretrained else None  # before any memory is taken
    initialise(model, seed=seed, device=device)
    if path is not None:
        heads = getattr(model, "classifier", ()) if "num_classes" in arguments else ()
        load_strict(*_published(info, model, read_state(path), heads))
    return model


def _find(info: ModelInfo, source: bool | str | Path) -> Path:
    """The file of a size's published weights (True), or that of a path or URL."""
    if source is True:
        row = info.weights
        if "hub" in row:
            return hub_file(row["hub"], row["file"])
        if "url" not in row:
            raise ValueError(f"{info.name} has no published weights: give pretrained= a path or a URL")
        source = row["url"]
    return url_file(str(source)) if str(source).startswith(("http://", "https://")) else Path(source)


def _published(info: ModelInfo, model: nn.Module, state: State, heads: tuple[str, ...]) -> tuple[nn.Module, State]:
    """The part of `model` that a file holds, and the file's tensors in our layout.

    heads: the beginnings of the classifier's keys where the caller named its own number of classes. A classifier of
    another shape, or none, is then left as `model` has it; everything else must fit.
    """
    own = model.state_dict()
    body, said = ({k for k in keys if not k.startswith(heads)} for keys in (own, state))
    part = model
    if not (said <= body or said >= body):  # not our layout, not even with some keys too few or too many
        part = model.get_submodule(info.weights.get("part", ""))  # some publish only a part, such as a shared encoder
        source = info.weights.get("source", "plait")
        state = state if source == "plait" else convert(state, _rules(part, source))
    ours, theirs = ({k: v.shape for k, v in tensors.items() if k.startswith(heads)} for tensors in (own, state))
    if not ours or not theirs or ours.keys() == theirs.keys() and ours != theirs:
        state = {k: v for k, v in state.items() if k not in theirs} | {k: own[k] for k in ours}
    return part, state


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
        raise ValueError(
            f"{type(model).__name__} has no rules for the layout {source!r}: expected one of {', '.join(['plait', *rules])}"
        )
    return rules[source]
