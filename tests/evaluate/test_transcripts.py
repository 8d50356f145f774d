"""Edits and error rates against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plait.evaluate.transcripts import alignment, edited, edits, transcription, word_rows


@pytest.mark.parametrize(
    "truth, answer, count",
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("flaw", "lawn", 2),
        ("intention", "execution", 5),
    ],
)
def test_edits(truth, answer, count):
    assert edits(truth, answer) == count
    steps = alignment(truth, answer)
    assert sum(what != "same" for what, _, _ in steps) == count
    assert "".join(t for _, t, _ in steps if t) == truth and "".join(a for _, _, a in steps if a) == answer


def test_edits_are_those_of_the_alignment():
    rng = np.random.default_rng(0)
    for _ in range(300):
        truth, answer = ("".join(rng.choice(list("abc"), rng.integers(0, 70))) for _ in range(2))
        assert edits(truth, answer) == sum(what != "same" for what, _, _ in alignment(truth, answer))


def test_an_alignment_names_each_edit():
    found = alignment("one two three four".split(), "one too three five four".split())
    assert [what for what, _, _ in found] == ["same", "other", "same", "added", "same"]
    assert [what for what, _, _ in alignment(["a", "b"], ["b"])] == ["lost", "same"]


def test_error_rates_by_hand():
    truth = ["one two three", "four", "five six"]
    answers = ["one too three", "", "five six seven"]
    words, characters, exact = transcription(truth, answers)
    assert words.value == pytest.approx((1 + 1 + 1) / (3 + 1 + 2))  # a substitution, a deletion, an insertion
    assert characters.value == pytest.approx((1 + 4 + 6) / (13 + 4 + 8))  # w for o; f o u r; " seven"
    assert exact.value == 0.0 and (words.name, words.better, words.n) == ("word error rate", "lower", 3)
    assert words.low <= words.value <= words.high
    assert word_rows(truth, answers).tolist() == [[1, 3], [1, 1], [1, 2]]


def test_an_error_rate_can_be_more_than_one_and_a_text_without_a_word_counts_what_was_added():
    words, _, exact = transcription(["a", ""], ["b c d", "e"])
    assert words.value == 4.0 and exact.value == 0.0


def test_the_interval_holds_the_rate_of_the_whole():
    """Rows of 4 words, each word wrong with probability 0.3: of 200 samples' intervals about 95% hold 0.3."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        wrong = rng.random((80, 4)) < 0.3
        words = transcription(
            ["a b c d"] * 80, [" ".join("x" if w else t for w, t in zip(row, "abcd")) for row in wrong]
        )[0]
        held += words.low <= 0.3 <= words.high
    assert 50 <= held <= 60


def test_no_error_in_ten_rows_does_not_prove_that_there_never_is_one():
    words, characters, _ = transcription(["a b"] * 10, ["a b"] * 10)
    assert words.value == words.low == characters.low == 0.0 and words.high == characters.high == pytest.approx(
        0.2775, abs=1e-3
    )


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="without a word"):
        transcription(["", " "], ["a", "b"])
    with pytest.raises(ValueError, match="without a word"):
        transcription([], [])


def test_the_picture_is_a_png():
    assert edited([("one two", "one too many"), ("", "x"), ("word " * 80, "word " * 70), ("$a^2$", "")]).startswith(
        b"\x89PNG"
    )
    with pytest.raises(ValueError, match="no transcripts"):
        edited([])
