"""Rankers of texts, which read what asks and what answers together, on generated ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from benchmarks.claims.speed import forward, turns
from benchmarks.claims.texts import Language, learn, made
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from plait.systems.text.fie import answer_loss
from plait.systems.text.uni_encoder import arrow as arrow_mask
from plait.systems.text.uni_encoder import diagonal, square

Scores = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (A, N) and (K, M), which all A rows are asked of -> (A, K)
MASKS = {"arrow": arrow_mask, "both sides alone": diagonal, "all see all": square}


def listwise(scores: Scores, language: Language, rows: int, **how) -> Callable:
    """Softmax over the answers of a batch; each of them is asked of every talk."""

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        asked, said = language.pairs(rows, g, **how)
        return F.cross_entropy(scores(model, said, asked), torch.arange(rows))

    return loss


@torch.no_grad()
def best_of(scores: Scores, model: nn.Module, language: Language, among: int, lists: int, **how) -> float:
    """The share of talks whose own answer has the highest score of `among`."""
    g, right = torch.Generator().manual_seed(999), 0
    for _ in range(lists):
        asked, said = language.pairs(among, g, **how)
        right += int((scores(model, said, asked).argmax(1) == torch.arange(among)).sum())
    return right / (lists * among)


def arrow() -> Trial:
    """A talk of nine things and ten answers, of which its own says two of them."""
    language, how = Language(40), dict(said=6, noisy=2)

    def under(sees: Callable[[Tensor], Tensor]) -> Scores:
        def scores(model: nn.Module, said: Tensor, asked: Tensor) -> Tensor:
            answers, there = asked.expand(len(said), -1, -1), torch.ones_like(said, dtype=torch.bool)
            t = model.tokens(said, there, answers, torch.ones_like(answers, dtype=torch.bool), sees)
            talk, read = t.x[:, : said.shape[1]], t.x[:, said.shape[1] :]
            read = read.unflatten(1, (len(asked), -1)).mean(2)
            if sees is diagonal:  # what has not read the talk is compared with it
                return (read @ talk.mean(1)[..., None])[..., 0] / read.shape[-1] ** 0.5
            return model.score(read)[..., 0]

        return scores

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, sees in MASKS.items():
            scores = under(sees)
            model = made("uni_encoder_toy", seed, vocab=language.vocab)
            learn(model, listwise(scores, language, 10, **how), 400, seed)
            told[name] = best_of(scores, model, language, 10, 40, **how)
        return told

    said = "texts of six of 40 things and two more words, and ten that say two of them, 400 steps of ten"
    rules = (Rule("arrow", "higher", "both sides alone"), Rule("arrow", "higher", "all see all"))
    return Trial(said, "recall@1 among 10", rules, run)


def along() -> Trial:
    """The same lists, of which a few vectors are kept: they read the talk along with its encoder, or are compared with
    what that makes of it alone."""
    language, how = Language(40), dict(said=6, noisy=2)

    def met(model: nn.Module, said: Tensor, asked: Tensor) -> Tensor:
        kept = model.store(asked, torch.ones_like(asked, dtype=torch.bool))
        there = torch.ones_like(said, dtype=torch.bool)
        return model.scores(said, there, kept.expand(len(said), *kept.shape)) / kept.shape[-1] ** 0.5

    def apart(model: nn.Module, said: Tensor, asked: Tensor) -> Tensor:
        kept = model.store(asked, torch.ones_like(asked, dtype=torch.bool)).mean(1)
        talk = model.stack(model.text_embedding(said, torch.ones_like(said, dtype=torch.bool))).x.mean(1)
        return talk @ kept.mT / kept.shape[-1] ** 0.5

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, scores in {"read along": met, "each side alone": apart}.items():
            model = made("mixencoder_toy", seed, vocab=language.vocab)
            learn(model, listwise(scores, language, 10, **how), 1200, seed, 1e-3)
            told[name] = best_of(scores, model, language, 10, 40, **how)
        return told

    said = "texts of six of 40 things and two more words, and ten that say two of them, 1200 steps of ten"
    return Trial(said, "recall@1 among 10", (Rule("read along", "higher", "each side alone"),), run)


def one_talk() -> dict[str, Callable[[], object]]:
    """Ten answers of 16 words to a talk of 240, read with it once, or each with it."""
    model = plait.create_model("uni_encoder_nano").eval()
    talk, answers = torch.randint(5, 8192, (1, 240)), torch.randint(5, 8192, (1, 10, 16))
    alone = talk.expand(10, -1), answers[0, :, None]

    def scores(talk: Tensor, answers: Tensor) -> Callable[[], None]:
        asked = talk, torch.ones_like(talk, dtype=torch.bool), answers, torch.ones_like(answers, dtype=torch.bool)
        return forward(model.scores, *asked)

    return {"one talk": scores(talk, answers), "one talk an answer": scores(*alone)}


def thousand() -> dict[str, Callable[[], object]]:
    """A question to a thousand texts: of which vectors are kept, or each read with it."""
    model, cross = (plait.create_model(f"{name}_nano").eval() for name in ("mixencoder", "uni_encoder"))
    asks, texts = torch.randint(5, 8192, (1, 16)), torch.randint(5, 8192, (1000, 32))
    with torch.no_grad():
        kept = torch.cat([model.store(ids, ids > 0) for ids in texts.split(100)])[None]

    def each() -> None:
        with torch.no_grad():
            for some in texts[:, None].split(100):
                wide = asks.expand(len(some), -1)
                cross.scores(wide, wide > 0, some, some > 0)

    return {"kept vectors": forward(model.scores, asks, asks > 0, kept), "each read with it": each}


PEOPLE, KEYS, THINGS = (range(5 + a, 5 + b) for a, b in ((0, 8), (8, 24), (24, 48)))


def two_facts(rows: int, passages: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Who asks (B, 1); passages (B, P, 2), one of which says which key that person has, and the others what each key
    opens; and which passage holds what the person's key opens (B,)."""
    pick = lambda words, count: torch.rand(rows, len(words), generator=g).argsort(1)[:, :count] + words[0]  # noqa: E731
    who, keys, things = pick(PEOPLE, 1), pick(KEYS, passages - 1), pick(THINGS, passages - 1)
    texts = torch.cat([torch.cat([who, keys[:, :1]], 1)[:, None], torch.stack([keys, things], 2)], 1)
    order = torch.rand(rows, passages, generator=g).argsort(1)
    return who, texts[torch.arange(rows)[:, None], order], (order == 1).int().argmax(1)


def two_hops(steps: int = 900, passages: int = 5) -> Trial:
    """An answer that no passage gives alone."""

    def spans(model: nn.Module, who: Tensor, texts: Tensor) -> Tensor:
        ones = torch.ones_like(who, dtype=torch.bool), torch.ones_like(texts, dtype=torch.bool)
        return model.spans(who, ones[0], texts, ones[1])

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, shared in {"passages meet": 4, "each alone": 0}.items():
            model = made("fie_toy", seed, width=64, depth=4, heads=4, shared=shared, longest=1)

            def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
                who, texts, where = two_facts(64, passages, g)
                right = torch.zeros(*texts.shape, 1, dtype=torch.bool)
                right[torch.arange(64), where, 1] = True
                return answer_loss(spans(model, who, texts), right)

            learn(model, loss, steps, seed, 7e-4)
            with torch.no_grad():
                who, texts, where = two_facts(1000, passages, torch.Generator().manual_seed(999))
                best = spans(model, who, texts).flatten(1).argmax(1)
            told[name] = float((best == where * 2 + 1).float().mean())
        return told

    said = f"who has which key, and what each of four keys opens, in five passages, {steps} steps of 64"
    return Trial(said, "share of exact answers", (Rule("passages meet", "higher", "each alone"),), run)


TRIALS = {
    "fie": two_hops(),
    "mixencoder": along(),
    "uni_encoder": arrow(),
    "uni_encoder_speed": turns(
        "nano, ten answers of 16 words to a talk of 240", (Rule("one talk", "lower", "one talk an answer"),), one_talk
    ),
    "mixencoder_speed": turns(
        "nano, a question of 16 words to a thousand texts of 32, of which vectors are kept, or each read with it",
        (Rule("kept vectors", "lower", "each read with it"),),
        thousand,
    ),
}
