"""Scores of written texts: against sums done by hand, and against sacrebleu's numbers for the same texts."""

from __future__ import annotations

import numpy as np
import pytest

from plait.errors import PlaitError
from plait.evaluate.captions import bleu, captions, chrf, chrf_rows, letter_rows, word_rows

TRUTH = ["a cat sits on the red mat", "two dogs run",
         "the quick brown fox jumps over the lazy dog", "greek small letter alpha",
         "a man , riding a horse !"]  # fmt: skip
SAID = ["a cat is on the mat", "two dogs are running fast",
        "the quick brown fox jumped over the dog", "greek small letter alpha",
        "a man rides a horse"]  # fmt: skip


def test_as_sacrebleu():
    """sacrebleu 2.6.0: BLEU(tokenize="none", smooth_method="none") and CHRF(), corpus scores; and CHRF's sentence
    scores."""
    assert float(bleu(word_rows(TRUTH, SAID).sum(0))) == pytest.approx(0.3203516851445995)
    assert float(chrf(letter_rows(TRUTH, SAID).sum(0))) == pytest.approx(0.6448451878979299)
    rows = [0.3817200673210925, 0.5355534979252733, 0.7155427362999677, 1.0, 0.38654064543428504]
    assert chrf_rows(TRUTH, SAID) == pytest.approx(rows)


def test_bleu_by_hand():
    # said "a b c d e": 5, 4, 3, 2 n-grams, of which "a b c d x y" has 4, 3, 2, 1; five words for six
    rows = word_rows(["a b c d x y"], ["a b c d e"])
    assert rows.tolist() == [[4, 5, 6, 3, 4, 5, 2, 3, 4, 1, 2, 3, 5, 6]]
    assert float(bleu(rows[0])) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 6 / 5))
    # longer
    assert float(bleu(word_rows(["a b c d"], ["a b c d e"])[0])) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    assert (
        float(bleu(word_rows(["a b c d"], ["a b c x"])[0])) == 0 and float(bleu(word_rows(["a b c d"], [""])[0])) == 0
    )
    assert word_rows(["Oh, no!"], ["Oh no"])[0, -2:].tolist() == [2, 4]  # a sign is a word


def test_a_repeated_word_counts_as_often_as_it_is_true():
    assert word_rows(["the cat"], ["the the the"])[0, :3].tolist() == [1, 3, 2]


def test_chrf_by_hand():
    # "ab" for "abc": of one letter 2 of 2 said and 2 of 3 true, of two letters 1 of 1 and 1 of 2; longer ones only the
    # truth has
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf_rows(["abc"], ["ab"])[0] == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert chrf_rows(["a b c"], ["abc"])[0] == 1  # spaces are left out
    assert chrf_rows(["abc", "abc", "abc"], ["", "xyz", "abc"]).tolist() == [0, 0, 1]


def test_scores_and_their_intervals():
    loss, tokens = np.array([4.0, 2.0, np.nan, 3.0, 1.0]), np.array([8, 4, 10, 5, 6])
    asked = np.isfinite(loss)
    found = {s.name: s for s in captions(TRUTH, SAID, loss, tokens, asked)}
    assert list(found) == ["chrF", "exact match", "BLEU-4", "perplexity"]
    assert found["exact match"].value == 0.2 and found["perplexity"].value == pytest.approx(np.exp(10 / 23))
    assert found["perplexity"].n == 4 and found["perplexity"].better == "lower"
    assert all(s.low < s.value < s.high for s in found.values())
    with pytest.raises(PlaitError, match="1 NaN or infinite"):  # a model without a number is not spared
        captions(TRUTH, SAID, loss, tokens, np.ones(5, bool))
    again = {s.name: s for s in captions(TRUTH * 20, SAID * 20, *(np.tile(v, 20) for v in (loss, tokens, asked)))}
    for name, s in again.items():
        assert s.value == pytest.approx(found[name].value) and s.high - s.low < 0.5 * (
            found[name].high - found[name].low
        )
    perfect = captions(TRUTH, TRUTH)
    assert [s.value for s in perfect] == pytest.approx([1, 1, 1]) and all(0.5 < s.low < s.high == 1 for s in perfect)


def test_intervals_cover_the_truth():
    """Of samples of 60 texts from a large set, about 95 of 100 intervals hold what the whole set scores."""
    rng = np.random.default_rng(0)
    many = (
        [(t, s) for t, s in zip(TRUTH, SAID)]
        + [(t, t) for t in TRUTH]
        + [("one red door", "a blue house"), ("a door", "one door")]
    )
    whole = {s.name: s.value for s in captions(*zip(*many))}
    held = {name: 0 for name in whole}
    for _ in range(60):
        some = [many[i] for i in rng.integers(0, len(many), 60)]
        for s in captions(*zip(*some)):
            held[s.name] += s.low <= whole[s.name] <= s.high
    assert all(count >= 52 for count in held.values()), held


def test_what_is_not_there_is_left_out():
    # no truth of four words
    assert [s.name for s in captions(["a cat", "a dog"], ["a cat", "a cow"])] == ["chrF", "exact match"]
    assert [s.name for s in captions(["a cat"], [""])] == ["chrF", "exact match"]
    with pytest.raises(ValueError, match="nothing to compare"):
        captions(["", " "], ["a", "b"])
    with pytest.raises(ValueError, match="nothing to compare"):
        captions([], [])
