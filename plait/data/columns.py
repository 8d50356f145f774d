"""What is known of one column, and which columns feed one input of a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Column:
    """One column. `use` is "input", "target", "group", "split", "weight", "negative" or "ignored"; `style` says how its
    cells are written, as the whole training file tells; `params` is what its kind learnt of the training rows.

    style, plain JSON, each where it has a say: `blanks`, words that stand for nothing; `number` and `moment`, as
    `plait.data.numerals` and `plait.data.moments` have them; `one`, the value of cells that have it or none; `order`,
    the values of a category whose type has them in order, or all levels of an ordinal; `type`, of a target in the
    training table; `ranked`, whether that was an ordered category; `like`, of a negative, the input that it is read as.
    """

    name: str
    kind: str
    why: str
    use: str = "input"
    params: dict = field(default_factory=dict)
    style: dict = field(default_factory=dict)


@dataclass
class Slot:
    """One input of the model and the columns that feed it, or one target. `kind`: a name in `KINDS`."""

    name: str
    kind: str
    columns: list[str]
