"""What could it look like? A picture per row, made of noise by what the row's columns ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.roles import Model
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.evaluate.generated import distance
from plait.evaluate.intervals import Score, proportion
from plait.evaluate.report import Example, Examples, Section
from plait.parts.objectives.latents import drawn
from plait.parts.samplers import flow
from plait.parts.samplers.diffusion import Diffusion, ddpm, linear
from plait.parts.samplers.guidance import guided
from plait.parts.towers.naming import Naming
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, DiffuserBound
from plait.tasks.known import mean_over
from plait.train.parallel import to_device

ROLES = ("diffuser",)

FORGET = 0.1  # the share of rows that ask for nothing while training, so that guidance has something to lead away from
GUIDANCE, STEPS = 2.0, 20  # of sampling, unless given
BATCH = 64  # rows of a step before training
# passes over the rows, and steps at most, in which the codec and the tower learn before the diffuser
CODEC, TOWER = (20, 250), (10, 300)
GOOD = 0.1  # mean error of pixels in [-1, 1] from which on a codec is one that has been trained, and is left alone
SHOWN = 12  # examples
WORDS = 1000  # that the naming tower counts in a text, at most


class Painter(TaskModel):
    """Pictures, and how wrong the noise or the velocity is that the system sees in noisy ones.

    name: of the target. size: (H, W). A codec and the tower whose features compare pictures learn before the first
    step, and are frozen: the diffuser's latents stay what they are. `centre` and `spread`: of these latents.
    """

    bound: DiffuserBound
    first = "the codec, if it is a new one, and the tower that compares pictures learn"
    centre: Tensor  # (C, 1, 1)
    spread: Tensor
    usual: Tensor  # (3, H, W): the mean of the training pictures

    def __init__(self, bound: Bound, name: str, size: tuple[int, int]):
        super().__init__(bound)
        self.name = name
        told = self.bound.told
        labels = {s: tuple(told[s]["sizes"]) for s, kind in bound.kinds.items() if kind.name == "category"}
        self.columns = next(iter(labels), None)
        self.texts = {s: min(told[s]["vocab"], WORDS) for s, kind in bound.kinds.items() if kind.name == "text"}
        self.tower = Naming(labels[self.columns] if self.columns else (), self.texts)
        self.chain = Diffusion(linear())
        channels = self.bound.system.sample[0]
        self.register_buffer("centre", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        self.register_buffer("usual", torch.full((3, *size), 0.5))
        for part in (self.tower, self.bound.system.codec):
            if part is not None:
                part.requires_grad_(False)

    # -- before the first step

    def learn_first(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """The codec, where it is not trained yet, and the tower learn; then the latents are measured."""
        index = index[rows.known()[index]]
        some = np.random.default_rng(seed).permutation(index)[:2000]
        pictures = torch.cat([rows.target(some[at : at + BATCH])[self.name] for at in range(0, len(some), BATCH)])
        pictures = pictures.to(self.usual.device)
        self.usual.copy_(pictures.mean(0))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            codec = self.bound.system.codec
            if codec is not None and self.worth(pictures[:BATCH]) > GOOD:
                learn(codec, self.codec_loss, rows, index, CODEC, seed)
            learn(self.tower, self.tower_loss, rows, index, TOWER, seed + 1)
        with torch.no_grad():
            z = torch.cat([self.latents(x) for x in pictures.split(BATCH)])
        self.centre.copy_(z.mean((0, 2, 3))[:, None, None])
        self.spread.copy_(z.std((0, 2, 3)).clamp(min=1e-6)[:, None, None])

    @torch.no_grad()
    def worth(self, pictures: Tensor) -> float:
        """How far the codec's pictures lie from those that it was given."""
        x = 2 * pictures - 1
        return float((self.bound.system.codec.decode(self.latents(pictures)) - x).abs().mean())

    def codec_loss(self, batch: dict) -> Tensor:
        x, codec = 2 * batch["target"][self.name] - 1, self.bound.system.codec
        mean, log = codec.encode(x)
        z, apart = drawn(mean, log, True)
        return (codec.decode(z) - x).abs().mean() + apart.mean()

    def tower_loss(self, batch: dict) -> Tensor:
        ready = self.bound.prepared(batch)
        texts = {slot: known_words(ready, slot, count) for slot, count in self.texts.items()}
        return self.tower.losses(self.tower(batch["target"][self.name]), self.ids(ready), texts).mean()

    def ids(self, ready: dict) -> Tensor | None:
        """(B, columns), 0 where nothing is known; None without such columns."""
        if self.columns is None:
            return None
        ids = ready[self.columns].masked_fill(~ready["present"][self.columns][:, None], 0)
        keep = ready["keep"].get(self.columns)
        return ids if keep is None else ids.masked_fill(~keep, 0)

    # -- training

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, C, h, w): the mean of what the codec makes of pictures in [0, 1]."""
        codec, x = self.bound.system.codec, 2 * pictures - 1
        return x if codec is None else codec.encode(x)[0]

    def errors(self, batch: dict, condition: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,): how wrong the system is on pictures with noise (B, C, h, w), of which they have a `share` (B,); and the
        bound of a variance, where it says one."""
        system, real = self.bound.system, batch["target"][self.name]
        with torch.no_grad():
            z = (self.latents(real.nan_to_num(0.5)).float() - self.centre) / self.spread
        if system.predicts == "velocity":
            said = system.denoise(flow.mixed(z, share, noise), 1000 * share, condition).float()
            return (said - flow.velocity(z, noise)).square().flatten(1).mean(1), None
        t = (share * len(self.chain)).long().clamp(max=len(self.chain) - 1)
        x = self.chain.noised(z, t, noise)
        return self.chain.losses(system.denoise(x, t, condition).float(), x, t, z, noise)

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        ready, real, system = self.bound.prepared(batch), batch["target"][self.name], self.bound.system
        how = dict(generator=generator, device=real.device)
        asks = torch.rand(len(real), **how) >= FORGET
        ready["present"] = {slot: there & asks for slot, there in ready["present"].items()}
        noise = torch.randn((len(real), *system.sample), **how)
        rows, bound = self.errors(batch, system.condition(ready), noise, torch.rand(len(real), **how))
        there = known(real)
        return {"loss": mean_over(rows, there)} | ({} if bound is None else {"bound": mean_over(bound, there)})

    def watched(self, batch: dict) -> dict[str, Tensor]:
        """`loss` (B,), each row with noise of its own, the same each time."""
        ready, draw = self.bound.prepared(batch), self.noise(batch)
        share = (batch["row"] * 0.6180339887) % 1  # spread evenly
        return {"loss": self.errors(batch, self.bound.system.condition(ready), draw(), share.float())[0]}

    # -- answers

    def noise(self, batch: dict) -> Callable[[], Tensor]:
        """Noise of each row's own, by the seed and the row's number: (B, C, h, w), other one at each call."""
        rows, sample = batch["row"], self.bound.system.sample
        own = [torch.Generator().manual_seed((self.seed << 31) + int(row)) for row in rows.cpu()]
        return lambda: torch.stack([torch.randn(sample, generator=g) for g in own]).to(rows.device)

    def paint(self, batch: dict) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        system, ready = self.bound.system, self.bound.prepared(batch)
        nothing = {slot: torch.zeros_like(there) for slot, there in ready["present"].items()}
        scale = GUIDANCE if self.guidance is None else self.guidance
        condition, none = system.condition(ready), system.condition(ready | {"present": nothing})
        ask, draw, steps = guided(system.denoise, condition, none, scale), self.noise(batch), self.steps or STEPS
        if system.predicts == "velocity":
            z = flow.heun(lambda x, time: ask(x, 1000 * time), draw(), steps)
        else:
            z = ddpm(ask, draw(), self.chain.respaced(steps), draw)
        z = z.float() * self.spread + self.centre
        return ((z if system.codec is None else system.codec.decode(z)).float() / 2 + 0.5).clamp(0, 1)

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`pictures` (B, 3, H, W); where the batch holds real ones, the tower's features (B, D) of both, of the real
        ones blurred, and of the usual one, and (B,) whether all that is asked for is named right in each."""
        made = {"pictures": self.paint(batch)}
        if "target" not in batch:
            return made
        real = batch["target"][self.name].nan_to_num(0.5)
        every = {"made": made["pictures"], "real": real, "blurred": blurred(real), "usual": self.usual.expand_as(real)}
        ids = self.ids(self.bound.prepared(batch))
        for name, pictures in every.items():
            made[name] = self.tower(pictures)
            if ids is not None:
                named = torch.stack(self.tower.named(made[name]), 1)
                made[f"{name} named"] = ((named == ids) | (ids == 0)).all(1)
        if ids is not None:
            made["asked"] = (ids > 0).any(1)
        return made


class Generate(Task):
    """A picture per row. Answers are `pictures` (n, 3, H, W) in [0, 1]; of these, features are kept, and whether they
    show what was asked for."""

    name = choice = "generate"
    noun = "generation"
    roles = ROLES
    asks = "image"
    auto = "dit"
    floor = "usual"
    draws = True
    answers_rows = False

    target: str

    def __init__(self, target: str, params: dict):
        self.target, self.params = target, params

    @classmethod
    def learn(cls, schema: Schema) -> Generate:
        (target,) = schema.targets
        return cls(target, schema.column(target).params)

    @property
    def needs(self) -> dict[str, tuple[int, ...]]:
        return {"image": tuple(self.params["size"])}

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        return Pace(64, int(np.clip(round(200_000 / rows), 20, 400)), 1e-3, patient=True, ema=0.999)

    def model(self, bound: Bound, objective: Objective | None = None) -> Painter:
        return Painter(bound, self.target, tuple(self.params["size"]))

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return outputs

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """All but the pictures."""
        return {}, {name: values for name, values in answers.items() if name != "pictures"}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """Of the generated pictures, and beside them what the real ones score blurred, and one half of them against the
        other."""
        found = self.compared(answers, "made", "")
        half = len(answers["real"]) // 2
        some = np.random.default_rng(0).permutation(len(answers["real"]))[: 2 * half]
        one, other = answers["real"][some].reshape(2, half, -1)
        found.append(distance("distance, blurred", answers["real"], answers["blurred"]))
        if half > 1:
            found.append(distance("distance, real halves", one, other))
        return found + self.compared(answers, "real", ", real")[1:]

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """The mean of the training pictures for each row."""
        return self.compared(answers, "usual", "")

    def compared(self, answers: Answers, which: str, mark: str) -> list[Score]:
        found = [distance(f"distance{mark}", answers["real"], answers[which])]
        if "asked" in answers and answers["asked"].any():
            found.append(proportion(f"named right{mark}", answers[f"{which} named"][answers["asked"]]))
        return found

    def headline(self, scores: list[Score]) -> list[Score]:
        return [s for s in scores if s.name in ("distance", "named right")]

    def guide(self, truth: Answers, answers: Answers) -> float:
        return -float(answers["loss"].mean())

    def columns(self, answers: Answers) -> dict[str, list]:
        return {self.target: [KINDS[self.asks].write(picture, self.params) for picture in answers["pictures"]]}

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """Some rows: what was asked for, a real picture of it, and the generated one."""
        some = index[np.unique(np.linspace(0, len(index) - 1, SHOWN).astype(np.int64))]
        made, real = self.columns(again(some))[self.target], rows.batch(some)["target"][self.target]
        names = [name for name in rows.schema.inputs if name in rows.table.names]
        cells = [rows.table.column(name).take(some).to_pylist() for name in names]
        lines = [
            Example(list(asked), KINDS[self.asks].write(x.numpy(), self.params), answer, None, None)
            for asked, x, answer in zip(zip(*cells), real, made)
        ]
        return [Section("Examples: what rows asked for, theirs, and what was made", "examples", Examples(names, lines))]

    def describe(self) -> str:
        return "pictures of {} x {} pixels".format(*self.params["size"])

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Generate:
        return cls.learn(schema)


def known(real: Tensor) -> Tensor:
    """(B,) bool: the rows with a target picture."""
    return ~real.flatten(1).isnan().any(1)


def blurred(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), each pixel the mean of the 3 x 3 around it."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def known_words(ready: dict, slot: str, most: int) -> tuple[Tensor, Tensor]:
    """A text's ids (B, N), and (B, N) bool: those that are there, below `most`, and no special ones (0 to 4)."""
    ids, keep = ready[slot], ready["keep"].get(slot)
    real = (ids > 4) & (ids < most) & ready["present"][slot][:, None]
    return ids.clamp(max=most - 1), real if keep is None else real & keep


def learn(
    module: torch.nn.Module,
    loss: Callable[[dict], Tensor],
    rows: Rows,
    index: np.ndarray,
    most: tuple[int, int],
    seed: int,
) -> None:
    """Train `module` alone for so many passes, or steps if these are fewer, the rate falling like a cosine; it is then
    frozen again, in eval mode."""
    rng, (passes, steps), device = np.random.default_rng(seed), most, next(module.parameters()).device
    steps = min(steps, max(1, passes * len(index) // BATCH))
    module.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps + 1, pct_start=0.05)
    for _ in range(steps):
        batch = to_device(rows.batch(rng.choice(index, min(BATCH, len(index)), replace=False)), device)
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rate.step()
    module.eval().requires_grad_(False)


TASKS = (Generate,)
