"""Public weight layouts to ours and back: declarative rules, strict and reversible.

A rule maps patterns of keys to patterns of keys. `{i}` stands for one part of a dotted key, `{rest*}` for one or more.
Rules are tried in order and each key is used once; a key that no rule knows raises.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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


def Join(public: Sequence[str], ours: str) -> Rule:
    """Several tensors of one shape become one, stacked along dimension 0: separate q, k, v to a fused one."""
    count = len(public)
    return Rule(tuple(public), (ours,), lambda ts: [torch.cat(ts)], lambda ts: list(ts[0].chunk(count)))


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
            raise ValueError(
                f"{' and '.join(public)} differ: expected one tensor under all these names, tie them before loading"
            )
        return tensors[:1]

    return Rule(tuple(public), (ours,), one, lambda ts: [ts[0].clone() for _ in public])


def Drop(public: str) -> Rule:
    """A public key that carries nothing learned (position numbers, counters). It does not come back."""
    return Rule((public,), ())


def convert(state: State, rules: Sequence[Rule], *, reverse: bool = False) -> State:
    """Our layout of a public state dict (or, reversed, the public layout of ours).

    Raises ValueError for keys that no rule knows, for an incomplete group, and for two sources of one key.
    """
    left, done = dict(state), {}
    for rule in rules:
        sources, targets, change = (rule.ours, rule.public, rule.back) if reverse else (rule.public, rule.ours, rule.to)
        if not sources:  # a dropped key: nothing of ours to turn back
            continue
        pattern = _pattern(sources[0])
        for key in [k for k in left if pattern.fullmatch(k)]:
            found = pattern.fullmatch(key).groupdict()
            keys = [_fill(s, found) for s in sources]
            if missing := [k for k in keys if k not in left]:
                raise ValueError(f"{key} is there but {', '.join(missing)} is missing: the weights are incomplete")
            for name, tensor in zip(
                [_fill(t, found) for t in targets], change([left.pop(k) for k in keys]), strict=bool(targets)
            ):
                if name in done:
                    raise ValueError(f"two sources for {name}: the last was {key}")
                done[name] = tensor
    if left:
        raise ValueError(f"{len(left)} keys that no rule knows: {_some(left)}. Is this the layout that `source` names?")
    return done


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
    """Load our layout into `model`; a missing, unknown or reshaped key raises ValueError and changes nothing."""
    own = model.state_dict()
    faults = []
    if missing := own.keys() - state.keys():
        faults.append(f"missing {_some(missing)}")
    if unknown := state.keys() - own.keys():
        faults.append(f"unknown {_some(unknown)}")
    for key in sorted(own.keys() & state.keys()):
        if own[key].shape != state[key].shape:
            faults.append(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights do not fit {type(model).__name__}: {'; '.join(faults[:5])}{more}")
    model.load_state_dict(state)


def read_state(path: str | Path) -> State:
    """Tensors of a file: safetensors, or a pickle of which only tensors and plain containers are read, so that no code
    runs.

    Raises ValueError for a file that is not there, is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or not a whole one: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} is damaged or holds more than tensors, and none of its code is run: {reason}"
        ) from error
    for key in ("state_dict", "model"):  # the usual wrappers of a bare state dict
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds no state dict: expected names and tensors, bare or under 'state_dict' or 'model'"
        )
    return state
