"""Systems of pictures and texts on digits and their names; and one encoder for other kinds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.claims.trial import ROWS, Trial, digits, placed, train, unseen
from benchmarks.claims.verdict import Rule
from plait.core.catalog import build
from plait.core.init import initialise
from plait.parts.objectives import align_fuse
from plait.parts.objectives.contrastive import contrastive
from plait.parts.objectives.momentum import Momentum
from plait.systems.pairs import albef

STEPS, FIRST_WORD = 400, 10  # the ids of the digits' names follow
Named = tuple[dict[str, Tensor], Tensor]  # a batch, and which digit each row's text names (B,)


def texts(y: Tensor) -> Tensor:
    """The name of each digit (B,) between a beginning and an end: (B, 3)."""
    return torch.stack([torch.full_like(y, 1), FIRST_WORD + y, torch.full_like(y, 2)], 1)


def pairs(count: int, g: torch.Generator, wrong: float = 0.0) -> Named:
    """Digits with a text that names them. wrong: the share of texts that are drawn anyhow."""
    x, y, *_ = digits()
    rows = torch.randint(len(x), (count,), generator=g)
    lies = torch.rand(count, generator=g) < wrong
    named = torch.where(lies, torch.randint(10, (count,), generator=g), y[rows])
    return {"image": placed(x[rows], g), "text": texts(named)}, named


def asked() -> Named:
    """The unseen digits, with the ten texts in the place of theirs."""
    x, y = unseen()
    return {"image": x, "text": texts(torch.arange(len(x)) % 10)}, y


@torch.no_grad()
def found(model: nn.Module) -> float:
    """The share of unseen pictures whose own text, of the ten, is the nearest."""
    batch, y = asked()
    vectors = model.embed(batch)
    return float(((vectors["image"] @ vectors["text"][:10].mT).argmax(1) == y).float().mean())


@torch.no_grad()
def reranked(model: albef.ALBEF, count: int = 4) -> float:
    """As `found`, where the fusion chooses among the nearest `count` texts."""
    batch, y = asked()
    image, text = model.encode(batch)
    vectors = model.vectors(image, text)
    near = (vectors["image"] @ vectors["text"][:10].mT).topk(count).indices  # (N, count)
    score = torch.stack(
        [model.match(model.cross(align_fuse.rows_of(text, column), image).x[:, 0])[:, 1] for column in near.T], 1
    )
    return float((near.gather(1, score.argmax(1)[:, None])[:, 0] == y).float().mean())


def optimised(model: nn.Module, steps: int, rate: float = 2e-3) -> Iterable[None]:
    """Steps of AdamW: the body of the loop leaves gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        yield
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def aligned(seed: int, *, wrong: float, ramp: int) -> albef.ALBEF:
    """An ALBEF that has learnt. ramp: the steps until its teacher is trusted."""
    model = initialise(build("albef_toy", queue=0, answer_depth=0), seed=seed).train()
    state = Momentum(model, model.takes, size=0, width=model.embed_width, momentum=0.98, ramp=ramp)
    g, noise = (torch.Generator().manual_seed(s) for s in (seed, seed))
    for _ in optimised(model, STEPS):
        batch, same = pairs(ROWS // 2, g, wrong)
        losses = albef.objective(model, batch | {"same": same}, state, noise)
        sum(losses.values()).backward()
        albef.after_step(model, state)
    return model.eval()


def fusion() -> Trial:
    def run(seed: int) -> dict[str, float]:
        model = aligned(seed, wrong=0.0, ramp=100)
        return {"fusion chooses among four": reranked(model), "vectors alone": found(model)}

    how = f"digits and their names, albef_toy without a queue, {STEPS} steps of {ROWS // 2}"
    rule = Rule("fusion chooses among four", "higher", "vectors alone")
    return Trial(how, "the first of ten texts is right, 1,191 unseen pictures", (rule,), run)


def distilled() -> Trial:
    def run(seed: int) -> dict[str, float]:
        return {
            name: found(aligned(seed, wrong=0.4, ramp=ramp))
            for name, ramp in (("momentum teacher", 100), ("hard targets", 10**9))
        }

    how = (
        f"pairs of digits and names of which 40% are another's, albef_toy without a queue, {STEPS} steps of {ROWS // 2}"
    )
    rule = Rule("momentum teacher", "higher", "hard targets")
    return Trial(how, "the first of ten texts is right, 1,191 unseen pictures", (rule,), run)


def reinforced() -> Trial:
    """MobileCLIP's training: a table of 1,000 pairs stores what a larger model said of each; half of the loss is to
    have a batch's affinities as the larger model had them."""

    def learn(model: nn.Module, seed: int, steps: int, batch, teacher=None) -> nn.Module:
        g = torch.Generator().manual_seed(seed)
        for _ in optimised(model.train(), steps):
            rows, (data, group) = batch(g)
            said = model(data)
            loss = contrastive(said["image"], said["text"], said["logit_scale"], same=group[:, None] == group)[
                "contrastive"
            ]
            if teacher is not None:
                theirs = {slot: v[rows] for slot, v in teacher.items()}
                loss = 0.5 * loss + 0.5 * apart(said, theirs)
            loss.backward()
        return model.eval()

    def apart(said: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
        ours = said["logit_scale"].exp() * said["image"] @ said["text"].mT
        truth = 30.0 * theirs["image"] @ theirs["text"].mT
        ways = ((ours, truth), (ours.mT, truth.mT))
        return sum(F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") for a, b in ways) / 2

    def run(seed: int) -> dict[str, float]:
        def fresh(g: torch.Generator):
            return None, pairs(ROWS, g)

        master = learn(initialise(build("clip_toy"), seed=100 + seed), 100 + seed, 600, fresh)
        table, group = pairs(1000, torch.Generator().manual_seed(200 + seed))
        with torch.no_grad():
            stored = master.embed(table)

        def kept(g: torch.Generator):
            rows = torch.randint(1000, (ROWS,), generator=g)
            return rows, ({slot: v[rows] for slot, v in table.items()}, group[rows])

        told = {"larger model": found(master)}
        for name, teacher in (("reinforced", stored), ("plain", None)):
            told[name] = found(learn(initialise(build("mobileclip_toy"), seed=seed), seed, 150, kept, teacher))
        return told

    how = f"1,000 digits and their names, mobileclip_toy, 150 steps of {ROWS}"
    rule = Rule("reinforced", "higher", "plain")
    return Trial(how, "the first of ten texts is right, 1,191 unseen pictures", (rule,), run)


def shared() -> Trial:
    """Meta-Transformer: an encoder that has learnt from pictures, then frozen, reads the same digits as 64 columns of
    numbers and as a text of 64 words of ink; beside one that has learnt nothing."""
    kinds = {
        "image": {"kind": "image", "size": (32, 32)},
        "number": {"kind": "number", "features": 64},
        "text": {"kind": "text", "vocab": 18},
    }

    class Reader(nn.Module):
        def __init__(self, slot: str, frozen: bool):
            super().__init__()
            self.slot = slot
            self.body = build("meta_transformer_toy", slots={slot: kinds[slot]}, frozen=frozen)
            self.head = nn.Linear(self.body.width, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body.fuse({self.slot: x})["fused"])

    def named(slot: str, seed: int, frozen: bool = True) -> Reader:
        with torch.device("meta"):
            model = Reader(slot, frozen)
        return initialise(model, seed=seed)

    raw = load_digits()
    ink, y = torch.from_numpy(raw.data).float(), torch.from_numpy(raw.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    ink, y = ink[order], y[order]

    def run(seed: int) -> dict[str, float]:
        seen = train(named("image", seed, frozen=False), 300, seed).body.encoder.state_dict()
        told = {"learnt from pictures": 0.0, "learnt nothing": 0.0}
        for slot, x in (("number", ink / 8 - 1), ("text", ink.long() + 1)):
            for name in told:
                model = named(slot, seed)
                if name == "learnt from pictures":
                    model.body.encoder.load_state_dict(seen)
                g = torch.Generator().manual_seed(seed)
                for _ in optimised(model, 300, 3e-3):
                    rows = torch.randint(1400, (ROWS,), generator=g)
                    F.cross_entropy(model(x[rows]), y[rows]).backward()
                with torch.no_grad():
                    told[name] += float((model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean()) / 2
        return told

    how = f"two layers, 300 steps of {ROWS} on pictures of digits, then 300 on digits as columns or as words"
    rule = Rule("learnt from pictures", "higher", "learnt nothing")
    return Trial(how, "accuracy on 397 digits, mean of columns and words", (rule,), run)


TRIALS = {
    "albef_fusion": fusion(),
    "albef_distillation": distilled(),
    "mobileclip": reinforced(),
    "meta_transformer": shared(),
}
