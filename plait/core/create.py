"""From a name to a model, and from public weights to its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin

import torch
from torch import Tensor, nn

from plait.core.catalog import ModelInfo, build, handed_on, model_class, model_info
from plait.core.channels import seen
from plait.core.fetch import hub_file, url_file
from plait.core.init import initialise, initialise_new, initialise_rest
from plait.core.methods import apply_methods, read_change
from plait.core.schemes import begin, drop_path_of, paper_of
from plait.core.weight_files import INDEX, Weights, read_shards, read_weights
from plait.core.weights import HOLDERS, Rule, State, assign, convert, converted, known, load_strict, unwrapped
from plait.errors import PlaitError

Source = bool | str | Path | State  # of weights
Say = Callable[[str], object]


def aloud(sentence: str) -> None:
    """On standard error."""
    print(sentence, file=sys.stderr)


@dataclass(frozen=True)
class Filling:
    """How models are given their weights. only: of a file those whose names match one of these patterns. say: told what
    a file has that is not taken, and what starts anew."""

    seed: int
    device: str | torch.device
    dtype: torch.dtype | None
    share: bool
    only: tuple[str, ...]
    say: Say


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    only: str | Iterable[str] = (),
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mmap: bool = True,
    changes: Iterable[str | tuple[str, dict]] = (),
    parts: Mapping[str, Source] | None = None,
    scheme: str | None = None,
    say: Say = aloud,
    **arguments,
) -> nn.Module:
    """Build the model of `name` with its declared initialisation, or with published weights.

    name: a size ("crossvit_small"), a system ("crossvit": its default size), or other weights of a size
        ("swin_tiny_patch4_window7_224.ms_in22k"); see `list_models`.
    pretrained: True fetches the published weights from the hub; a path or URL reads them there, in any layout that the
        system has rules for (first that of the size's weights row), or in ours: safetensors, a pickle of tensors, the
        `*.index.json` of several such files beside it, or the folder where they lie. Every key must fit; but where
        `num_classes` (or `labels`) is given and the file's classifier is for another number, or the file has none, the
        classifier starts anew, with the numbers that it has without a file. Of a system made of others, True loads
        what is published of it, and of each of them; the rest starts anew.
    only: of these weights take those alone whose names (ours) match one of these patterns, such as "stem.*"; all others
        start anew, and what else the file holds is not asked for.
    dtype: of the weights and floating buffers, as after `model.to(dtype)`. Without it they are float32, whatever the
        file holds.
    mmap: weights that need no change stay in their file until they are used, as private maps: training never writes to
        the file, which may be deleted or replaced but must not be overwritten in place. They lie as the file has them,
        so that products on CPUs may round otherwise in the last bit. False copies them.
    changes: methods to apply, in order, after the weights are there: names with options ("sinkformer:steps=5") or pairs
        of a name and a dict of options; see `list_methods`.
    parts: of a system made of others, which of these begin with weights of their own: {"vision": a path or URL, as for
        `pretrained`, True, or a state dict in our layout}.
    scheme: "paper" begins as the paper's authors did, with their rate of stochastic depth for this size; for training
        from nothing.
    say: told in a sentence what was taken of a file and what starts anew, where that is not all or nothing.
    arguments: constructor arguments that override the size's own, such as num_classes=10; and in_chans, the channels of
        the pictures that are read, for which weights that were learned for three are changed as timm does it.

    Raises ValueError for an unknown name, an unknown argument, weights that do not fit or that cannot be had, and for
    changes that there are not or that the model does not bear.
    """
    info, wanted = model_info(name), [read_change(c) for c in changes]
    only = (only,) if isinstance(only, str) else tuple(only)
    if dtype is not None and not dtype.is_floating_point:
        raise PlaitError(f"dtype: got {dtype}, expected a floating one such as torch.bfloat16")
    if only and not pretrained:
        raise PlaitError(f"only={', '.join(only)} is of weights: give pretrained= as well")
    if scheme is not None and pretrained:
        raise PlaitError(f"scheme={scheme!r} is for training from nothing: leave pretrained out, or the scheme")
    paper = None if scheme is None else paper_of(info, scheme)
    arguments = arguments if paper is None else drop_path_of(info, paper) | arguments
    try:
        model = build(name, **arguments)
    except TypeError as error:
        known = (
            *inspect.signature(model_class(info)).parameters,
            *(a for own in info.system.parts.values() for a in own),
        )
        raise PlaitError(f"{info.name}: {error}; its arguments are {', '.join(dict.fromkeys(known))}") from error
    anew = getattr(model, "classifier", ()) if {"num_classes", "labels"} & arguments.keys() else ()
    how, eyes = Filling(seed, device, dtype, mmap, only, say), getattr(model, "of_channels", {})
    _fill(info, model, arguments, pretrained, how, anew=anew, sources=parts or {}, eyes=eyes)
    if paper is not None:
        begin(model, paper, seed=seed)
    model = apply_methods(model, wanted)
    return model if dtype is None else model.to(dtype)


def _fill(
    info: ModelInfo,
    model: nn.Module,
    arguments: dict,
    pretrained: Source,
    how: Filling,
    *,
    anew: tuple[str, ...] = (),
    sources: Mapping[str, Source] = {},
    spare: Set[str] = frozenset(),
    eyes: Mapping[str, tuple[int, bool]] = {},
) -> None:
    """Give a model on meta its weights, published or first ones. Other models that it is made of have their own, unless
    one file holds the whole. spare: keys that the model has no more, and its weights may have. eyes: those that see
    pictures, where these have not three channels (`plait.core.channels`)."""
    row, chosen = info.weights, info.arguments | arguments
    parts = handed_on(info, chosen)
    own = pretrained is not True or not parts or {"hub", "url"} & set(row)
    whole = pretrained and own and (pretrained is not True or "part" not in row)
    if odd := sorted(sources.keys() - parts.keys()):
        raise PlaitError(f"{info.name} is made of {', '.join(parts) or 'no other systems'}, got weights for {odd[0]}")
    if whole and sources:
        raise PlaitError(f"the weights of {info.name} hold {', '.join(sources)} too: give either, not both")
    if how.only and not whole:
        raise PlaitError(f"only={', '.join(how.only)} is of one file, and {info.name} has one for each of its parts")
    for part, theirs in () if whole else parts.items():
        inner, source = getattr(model, part), sources.get(part, pretrained)
        classes = getattr(inner, "classifier", ())  # which the whole may have taken off
        gone: Set[str] = frozenset()  # what its weights may have, as all of these
        if source:
            gone = build(chosen[part], **theirs).state_dict().keys() - inner.state_dict().keys()
        sees = {key.removeprefix(f"{part}."): eye for key, eye in eyes.items() if key.startswith(f"{part}.")}
        try:
            _fill(model_info(chosen[part]), inner, theirs, source, how, anew=classes, spare=gone, eyes=sees)
        except PlaitError as error:
            if part not in sources:
                raise
            raise PlaitError(f"{part}: {error}") from error
    if pretrained and own:
        _load(info, model, pretrained, how, anew, spare, eyes)
    if parts and not whole:
        initialise_new(model, scheme=getattr(model, "scheme", {}), seed=how.seed, device=how.device)
    elif pretrained:
        initialise_rest(model, seed=how.seed, device=how.device)
    else:
        initialise(model, seed=how.seed, device=how.device)


def _load(
    info: ModelInfo,
    model: nn.Module,
    source: Source,
    how: Filling,
    anew: tuple[str, ...],
    spare: Set[str],
    eyes: Mapping[str, tuple[int, bool]],
) -> None:
    """Give a model on meta, or its published part, what a file holds of it."""
    weights = _find(info, source)
    place, groups = _published(info, model, weights, anew, some=bool(how.only))
    body, before = model.get_submodule(place), f"{place}." if place else ""
    own = body.state_dict()
    left = {key for key in own if how.only and not any(fnmatchcase(before + key, pattern) for pattern in how.only)}
    for pattern in how.only:
        if not any(fnmatchcase(before + key, pattern) for key in own):
            first = ", ".join(dict.fromkeys(f"{key.split('.')[0]}.*" for key in own if "." in key))
            raise PlaitError(f"only={pattern!r} names none of the weights of {info.name}: expected such as {first}")

    used = 0

    def wanted() -> Iterable[tuple[list[Tensor], State]]:
        nonlocal used
        for taken, made in groups:
            some = {k: t for k, t in made.items() if k not in spare | left and (k in own or not how.only)}
            used += len(taken) if some else 0
            for key in eyes.keys() & {before + k for k in some}:
                name = key.removeprefix(before)
                some[name] = seen(some[name], own[name], *eyes[key])
            yield taken, some

    where: dict[str, Any] = {"device": how.device, "dtype": how.dtype, "share": how.share}
    taken, others = assign(body, wanted(), anew=anew, left=left, release=weights.release, **where)
    told = _told(own, taken, others, anew)
    if how.only:
        said, rest = ", ".join(how.only), len(own) - len(taken)
        told = f"{len(taken)} of {len(own)} weights are taken ({said}), {rest} start anew; "
        told += f"{len(weights) - used} tensors of the file are left"
    if told:
        row, there = info.weights, "the file" if isinstance(source, dict) else str(source)
        how.say(f"{row.get('hub') or row['url'] if source is True else there}: {told}")


def _told(own: State, taken: Set[str], others: Mapping[str, tuple], anew: tuple[str, ...]) -> str:
    """What is said of a classifier that is not the file's: a sentence, or ""."""
    fresh = {key: tuple(t.shape) for key, t in own.items() if key.startswith(anew) and key not in taken}
    if not anew or not (fresh or others):
        return ""
    there, here = ([s[0] for s in found.values() if len(s) == 2] for found in (others, fresh))
    if not here:
        return f"its classifier, of {there[-1]:,} classes, is left out" if there else ""
    why = f"its classifier is for {there[-1]:,} classes" if there else "it has no classifier"
    return f"{why}: the one of this model, for {here[-1]:,}, starts anew"


def _find(info: ModelInfo, source: Source) -> Weights:
    """The published weights of a size (True), or those at a path or URL, with what lies in folders beside them."""
    if isinstance(source, dict):
        return source if isinstance(source, Weights) else Weights(source)
    row, where = info.weights, str(source)
    folders: tuple[str, ...] = row.get("folders", ())
    under = row.get("under", "")
    fetch: Callable[..., Path]
    if source is True and not {"hub", "url"} & row.keys():
        raise PlaitError(f"{info.name} has no published weights: give pretrained= a path or a URL")
    if source is True and "hub" in row:
        fetch, first = partial(hub_file, row["hub"], revision=row.get("revision", "main")), row["file"]
        file = fetch(first, sha256=row.get("sha256"))
    elif (first := row["url"] if source is True else where).startswith(("http://", "https://")):
        fetch = lambda name: url_file(urljoin(first, name))  # noqa: E731
        file = url_file(first, row.get("sha256") if source is True else None)
    else:
        place, found = Path(where).expanduser(), read_weights(where, under)
        for folder in folders:
            if (inner := (place if place.is_dir() else place.parent) / folder).is_dir():
                found.take(read_weights(inner), f"{folder}.")
        return found
    found = read_shards(file, fetch) if file.name.endswith(INDEX) else read_weights(file, under)
    for folder in folders:
        found.take(read_weights(fetch(f"{folder}/model.safetensors")), f"{folder}.")
    return found


def _published(
    info: ModelInfo, model: nn.Module, weights: State, anew: tuple[str, ...], some: bool = False
) -> tuple[str, Iterable[tuple[list[Tensor], State]]]:
    """The part of `model` that a file holds, by name ("": all), and the file's tensors in our layout, as `assign` takes
    them. some: leave out those that are in no layout."""
    body = {k for k in model.state_dict() if not k.startswith(anew)}
    source = info.weights.get("source", "plait")
    layouts = {name: rules_of(model, name) for name in sorted(_rules(model), key=lambda name: name != source)}

    def mine(keys: Iterable[str]) -> bool:  # our layout, perhaps with some keys too few or too many
        said = {k for k in keys if not k.startswith(anew)}
        return said <= body or said >= body

    def speaks(keys: Iterable[str]) -> int:
        return max((known(keys, rules) for rules in layouts.values()), default=0)

    names = unwrapped(weights)
    for holder in HOLDERS:
        inner = {key: name.removeprefix(holder) for key, name in names.items()}
        if not all(name.startswith(holder) for name in names.values()) or mine(names.values()):
            continue
        if mine(inner.values()) or speaks(inner.values()) > speaks(names.values()):
            names = inner
    weights = {names[key]: tensor for key, tensor in weights.items()}
    if mine(weights) or not layouts or (some and len(body & weights.keys()) > speaks(weights)):
        return "", (([tensor], {key: tensor}) for key, tensor in weights.items())
    # some publish only a part, such as a shared encoder
    spoken = {name: known(weights, rules) for name, rules in layouts.items()}
    best = max(spoken.values()) if some else len(weights)
    rules = layouts[next((name for name, count in spoken.items() if count == best), next(iter(layouts)))]
    if some:
        weights = {key: tensor for key, tensor in weights.items() if known([key], rules)}
    return info.weights.get("part", ""), converted(weights, rules)


def load_weights(model: nn.Module, state: State, source: str = "plait") -> nn.Module:
    """Load a state dict of the layout `source` ("plait" is ours; the others are the keys of the system's RULES).

    Strict: an unknown, missing or reshaped key raises ValueError and leaves the model as it was.
    """
    load_strict(model, state if source == "plait" else convert(state, rules_of(model, source)))
    return model


def save_weights(model: nn.Module, source: str = "plait") -> State:
    """The state dict of `model` in the layout `source`, so that the peer can load what was trained here."""
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return state if source == "plait" else convert(state, rules_of(model, source), reverse=True)


def reset_classifier(model: nn.Module, num_classes: int, *, seed: int = 0) -> nn.Module:
    """Give a model of `create_model` a classifier for another number of classes, in place; all else stays. A detector's
    is for that many labels. 0: none, so that it answers with its features.

    Its numbers are those that `create_model(name, num_classes=num_classes, seed=seed)` begins with. Returns `model`.
    Raises PlaitError for a model that has no classifier, or that was made in another way.
    """
    name, arguments = getattr(model, "origin", (None, {}))
    known = inspect.signature(type(model)).parameters
    key = next((k for k in ("num_classes", "labels") if k in known), None)
    if name is None or key is None:
        raise PlaitError(
            f"{type(model).__name__} has no classifier to reset: expected a model that `create_model` made with "
            "num_classes or labels"
        )
    arguments = {**arguments, key: num_classes}
    fresh, dtype = build(name, **arguments), next(model.parameters()).dtype
    places = [prefix.rstrip(".").rpartition(".")[::2] for prefix in cast("tuple[str, ...]", model.classifier)]
    there = {place for place, _ in places} & {n for n, _ in model.named_modules()}
    pairs = [(place, leaf, *(getattr(m.get_submodule(place), leaf) for m in (model, fresh)))
             for place, leaf in places if place in there]  # fmt: skip
    other = [p for p in pairs if _shapes(p[2]) != _shapes(p[3])]
    for place, leaf, _, new in other or pairs:  # what is for something else, such as for letters, stays
        setattr(model.get_submodule(place), leaf, None if new is None else new.train(model.training))
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("meta"))
    if device.type != "meta":
        initialise_rest(model, seed=seed, device=device).to(dtype)
    vars(model)["origin"] = (name, arguments)
    return model


def _shapes(module: nn.Module | None) -> dict[str, torch.Size]:
    return {} if module is None else {key: t.shape for key, t in module.state_dict().items()}


def rules_of(model: nn.Module, source: str) -> list[Rule]:
    """The rules of the layout `source` for this model. Raises ValueError for one that its system does not know."""
    rules = _rules(model)
    if source not in rules:
        raise PlaitError(
            f"{type(model).__name__} has no rules for the layout {source!r}: "
            f"expected one of {', '.join(['plait', *rules])}"
        )
    return rules[source](model) if callable(rules[source]) else rules[source]


def _rules(model: nn.Module) -> dict:
    return getattr(sys.modules[type(model).__module__], "RULES", {})
