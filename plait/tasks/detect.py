"""What is where in this picture? Any number of things a row, each with a label, a box and how sure it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from plait.core.roles import Detector as Role
from plait.core.roles import Model
from plait.data.kinds import KINDS
from plait.data.kinds.boxes import read_boxes
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate import detection
from plait.evaluate.intervals import Score
from plait.evaluate.pictures import LINES
from plait.evaluate.report import Example, Examples, Section
from plait.parts.heads.boxes import corners
from plait.parts.objectives.sets import set_losses
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, DetectorBound

ROLES = ("detector",)
TAKES = ("image",)

MOST = 100  # guesses a row
TOLD = 0.05  # how sure a guess must be to be told
SHOWN = 6  # examples found best, and as many worst


class Detector(TaskModel):
    """Guesses, and the loss of the set. name: of the target; source: the slot of the picture."""

    bound: DetectorBound

    def __init__(self, bound: Bound, name: str, source: str):
        super().__init__(bound)
        self.name, self.source = name, source

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`guesses` (B, G, 6): label, left, top, right, bottom in pixels, score, the surest first; none is sure of a
        row without a picture."""
        out = self.bound.found(batch)
        logits, boxes = out["logits"][:, -1].float(), corners(out["boxes"][:, -1].float())
        p = logits.softmax(-1)[..., :-1] if self.bound.system.exclusive else logits.sigmoid()
        if self.bound.system.exclusive:  # one label each
            score, guess = p.amax(2).sort(1, descending=True)
            label = p.argmax(2).gather(1, guess)
        else:
            score, at = p.flatten(1).topk(min(MOST, p[0].numel()), 1)
            guess, label = at // p.shape[2], at % p.shape[2]
        box = boxes.gather(1, guess[..., None].expand(-1, -1, 4))
        window = batch["window"][self.source]
        low, size = window[:, None, :2].repeat(1, 1, 2), (window[:, None, 2:] - window[:, None, :2]).repeat(1, 1, 2)
        score = score * self.there(batch)[:, None]
        return {"guesses": torch.cat([label[..., None], low + box * size, score[..., None]], 2)}

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        out, truth, there = self.bound.found(batch), batch["target"][self.name], self.there(batch)
        exclusive = self.bound.system.exclusive
        losses = set_losses(out["logits"], out["boxes"], truth, exclusive, there)
        if "first_logits" in out:  # the first stage asks only whether there is something
            something = torch.cat([truth[..., :1] * 0, truth[..., 1:]], 2)
            first = set_losses(out["first_logits"][:, None], out["first_boxes"][:, None], something, exclusive, there)
            losses |= {f"first {name}": loss for name, loss in first.items()}
        return losses | dict(out.get("losses") or {})

    def there(self, batch: dict) -> Tensor:
        """(B,) bool: the rows that have a picture."""
        x = batch[self.source]
        return batch.get("present", {}).get(self.source, torch.ones(len(x), dtype=torch.bool, device=x.device))


class Detect(Task):
    """Boxes per row. boxes: what the kind `boxes` learnt of the target. Answers are `guesses`, a list of (g, 6)."""

    name = choice = "detect"
    noun = "detection"
    roles = ROLES
    asks = "boxes"
    auto = "deformable_detr"
    whole = True
    floor = "same boxes everywhere"
    shows = True

    target: str

    def __init__(self, target: str, source: str, boxes: dict, picture: dict):
        self.target, self.source, self.boxes, self.picture_params = target, source, boxes, picture

    @classmethod
    def learn(cls, schema: Schema) -> Detect:
        (target,) = schema.targets
        boxes = schema.column(target).params
        if not boxes["values"]:
            raise DataError(f"the target {target!r} has no box in the training rows: there is nothing to learn")
        (slot,) = schema.slots
        return cls(target, slot.name, boxes, schema.column(slot.columns[0]).params)

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """Small batches: each picture has many questions. Nothing is found for long before the first thing is."""
        lr = 4e-4 * min(1.0, 128 / cast(Role, system).width)
        return Pace(16, int(np.clip(round(120_000 / rows), 10, 300)), lr, patient=True)

    @property
    def needs(self) -> dict[str, int]:
        return {"labels": len(self.boxes["values"])}

    def model(self, bound: Bound, objective: Objective | None = None) -> Detector:
        return Detector(bound, self.target, self.source)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"guesses": list(outputs["guesses"].astype(np.float64))}

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """The truth in pixels again, a list of (m, 5)."""
        truth, window = (t.double().numpy() for t in (batch["target"][self.target], batch["window"][self.source]))
        low, size = np.tile(window[:, None, :2], 2), np.tile(window[:, None, 2:] - window[:, None, :2], 2)
        truth = np.concatenate([truth[..., :1], low + truth[..., 1:] * size], 2)
        return {self.target: [t[~np.isnan(t[:, 0])] for t in truth]}, answers

    def recast(
        self, other: Task, truth: Answers, answers: Answers, rows: Rows, index: np.ndarray
    ) -> tuple[Answers, Answers]:
        """By the labels' names; one that was never learnt is the last."""
        theirs = [*cast(Detect, other).boxes["values"], None]
        places = {name: float(i) for i, name in enumerate(self.boxes["values"])}
        ids = np.asarray([places.get(name, float(len(places))) for name in theirs])

        def named(things: list[np.ndarray]) -> list[np.ndarray]:
            return [np.column_stack([ids[t[:, 0].astype(int)], t[:, 1:]]) for t in things]

        return {self.target: named(truth[self.target])}, {"guesses": named(answers["guesses"])}

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        """Things that lie outside what is seen of their pictures."""
        told = sum(len(read_boxes(rows.table.column(self.target)[int(row)].as_py())) for row in index)
        gone = told - sum(map(len, truth[self.target]))
        return {"thing outside what is read of its picture": gone} if gone else {}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return detection.detection(truth[self.target], answers["guesses"])

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """The usual box of each label in every picture."""
        counts, usual = np.asarray(self.boxes["counts"], float), np.asarray(self.boxes["usual"])
        same = np.column_stack([np.arange(len(counts)), usual, counts / counts.sum()])
        return self.scores(truth, {"guesses": [same] * len(truth[self.target])})

    def guide(self, truth: Answers, answers: Answers) -> float:
        found = detection.average_precision(truth[self.target], answers["guesses"])
        return (found["AP50"] + found["AP"]) / 2

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return detection.f1_rows(truth[self.target], answers["guesses"])

    def columns(self, answers: Answers) -> dict[str, list]:
        """A list of things as JSON, the surest first, those of at least 0.05."""
        told = [g[g[:, 5] >= TOLD] for g in answers["guesses"]]
        return {self.target: [KINDS[self.asks].write(g, self.boxes) for g in told]}

    def shown(self, batch: dict, answers: Answers) -> list[bytes]:
        """With the guesses of at least 0.5."""
        return [self.drawn(batch, g[g[:, 5] >= detection.SURE], row) for row, g in enumerate(answers["guesses"])]

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """What is there, and what was found: the best rows, and the worst."""
        value = self.per_row(truth, answers)
        order = np.argsort(-value, kind="stable")
        order = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
        lines = []
        for i in order:
            batch = rows.batch(index[i : i + 1])
            real, sure = truth[self.target][i], answers["guesses"][i]
            sure = sure[sure[:, 5] >= detection.SURE]
            lines.append(Example([f"{value[i]:.2f}"], self.drawn(batch, real), self.drawn(batch, sure), None, None))
        title = "Examples: the best and the worst answers, with what is there as the truth"
        return [Section(title, "examples", Examples(["F1"], lines))] if lines else []

    def drawn(self, batch: dict, boxes: np.ndarray, row: int = 0) -> bytes:
        """A row's picture as the model reads it, with boxes (n, 5 or 6) in pixels drawn onto it, as PNG."""
        x, (left, top, right, bottom) = batch[self.source][row], batch["window"][self.source][row].tolist()
        pixels = (x.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        zoom = max(1, round(320 / max(pixels.shape[:2])))
        picture = Image.fromarray(pixels).resize((pixels.shape[1] * zoom, pixels.shape[0] * zoom))
        pen, names = ImageDraw.Draw(picture), [*self.boxes["values"], "never seen"]
        across, down = picture.width / (right - left), picture.height / (bottom - top)
        for label, x0, y0, x1, y1, *score in boxes:
            colour = LINES[int(label) % len(LINES)][0]
            at = [(x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down]
            pen.rectangle(at, outline=colour, width=2)
            pen.text((at[0] + 3, at[1] + 1), " ".join([names[int(label)], *(f"{s:.2f}" for s in score)]), fill=colour)
        out = io.BytesIO()
        picture.save(out, "PNG")
        return out.getvalue()

    def describe(self) -> str:
        things = sum(self.boxes["counts"]) / max(self.boxes["cells"], 1)
        return f"{len(self.boxes['values'])} labels, {things:.1f} things a picture, at most {self.boxes['most']}"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Detect:
        return cls.learn(schema)


TASKS = (Detect,)
