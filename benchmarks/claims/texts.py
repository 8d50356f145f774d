"""Encoders and retrievers of texts, on generated ones: what is asked in one set of words is answered in another."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from plait.core.attend import seams
from plait.core.catalog import build
from plait.core.init import initialise
from plait.parts.objectives.contrastive import contrastive
from plait.parts.objectives.late import late
from plait.parts.objectives.multilabel import decoupled_softmax, soft_topk_loss
from plait.systems.text import dual_cross_encoder, endx_gam

BEGIN, END, FIRST = 2, 3, 5  # ids; the first of a word
Loss = Callable[[nn.Module, int, torch.Generator], Tensor]


class Language:
    """Things, each with a word that asks for it and one that says it: ids below `vocab`. Some words are noise."""

    def __init__(self, things: int, noise: int = 20):
        self.things, self.noise, self.vocab = things, noise, FIRST + 2 * things + noise

    def pairs(
        self,
        rows: int,
        g: torch.Generator,
        *,
        said: int = 5,
        asked: int = 2,
        noisy: int = 3,
        among: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Questions (rows, asked + 2) and passages (rows, said + noisy + 2): a question asks for some of the things
        that its passage says. among: the first of the things, and the one after the last."""
        first, last = among or (0, self.things)
        what = torch.rand(rows, last - first, generator=g).argsort(1)[:, :said] + first
        words = FIRST + self.things + what
        extra = FIRST + 2 * self.things + torch.randint(self.noise, (rows, noisy), generator=g)
        mixed = torch.cat([words, extra], 1)
        mixed = mixed.gather(1, torch.rand(mixed.shape, generator=g).argsort(1))
        return framed(FIRST + what[:, :asked]), framed(mixed)


def framed(ids: Tensor) -> Tensor:
    """(B, N) -> (B, N + 2) with a beginning and an end."""
    edge = torch.ones_like(ids[:, :1])
    return torch.cat([BEGIN * edge, ids, END * edge], 1)


def learn(model: nn.Module, loss: Loss, steps: int, seed: int, rate: float = 3e-3) -> nn.Module:
    """AdamW with a rate that rises and falls once; back comes the model in evaluation. loss(model, step, generator)."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, step, g).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def apart(language: Language, rows: int = 32, **how) -> Loss:
    """The contrastive loss of a batch of pairs."""

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        asked, said = language.pairs(rows, g, **how)
        return contrastive(model(asked), model(said), model.logit_scale)["contrastive"]

    return loss


@torch.no_grad()
def found(model: nn.Module, language: Language, rows: int = 400, **how) -> float:
    """The share of questions whose own passage is the nearest of `rows`."""
    asked, said = language.pairs(rows, torch.Generator().manual_seed(999), **how)
    return float(((model(asked) @ model(said).mT).argmax(1) == torch.arange(rows)).float().mean())


def made(name: str, seed: int, **arguments) -> nn.Module:
    return initialise(build(name, **arguments), seed=seed)


def stages() -> Trial:
    """A first stage on all things, a second on few; asked is for the others."""
    language, few, others = Language(120), (0, 40), (40, 120)

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, first in (("two stages", True), ("second stage alone", False)):
            model = made("gtr_toy", seed, vocab=language.vocab)
            if first:
                learn(model, apart(language), 800, seed, 5e-3)
            learn(model, apart(language, among=few), 150, seed, 1e-3)
            told[name] = found(model, language, among=others)
        return told

    how = "generated questions on 120 things: 800 steps of 32 on all, then 150 on 40 of them; asked is for the others"
    return Trial(how, "recall@1 among 400", (Rule("two stages", "higher", "second stage alone"),), run)


def larger() -> Trial:
    """Towers of two sizes behind vectors of one length, on passages longer than those of training."""
    language = Language(120)

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, depth in (("larger tower", 4), ("smaller tower", 1)):
            model = learn(made("gtr_toy", seed, depth=depth, vocab=language.vocab), apart(language), 500, seed)
            told[name] = found(model, language, said=8, asked=3, noisy=8)
        return told

    how = "towers of four layers and of one behind 16 numbers, 500 steps of 32, then passages twice as long"
    return Trial(how, "recall@1 among 400", (Rule("larger tower", "higher", "smaller tower"),), run)


def both_sides() -> Trial:
    """A writer is trained on texts of several authors, then told a few of them by name, in two ways."""
    words, authors, length = 40, 6, 20

    def texts(rows: int, g: torch.Generator, tables: Tensor) -> tuple[Tensor, Tensor]:
        who = torch.randint(authors, (rows,), generator=g)
        said = [torch.randint(words, (rows,), generator=g)]
        for _ in range(length - 1):
            said.append(torch.multinomial(tables[who, said[-1]], 1, generator=g)[:, 0])
        return framed(FIRST + torch.stack(said, 1)), who

    def run(seed: int) -> dict[str, float]:
        g = torch.Generator().manual_seed(seed)
        shared = torch.randn(words, words, generator=g)  # of a language, in which authors have ways of their own
        tables = (2 * shared + 1.2 * torch.randn(authors, words, words, generator=g)).softmax(-1)
        few, unseen = texts(600, g, tables), texts(2000, g, tables)
        how = dict(vocab=FIRST + words, width=64, hidden=128, window=99, dropout=0.1, num_classes=authors)

        def writes(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
            ids, _ = texts(32, g, tables)
            logits = F.linear(model.tokens(ids[:, :-1]).x, model.words.table.weight)
            return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        def tells(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
            rows = torch.randint(len(few[0]), (32,), generator=g)
            return F.cross_entropy(model(few[0][rows]), few[1][rows])

        def causal(model: nn.Module, is_so: bool) -> nn.Module:
            for seam in seams(model):
                seam.causal = is_so
            return model

        writer = learn(causal(made("gemma_encoder_toy", seed, **how), True), writes, 500, seed)
        told = {}
        for name, pooling, past in (("both sides, mean", "mean", False), ("past alone, last word", "last", True)):
            model = causal(made("gemma_encoder_toy", seed, **how, pooling=pooling), past)
            model.load_state_dict(writer.state_dict())
            model = learn(model, tells, 150, seed, 1e-3)
            with torch.no_grad():
                told[name] = float((model(unseen[0]).argmax(1) == unseen[1]).float().mean())
        return told

    how = (
        "Markov chains of 40 words of six authors: 500 steps of 32 as a writer, then 150 on 600 texts with their author"
    )
    return Trial(how, "accuracy", (Rule("both sides, mean", "higher", "past alone, last word"),), run)


def labels() -> Trial:
    """Texts of which each thing is a label, or not, by a chance of its own; labels are words of their own."""
    things, said, steps = 100, 6, 300
    language = Language(things)

    def texts(rows: int, g: torch.Generator, chance: Tensor) -> tuple[Tensor, Tensor]:
        what = torch.rand(rows, things, generator=g).argsort(1)[:, :said]
        right = torch.zeros(rows, things, dtype=torch.bool).scatter(1, what, True)
        return framed(FIRST + what), right & (torch.rand(rows, things, generator=g) < chance)

    def run(seed: int) -> dict[str, float]:
        chance = torch.rand(things, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.2
        names = framed(FIRST + things + torch.arange(things)[:, None])
        losses = {
            "decoupled softmax": lambda s, right: decoupled_softmax(s, right, ~right),
            "soft top 6": lambda s, right: soft_topk_loss(s, right, torch.ones_like(right), said),
            "softmax over all": lambda s, right: -(
                (s.log_softmax(1) * right).sum(1) / right.sum(1).clamp(min=1)
            ).mean(),
        }  # fmt: skip
        told = {}
        for name, of_scores in losses.items():

            def loss(model: nn.Module, step: int, g: torch.Generator, of_scores=of_scores) -> Tensor:
                ids, right = texts(32, g, chance)
                return of_scores(model.logit_scale.exp() * model(ids) @ model(names).mT, right)

            model = made("decoupled_softmax_dexml_toy", seed, vocab=language.vocab)
            learn(model, loss, steps, seed)
            ids, right = texts(1000, torch.Generator().manual_seed(999), chance)
            with torch.no_grad():
                best = (model(ids) @ model(names).mT).topk(3, dim=1).indices
            told[name] = float(right.gather(1, best).float().mean())
        return told

    rules = (
        Rule("decoupled softmax", "higher", "softmax over all"),
        Rule("soft top 6", "higher", "softmax over all"),
    )
    how = f"texts of six of {things} things, of which each is a label by a chance of its own, {steps} steps of 32"
    return Trial(how, "precision at 3", rules, run)


def late_pairs(
    name: str, arms: dict[str, dict], *, things: int, swapped: bool, rate: float, **how: int
) -> Callable[[int], dict[str, float]]:
    """Models of the size `name` whose two sides are compared late, on pairs, by recall@1 among 400. swapped: the long
    text asks."""
    language = Language(things)
    slots = {side: {"kind": "text", "vocab": language.vocab} for side in ("a", "b")}

    def sides(model: nn.Module, rows: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        one, two = language.pairs(rows, g, **how)
        found = model.embed({"a": two, "b": one} if swapped else {"a": one, "b": two})
        return found["a"], found["b"]

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        return contrastive(*sides(model, 32, g), model.logit_scale, compare=late(model))["contrastive"]

    def run(seed: int) -> dict[str, float]:
        told = {}
        for arm, arguments in arms.items():
            model = learn(made(name, seed, vocab=language.vocab, slots=slots, **arguments), loss, 500, seed, rate)
            with torch.no_grad():
                scores = late(model)(*sides(model, 400, torch.Generator().manual_seed(999)))
            told[arm] = float((scores.argmax(1) == torch.arange(400)).float().mean())
        return told

    return run


def several() -> Trial:
    """Passages of many things, of which a question asks for two, in vectors of eight numbers."""
    arms = {"six vectors": dict(views=6, project=8), "one vector": dict(views=1, project=8)}
    run = late_pairs("me_bert_toy", arms, things=30, swapped=False, rate=1e-3, said=6, noisy=0)
    how = "passages of six of 30 things, kept as vectors of eight numbers, 500 steps of 32"
    return Trial(how, "recall@1 among 400", (Rule("six vectors", "higher", "one vector"),), run)


def codes() -> Trial:
    """A long text looks for the short one that says two of its things."""
    arms = {"eight codes": dict(codes=8), "one code": dict(codes=1)}
    run = late_pairs("poly_encoder_toy", arms, things=60, swapped=True, rate=3e-3, said=9, noisy=3)
    how = "texts of nine of 60 things and three more words look for one that says two of them, 500 steps of 32"
    return Trial(how, "recall@1 among 400", (Rule("eight codes", "higher", "one code"),), run)


def views() -> Trial:
    """Texts of many things, each kept behind four questions that it might be asked, or alone."""
    language, how, lists = Language(100), dict(said=8, noisy=0), 4
    slots = {side: {"kind": "text", "vocab": language.vocab} for side in ("a", "b")}

    def batch(asked: Tensor, said: Tensor) -> dict:
        there = torch.ones(len(asked), dtype=torch.bool)
        return {"a": asked, "b": said, "present": {"a": there, "b": there}}

    def run(seed: int) -> dict[str, float]:
        def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
            return dual_cross_encoder.objective(model, batch(*language.pairs(32, g, **how)), None, g)["views"]

        def plain(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
            asked, said = language.pairs(32, g, **how)
            return contrastive(model(asked), model(said), model.logit_scale)["contrastive"]

        told = {}
        for name, of in {"behind questions": loss, "alone": plain}.items():
            made_of = dict(vocab=language.vocab, slots=slots, views=lists, length=32)
            model = learn(made("dual_cross_encoder_toy", seed, **made_of), of, 1000, seed, 3e-3)
            g = torch.Generator().manual_seed(999)
            asked, said = language.pairs(400, g, asked=8, **how)  # all of its things, in the questions' words
            things = asked[:, 1:-1]
            ask = framed(things.gather(1, torch.rand(things.shape, generator=g).argsort(1)[:, :2]))
            pseudo = things.gather(1, torch.rand(things.shape, generator=g).argsort(1)).unflatten(1, (lists, 2))
            there, real = torch.ones_like(said, dtype=torch.bool), name != "alone"
            asks = framed(pseudo.flatten(0, 1)).unflatten(0, (-1, lists))
            keep = torch.full_like(asks, real, dtype=torch.bool)
            with torch.no_grad():
                scores = late(model)(model(ask), model.store(asks, keep, said, there))
            told[name] = float((scores.argmax(1) == torch.arange(400)).float().mean())
        return told

    said = "texts of eight of 100 things, kept behind four questions of two things each or alone, 1000 steps of 32"
    return Trial(said, "recall@1 among 400", (Rule("behind questions", "higher", "alone"),), run)


def geometry() -> Trial:
    """A dual encoder with and without what reading both sides together teaches it."""
    language, how = Language(80), dict(said=6, noisy=3)
    slots = {side: {"kind": "text", "vocab": language.vocab} for side in ("a", "b")}

    def run(seed: int) -> dict[str, float]:
        def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
            asked, said = language.pairs(32, g, **how)
            there = torch.ones(len(asked), dtype=torch.bool)
            given = {"a": asked, "b": said, "present": {"a": there, "b": there}}
            losses = endx_gam.objective(model, given, None, g)
            return sum(losses.values()) if model.align else losses["match"]

        told = {}
        for name, align in {"geometry of both": 1.0, "matching alone": 0.0}.items():
            model = made("endx_gam_toy", seed, vocab=language.vocab, slots=slots, align=align, length=32)
            told[name] = found(learn(model, loss, 500, seed, 1e-3), language, **how)
        return told

    said = "questions of two of 80 things, texts of six and three more words, 500 steps of 32"
    return Trial(said, "recall@1 among 400", (Rule("geometry of both", "higher", "matching alone"),), run)


TRIALS = {
    "dual_cross_encoder": views(),
    "endx_gam": geometry(),
    "me_bert": several(),
    "poly_encoder": codes(),
    "decoupled_softmax_dexml": labels(),
    "gtr_stages": stages(),
    "gtr_towers": larger(),
    "gemma_encoder": both_sides(),
}
