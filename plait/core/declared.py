"""Plain JSON held to what it is declared to be: types as annotations write them, and records of named values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from plait.errors import PlaitError

WHOLE = 1 << 53  # larger numbers are no longer told apart by what reads JSON elsewhere
DEPTH = 30


class Misfit(PlaitError):
    """What stands in a file is not what is declared. key: where, such as "recipe.arguments.depth"."""

    def __init__(self, key: str, why: str):
        super().__init__(f"{key or 'it'}: {why}")
        self.key, self.why = key, why


@dataclass(frozen=True)
class Record:
    """An object with these keys. optional: it may lack them. more: others are allowed, and not looked at."""

    keys: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False


@dataclass(frozen=True)
class Within:
    """A number of that type from `low` to `high`."""

    type: Any
    low: float
    high: float = math.inf


def each(one: Any) -> Any:
    """A list of these."""
    return list[one]


def named(one: Any) -> Any:
    """An object of these, by any names."""
    return dict[str, one]


def some(*kinds: Any) -> Any:
    """A list of just so many."""
    return tuple[kinds]  # type: ignore[valid-type]


def one_of(names: Iterable[str]) -> Any:
    return Literal[tuple(names)]


def of_class(made: type, *, more: bool = False, **otherwise: Any) -> Record:
    """What a dataclass takes, by its annotations. otherwise: what fields are declared to be in its JSON instead."""
    hints = get_type_hints(made) | otherwise
    own = {f.name: hints[f.name] for f in fields(made) if f.init}
    free = {f.name for f in fields(made) if f.default is not MISSING or f.default_factory is not MISSING}
    return Record({k: v for k, v in own.items() if k not in free}, {k: own[k] for k in own if k in free}, more)


def check(value: Any, want: Any, key: str = "") -> None:
    """Raises Misfit where `value` is not a `want`: an annotation, a dataclass, a `Record` or a `Within`. Numbers are
    finite."""
    why = _misfit(value, want, key, DEPTH)
    if why is not None:
        raise why


def _misfit(value: Any, want: Any, key: str, depth: int) -> Misfit | None:
    if depth == 0:
        return Misfit(key, "too deep")
    if is_dataclass(want) and isinstance(want, type):
        want = of_class(want)
    if isinstance(want, Record):
        return _record(value, want, key, depth)
    if isinstance(want, Within):
        if (odd := _misfit(value, want.type, key, depth)) is not None or value is None:
            return odd
        fits = want.low <= value <= want.high
        return None if fits else Misfit(key, f"got {_shown(value)}, expected {want.low:g} to {want.high:g}")
    origin, inner = get_origin(want), get_args(want)
    if origin in (Union, UnionType):
        found = [_misfit(value, one, key, depth) for one in inner]
        deeper = [one for one in found if one is not None and one.key != key]
        return None if None in found else deeper[0] if deeper else Misfit(key, _got(value, want))
    if origin is Literal:
        same = any(type(value) is type(one) and value == one for one in inner)
        return None if same else Misfit(key, f"got {_shown(value)}, expected {' or '.join(map(repr, inner))}")
    if origin is dict:
        if not isinstance(value, dict):
            return Misfit(key, _got(value, want))
        return _first(_misfit(v, inner[1], _under(key, k), depth - 1) for k, v in value.items())
    if origin in (list, tuple) or want in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return Misfit(key, _got(value, want))
        if origin is tuple and inner[-1] is not ...:
            if len(value) != len(inner):
                return Misfit(key, f"got {len(value)} values, expected {len(inner)}")
            kinds: Any = inner
        else:
            kinds = [inner[0] if inner else Any] * len(value)
        return _first(_misfit(v, k, f"{key}[{i}]", depth - 1) for i, (v, k) in enumerate(zip(value, kinds)))
    return _plain(value, want, key, depth)


def _record(value: Any, want: Record, key: str, depth: int) -> Misfit | None:
    if not isinstance(value, dict):
        return Misfit(key, _got(value, dict))
    if lacking := [k for k in want.keys if k not in value]:
        return Misfit(_under(key, lacking[0]), "is missing")
    known = {**want.keys, **want.optional}
    if not want.more and (odd := [k for k in value if k not in known]):
        return Misfit(_under(key, odd[0]), f"is not known; known are {', '.join(known)}")
    return _first(_misfit(value[k], v, _under(key, k), depth - 1) for k, v in known.items() if k in value)


def _plain(value: Any, want: Any, key: str, depth: int) -> Misfit | None:
    """A value without parts, or any."""
    if want is Any or want is dict:
        if isinstance(value, dict):
            return _misfit(value, dict[str, Any], key, depth)
        if want is Any and isinstance(value, (list, tuple)):
            return _misfit(value, list[Any], key, depth)
        if want is dict:
            return Misfit(key, _got(value, want))
        want = type(value)
    want = NoneType if want is None else want
    fits = isinstance(value, want) or (want is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and want in (int, float)):
        return Misfit(key, _got(value, want))
    if isinstance(value, float) and not math.isfinite(value):
        return Misfit(key, f"got {value}, expected a finite number")
    if isinstance(value, int) and abs(value) > WHOLE:
        return Misfit(key, f"got a number of {len(hex(value)) * 4} bits, expected one of 53")
    return None


def _first(found: Any) -> Misfit | None:
    return next((one for one in found if one is not None), None)


def _under(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _got(value: Any, want: Any) -> str:
    names = {NoneType: "null", dict: "an object", list: "a list", str: "a text", int: "a whole number"}
    names |= {float: "a number", bool: "true or false"}

    def named(one: Any) -> str:
        if get_origin(one) in (Union, UnionType):
            return " or ".join(map(named, get_args(one)))
        if get_origin(one) is Literal:
            return " or ".join(map(repr, get_args(one)))
        one = get_origin(one) or one
        return names.get(list if one is tuple else one, "an object" if isinstance(one, Record) else str(one))

    return f"got {_shown(value)}, expected {named(want)}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) <= WHOLE else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
