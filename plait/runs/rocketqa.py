"""RocketQA: An Optimized Training Approach to Dense Passage Retrieval for Open-Domain Question Answering. Qu, Ding,
Liu, Liu, Ren, Zhao, Dong, Wu, Wang, 2020. arXiv:2010.08191.

New here: passages are mined to mislead a question by a first encoder of both sides, and most tables know only some of
what answers it: those alone are taken for wrong that a ranker, which reads both sides together, is sure of. The same
ranker labels questions that nobody has answered. Wrong passages of a batch are those of all processes
(`parts/objectives/gathered.py`).

Differs: a passage that is an answer of its own to another row's question, by the table, is never wrong for that row;
vectors have length one; where too few candidates are surely wrong, others are drawn of the passages that were no
candidates, and not of the next thousand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plait.data.columns import Column
from plait.data.split import split_rows
from plait.data.table import Table, read_table
from plait.errors import DataError, UsageError
from plait.parts.objectives.late import PLAIN, late
from plait.runs.console import Console
from plait.runs.devices import pick_device
from plait.runs.fit import fit
from plait.runs.folder import CONFIG, read_json, unfinished, write_json, write_table
from plait.runs.lock import locked
from plait.runs.nearest import nearest
from plait.runs.prepare import guess
from plait.runs.run import Run
from plait.runs.saved import load
from plait.runs.settings import Settings
from plait.tasks.base import unlike
from plait.tasks.retrieve import Retrieve, late_scores

FIRST, JUDGE, DENOISED, AUGMENTED = "1_first", "2_judge", "3_denoised", "4_augmented"
ASKED = "rocketqa.json"  # what the whole was told
OWN = ("task", "target", "inputs", "negative", "val", "test", "group", "time", "kinds", "system")

Found = list[list[tuple[int, float]]]  # for each question its candidates, (passage, score), the nearest first


def rocketqa(
    source: Any,
    *,
    out: str | Path,
    inputs: Sequence[str] | None = None,
    questions: Any = None,
    passages: Any = None,
    system: str = "sentence_encoder",
    judge: str = "uni_encoder",
    top: int = 50,
    negatives: int = 4,
    judged: int | None = None,
    low: float = 0.1,
    high: float = 0.9,
    judging: dict[str, Any] | None = None,
    console: Console | None = None,
    **options: Any,
) -> Run:
    """Train an encoder of questions and passages in four steps, each a run folder of its own in `out`: a first encoder;
    a ranker of what that finds; an encoder that learns from what the ranker is sure is wrong; and one that also learns
    from questions which the ranker labelled.

    Args:
        source: a table of pairs of texts, one that asks and one that answers it. Of a question all pairs stay together,
            to learn from or to be tested with; with split="COLUMN" as that says.
        out: a folder. Where it holds the beginning of the same, that goes on.
        inputs: the two columns, the one that asks first; by default the table's only two.
        questions: a table of more that ask, whose answers nobody knows; without it there are three steps.
        passages: a table of more that might answer. All are searched, those of the pairs too.
        system: the encoder; one without an objective of its own. judge: the ranker, any system for --task match.
        top: how many candidates a question has. negatives: how many of them it learns from, for each of its answers.
        judged: how many of those of a question the ranker learns from; by default as many as `negatives`.
        low, high: below and above which probability the ranker is sure that a passage is wrong, or right.
        judging: options of `fit` for the ranker alone. options: for all steps, such as epochs=10, seed=1, pretrained.

    Returns the last run that there is; one that was interrupted says so (`Run.stopped`), and the same call goes on. The
    tables that each step learns from lie beside it, and what was found and judged: 3_candidates.parquet.
    """
    if taken := [name for name in OWN if name in options or name in (judging or {})]:
        raise UsageError(f"{taken[0]} is not for the four steps together, which settle it themselves")
    if not 0 <= low <= high <= 1:
        raise UsageError(f"low and high are probabilities, got {low} and {high}: expected 0 <= low <= high <= 1")
    judged = negatives if judged is None else judged
    if min(top, negatives, judged) < 1:
        raise UsageError(f"top, negatives and judged are counts from 1 on, got {top}, {negatives} and {judged}")
    settings = Settings(task="retrieve", **options)
    Settings(**options | (judging or {}))
    with locked(Path(out)):
        told = {"system": system, "judge": judge, "top": top, "negatives": negatives, "judged": judged, "low": low}
        told |= {"high": high, "judging": judging or {}, "questions": questions is not None}
        fixed = {name: value for name, value in options.items() if name not in ("device", "workers")}
        _same_call(Path(out), told | {"options": fixed})
        steps = Steps(source, Path(out), inputs, passages, settings, console or Console())
        duals = {"task": "retrieve", "system": system, "negative": steps.wrong} | options
        run = steps.fit(FIRST, partial(steps.drawn, negatives), duals)
        if run.stopped == "interrupted":
            return run
        ranks = {"task": "match", "system": judge, "target": steps.right} | options | (judging or {})
        ranker = steps.fit(JUDGE, partial(steps.ranked, run, top, judged), ranks)
        if ranker.stopped == "interrupted":
            return ranker
        run = steps.fit(DENOISED, partial(steps.denoised, run, ranker, top, negatives, low), duals)
        if run.stopped == "interrupted" or questions is None:
            return run
        more = steps.more(questions)
        return steps.fit(AUGMENTED, partial(steps.augmented, run, ranker, more, top, negatives, low, high), duals)


class Steps:
    """The pairs, their splits and all passages, and of each step the table that it learns from.

    ask, reply, wrong, right: what the columns of these are called.
    """

    def __init__(
        self, source: Any, out: Path, inputs: Sequence[str] | None, passages: Any, settings: Settings, console: Console
    ):
        self.out, self.settings, self.console = out, settings, console
        table = read_table(source)
        words = [n for n in inputs or [] if table.has(n) and table.column(n).type in (pa.string(), pa.large_string())]
        told = {"inputs": list(inputs) if inputs else None, "kinds": dict.fromkeys(words, "text")}
        schema = guess(table, Settings(**vars(settings) | told))
        self.ask, self.reply = names = tuple(inputs) if inputs else Retrieve.learn(schema).names
        columns: list[Column] = [schema.column(name) for name in names]
        if [c.kind for c in columns] != ["text", "text"]:
            got = " and ".join(f"{c.name} ({c.kind})" for c in columns)
            raise DataError(f"expected a text that asks and one that answers, got {got}: choose them with inputs")
        self.split, self.wrong, self.right = (unlike(name, names) for name in ("split", "negative", "right"))
        table = schema.read(table)
        there = np.all([_texts(table, name) != "" for name in names], axis=0)
        table = table.take(np.flatnonzero(there))
        drawn = split_rows(table, schema, fractions=settings.fractions, seed=settings.seed,
                           group=self.ask, column=settings.split)  # fmt: skip
        part = np.full(len(table), "", object)
        for name, index in drawn.items():
            part[index] = name
        self.asks, self.replies, self.part = (*(_texts(table, n) for n in names), part)
        self.pairs = pa.table({self.ask: self.asks, self.reply: self.replies, self.split: part.astype(str)})
        self._kept("0_pairs", self.pairs)
        more = _column(read_table(passages), self.reply) if passages is not None else []
        self.passages = list(dict.fromkeys([*self.replies, *more]))
        self._kept("0_passages", pa.table({self.reply: self.passages}))
        at = {text: i for i, text in enumerate(self.passages)}
        self.known: dict[str, set[int]] = {}  # of each question the passages that the table says answer it
        for asks, reply in zip(self.asks, self.replies):
            self.known.setdefault(asks, set()).add(at[reply])

    def _kept(self, name: str, table: pa.Table) -> None:
        """Write what the steps are made of, or see that it is the same as before."""
        path = self.out / f"{name}.parquet"
        if path.is_file() and not pq.read_table(path).equals(table):
            raise DataError(f"{self.out} was begun with other rows than these ({path.name}): give another out")
        write_table(table, path)

    def more(self, questions: Any) -> list[str]:
        """Questions that the table does not have."""
        found = [q for q in dict.fromkeys(_column(read_table(questions), self.ask)) if q not in self.known]
        if not found:
            raise DataError(f"every one of the questions is in the table itself: expected others in {self.ask!r}")
        self._kept("0_questions", pa.table({self.ask: found}))
        return found

    def fit(self, name: str, make: Any, how: dict[str, Any]) -> Run:
        """The run of a step: loaded, gone on with, or made."""
        folder, path = self.out / name, self.out / f"{name}.parquet"
        self.console.say("step", name.replace("_", ": "))
        if not path.is_file():
            write_table(make(), path)
        if (folder / "report.html").is_file() and not unfinished(folder):
            return load(folder, device=pick_device(self.settings.device))
        if (folder / CONFIG).is_file():
            found = fit(path, out=folder, resume=True, console=self.console)
        else:
            own = {"inputs": [self.ask, self.reply], "kinds": dict.fromkeys((self.ask, self.reply), "text")}
            found = fit(path, out=folder, console=self.console, **how | own | {"split": self.split})
        assert isinstance(found, Run)
        return found

    # -- what each step learns from

    def drawn(self, negatives: int) -> pa.Table:
        """Pairs beside passages at random."""
        rng = np.random.default_rng([self.settings.seed, 1])
        wrong = [self._others(rng, self.known[q], negatives) if p == "train" else [] for q, p in self._rows()]
        return self._beside(wrong)

    def ranked(self, run: Run, top: int, negatives: int) -> pa.Table:
        """Pairs, and of each question some of what the first encoder finds, taken for wrong."""
        rng = np.random.default_rng([self.settings.seed, 2])
        part = dict(zip(self.asks, self.part))
        cells: list[tuple[str, str, str, bool]] = [
            (q, p, s, True) for q, p, s in zip(self.asks, self.replies, self.part)
        ]
        for q, found in zip(part, self.found(run, list(part), top)):
            left = [i for i, _ in found if i not in self.known[q]]
            cells += [(q, self.passages[i], part[q], False) for i in rng.permutation(left)[:negatives]]
        return _table((self.ask, self.reply, self.split, self.right), cells)

    def denoised(self, run: Run, ranker: Run, top: int, negatives: int, low: float) -> pa.Table:
        """Pairs beside the first of what the encoder finds and the ranker is sure is wrong."""
        rng = np.random.default_rng([self.settings.seed, 3])
        asks = [q for q, part in dict(zip(self.asks, self.part)).items() if part == "train"]
        found = self.found(run, asks, top)
        sure = self.judged(ranker, asks, found)
        counts, left, kept = Counter(self.asks), {}, {}
        for q, near, p in zip(asks, found, sure):
            most, known = negatives * counts[q], self.known[q]
            kept[q] = [i for (i, _), own in zip(near, p) if i not in known and own < low][:most]
            others = self._others(rng, known | {i for i, _ in near}, most - len(kept[q]))
            left[q] = [*kept[q], *others]
        self._write("3_candidates", asks, found, sure, kept)
        wrong = []
        for q, part in self._rows():
            some = negatives if part == "train" else 0
            wrong.append(left[q][:some] if some else [])
            left[q] = left[q][some:] if some else []
        return self._beside(wrong)

    def augmented(
        self, run: Run, ranker: Run, asks: list[str], top: int, negatives: int, low: float, high: float
    ) -> pa.Table:
        """The same, and other questions, each with the passage that the ranker is surest of, if it is sure."""
        found = self.found(run, asks, top)
        sure = self.judged(ranker, asks, found)
        cells: list[tuple[str, str, str, str]] = []
        kept: dict[str, list[int]] = {}
        for q, near, p in zip(asks, found, sure):
            best = max(range(len(near)), key=p.__getitem__, default=-1)
            if best < 0 or not p[best] > high:
                continue
            kept[q] = [i for (i, _), own in zip(near, p) if own < low][:negatives]
            cells += [(q, self.passages[near[best][0]], "train", self.passages[i]) for i in kept[q]]
        self._write("4_candidates", asks, found, sure, kept)
        labelled = len({cell[0] for cell in cells})
        self.console.say("labelled", f"{labelled:,} of {len(asks):,} questions have a passage that is surely right")
        before = pq.read_table(self.out / f"{DENOISED}.parquet")
        return pa.concat_tables([before, _table(before.column_names, cells).cast(before.schema)])

    # -- finding and judging

    def found(self, run: Run, asks: list[str], top: int) -> Found:
        """For each question the passages that the encoder has nearest to it."""
        sides = {}
        for name, texts in ((self.ask, asks), (self.reply, self.passages)):
            rows = run.rows(pa.table({name: texts}))
            slot = next(s.name for s in run.schema.slots if name in s.columns)
            sides[name] = run.vectors(rows)[slot], rows.presence()[slot]
        how = late(run.model.bound.system)
        return nearest([sides[self.reply]], sides[self.ask][0], top,
                       None if how == PLAIN else partial(late_scores, how))  # fmt: skip

    def judged(self, ranker: Run, asks: list[str], found: Found) -> list[np.ndarray]:
        """For each question the probabilities that its candidates answer it."""
        both = [(q, self.passages[i]) for q, near in zip(asks, found) for i, _ in near]
        p = ranker.predict(_table((self.ask, self.reply), both)).column("probability").to_numpy()
        return np.split(p, np.cumsum([len(near) for near in found])[:-1])

    def _rows(self) -> Iterable[tuple[str, str]]:
        return zip(self.asks, self.part)

    def _others(self, rng: np.random.Generator, but: set[int], count: int) -> list[int]:
        """So many different passages at random, none of `but`; fewer where there are no more."""
        found = dict.fromkeys(int(i) for i in rng.integers(len(self.passages), size=4 * count) if i not in but)
        if len(found) < count:
            found |= dict.fromkeys(int(i) for i in rng.permutation(len(self.passages)) if i not in but)
        return list(found)[:count]

    def _beside(self, wrong: list[list[int]]) -> pa.Table:
        """Each pair as many times as it has wrong passages, with one each; once where it has none."""
        cells = [
            (asks, reply, part, text)
            for asks, reply, part, some in zip(self.asks, self.replies, self.part, wrong)
            for text in [self.passages[i] for i in some] or [None]
        ]
        return _table((self.ask, self.reply, self.split, self.wrong), cells)

    def _write(
        self, name: str, asks: list[str], found: Found, sure: list[np.ndarray], kept: dict[str, list[int]]
    ) -> None:
        """What was found and judged, a row each. negative: it is learnt from as such."""
        cells = [
            (q, self.passages[i], score, float(p), i in self.known.get(q, ()), i in kept.get(q, ()))
            for q, near, own in zip(asks, found, sure)
            for (i, score), p in zip(near, own)
        ]
        write_table(
            _table((self.ask, self.reply, "score", "probability", "known", "negative"), cells),
            self.out / f"{name}.parquet",
        )


def _table(names: Iterable[str], cells: Sequence[tuple]) -> pa.Table:
    names = list(names)
    return pa.table({name: [row[i] for row in cells] for i, name in enumerate(names)})


def _texts(table: Table, name: str) -> np.ndarray:
    """(n,) of texts; empty where a cell is."""
    return np.asarray([str(cell or "").strip() for cell in table.column(name).to_pylist()], object)


def _column(table: Table, name: str) -> list[str]:
    """The texts of the column of that name, or of the only one."""
    name = table.names[0] if len(table.names) == 1 else name
    return [text for text in _texts(table, name) if text]


def _same_call(out: Path, told: dict) -> None:
    """Keep what the whole was told; raises UsageError where it was begun otherwise."""
    path, told = out / ASKED, json.loads(json.dumps(told, default=str))
    if not path.is_file():
        write_json(path, told)
        return
    before = read_json(path)
    if odd := [name for name in told if before.get(name) != told[name]]:
        raise UsageError(f"{out} was begun with other {', '.join(odd)}: give another out, or the same to go on")
