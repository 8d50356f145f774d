"""What should this picture look like? A picture of the same size: without noise, sharp, in colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate.intervals import Score, mean_score
from plait.evaluate.report import Example, Examples, Section
from plait.parts.objectives.latents import drawn
from plait.parts.scaling import Normalise
from plait.tasks.base import Answers, Objective, Task, TaskModel
from plait.tasks.bind import BackboneBound, Bound, CodecBound
from plait.tasks.known import mean_over

ROLES = ("backbone", "fuser", "codec")
TAKES = ("image",)

LEAST = 1e-10  # of the mean squared error: no picture scores more than 100 dB
PATCH, CHANNELS = 8, 16  # pixels that a token stands for at most, and what it says of each
SHOWN = 6  # examples restored best, and as many worst
METRICS = ("PSNR", "SSIM")


class Restorer(TaskModel):
    """The picture that is given, and what three convolutions add that see it beside what the tokens say of each pixel.
    Of a codec, what it decodes of the picture's latents.

    name: of the target. source: the slot of the picture. It starts as the picture itself, but for a codec; a row
    without one is answered by `usual`, the mean of the training rows' targets.
    """

    usual: Tensor  # (3, H, W)

    def __init__(self, bound: Bound, name: str, source: str, size: tuple[int, int]):
        super().__init__(bound)
        self.name, self.source = name, source
        self.register_buffer("usual", torch.full((3, *size), 0.5))
        if isinstance(bound, CodecBound):
            return
        self.say = nn.Conv2d(bound.width, CHANNELS * PATCH**2, 1)
        self.draw = nn.Sequential(
            nn.Conv2d(3 + CHANNELS, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 3, 3, padding=1),
        )
        for p in self.draw[-1].parameters():
            nn.init.zeros_(p)

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """The mean of the targets, of at most 2,000 rows."""
        index = np.random.default_rng(seed).permutation(index)[:2000]
        parts = [rows.target(index[at : at + 64])[self.name] for at in range(0, len(index), 64)]
        total = sum((p.nan_to_num(0.0).sum(0) for p in parts), torch.zeros(()))
        self.usual.copy_(total / sum(int(known(p).sum()) for p in parts))

    def grid(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, h, w): the tokens where they lie; of a system that keeps no grid of them, or fuses, what it makes of
        the whole, the same everywhere. And the losses that its layers gave out."""
        if isinstance(self.bound, BackboneBound):
            t = self.bound.system.tokens(self.bound.prepared(batch)[self.source])
            if t.grid is not None and t.x.shape[1] == t.prefix + math.prod(t.grid):
                return t.x[:, t.prefix :].transpose(1, 2).unflatten(2, t.grid), dict(t.losses or {})
        f = self.bound.features(batch)
        return f.fused[:, :, None, None], dict(f.losses or {})

    def restored(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, H, W) of pictures that are there, not limited to [0, 1]; and the layers' losses."""
        if isinstance(self.bound, CodecBound):
            codec, scale = self.bound.system, self.bound.preprocess[self.source]
            z, apart = drawn(*codec.encode(self.bound.prepared(batch)[self.source]), self.training)
            return cast(Normalise, scale).inverse(codec.decode(z)).float(), {"latents": apart.mean()}
        x, (tokens, losses) = batch[self.source], self.grid(batch)
        said = F.pixel_shuffle(self.say(tokens), PATCH)
        said = F.interpolate(said.float(), x.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        return x + self.draw(torch.cat([x - 0.5, said], 1)).float(), losses

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`pictures` (B, 3, H, W) in [0, 1], and `usual` as often."""
        there = self.there(batch)
        pictures = torch.where(there[:, None, None, None], self.restored(batch)[0].clamp(0, 1), self.usual)
        return {"pictures": pictures, "usual": self.usual.expand_as(pictures)}

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        real = batch["target"][self.name]
        made, losses = self.restored(batch)
        error = made - real.nan_to_num(0.0)
        rows = (error.square() + 1e-6).sqrt().mean((1, 2, 3))  # as absolute errors, smooth at nothing
        return {"loss": mean_over(rows, known(real) & self.there(batch))} | losses

    def there(self, batch: dict) -> Tensor:
        """(B,) bool: the rows that have a picture."""
        x = batch[self.source]
        return batch.get("present", {}).get(self.source, torch.ones(len(x), dtype=torch.bool, device=x.device))


class Restore(Task):
    """A picture per row. Answers are `pictures` (n, 3, H, W) in [0, 1]; of these, each row's PSNR and SSIM are kept."""

    name = choice = "restore"
    noun = "restoration"
    roles = ROLES
    asks = "image"
    whole = True
    floor = "input"

    target: str

    def __init__(self, target: str, source: str, params: dict):
        self.target, self.source, self.params = target, source, params

    @classmethod
    def learn(cls, schema: Schema) -> Restore:
        """The target is read at the size of the picture that is given."""
        (target,) = schema.targets
        pictures = [s for s in schema.slots if s.kind == cls.asks]
        if len(pictures) != 1:
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(
                f"restoring takes one column of pictures, got {found}: choose the inputs with --inputs NAME"
            )
        column = schema.column(target)
        column.params = dict(schema.column(pictures[0].columns[0]).params)
        return cls(target, pictures[0].name, column.params)

    def model(self, bound: Bound, objective: Objective | None = None) -> Restorer:
        return Restorer(bound, self.target, self.source, tuple(self.params["size"]))

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return outputs

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """PSNR and SSIM of the answers, of the `input`, or the usual picture where there is none, and of that alone."""
        real, there = batch["target"][self.target], batch["present"][self.source]
        usual = torch.from_numpy(answers["usual"])
        given = torch.where(there[:, None, None, None], batch[self.source], usual)
        every = {"": torch.from_numpy(answers["pictures"]), "input ": given, "usual ": usual}
        kept = {f"{of}PSNR": psnr(x, real).numpy() for of, x in every.items()}
        return {}, kept | {f"{of}SSIM": ssim(x, real).numpy() for of, x in every.items()}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return [mean_score(name, answers[name], "higher") for name in METRICS]

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """The better of the input as it is and the training rows' mean picture."""
        best = max(("input ", "usual "), key=lambda of: answers[f"{of}PSNR"].mean())
        return self.scores(truth, {name: answers[best + name] for name in METRICS})

    def guide(self, truth: Answers, answers: Answers) -> float:
        return float(answers["PSNR"].mean())

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return answers["PSNR"].astype(np.float64)

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        return -self.per_row(truth, answers)

    def columns(self, answers: Answers) -> dict[str, list]:
        return {self.target: [KINDS[self.asks].write(picture, self.params) for picture in answers["pictures"]]}

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """What was given, what it should be, and what was made of it: the best rows, and the worst."""
        order = np.argsort(-answers["PSNR"], kind="stable")
        order = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
        batch, kind = rows.batch(index[order]), KINDS[self.asks]
        made = self.columns(again(index[order]))[self.target]
        lines = []
        for i, answer in enumerate(made):
            there = bool(batch["present"][self.source][i])
            cells = [kind.write(batch[self.source][i].numpy(), self.params) if there else None]
            cells.append(f"{answers['PSNR'][order[i]]:.1f} dB, from {answers['input PSNR'][order[i]]:.1f}")
            real = kind.write(batch["target"][self.target][i].numpy(), self.params)
            lines.append(Example(cells, real, answer, None, None))
        names = [rows.schema.slot(self.source).columns[0], "PSNR"]
        return [Section("Examples: the best and the worst answers", "examples", Examples(names, lines))]

    def describe(self) -> str:
        return "pictures of {} x {} pixels".format(*self.params["size"])

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Restore:
        return cls.learn(schema)


def known(real: Tensor) -> Tensor:
    """(B,) bool: the rows with a target picture."""
    return ~real.flatten(1).isnan().any(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratios in dB of pictures (B, C, H, W) in [0, 1], 100 at most."""
    return -10 * (x.double() - y.double()).square().mean((1, 2, 3)).clamp(min=LEAST).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B,) structural similarities (Wang et al. 2004) of pictures (B, C, H, W) in [0, 1]: the mean over channels and
    all windows within the picture, Gaussian ones of spread 1.5 and 11 pixels, or the shorter side if that is less."""
    n = min(11, *x.shape[-2:])
    at = torch.arange(n, dtype=torch.float64, device=x.device) - (n - 1) / 2
    g = (-at.square() / (2 * 1.5**2)).exp()
    window = (g[:, None] * g / g.sum() ** 2).expand(x.shape[1], 1, n, n)

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z, window, groups=z.shape[1])

    x, y = x.double(), y.double()
    a, b = blur(x), blur(y)
    spread_a, spread_b, both = blur(x * x) - a * a, blur(y * y) - b * b, blur(x * y) - a * b
    one, two = 0.01**2, 0.03**2
    like = (2 * a * b + one) * (2 * both + two) / ((a * a + b * b + one) * (spread_a + spread_b + two))
    return like.mean((1, 2, 3))


TASKS = (Restore,)
