"""What every kind of column has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from plait.core.declared import Record, Within
from plait.data import moments, numerals
from plait.data.distinct import values_of
from plait.data.drawn import drawn
from plait.data.kinds.place import Bad, Missing, Place
from plait.data.stores import Fixed, Ragged
from plait.parts.presence import Blank

LOOK = 1000  # cells: of most columns so many show that values are several
SEEN = 1000  # cells of a sample
COUNT, SIZE, SPREAD = Within(int, 0), Within(int, 1, 1 << 26), Within(float, 5e-324)  # what params are declared to be
BY_TOWER = {"width": SIZE, "mean": list[float], "std": list[SPREAD]}  # those of a column that a published tower reads


@dataclass
class FitOptions:
    """What a caller may fix before a kind learns the rest from the training rows."""

    place: Place
    image_size: list[int] | None = None
    max_tokens: int | None = None
    vocab: int = 8000
    tokenizer_file: str | None = None
    longest: float = 0.99  # the share of the sounds that are read whole
    crop: dict | None = None  # of pictures: crop_pct, crop_mode and interpolation, where weights are published
    pieces: int | None = None  # of words, that texts are spelled in; None: characters
    tokenizer: str | None = None  # one that was learnt already, serialised
    rate: int | None = None  # of sounds, where the model hears one
    prefix: str = ""  # what is put before every text, where weights were trained so
    closed: bool = True  # whether an end is put after a text that is read
    style: dict = field(default_factory=dict)  # how the column is written, as the whole file tells


class FileStyle(NamedTuple):
    """What a file's other columns tell of one that could be read in two ways: its decimal mark, which of day and month
    comes first, and whether words such as NA mean that nothing is there."""

    decimal: str | None = None
    first: str | None = None
    textual: bool = False


@dataclass
class Glance:
    """A column as it looks before anything is decided: what the guesses go by. declared: the values of a type that is a
    category, in their order."""

    name: str
    column: pa.ChunkedArray
    place: Place
    file: FileStyle = FileStyle()
    declared: list | None = None
    written: pa.ChunkedArray | None = None  # as the file has it, where the type lost some of that
    _matched: dict[tuple[str, float], int] = field(default_factory=dict, repr=False)

    @cached_property
    def filled(self) -> pa.ChunkedArray:
        """The cells that hold a value."""
        return self.column.drop_null()

    @cached_property
    def count(self) -> int:
        return len(self.filled)

    @cached_property
    def distinct(self) -> int:
        """The number of different values; -1 where the type (lists, structs) does not tell."""
        return -1 if pa.types.is_nested(self.column.type) else pc.count_distinct(self.filled).as_py()

    def over(self, most: int) -> bool:
        """Whether there are more different values than that; nested ones are not told apart."""
        if pa.types.is_nested(self.column.type):
            return False
        return pc.count_distinct(self.filled.slice(0, LOOK)).as_py() > most or self.distinct > most

    @cached_property
    def sample(self) -> list:
        """At most 1,000 values, drawn at random (always the same ones), in their order."""
        return drawn(self.filled, SEEN).to_pylist()

    @cached_property
    def constant(self) -> bool:
        """Whether there is one value."""
        return not self.over(1) and self.distinct == 1

    @cached_property
    def one_or_blank(self) -> bool:
        """Whether cells have one value, or none."""
        return self.column.null_count > 0 and self.constant

    @cached_property
    def is_text(self) -> bool:
        return pa.types.is_string(self.column.type) or pa.types.is_large_string(self.column.type)

    @cached_property
    def may_hold_bytes(self) -> bool:
        """Whether cells may be the bytes of files."""
        kind = self.column.type
        return not (pa.types.is_primitive(kind) or pa.types.is_boolean(kind))

    @cached_property
    def numeral(self) -> dict:
        """How numbers are written here, if these are some."""
        if not self.is_text:
            return numerals.PLAIN | {"decimal": self.file.decimal or "."}
        return numerals.learn(self.filled, self.file.decimal)

    @cached_property
    def moment(self) -> tuple[dict, float]:
        """How dates are written here, and the share of the cells that this reads."""
        told = self.is_text or pa.types.is_integer(self.column.type)
        return moments.learn(self.name, self.filled, self.file.first) if told else (moments.DATES, 0.0)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The numbers among the values, float64; of strings those of the sample."""
        if self.is_text:
            found = (numerals.number(v, self.numeral) for v in self.sample)
            return np.asarray([v for v in found if not isinstance(v, str)])
        kind = self.column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            return np.zeros(0)
        values = self.filled.cast(pa.float64(), safe=False).to_numpy()
        return values[np.isfinite(values)]

    def matching(self, pattern: str, least: float = 0.0) -> int:
        """How many text cells match a regular expression (RE2). least: of what share is asked; 0 is told where some
        that are drawn are far below it."""
        if not self.is_text:
            return 0
        if (pattern, least) not in self._matched:
            self._matched[pattern, least] = self._matching(pattern, least)
        return self._matched[pattern, least]

    def mostly(self, pattern: str) -> bool:
        """Whether at least 19 of 20 text cells match."""
        return 20 * self.matching(pattern, 0.95) >= 19 * self.count

    def _matching(self, pattern: str, least: float) -> int:
        def found(texts: Any) -> Any:
            return pc.match_substring_regex(texts, pattern, ignore_case=True)

        if least:
            some = drawn(self.filled, LOOK)
            if 4 * (pc.sum(found(some)).as_py() or 0) < least * len(some):
                return 0
        if self._values is None:
            return int(pc.sum(found(self.filled)).as_py() or 0)
        values, counts = self._values
        return int(counts[found(values).to_numpy(False)].sum())

    @cached_property
    def _values(self) -> tuple[pa.Array, np.ndarray] | None:
        """The different texts and how often each is there, where they repeat."""
        found = values_of(self.filled)
        return None if found is None else (found[0], np.bincount(found[1], minlength=len(found[0])))

    def share(self, test: Callable[[Any], bool]) -> float:
        """The share of the sampled values that pass a test."""
        return sum(map(test, self.sample)) / len(self.sample) if self.sample else 0.0


class Encoded(NamedTuple):
    """A whole encoded column: values (n, F), real (n,) bool, and the bad cells as (row, reason)."""

    values: np.ndarray
    real: np.ndarray
    bad: list[tuple[int, str]]


class Survey(NamedTuple):
    """What reading a column told without keeping its values: real (n,) bool, the bad cells as (row, reason), and what
    was not counted but estimated, in a sentence."""

    real: np.ndarray
    bad: list[tuple[int, str]]
    said: str = ""


class Kind:
    """One kind of column: from cells to tokens, and from answers to cells. A new kind is a file with a subclass of this
    and a line in `KINDS`.

    Kinds with `own_slot` get a slot per column, are decoded cell by cell by `encode`, and stack through `store`.
    The others share the slot named `slot`, are encoded by the column, and stack side by side; that slot's kind is the
    one of its name, which then speaks for all its columns.

    straight: a linear model can read it as it is, through `raw`. late: what `encode` gives is kept small, and
    `preprocess` is left to the model, batch by batch; the other kinds pass their cells through it in `encode`.
    of_file: what the whole file tells is needed to read it, so that who asks for it says so before a table is guessed.
    suffix: of the files that answers are written to, where `write` gives bytes. follows: the kinds of inputs whose
    changes in augmentation a target of this kind goes along with. lies_on: the kinds of inputs that answers lie on: a
    batch then says which `window` of each is seen.

    learnt: what `fit` and `fit_target` give, so that what a file says instead is refused (`disagrees`: where it does
    not go together).

    A target column is fitted by `fit_target`, encoded as an input is, and what is asked of a batch is `target`.
    """

    name: str = ""
    slot: str = ""
    own_slot: bool = True
    media: bool = False
    straight: bool = False
    late: bool = False
    of_file: bool = False
    dtype: type = np.float32  # of the encoded cells of a shared slot
    suffix: str = ""
    follows: tuple[str, ...] = ()
    lies_on: tuple[str, ...] = ()
    learnt: ClassVar[Record] = Record({}, more=True)
    features: tuple[str, ...] = ()  # names of the features, where a cell of a shared slot becomes several

    def guess(self, glance: Glance) -> str | None:
        """A printable reason why the column is of this kind, or None where it is not."""
        raise NotImplementedError

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """What is learnt from the training rows, as a dict that JSON can hold."""
        raise NotImplementedError

    def disagrees(self, params: dict) -> str:
        """Which of params that are each as `learnt` says do not go together, in a few words; "" where all do."""
        wide = params.get("width", params.get("channels"))
        for name in ("mean", "std"):
            if isinstance(params.get(name), list) and len(params[name]) != wide:
                return f"{name} has {len(params[name])} numbers, expected {wide}"
        for name in ("counts", "classes", "usual"):
            if isinstance(params.get(name), list) and len(params[name]) != len(params["values"]):
                return f"{name} has {len(params[name])} entries, and there are {len(params['values'])} values"
        values = params.get("values", [])
        return "a value is there twice" if len(set(values)) < len(values) else ""

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        """One cell that is not null. Raises Bad or Missing."""
        raise NotImplementedError

    def encode_some(self, cells: list, params: dict, place: Place) -> list[np.ndarray | Bad | Missing | None]:
        """Some cells, null ones among them: what `encode` gives or raises, None for a null."""
        out: list[np.ndarray | Bad | Missing | None] = []
        for cell in cells:
            try:
                out.append(None if cell is None else self.encode(cell, params, place))
            except (Bad, Missing) as reason:
                out.append(reason)
        return out

    def width(self, params: dict) -> int:
        """The number of features per cell; for images, texts and sounds the largest length."""
        raise NotImplementedError

    def store(self, rows: int, params: dict) -> Fixed | Ragged:
        """An empty store for encoded cells. Only kinds with `own_slot`."""
        raise NotImplementedError

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """All cells of a column. Only kinds that share a slot."""
        raise NotImplementedError

    def survey(self, column: pa.ChunkedArray, params: dict, place: Place) -> Survey | None:
        """What can be read of a column, where that can be told without its values; None where it takes them."""
        return None

    def write(self, value: np.ndarray, params: dict) -> Any:
        """The cell that `encode` reads as `value`, as far as encoding keeps it."""
        raise NotImplementedError

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """As `fit`, of a column that is asked for."""
        return self.fit(column, options)

    def encode_target(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """As `encode_column`, of a column that is asked for. Only kinds that share a slot."""
        return self.encode_column(column, params, place)

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """What is asked (B, ...): the values, with NaN in place of numbers and -100 in place of ids that are not there;
        (B,) of a kind that shares a slot and has one feature."""
        real = present if keep is None else keep & present[:, None]
        x = x.masked_fill(
            ~real.reshape(*real.shape, *[1] * (x.dim() - real.dim())), torch.nan if x.is_floating_point() else -100
        )
        return x[:, 0] if not self.own_slot and x.shape[1] == 1 else x

    def preprocess(self, params: dict) -> nn.Module | None:
        """From decoded values to what a model reads, and by `inverse` back; None where they are the same."""
        return None

    def shape(self, columns: dict[str, dict]) -> dict:
        """What a model must know of a slot that is fed by `columns`, {name: params}."""
        (params,) = columns.values()
        return dict(params)

    def arguments(self, shape: dict) -> dict:
        """What `tokens`, `blank` and `raw` are told of the slot, beside its name: plain literals out of its `shape`."""
        return {"features": shape["width"]}

    def tokens(self, width: int, **arguments) -> nn.Module:
        """A module that makes values (B, ...) and their keep (or None) Tokens (B, N, width)."""
        raise NotImplementedError

    def blank(self, **arguments) -> Blank:
        """What stands for an absent value: the shape of a row and its dtype."""
        return (arguments["features"],), torch.float32

    def raw(self, x: Tensor, keep: Tensor | None, **arguments) -> Tensor:
        """(B, F) float32 for a linear model. Only `straight` kinds."""
        return x

    def raw_width(self, **arguments) -> int:
        """The number of features that `raw` gives, 0 where a linear model is to leave them alone."""
        return arguments["features"] if self.straight else 0

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, Any]:
        """Values (B, ...) as they might have been just as well, and the change, if targets may have to `follow` it. The
        generator is on the CPU and decides alone.

        whole: nothing that might be asked for is taken away.
        """
        return x, None

    def window(self, cell: Any, params: dict, place: Place) -> list[float]:
        """(left, top, right, bottom): which part of the plane of a picture, in its own pixels, is what `encode` gives.
        Raises Bad or Missing. Only kinds that others lie on."""
        raise NotImplementedError

    def lay(self, x: Tensor, window: Tensor) -> Tensor:
        """What is asked (B, ...), from pixels of pictures to shares of their windows (B, 4). Only kinds that lie on
        others."""
        raise NotImplementedError

    def follow(self, x: Tensor, change: Any) -> Tensor:
        """What is asked (B, ...), changed as an input was. Only kinds that follow others."""
        raise NotImplementedError


def cells_of(column: pa.ChunkedArray, most: int = 0) -> list:
    """The values of a column that are not null, or `most` of them, drawn at random (always the same ones), in order."""
    filled = column.drop_null()
    return (drawn(filled, most) if most else filled).to_pylist()


def counted(part: int, whole: int, what: str) -> str:
    """ "1,180 of 1,200 cells are dates"."""
    return f"{part:,} of {whole:,} cells {what}"
