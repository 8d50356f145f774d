"""The four steps of RocketQA, on generated questions of which the labels know one answer among several."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims.texts import FIRST, framed, learn, made
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from plait.parts.objectives.mined import mined

THINGS, NOISE, PASSAGES, SAYS = 30, 10, 150, 4
LABELLED, MORE, TESTED = 600, 900, 1000
DEVICES, EACH, STEPS, RANKING = 8, 4, 600, 600
TOP, WRONG, LOW, HIGH = 50, 4, 0.1, 0.9
VOCAB = FIRST + 2 * THINGS + NOISE


class Library:
    """Passages (P, N) of four things and two more words, and questions (Q, M) for two things of a passage each: `own`
    (Q,) is what a label would know, `right` (Q, P) all that say both, some three each. What is asked for in a test, no
    other question asks for."""

    def __init__(self, seed: int):
        g = torch.Generator().manual_seed(seed)
        things = torch.rand(PASSAGES, THINGS, generator=g).argsort(1)[:, :SAYS]
        extra = FIRST + 2 * THINGS + torch.randint(NOISE, (PASSAGES, 2), generator=g)
        words = torch.cat([FIRST + THINGS + things, extra], 1)
        self.passages = framed(words.gather(1, torch.rand(words.shape, generator=g).argsort(1)))
        own = torch.randint(PASSAGES, (20 * TESTED,), generator=g)
        asked = things[own].gather(1, torch.rand(len(own), SAYS, generator=g).argsort(1)[:, :2])
        luck = torch.rand(THINGS, THINGS, generator=g)
        tested = (luck + luck.T)[asked[:, 0], asked[:, 1]] > 1.37  # a fifth
        rows = torch.cat([(~tested).nonzero()[: LABELLED + MORE, 0], tested.nonzero()[:TESTED, 0]])
        self.own, asked = own[rows], asked[rows]
        self.questions = framed(FIRST + asked)
        says = torch.zeros(PASSAGES, THINGS, dtype=torch.bool).scatter(1, things, True)
        self.right = says[:, asked].all(-1).T
        self.labelled, self.more, self.tested = torch.arange(len(self.own)).split((LABELLED, MORE, TESTED))


class Pairs(NamedTuple):
    """Questions and passages by number (n,), and of each some that are wrong (n, K), -1 where there is none."""

    asks: Tensor
    answers: Tensor
    wrong: Tensor


def encoder(library: Library, pairs: Pairs, seed: int, devices: int = 1) -> nn.Module:
    """A dual encoder, taught by batches of which each of `devices` sees the passages of its own part alone; as often by
    each pair, however many there are."""

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs.asks), (DEVICES * EACH,), generator=g)
        drawn = torch.randint(pairs.wrong.shape[1], (len(rows), 1), generator=g)
        asks, answers, wrong = pairs.asks[rows], pairs.answers[rows], pairs.wrong[rows].gather(1, drawn)[:, 0]
        texts = library.questions[asks], library.passages[answers], library.passages[wrong.clamp(min=0)]
        read, told = [model(ids) for ids in texts], []
        for part in torch.arange(len(rows)).chunk(devices):
            a, b, c = (vectors[part] for vectors in read)
            own, other = answers[part], wrong[part]
            may = (own[:, None] != other) & (other >= 0)
            there = torch.ones_like(own, dtype=torch.bool)
            told.append(mined(a, b, c, model.logit_scale, own[:, None] == own, there, may)["mined"])
        return torch.stack(told).mean()

    return learn(
        made("sentence_encoder_toy", seed, vocab=VOCAB, project=32),
        loss,
        STEPS * len(pairs.asks) // LABELLED,
        seed,
        4e-3,
    )


@torch.no_grad()
def nearest(model: nn.Module, library: Library, asks: Tensor, count: int) -> Tensor:
    return (model(library.questions[asks]) @ model(library.passages).mT).topk(count, dim=1).indices


def recall(model: nn.Module, library: Library) -> float:
    best = nearest(model, library, library.tested, 1)
    return float(library.right[library.tested].gather(1, best).float().mean())


def logits(judge: nn.Module, library: Library, asks: Tensor, passages: Tensor) -> Tensor:
    """asks (n,), passages (n, K), read together -> (n, K)."""
    q = library.questions[asks].repeat_interleave(passages.shape[1], 0)
    p = library.passages[passages.flatten()][:, None]
    return judge.scores(q, torch.ones_like(q, dtype=torch.bool), p, torch.ones_like(p, dtype=torch.bool)).view(
        passages.shape
    )


@torch.no_grad()
def sure(library: Library, judge: nn.Module, asks: Tensor, found: Tensor) -> Tensor:
    """(n, K): the probabilities that candidates answer."""
    return torch.cat([logits(judge, library, a, f).sigmoid() for a, f in zip(asks.split(100), found.split(100))])


def ranker(library: Library, pairs: Pairs, seed: int) -> nn.Module:
    """A cross-encoder, taught to tell a passage from four at a time that were found beside it."""

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs.asks), (24,), generator=g)
        wrong = pairs.wrong[rows]
        drawn = torch.rand(wrong.shape, generator=g).masked_fill(wrong < 0, 2.0).argsort(1)[:, :WRONG]
        passages = torch.cat([pairs.answers[rows, None], wrong.gather(1, drawn)], 1)
        truth = torch.zeros(passages.shape).index_fill(1, torch.tensor([0]), 1.0)
        return F.binary_cross_entropy_with_logits(logits(model, library, pairs.asks[rows], passages), truth)

    return learn(made("uni_encoder_toy", seed, vocab=VOCAB, heads=4), loss, RANKING, seed, 4e-3)


def some(candidates: Tensor, fit: Tensor, count: int) -> Tensor:
    """The first `count` of the candidates (n, K) that fit, -1 where there are no more."""
    order = (~fit).int().argsort(dim=1, stable=True)[:, :count]
    return candidates.gather(1, order).masked_fill(~fit.gather(1, order), -1)


def by_chance(library: Library, g: torch.Generator) -> Pairs:
    asks = library.labelled
    return Pairs(asks, library.own[asks], torch.randint(PASSAGES, (len(asks), WRONG), generator=g))


class Mined(NamedTuple):
    """Of the labelled questions the candidates by number (n, TOP): which have no label, answer all the same, and are
    surely wrong by the ranker."""

    judge: nn.Module
    found: Tensor
    unknown: Tensor
    false: Tensor
    wrong: Tensor


def judged(library: Library, first: nn.Module, seed: int) -> Mined:
    asks = library.labelled
    found = nearest(first, library, asks, TOP)
    unknown = found != library.own[asks][:, None]
    judge = ranker(library, Pairs(asks, library.own[asks], found.masked_fill(~unknown, -1)), seed)
    false = unknown & library.right[asks].gather(1, found)
    return Mined(judge, found, unknown, false, unknown & (sure(library, judge, asks, found) < LOW))


def steps(seed: int) -> dict[str, float]:
    library, told = Library(seed), {}
    asks, own, _ = pairs = by_chance(library, torch.Generator().manual_seed(seed))
    for name, devices in {"in-batch": DEVICES, "cross-batch": 1}.items():
        first = encoder(library, pairs, seed, devices)
        told[name] = recall(first, library)
    m = judged(library, first, seed)
    told["false negatives removed"] = 1 - float(m.wrong[m.false].float().mean())
    told["true negatives kept"] = float(m.wrong[m.unknown & ~m.false].float().mean())
    told["mined"] = recall(encoder(library, Pairs(asks, own, some(m.found, m.unknown, WRONG)), seed), library)
    denoised = Pairs(asks, own, some(m.found, m.wrong, WRONG))
    second = encoder(library, denoised, seed)
    told["denoised"] = recall(second, library)
    found = nearest(second, library, library.more, TOP)
    p = sure(library, m.judge, library.more, found)
    best = p.argmax(1, keepdim=True)
    kept = (p.gather(1, best) > HIGH)[:, 0]
    pseudo = found.gather(1, best)[:, 0]
    more = Pairs(library.more[kept], pseudo[kept], some(found, p < LOW, WRONG)[kept])
    told["labels that are right"] = float(library.right[more.asks, more.answers].float().mean())
    told["labelled"] = float(kept.float().mean())
    both = Pairs(*(torch.cat(parts) for parts in zip(denoised, more)))
    told["augmented"] = recall(encoder(library, both, seed), library)
    return told


ORDER = ("in-batch", "cross-batch", "denoised", "augmented")
TRIALS = {
    "rocketqa": Trial(
        f"questions for two of {THINGS} things, {LABELLED} with one of their three answers among {PASSAGES} passages "
        f"and {MORE} with none, {STEPS} steps of {DEVICES} x {EACH}, of more pairs as many more",
        "share of unseen questions whose nearest passage answers; of what is mined, the shares by their names",
        (*(Rule(b, "higher", a) for a, b in zip(ORDER, ORDER[1:])), Rule("denoised", "higher", "mined")),
        steps,
    )
}
