"""Which picture belongs to this text, and which text to this picture? Two towers, one space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.roles import Model
from plait.data.digest import cell_digests, same_digests
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.evaluate import pictures
from plait.evaluate.intervals import Score
from plait.evaluate.ranking import retrieval, retrieval_chance
from plait.evaluate.report import Section
from plait.parts.objectives.cached import cached
from plait.parts.objectives.contrastive import contrastive
from plait.parts.objectives.gathered import gathered
from plait.parts.objectives.late import PLAIN, Late, late
from plait.parts.objectives.mined import mined
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, EmbedderBound
from plait.tasks.examples import picture_of

ROLES = ("embedder",)

PAIR = "pair"  # the name of what is asked, which stands in no column
MINED = "mined"  # of the group that a negative answers
PAIRS = 8_000_000  # of vectors that are compared at a time
HALF = "pair of which a side cannot be read"


class Pairs(TaskModel):
    """Two slots of an embedder, drawn together where they belong together.

    objective: a system's own; None means the symmetric contrastive loss, or, of a table with a column of negatives,
    that of the side that asks among these too. Both are of the rows of all processes.
    """

    bound: EmbedderBound

    def __init__(self, bound: Bound, sides: tuple[str, ...], objective: Objective | None = None):
        super().__init__(bound)
        self.sides, self.objective = sides, objective
        self.whole = "" if objective is None else "the system's own loss reads a batch as a whole"
        self._state: list[nn.Module] = []  # a list, so that it is no part of this model's weights

    @property
    def state(self) -> nn.Module | None:
        return self._state[0] if self._state else None

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """What the system's own objective remembers starts here."""
        if self.objective is not None and self.objective.make_state is not None:
            self._state = [self.objective.make_state(self.bound.system, seed)]

    def after_step(self) -> None:
        if self.objective is not None and self.objective.after_step is not None and self.state is not None:
            self.objective.after_step(self.bound.system, self.state)

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`vectors` (B, 2, E), unit ones of both sides; zeros where a side is absent. Of a system that compares several
        vectors in one, `late` (B, 2) too: how, the same in all rows."""
        vectors = self.bound.vectors(batch)
        # bfloat16 ones are not quite unit
        found = {"vectors": torch.stack([F.normalize(vectors[s].float(), dim=-1) for s in self.sides], 1)}
        if (how := late(self.bound.system)) != PLAIN:
            found["late"] = found["vectors"].new_tensor(how).expand(len(found["vectors"]), -1)
        return found

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        whole = batch["present"][self.sides[0]] & batch["present"][self.sides[1]]
        ids = batch["target"][PAIR]
        if self.objective is not None:
            ready = self.bound.prepared(batch) | {
                "same": torch.where(whole, ids[:, 0], -1 - torch.arange(len(ids), device=ids.device))
            }
            return self.objective.losses(self.bound.system, ready, self.state, generator)
        vectors, system = self.vectors_of(batch), self.bound.system
        whole = gathered(whole)
        if len(whole) > len(ids):
            whole = whole & _once(gathered(batch["row"]))
        a, b = (gathered(vectors[s]) for s in self.sides)
        group = gathered(ids[:, 0])
        how: dict[str, Any] = dict(same=group[:, None] == group, present=whole, compare=late(system))
        if "negative" not in batch:
            return contrastive(a, b, system.logit_scale, **how)
        answers = self.sides[1]
        wrong = gathered(self.vectors_of(batch["negative"])[answers])
        there = gathered(batch["negative"]["present"][answers]) & whole
        may = (group[:, None] != gathered(batch["target"][MINED])) & there
        return mined(a, b, wrong, system.logit_scale, may=may, **how)

    def vectors_of(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, E)}, so many rows at a time as `micro_batch` says."""
        return cached(self.bound.vectors, batch, self.micro_batch, self.bound)


class Retrieve(Task):
    """Pairs of two input columns. What is asked is PAIR (n, 3): the pair's group and each side's own content, as
    numbers; a side that is missing is negative, and a row without either is -100. Answers are `vectors` (n, 2, E).

    Pairs that share a text or a picture (bytes alike) belong to one group: any of them is a right answer for the
    others. A column of negatives holds what does not answer its row, in the place of the side that does; MINED (n,) is
    then the group of the pairs that it answers, -1 of none.
    """

    name = choice = "retrieve"
    noun = "retrieval"
    roles = ROLES
    target: str
    needs_target = False
    verb = "search"
    floor = "chance"
    answers_rows = False
    rejects = True

    def __init__(self, sides: tuple[str, ...], names: tuple[str, ...], mined: bool = False):
        self.sides, self.names, self.mined = tuple(sides), tuple(names), mined
        self.target = self.names[0]

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        found = super().variant(schema, table)
        if schema.negatives:
            schema.reject(cls.learn(schema).names[1])
        return found

    @classmethod
    def learn(cls, schema: Schema) -> Retrieve:
        order = sorted(schema.slots, key=lambda s: s.kind != "text")  # texts ask first
        if len(order) != 2 or any(len(s.columns) != 1 for s in order):
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(f"retrieval pairs two input columns, got {found}: choose two with --inputs A,B")
        return cls(tuple(s.name for s in order), tuple(s.columns[0] for s in order), bool(schema.negatives))

    def derive(self, rows: Rows) -> None:
        left, right = (same_digests(cell_digests(rows.table, rows.schema, name)) for name in self.names)
        pairs = np.stack([_groups(left, right), left, right], 1)
        pairs[(left < 0) & (right < 0)] = -100
        rows.derived[PAIR] = torch.from_numpy(pairs)
        for slot in rows.negatives:
            names = (self.names[1], slot.columns[0])
            both = same_digests(np.concatenate([cell_digests(rows.table, rows.schema, n) for n in names]))
            answers, wrong = both[: len(right)], both[len(right) :]
            group = np.full(both.max(initial=0) + 1, -1)
            group[answers[answers >= 0]] = pairs[answers >= 0, 0]
            rows.derived[MINED] = torch.from_numpy(np.where(wrong < 0, -1, group[wrong]))

    def known(self, rows: Rows) -> np.ndarray:
        return (rows.derived[PAIR] != -100).any(1).numpy()

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, make: Callable[[], Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Without the rows of which a side cannot be read."""
        there = rows.presence()
        whole = there[self.sides[0]] & there[self.sides[1]]
        out = {name: index[whole[index]] for name, index in splits.items()}
        if not len(out["train"]):
            sides = " and a readable ".join(map(repr, self.names))
            raise DataError(f"no training row has both a readable {sides}: there is no pair to learn from")
        return out, {HALF: sum(map(len, splits.values())) - sum(map(len, out.values()))}

    def unknown(self, rows: Rows, index: np.ndarray) -> dict[str, int]:
        return {HALF: len(index)} if len(index) else {}

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        """The rows that ask for nothing, since one side of them is missing or cannot be read."""
        half = ~self._there(truth, answers).all(1)
        count = int((half if queries is None else half & queries).sum())
        return {HALF: count} if count else {}

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        return super().pace(rows, system, own)._replace(batch=128)  # each row is compared with all of its batch

    def model(self, bound: Bound, objective: Objective | None = None) -> Pairs:
        if objective is not None and self.mined:
            raise UsageError(
                f"negatives are for systems without an objective of their own, as sentence_encoder: got "
                f"{type(bound.system).__name__}"
            )
        return Pairs(bound, self.sides, objective)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return outputs

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """Recalls and ranks in both directions. queries (n,) bool: rows that ask; all rows are answers to choose
        from."""
        out = []
        for (ask, reply), rows, items, ids in self._directions(truth, answers, queries):
            found = retrieval(_compared(answers, rows, ask, items, reply), ids)
            out += [s._replace(name=f"{self.names[ask]} to {self.names[reply]}, {s.name}") for s in found]
        return out

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """What a random order scores."""
        out = []
        for (ask, reply), _, _, ids in self._directions(truth, answers, queries):
            for name, value in retrieval_chance(*ids).items():
                better = "lower" if "rank" in name else "higher"
                out.append(
                    Score(f"{self.names[ask]} to {self.names[reply]}, {name}", value, value, value, len(ids[0]), better)
                )
        return out

    def guide(self, truth: Answers, answers: Answers) -> float:
        """Mean average precision of both directions."""
        return float(np.mean([s.value for s in self.scores(truth, answers) if s.name.endswith("average precision")]))

    def _directions(self, truth: Answers, answers: Answers, queries: np.ndarray | None) -> Iterator[tuple]:
        """Per direction: (asking side, replying side), one row per different query, one per different item, and the
        groups of both."""
        pairs = truth[PAIR]
        there = self._there(truth, answers)
        asking = np.asarray(there.all(1) if queries is None else there.all(1) & queries)
        if not asking.any():
            raise DataError("no row has both sides: there is no pair to find")
        for ask, reply in ((0, 1), (1, 0)):
            rows, items = _one_each(pairs[:, 1 + ask], asking), _one_each(pairs[:, 1 + reply], there[:, reply])
            yield (ask, reply), rows, items, (pairs[rows, 0], pairs[items, 0])

    def _there(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n, 2) bool: which sides can be read."""
        return np.asarray((truth[PAIR][:, 1:] >= 0) & (np.abs(answers["vectors"]).sum(2) > 0))

    def columns(self, answers: Answers) -> dict[str, Any]:
        a, b = torch.from_numpy(answers["vectors"]).unbind(1)
        return {"similarity": _late(answers).rows(a, b).numpy()}

    def describe(self) -> str:
        return f"{self.names[0]} with {self.names[1]}"

    def title(self) -> str:
        return self.describe()

    def headline(self, scores: list[Score]) -> list[Score]:
        return [s for s in scores if "recall" in s.name]

    def leading(self, scores: list[Score]) -> list[Score]:
        return self.headline(scores)

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """For some of the asking texts, the first answers."""
        pairs = truth[PAIR]
        (ask, reply), asking, items, _ = next(iter(self._directions(truth, answers, None)))
        some = asking[np.unique(np.linspace(0, len(asking) - 1, min(8, len(asking))).astype(int))]
        sheet = []
        for q in some:
            near = all_scores(_compared(answers, np.array([q]), ask, items, reply))[0]
            best = items[np.argsort(-near, kind="stable")[:8]]
            cells = [
                (picture_of(rows, self.names[reply], int(index[i])), "", bool(pairs[i, 0] == pairs[q, 0])) for i in best
            ]
            title = rows.table.column(self.names[ask])[int(index[q])].as_py()
            sheet.append((title if isinstance(title, str) else self.names[ask], cells))
        caption = "each row: a query and its nearest answers, the right ones framed blue"
        return [Section("What is found", "picture", (pictures.retrieval_sheet(sheet), caption))]

    def to_json(self) -> dict:
        return {"task": self.name, "sides": list(self.sides), "names": list(self.names)}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Retrieve:
        return cls(tuple(state["sides"]), tuple(state["names"]), bool(schema.negatives))


def _once(rows: Tensor) -> Tensor:
    """Row numbers (B,) -> (B,) bool: a process that is left without a row stands for one that another has."""
    return ~(rows[:, None] == rows).tril(-1).any(1)


def _late(answers: Answers) -> Late:
    """How the vectors of answers are compared."""
    if "late" not in answers:
        return PLAIN
    views, sharpness = answers["late"][0].tolist()
    return Late(int(views), sharpness)


def _compared(answers: Answers, rows: np.ndarray, ask: int, items: np.ndarray, reply: int) -> Any:
    """What `retrieval` reads: the vectors of both sides where their product compares them, or their scores (Q, M)."""
    a, b = answers["vectors"][rows, ask], answers["vectors"][items, reply]
    return (a, b) if "late" not in answers else late_scores(_late(answers), a, b)


def all_scores(found: Any) -> np.ndarray:
    """(Q, M) of what `_compared` gives."""
    return found[0] @ found[1].T if isinstance(found, tuple) else found


def late_scores(how: Late, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (A, V E), b (B, V E) -> (A, B), some rows at a time."""
    some = max(1, PAIRS // (len(b) * how.views))
    right = torch.from_numpy(b)
    return np.concatenate([how(torch.from_numpy(a[i : i + some]), right).numpy() for i in range(0, len(a), some)])


def _one_each(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The first of the True `rows` for each different id."""
    index = np.flatnonzero(rows)
    return index[np.sort(np.unique(ids[index], return_index=True)[1])]


def _groups(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Connected components of the rows that share a left or a right number (n,)."""
    parent = np.arange(len(left))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for ids in (left, right):
        first: dict[int, int] = {}
        for i, value in enumerate(ids):
            if value >= 0:
                a, b = root(i), root(first.setdefault(value, i))
                parent[max(a, b)] = min(a, b)
    return np.asarray([root(i) for i in range(len(left))], np.int64)


TASKS = (Retrieve,)
