"""Names of passages, written by who was taught passages and questions (DSI), beside words that are counted and vectors
that are compared."""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims.texts import BEGIN, END, FIRST, framed, learn, made
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from plait.parts.docids import semantic_ids
from plait.parts.generation import Trie
from plait.parts.objectives.contrastive import contrastive
from plait.parts.recall import recall

TOPICS, THINGS, NOISE, PASSAGES, SAYS, ASKS, TAUGHT = 5, 60, 40, 100, 5, 3, 6
STEPS = 1300
SAID, ASKED = FIRST, FIRST + THINGS  # the first word that says a thing, and that asks for it
VOCAB = FIRST + 2 * THINGS + NOISE


class Library:
    """Passages of five things of a topic each, and questions for three of them: in half of the cases by the word that
    says the thing, in half by one that no passage has."""

    def __init__(self, seed: int):
        self.g = torch.Generator().manual_seed(seed)
        each = THINGS // TOPICS
        topic = torch.randint(TOPICS, (PASSAGES, 1), generator=self.g)
        self.things = each * topic + torch.rand(PASSAGES, each, generator=self.g).argsort(1)[:, :SAYS]
        self.passages = self.mixed(SAID + self.things, 6)
        self.questions = torch.stack([self.ask() for _ in range(TAUGHT)], 1)  # (P, TAUGHT, N)
        self.asked = self.ask()

    def mixed(self, words: Tensor, noise: int) -> Tensor:
        extra = FIRST + 2 * THINGS + torch.randint(NOISE, (len(words), noise), generator=self.g)
        both = torch.cat([words, extra], 1)
        return framed(both.gather(1, torch.rand(both.shape, generator=self.g).argsort(1)))

    def ask(self) -> Tensor:
        some = torch.rand(PASSAGES, SAYS, generator=self.g).argsort(1)[:, :ASKS]
        words = self.things.gather(1, some)
        plain = torch.rand(words.shape, generator=self.g) < 0.5
        return self.mixed(torch.where(plain, SAID, ASKED) + words, 2)

    def counted(self) -> float:
        """The share of questions whose passage BM25 finds first."""
        passages = [Counter(p[1:-1].tolist()) for p in self.passages]
        known = Counter(word for p in passages for word in p)
        right = 0
        for i, question in enumerate(self.asked.tolist()):
            scores = [
                sum(
                    math.log(1 + (PASSAGES - known[w] + 0.5) / (known[w] + 0.5)) * p[w] * 2.5 / (p[w] + 1.5)
                    for w in question[1:-1]
                )
                for p in passages
            ]
            right += max(range(PASSAGES), key=scores.__getitem__) == i
        return right / PASSAGES

    def clusters(self) -> list[str]:
        """Names by the words of passages."""
        bags = torch.zeros(PASSAGES, VOCAB).scatter_add(1, self.passages, torch.ones(self.passages.shape))
        return semantic_ids(torch.pca_lowrank(bags, 16, niter=8)[0].numpy(), branch=5, leaf=5)


def written(library: Library, names: list[str], seed: int) -> float:
    """The share of questions whose passage's name is written first. Names are figures, each a word."""
    ids = [tuple(VOCAB + int(figure) for figure in name.split()) for name in names]
    longest = max(map(len, ids)) + 2
    target = torch.tensor([[BEGIN, *name, END] + [-100] * (longest - len(name) - 2) for name in ids])
    most = max(int(f) for name in names for f in name.split()) + 1
    how = dict(width=96, heads=4, head_width=24, hidden=192, gated=True, dropout=0.1)
    model = made("dsi_toy", seed, vocab=VOCAB + most, **how)

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        which = torch.randint(PASSAGES, (64,), generator=g)
        asks = torch.randint(TAUGHT + 1, (64,), generator=g)  # one of the questions, or the passage
        text = torch.zeros(64, library.passages.shape[1], dtype=torch.int64)
        question = library.questions[which, asks.clamp(max=TAUGHT - 1)]
        text[:, : question.shape[1]] = question
        text = torch.where((asks == TAUGHT)[:, None], library.passages[which], text)
        want = target[which]
        logits, _ = model.step(want[:, :-1].clamp(min=0), model.prefill({"text": text, "keep": {"text": text > 0}}))
        return F.cross_entropy(logits.flatten(0, 1), want[:, 1:].flatten(), ignore_index=-100)

    learn(model, loss, STEPS, seed, 2e-3)
    found = recall(model, {"text": library.asked}, Trie(ids, END), 10)[0][:, 0]  # (P, N)
    told = [tuple(i for i in row if i)[:-1] for row in found.tolist()]
    return sum(a == b for a, b in zip(told, ids, strict=True)) / PASSAGES


def compared(library: Library, seed: int) -> float:
    """The same of one encoder for both sides."""

    def loss(model: nn.Module, step: int, g: torch.Generator) -> Tensor:
        which = torch.randperm(PASSAGES, generator=g)[:64]
        question = library.questions[which, torch.randint(TAUGHT, (64,), generator=g)]
        return contrastive(model(question), model(library.passages[which]), model.logit_scale)["contrastive"]

    model = learn(made("gtr_toy", seed, vocab=VOCAB), loss, STEPS, seed)
    with torch.no_grad():
        near = model(library.asked) @ model(library.passages).mT
    return float((near.argmax(1) == torch.arange(PASSAGES)).float().mean())


def run(seed: int) -> dict[str, float]:
    library = Library(seed)
    numbers = [" ".join(f"{i:02d}") for i in range(PASSAGES)]
    return {
        "names of clusters": written(library, library.clusters(), seed),
        "numbers": written(library, numbers, seed),
        "BM25": library.counted(),
        "a vector a text": compared(library, seed),
    }


TRIALS = {
    "dsi": Trial(
        "a hundred generated passages of five things of one of five topics and six questions each, asked for three "
        "things, half of them in words of no passage; 1300 steps of 64",
        "hits@1 among 100",
        (
            Rule("names of clusters", "higher", "BM25"),
            Rule("names of clusters", "higher", "numbers"),
            Rule("names of clusters", "higher", "a vector a text"),
        ),
        run,
    )
}
