"""Public weight layouts to ours and back: declarative rules, strict and reversible.

A rule maps patterns of keys to patterns of keys. `{i}` stands for one part of a dotted key, `{rest*}` for one or more.
Rules are tried in order and each key is used once; a key that no rule knows raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plait.errors import PlaitError

State = dict[str, Tensor]


def _same(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Tensors under the keys `public`, changed by `to`, are ours under `ours`; `back` undoes it."""

    public: tuple[str, ...]
    ours: tuple[str, ...]
    to: Callable[[list[Tensor]], list[Tensor]] = _same
    back: Callable[[list[Tensor]], list[Tensor]] = _same


def Rename(public: str, ours: str) -> Rule:
    """The same tensor under another name."""
    return Rule((public,), (ours,))


def Join(public: Sequence[str], ours: str, shares: Sequence[int] | None = None) -> Rule:
    """Several tensors become one, stacked along dimension 0: separate q, k, v to a fused one. shares: how long they are
    in proportion, such as (1, 2) for q and kv; None: all alike."""
    parts = tuple(shares or (1,) * len(public))

    def back(tensors: list[Tensor]) -> list[Tensor]:
        unit = len(tensors[0]) // sum(parts)
        return list(tensors[0].split([unit * part for part in parts]))

    return Rule(tuple(public), (ours,), lambda ts: [torch.cat(ts)], back)


def Split(public: str, ours: Sequence[str]) -> Rule:
    """One tensor is cut into equal pieces along dimension 0: a fused qkv to separate ones."""
    count = len(ours)
    return Rule((public,), tuple(ours), lambda ts: list(ts[0].chunk(count)), lambda ts: [torch.cat(ts)])


def Transpose(public: str, ours: str) -> Rule:
    """A matrix that multiplies from the right becomes the weight of a Linear."""
    return Rule((public,), (ours,), lambda ts: [ts[0].mT.contiguous()], lambda ts: [ts[0].mT.contiguous()])


def View(public: str, ours: str, shape: Sequence[int], public_shape: Sequence[int]) -> Rule:
    """The same numbers in another shape: `shape` here, `public_shape` there; -1 as in Tensor.reshape."""
    return Rule(
        (public,), (ours,), lambda ts: [ts[0].reshape(tuple(shape))], lambda ts: [ts[0].reshape(tuple(public_shape))]
    )


def Lift(public: str, ours: str) -> Rule:
    """One more leading dimension here, of size one."""
    return Rule((public,), (ours,), lambda ts: [ts[0][None]], lambda ts: [ts[0][0]])


def Tied(public: Sequence[str], ours: str) -> Rule:
    """One tensor of ours that the public layout holds under several names; ValueError where they differ.

    Where the first name is missing the rule does not apply, so that a `Rename` of another one after it reads files
    without the copy.
    """

    def one(tensors: list[Tensor]) -> list[Tensor]:
        first = tensors[0]
        if any(t.shape != first.shape or not (t.is_meta or torch.equal(t, first)) for t in tensors):
            raise PlaitError(
                f"{' and '.join(public)} differ: expected one tensor under all these names, tie them before loading"
            )
        return tensors[:1]

    return Rule(tuple(public), (ours,), one, lambda ts: [ts[0].clone() for _ in public])


def Drop(public: str) -> Rule:
    """A public key that carries nothing learned (position numbers, counters). It does not come back."""
    return Rule((public,), ())


def under(rules: Sequence[Rule], public: str = "", ours: str = "") -> list[Rule]:
    """The same rules of a part whose keys begin with `public` there and with `ours` here."""
    return [
        replace(rule, public=tuple(public + key for key in rule.public), ours=tuple(ours + key for key in rule.ours))
        for rule in rules
    ]


def convert(state: State, rules: Sequence[Rule], *, reverse: bool = False) -> State:
    """Our layout of a public state dict (or, reversed, the public layout of ours).

    Raises ValueError for keys that no rule knows, for an incomplete group, and for two sources of one key.
    """
    return {name: tensor for _, made in converted(state, rules, reverse=reverse) for name, tensor in made.items()}


def converted(state: State, rules: Sequence[Rule], *, reverse: bool = False) -> Iterator[tuple[list[Tensor], State]]:
    """As `convert`, group by group as the rules find them: the tensors of `state`, and what they become."""
    left: dict[str, Tensor] = dict(state)
    done: set[str] = set()
    for rule in rules:
        sources, targets, change = (rule.ours, rule.public, rule.back) if reverse else (rule.public, rule.ours, rule.to)
        if not sources:  # a dropped key: nothing of ours to turn back
            continue
        pattern = _pattern(sources[0])
        for match in [m for k in left if (m := pattern.fullmatch(k))]:
            key, found = match[0], match.groupdict()
            keys = [_fill(s, found) for s in sources]
            if missing := [k for k in keys if k not in left]:
                raise PlaitError(f"{key} is there but {', '.join(missing)} is missing: the weights are incomplete")
            taken, names = [left.pop(k) for k in keys], [_fill(t, found) for t in targets]
            if twice := done.intersection(names):
                raise PlaitError(f"two sources for {', '.join(twice)}: the last was {key}")
            done.update(names)
            try:
                made = change(taken)
            except (RuntimeError, IndexError) as error:
                shapes = ", ".join(f"{k} {tuple(t.shape)}" for k, t in zip(keys, taken))
                raise PlaitError(f"got tensors that do not go together: {shapes}: {error}") from error
            yield taken, dict(zip(names, made, strict=bool(targets)))
    if left:
        _refuse_headless(left, [rule.ours if reverse else rule.public for rule in rules])
        raise PlaitError(f"{len(left)} keys that no rule knows: {_some(left)}. Is this the layout that `source` names?")


def _refuse_headless(left: State, groups: Sequence[Sequence[str]]) -> None:
    """Raise ValueError where keys are left because the first of their group, by which it is found, is missing."""
    short = []
    for sources in groups:
        names = {name for source in sources for name in re.findall(r"\{(\w+)", source)}
        for key, pattern in ((key, _pattern(s)) for s in sources[1:] for key in left):
            if (match := pattern.fullmatch(key)) and names <= match.groupdict().keys():
                short.append(([k for s in sources if (k := _fill(s, match.groupdict())) not in left], key))
    if short:
        missing, key = min(short, key=lambda pair: len(pair[0]))
        raise PlaitError(f"{key} is there but {', '.join(missing)} is missing: the weights are incomplete")


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{\w+\*?\})", template)
    seen, out = set(), ""
    for part in parts:
        if not part.startswith("{"):
            out += re.escape(part)
            continue
        name = part.strip("{}*")
        out += f"(?P={name})" if name in seen else f"(?P<{name}>{'.+' if '*' in part else '[^.]+'})"
        seen.add(name)
    return re.compile(out)


def _fill(template: str, found: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\*?\}", lambda m: found[m[1]], template)


def _some(keys, count: int = 5) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")


def load_strict(model: nn.Module, state: State) -> None:
    """Copy our layout into `model`; a missing, unknown or reshaped key raises ValueError and changes nothing."""
    refuse_misfit(model, {k: v.shape for k, v in state.items()})
    model.load_state_dict(state)


def refuse_misfit(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError unless tensors of these names and shapes are all that `model` keeps."""
    own = model.state_dict()
    faults = []
    if missing := own.keys() - shapes.keys():
        faults.append(f"missing {_some(missing)}")
    if unknown := shapes.keys() - own.keys():
        faults.append(f"unknown {_some(unknown)}")
    for key in sorted(own.keys() & shapes.keys()):
        if own[key].shape != tuple(shapes[key]):
            faults.append(f"{key} has shape {tuple(shapes[key])}, expected {tuple(own[key].shape)}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise PlaitError(f"the weights do not fit {type(model).__name__}: {'; '.join(faults[:5])}{more}")


@torch.no_grad()
def refitted(model: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """A tensor of another shape as its module, or the one that holds it, makes one of the right shape of it, as of
    positions that were learned for smaller pictures; None where neither has a `refit(key, tensor)`, or that gives none.
    Raises PlaitError, by `refit`, for what can be of no other size."""
    place = name.rpartition(".")[0]
    for where in (place, place.rpartition(".")[0]):
        refit: Callable[[str, Tensor], Tensor | None] | None = getattr(model.get_submodule(where), "refit", None)
        if refit is not None:
            found = refit(name.removeprefix(where).lstrip("."), tensor)
            own: Tensor = getattr(model.get_submodule(place), name.rpartition(".")[2])
            return found if found is not None and found.shape == own.shape else None
    return None


# What wrappers put into keys: DataParallel and DDP; torch.compile; FSDP; recomputation.
WRAPPING = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Under which a model of others may keep the one that is looked for.
HOLDERS = ("model.", "backbone.", "encoder.", "net.", "network.", "student.", "teacher.", "bound.system.")


def unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """{key: the same without what wrappers put there}."""
    bare = {}
    for key in keys:
        name = key
        for mark in WRAPPING:
            name = name.replace(mark, "")
        bare[key] = name
    while bare and all(name.startswith("module.") for name in bare.values()):
        bare = {key: name.removeprefix("module.") for key, name in bare.items()}
    return bare


def known(keys: Iterable[str], rules: Sequence[Rule]) -> int:
    """How many keys the rules speak of."""
    patterns = [_pattern(name) for rule in rules for name in rule.public]
    return sum(any(pattern.fullmatch(key) for pattern in patterns) for key in keys)


def assign(
    model: nn.Module,
    groups: Iterable[tuple[list[Tensor], State]],
    *,
    anew: tuple[str, ...] = (),
    left: Set[str] = frozenset(),
    release: Callable[[list[Tensor]], None] = lambda _: None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    share: bool = False,
) -> tuple[set[str], dict[str, torch.Size]]:
    """Make the tensors of `groups` (as `converted` gives them) those of `model`, which is on meta; each is moved and
    cast as it comes, and floating ones are of `dtype`, else of the type that the model declares.

    anew: the beginnings of keys that may be for another shape, or missing: these are then left on meta.
    left: names that are not asked for, and stay on meta.
    release: called with what a group was made of, when nothing more is read of it.
    share: a tensor that needs no change is not copied either.
    Returns the names that were given, and the shapes of those that were put aside because the classes are others.
    Raises ValueError where a key is missing, unknown or reshaped; `model` is then to be thrown away.
    """
    own, shapes, aside, seen = model.state_dict(), {}, {}, set()
    given: set[str] = set()

    def put(name: str, tensor: Tensor) -> None:
        like = own[name]
        given.add(name)
        new = tensor.detach().to(device, dtype if dtype is not None and like.is_floating_point() else like.dtype)
        storage = new.untyped_storage()
        if new.data_ptr() == tensor.data_ptr() and not (
            share and new.is_contiguous() and storage.nbytes() == new.nbytes and storage.data_ptr() not in seen
        ):
            new = new.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        place, _, last = name.rpartition(".")
        module = model.get_submodule(place)
        if (old := module._parameters.get(last)) is not None:
            module._parameters[last] = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            module._buffers[last] = new

    for taken, made in groups:
        for name, tensor in made.items():
            shapes[name] = tensor.shape
            if name.startswith(anew):
                aside[name] = tensor
            elif name in own and own[name].shape == tensor.shape:
                put(name, tensor)
            elif name in own and (other := refitted(model, name, tensor)) is not None:
                shapes[name] = other.shape
                put(name, other)
        release(taken)
    ours = {k: v.shape for k, v in own.items() if k.startswith(anew) and k not in left}
    theirs = {k: shapes[k] for k in aside}
    others: dict[str, torch.Size] = {}
    if not ours or not theirs or ours.keys() == theirs.keys() and ours != theirs:
        others, shapes, aside = theirs, {k: v for k, v in shapes.items() if k not in theirs} | ours, {}
    refuse_misfit(model, shapes | {k: own[k].shape for k in left})
    for name, tensor in aside.items():
        put(name, tensor)
    return given, others
