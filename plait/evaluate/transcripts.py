"""Transcripts against the truth: edits, error rates with 95% intervals, and a picture that shows each edit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import Score, bootstrap, proportion, wilson
from plait.evaluate.pictures import BLACK, ORANGE, PURPLE
from plait.evaluate.style import GREY, new_figure, png, shorten

SAME, OTHER, LOST, ADDED = "same", "other", "lost", "added"
MARKS = {SAME: (BLACK, ""), OTHER: (ORANGE, "S"), LOST: (PURPLE, "D"), ADDED: (ORANGE, "I")}
Step = tuple[str, object, object]


def alignment(truth: Sequence, answer: Sequence) -> list[Step]:
    """The fewest edits from `truth` to `answer` as (what, unit of truth, unit of answer): same, other, lost (None) or
    added (None, ...)."""
    n, m = len(truth), len(answer)
    cost = np.zeros((n + 1, m + 1), np.int64)
    cost[:, 0], cost[0] = np.arange(n + 1), np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            cost[i, j] = min(
                cost[i - 1, j - 1] + (truth[i - 1] != answer[j - 1]), cost[i - 1, j] + 1, cost[i, j - 1] + 1
            )
    steps, i, j = [], n, m
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (truth[i - 1] != answer[j - 1]):
            i, j = i - 1, j - 1
            steps.append((SAME if truth[i] == answer[j] else OTHER, truth[i], answer[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            steps.append((LOST, truth[i], None))
        else:
            j -= 1
            steps.append((ADDED, None, answer[j]))
    return steps[::-1]


def edits(truth: Sequence, answer: Sequence) -> int:
    """The fewest substitutions, deletions and insertions that make `answer` of `truth` (Levenshtein's distance).

    A column of differences between neighbours (1, 0 or -1) is two whole numbers of len(truth) bits (Myers 1999, Hyyrö
    2003), so that a unit of the answer costs a dozen operations, however long the truth is.
    """
    if not len(truth):
        return len(answer)
    places: dict[object, int] = {}
    for i, unit in enumerate(truth):
        places[unit] = places.get(unit, 0) | 1 << i
    full, last, count = (1 << len(truth)) - 1, 1 << (len(truth) - 1), len(truth)
    more, less = full, 0  # where the column goes up, and down
    for unit in answer:
        same = places.get(unit, 0)
        steady = same | less
        across = (((same & more) + more) ^ more) | same
        up, down = less | (full & ~(across | more)), more & across
        count += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & full, (down << 1) & full
        more, less = down | (full & ~(steady | up)), up & steady
    return count


def word_rows(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(n, 2): edits of words, and words of the truth, per row."""
    pairs = [(t.split(), a.split()) for t, a in zip(truth, answers, strict=True)]
    return np.asarray([(edits(t, a), len(t)) for t, a in pairs], np.float64).reshape(-1, 2)


def character_rows(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(n, 2): edits of characters (spaces count), and characters of the truth, per row."""
    return np.asarray([(edits(t, a), len(t)) for t, a in zip(truth, answers, strict=True)], np.float64).reshape(-1, 2)


def transcription(truth: Sequence[str], answers: Sequence[str]) -> list[Score]:
    """Word error rate, character error rate, exact match of n transcripts.

    An error rate is the number of edits over all rows by the number of words (characters) of the truth, so that long
    rows weigh more and many insertions make it more than 1; its interval is from drawing rows, and where there is no
    edit at all, Wilson's for so many rows without one. Raises ValueError where there is no word in the truth.
    """
    words, characters = word_rows(truth, answers), character_rows(truth, answers)
    if not len(words) or not words[:, 1].sum():
        raise PlaitError(
            f"got {len(words)} transcripts without a word: there is nothing to compare with; give rows that have a text"
        )
    return [
        _error_rate("word error rate", words),
        _error_rate("character error rate", characters),
        proportion("exact match", np.asarray([t == a for t, a in zip(truth, answers, strict=True)])),
    ]


def _error_rate(name: str, rows: np.ndarray) -> Score:
    """rows (n, 2): edits and units of each."""
    score = bootstrap(name, lambda means: means[..., 0] / means[..., 1], rows, "lower")
    return score if rows[:, 0].any() else score._replace(high=wilson(0, len(rows))[1])


def edited(rows: Sequence[tuple[str, str]], most: int = 12) -> bytes:
    """PNG of (truth, answer) pairs, one below the other, word under word; S substituted, D deleted, I inserted, in
    colour and letter."""
    if not rows:
        raise PlaitError("got no transcripts to draw, expected at least one (truth, answer)")
    rows, width, line = list(rows)[:most], 96, 0.17
    blocks = [
        part for truth, answer in rows for part in (*_lines(alignment(truth.split(), answer.split()), width), None)
    ]
    height = (sum(1 if b is None else 3 for b in blocks) + 1) * line
    figure = new_figure(9.5, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width + 10), ylim=(height / line, 0))
    axes.set_axis_off()
    top = 0.9
    for block in blocks:
        if block is None:
            top += 1
            continue
        for name, row in (("truth", 0), ("answer", 1)):
            axes.text(1, top + row, name, fontsize=7.5, color=GREY, va="center")
        at = 9.0
        for what, truth, answer in block:
            colour, letter = MARKS[what]
            bold = "normal" if what == SAME else "bold"
            axes.text(at, top, truth or "·", fontsize=9, color=colour, va="center", weight=bold)
            axes.text(at, top + 1, answer or "·", fontsize=9, color=colour, va="center", weight=bold)
            axes.text(at, top + 1.9, letter, fontsize=6.5, color=colour, va="center", weight="bold")
            at += _room(truth, answer)
        top += 3
    return png(figure)


def _lines(steps: list[Step], width: int) -> list[list[Step]]:
    """Steps in lines that fit."""
    lines, used = [[]], 0
    for what, truth, answer in steps:
        step = (what, *(None if u is None else shorten(u, width // 2) for u in (truth, answer)))
        if used + _room(*step[1:]) > width:
            lines.append([])
            used = 0
        lines[-1].append(step)
        used += _room(*step[1:])
    return lines


def _room(truth: str | None, answer: str | None) -> float:
    return max(len(truth or ""), len(answer or ""), 1) * 1.25 + 1.5
