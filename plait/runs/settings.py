"""Everything that `fit` can be told, in one plain record that goes into the run folder; the command line's options are
made of the same fields."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from plait.core.methods import read_change
from plait.errors import UsageError, nearest
from plait.tasks import CHOICES

IN_MEMORY = "(a table in memory)"
TABLES = ("val", "test")  # settings that are tables


def told(source: Any) -> Any:
    """A table's source in plain JSON: where its files are, whatever the working folder, or `IN_MEMORY`."""
    if isinstance(source, list) and source and all(isinstance(s, (str, Path)) for s in source):
        return [told(s) for s in source]
    return source if source is None else str(Path(source).resolve()) if isinstance(source, (str, Path)) else IN_MEMORY


def setting(help: str, default: Any = None, **how: Any) -> Any:
    """A field with what is said of it. how: of its option, where it has another name (`option`), names its value
    (`metavar`), has a short form (`short`), is read from a text (`read`), or is none (`hidden`)."""
    made = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"help": help, **how})


def whole(text: str) -> int | None:
    """A whole number; None for auto."""
    try:
        return None if text.lower() == "auto" else int(text)
    except ValueError:
        raise UsageError(f"got {text!r}, expected a whole number or auto") from None


def part(text: str) -> tuple[str, str]:
    """ "vision=runs/tower" -> ("vision", "runs/tower")."""
    name, _, where = text.partition("=")
    if not name.strip() or not where.strip():
        raise UsageError(f"got {text!r}, expected PART=RUN, such as vision=runs/tower")
    return name.strip(), where.strip()


def tower(text: str) -> tuple[str, str]:
    """ "text=minilm:folder" -> ("text", "minilm:folder")."""
    kind, _, what = text.partition("=")
    if not kind.strip() or not what.strip():
        raise UsageError(f"got {text!r}, expected KIND=NAME:FOLDER, such as text=sentence_encoder_minilm_l6:minilm")
    return kind.strip(), what.strip()


def class_weights(given: str | dict) -> dict[str, float] | str:
    """ "balanced", or "a=2,b=0.5" -> {"a": 2.0, "b": 0.5}."""
    if given == "balanced":
        return "balanced"
    pairs = given.items() if isinstance(given, dict) else _pairs(given)
    try:
        found = {str(name): float(weight) for name, weight in pairs}
    except (TypeError, ValueError):
        found = {}
    if not found or not all(0 <= weight < float("inf") for weight in found.values()):
        raise UsageError(f"got {given!r}, expected balanced, or numbers from 0 on such as yes=10,no=1")
    return found


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for one in next(csv.reader([text], skipinitialspace=True), []):
        name, _, value = one.rpartition("=")
        yield name.strip(), value if name.strip() else ""


def quantiles(text: str | Iterable[float]) -> list[float]:
    """ "0.1,0.5,90%" -> [0.1, 0.5, 0.9]: different shares between 0 and 1, in order."""
    found = [share(one) for one in text.split(",")] if isinstance(text, str) else [float(one) for one in text]
    if not all(0 < one < 1 for one in found) or len(set(found)) < len(found):
        raise UsageError(f"quantiles: got {text!r}, expected different shares between 0 and 1, such as 0.1,0.5,0.9")
    return sorted(found)


def share(text: str) -> float:
    """ "1%" or "0.01" -> 0.01."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", text)
    if not found:
        raise UsageError(f"got {text!r}, expected a share such as 1% or 0.01")
    return float(found[1]) / (100 if found[2] else 1)


@dataclass
class Settings:
    """The options of a run; defaults suit a table of a few thousand rows on a laptop. None means: decided from the
    data."""

    target: str | list[str] | None = setting(
        "What to predict; several for several labels.", metavar="COLUMN", short="t"
    )
    task: str | None = setting(f"{', '.join(CHOICES[:-1])} or {CHOICES[-1]}; else by target.")
    system: str = setting("A model of `plait models`; by default plait's own, which reads anything.", "auto")
    methods: list[tuple[str, dict[str, Any]]] = setting(
        "Change the model by a method of `plait methods`; several in order.",
        list,
        option="method",
        metavar="NAME:OPTION=VALUE,...",
        read=read_change,
    )
    kinds: dict[str, str] = setting(
        "Take a column for this kind, such as photo=image, or mood=ordinal:bad<so-so<good.",
        dict,
        option="kind",
        metavar="COLUMN=KIND",
    )
    inputs: list[str] | None = setting("Only these inputs, by comma or repetition.", metavar="COLUMNS")
    val: str | None = setting("Rows that watch the training, instead of a tenth.", metavar="TABLE")
    test: str | None = setting("Rows for the report, instead of a tenth.", metavar="TABLE")
    split: str | None = setting("The column that says train, val or test.", metavar="COLUMN")
    group: str | None = setting("Rows with the same value here stay on one side.", metavar="COLUMN")
    time: str | None = setting(
        "Split in this order: the earliest rows train, the latest are for the report.", metavar="COLUMN"
    )
    folds: int | None = setting(
        "Judge by all rows, in so many folds with a training each; auto: 5 where there are 40 to 499; 1: by a tenth.",
        metavar="NUMBER",
        read=whole,
    )
    sample_weight: str | None = setting(
        "How much each row counts in training and in scores: numbers from 0 on.", metavar="COLUMN"
    )
    negative: str | None = setting(
        "For retrieval: what does not answer the row, such as a mined passage.", metavar="COLUMN"
    )
    class_weight: Any = setting(
        "How much each class counts in training: balanced, or each by name.",
        metavar="balanced|CLASS=W,...",
        read=class_weights,
    )
    metric: str | None = setting(
        "What counts, such as f1, auroc, log_loss, mae: it stops training, is told first, and parts two classes.",
        metavar="NAME",
    )
    quantiles: Any = setting(
        "Of a number, also below what so many of the truths lie, such as 0.1,0.5,0.9.",
        metavar="SHARES",
        read=quantiles,
    )
    positive: str | None = setting("Of two classes, the one that f1 looks for; else the second.", metavar="CLASS")
    fractions: tuple[float, float, float] = setting(
        "Of train, val and test, where rows are drawn at random.", (0.8, 0.1, 0.1), hidden=True
    )
    epochs: int | None = setting("Passes over the rows; by default by their number.")
    batch_size: int | None = setting("Rows per step, or auto.", read=whole)
    micro_batch: int | None = setting(
        "Rows of a step that are read at a time: a batch of any size in that much memory (retrieve, match).",
        metavar="NUMBER",
    )
    lr: float | None = setting("Learning rate.")
    weight_decay: float = setting("Weight decay.", 0.05)
    minutes: float | None = setting("A time budget for training.")
    patience: int | None = setting("Epochs without a better score before stopping.")
    ema: float | None = setting("Average the weights with this decay, such as 0.999.")
    augment: float = setting("Strength of augmentation; 0 is none, 1 the usual.", 1.0)
    trials: int | None = setting("Try so many rates, decays and batches first, and train by the best (optuna).")
    precision: str = setting("auto (by processor and width), fp32 or bf16.", "auto")
    device: str = setting("auto, cpu, cuda, cuda:1, mps...", "auto")
    seed: int = setting("The seed of splits, weights and batches.", 0)
    seeds: int = setting("Train from so many seeds, one after another, and answer by the mean of all.", 1)
    max_bad: float = setting("Stop where more of the rows are bad, such as 1%.", 1.0, metavar="SHARE", read=share)
    image_size: int | None = setting("Side of the pictures that the model reads.", metavar="PIXELS")
    max_tokens: int | None = setting("The most tokens of a text that the model reads.")
    tokenizer: str | None = setting(
        "A published tokenizer.json; by default learnt, or that of the weights.", metavar="FILE"
    )
    pieces: int | None = setting("Spell transcripts in about so many pieces of words.", metavar="NUMBER")
    pretrained: bool | str = setting(
        "Start from the published weights (the hub is asked), or a path or URL.", False, hidden=True
    )
    scheme: str | None = setting(
        "Begin as the system's paper does, weights and stochastic depth: paper; by default as suits small tables.",
        metavar="paper",
    )
    only: list[str] = setting(
        "Of these weights take only those whose names match, such as 'stem.*'.", list, metavar="PATTERN"
    )
    parts: dict[str, str] = setting(
        "Begin a part of a system that is made of others with the weights of a run, or of a file.",
        dict,
        option="part",
        metavar="PART=RUN",
        read=part,
    )
    towers: dict[str, str] = setting(
        "Let published weights read the columns of a kind, frozen, for plait's own system.",
        dict,
        option="tower",
        metavar="KIND=NAME:FOLDER",
        read=tower,
    )
    rungs: int = setting(
        "How far towers may learn: 1 not at all, 2 by adapters in their last layers, 3 also in all their weights.", 3
    )
    no_ladder: bool = setting(
        "Leave out the simple models (linear, kernel, trees) that stand beneath plait's own.", False
    )
    allow_outside: bool = setting("Let the table name media files outside its own folder.", False)
    workers: int = setting("Threads that decode pictures and sounds.", 2)
    checkpoint_seconds: float = setting("How often a checkpoint is written.", 60.0, hidden=True)

    def __post_init__(self):
        if self.task is not None and self.task not in CHOICES:
            raise UsageError(f"unknown task {self.task!r}. {nearest(self.task, CHOICES)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"unknown precision {self.precision!r}: expected auto, fp32 or bf16")
        for name in (
            "epochs",
            "batch_size",
            "micro_batch",
            "lr",
            "minutes",
            "patience",
            "trials",
            "image_size",
            "max_tokens",
            "pieces",
            "folds",
            "seeds",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        if self.rungs not in (1, 2, 3):
            raise UsageError(f"rungs: got {self.rungs}, expected 1, 2 or 3")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"max_bad is a share of the rows from 0 to 1 (or 0% to 100%), got {self.max_bad}")
        if self.class_weight is not None:
            self.class_weight = class_weights(self.class_weight)
        self.quantiles = quantiles(self.quantiles) if self.quantiles else None
        self.only = [self.only] if isinstance(self.only, str) else list(self.only)
        if self.only and not self.pretrained:
            raise UsageError(f"only {', '.join(self.only)} of which weights? Give them as well, or the published ones")
        self.fractions = cast(tuple[float, float, float], tuple(self.fractions))  # of JSON a list
        self.methods = [read_change(m) for m in ([self.methods] if isinstance(self.methods, str) else self.methods)]

    def to_json(self) -> dict:
        """Plain JSON. A table in memory is told as `IN_MEMORY`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {name: told(plain[name]) for name in TABLES}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}

    @classmethod
    def from_json(cls, data: dict) -> Settings:
        """The settings that `to_json` gave."""
        return cls(**{k: v for k, v in data.items() if k in {f.name for f in fields(cls)}})


Settings.__doc__ = "\n".join(
    [Settings.__doc__ or "", "", *(f"    {f.name}: {f.metadata['help']}" for f in fields(Settings))]
)
