"""RocketQA's four steps: what each of them learns from, and that they go on where they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import plait
from benchmarks.claims import mining
from plait.errors import DataError, UsageError
from plait.runs import rocketqa
from plait.runs.console import Console
from plait.runs.settings import Settings

QUIET = Console(quiet=True)
THINGS, SAYS = 24, 4


class Library:
    """Passages that say four things each, and questions for two of them, in words of their own."""

    def __init__(self, passages: int, questions: int, more: int = 0, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.said = [frozenset(rng.permutation(THINGS)[:SAYS].tolist()) for _ in range(passages)]
        texts = [" ".join(f"says{thing}" for thing in rng.permutation(sorted(said))) for said in self.said]
        self.at, self.of, label = dict(zip(texts, self.said)), {}, {}
        while len(label) < questions + more:  # each question once, of whose answers one is known
            own = int(rng.integers(passages))
            asked = rng.permutation(sorted(self.said[own]))[:2].tolist()
            text = " ".join(f"asks{thing}" for thing in asked)
            self.of[text] = frozenset(asked)
            label.setdefault(text, texts[own])
        asks = list(label)
        self.pairs = {"question": asks[:questions], "passage": [label[text] for text in asks[:questions]]}
        self.passages, self.more = {"passage": texts}, {"question": asks[questions:]}

    def right(self, question: str, passage: str) -> bool:
        return self.of[question] <= self.at[passage]


class Judged(rocketqa.Steps):
    """Steps in which everything is found, in its order, and the ranker knows what is right, but for what is odd."""

    library: Library

    def found(self, run, asks, top):
        return [[(i, 1.0 - i / 1000) for i in range(min(top, len(self.passages)))] for _ in asks]

    def judged(self, ranker, asks, found):
        odd = {2: 0.5, 3: 0.2}  # of a passage by its number: what the ranker is not sure of
        return [
            np.array([odd.get(i, 0.97 if self.library.right(q, self.passages[i]) else 0.03) for i, _ in near])
            for q, near in zip(asks, found)
        ]


@pytest.fixture
def library() -> Library:
    return Library(60, 40, 30)


@pytest.fixture
def steps(library, tmp_path) -> Judged:
    made = Judged(library.pairs, tmp_path, ["question", "passage"], library.passages, Settings(), QUIET)
    made.library = library
    return made


def rows(table: pa.Table, split: str = "train") -> list[dict]:
    return [row for row in table.to_pylist() if row["split"] == split]


def test_all_pairs_of_a_question_are_on_one_side(steps):
    sides = {}
    for row in steps.pairs.to_pylist():
        sides.setdefault(row["question"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {row["split"] for row in steps.pairs.to_pylist()} == {"train", "val", "test"}
    assert len(steps.passages) >= 55  # those of no pair too


def test_the_first_encoder_has_passages_at_random(steps):
    table = steps.drawn(4)
    train = rows(table)
    assert len(train) == 4 * sum(row["split"] == "train" for row in steps.pairs.to_pylist())
    known = {(row["question"], row["passage"]) for row in steps.pairs.to_pylist()}
    assert not any((row["question"], row["negative"]) in known for row in train)
    assert all(row["negative"] is None for split in ("val", "test") for row in rows(table, split))
    assert len({row["negative"] for row in train}) > 40 and table.equals(steps.drawn(4)), "drawn by the seed"


def test_the_ranker_learns_from_what_was_found_and_is_not_known(steps):
    table = steps.ranked(None, 20, 4)
    known = {(row["question"], row["passage"]): row["split"] for row in steps.pairs.to_pylist()}
    right = {(row["question"], row["passage"]): row["split"] for row in table.to_pylist() if row["right"]}
    wrong = [row for row in table.to_pylist() if not row["right"]]
    assert right == known
    assert len(wrong) == 4 * len({q for q, _ in known}) and {row["split"] for row in wrong} == {"train", "val", "test"}
    assert all((row["question"], row["passage"]) not in known for row in wrong)
    assert {row["passage"] for row in wrong} <= set(steps.passages[:20])


def test_only_what_is_surely_wrong_is_learnt_from(steps, library):
    """The first of the candidates in their order; what the ranker is not sure of is neither right nor wrong."""
    table = steps.denoised(None, None, 20, 4, 0.1)
    train = rows(table)
    assert not any(library.right(row["question"], row["negative"]) for row in train)
    assert not {row["negative"] for row in train} & {steps.passages[2], steps.passages[3]}
    first = train[0]["question"]
    own = [row["negative"] for row in train if row["question"] == first][:4]
    expected = [p for i, p in enumerate(steps.passages[:20]) if i not in (2, 3) and not library.right(first, p)][:4]
    assert own == expected
    told = pq.read_table(steps.out / "3_candidates.parquet").to_pylist()
    assert {(r["question"], r["passage"]) for r in told if r["negative"]} == {
        (r["question"], r["negative"]) for r in train
    }
    assert any(library.right(r["question"], r["passage"]) and not r["known"] for r in told), "none was to be removed"


def test_where_too_few_are_surely_wrong_others_are_drawn(steps):
    """Of those that were no candidates."""
    train = rows(steps.denoised(None, None, 4, 4, 0.1))
    candidates = set(steps.passages[:4])
    assert {row["negative"] for row in train} - candidates
    assert len(train) == 4 * sum(row["split"] == "train" for row in steps.pairs.to_pylist())
    assert not {row["negative"] for row in train} & {steps.passages[2], steps.passages[3]}


def test_questions_are_labelled_where_the_ranker_is_sure(steps, library, tmp_path):
    pq.write_table(steps.denoised(None, None, 20, 4, 0.1), tmp_path / "3_denoised.parquet")
    more = steps.more(library.more)
    assert not set(more) & set(library.pairs["question"])
    table = steps.augmented(None, None, more, 20, 4, 0.1, 0.9)
    before = pq.read_table(tmp_path / "3_denoised.parquet")
    assert table.slice(0, len(before)).equals(before)
    added = table.slice(len(before)).to_pylist()
    sure = [q for q in more if any(library.right(q, p) for i, p in enumerate(steps.passages[:20]) if i not in (2, 3))]
    assert list(dict.fromkeys(row["question"] for row in added)) == sure and 0 < len(sure) < len(more)
    assert all(row["split"] == "train" for row in added)
    assert all(
        library.right(r["question"], r["passage"]) and not library.right(r["question"], r["negative"]) for r in added
    )


def test_what_cannot_be_is_said(library, tmp_path):
    def asked(error: type[Exception], match: str, source=library.pairs, **how):
        with pytest.raises(error, match=match):
            plait.rocketqa(source, out=tmp_path / "r", console=QUIET, **how)

    asked(UsageError, "target is not for the four steps", target="question")
    asked(UsageError, "expected 0 <= low <= high", low=0.9, high=0.1)
    asked(UsageError, "counts from 1 on", top=0)
    numbers = {"a": [1.5, 2.5, 3.0] * 9, "b": ["x y z", "u v w", "r s t"] * 9}
    asked(DataError, "a text that asks and one that answers", numbers, inputs=["a", "b"])


def test_a_pipeline_that_was_killed_goes_on(tmp_path, monkeypatch):
    """It is killed before its third step; what is done is not done again, and another call is refused."""
    library, called, real = Library(30, 60, 20), [], rocketqa.fit
    how = dict(
        out=tmp_path / "r", inputs=["question", "passage"], passages=library.passages, questions=library.more,
        system="sentence_encoder_toy", judge="uni_encoder_toy", top=10, low=0.5, high=0.5, epochs=1, batch_size=64,
        precision="fp32", judging={"epochs": 2}, console=QUIET,
    )  # fmt: skip

    def killed(source, **given):
        called.append(Path(source).stem)
        if len(called) == 3:
            raise KeyboardInterrupt
        return real(source, **given)

    monkeypatch.setattr(rocketqa, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        plait.rocketqa(library.pairs, **how)
    with pytest.raises(UsageError, match="begun with other top"):
        plait.rocketqa(library.pairs, **how | {"top": 20})
    with pytest.raises(DataError, match="begun with other rows"):
        plait.rocketqa({name: cells[1:] for name, cells in library.pairs.items()}, **how)
    run = plait.rocketqa(library.pairs, **how)
    assert called == ["1_first", "2_judge", "3_denoised", "3_denoised", "4_augmented"]
    assert run.folder == tmp_path / "r" / "4_augmented" and run.task.name == "retrieve"
    assert plait.rocketqa(library.pairs, **how).folder == run.folder and len(called) == 5  # nothing is left to do
    for name in called:
        told = [json.loads(line) for line in (tmp_path / "r" / name / "metrics.jsonl").open()]
        assert len(told) == (2 if name == "2_judge" else 1)
        assert name == "2_judge" or list(told[0]["losses"]) == ["mined"]
    found = pq.read_table(tmp_path / "r" / "3_candidates.parquet").to_pylist()
    assert any(r["negative"] for r in found) and not any(r["negative"] for r in found if r["probability"] >= 0.5)
    assert plait.load(run.folder).search(library.passages, question=library.more["question"][0], k=1)[0].row < 30


def test_most_that_answers_and_that_nobody_labelled_is_removed():
    """A ranker that has learnt from labels, of which each knows one of some three answers, takes nine in ten of the
    others among the candidates for no negatives, and nearly all that is wrong for one."""
    library = mining.Library(0)
    first = mining.encoder(library, mining.by_chance(library, torch.Generator().manual_seed(0)), 0)
    mined = mining.judged(library, first, 0)
    assert int(mined.false.sum()) > 500, "few were planted"
    assert float(mined.wrong[mined.false].float().mean()) < 0.1
    assert float(mined.wrong[mined.unknown & ~mined.false].float().mean()) > 0.9
