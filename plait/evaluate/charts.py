"""Curves of probabilities for reports, as SVG in the page: sharp at any width, in the reader's light or dark, and a few
kilobytes each. Both axes go from 0 to 1."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import finite, number, wilson
from plait.evaluate.metrics import auroc_influence, precision_influence
from plait.evaluate.style import shorten

BINS, ROWS = 10, 20  # of `reliable`: at most so many groups, of about so many rows where there are as many
MOST_POINTS = 200  # of a line
COLOURS = ("var(--blue)", "var(--orange)", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "var(--ink)")
DASHES = ("", "6 3", "8 3 2 3", "2 3", "", "6 3", "8 3 2 3")  # colour alone tells nothing apart

Part = tuple[str, np.ndarray, np.ndarray]  # name, truth (n,) bool, score (n,)


class Line(NamedTuple):
    """Points (x, y) joined in order, under a name."""

    name: str
    points: list[tuple[float, float]]


class Chart(NamedTuple):
    """lines: at most seven. ranges: (x, low, high) of the first line's points. guess: the dotted line, by its ends."""

    x: str
    y: str
    lines: list[Line]
    guess: tuple[tuple[float, float], tuple[float, float]] | None = ((0.0, 0.0), (1.0, 1.0))
    ranges: tuple[tuple[float, float, float], ...] = ()


def reliable(probability: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float, float, int]]:
    """Of groups of rows with like probabilities (n,): their mean probability, the share that came true (right (n,)
    bool) with Wilson's interval, and how many rows; equal probabilities stay together."""
    probability, right = finite(probability, "the probabilities"), np.asarray(right)
    if probability.shape != right.shape:
        raise PlaitError(f"got probabilities {probability.shape} and right {right.shape}, expected (n,) twice")
    order = np.argsort(probability, kind="stable")
    count = int(np.clip(len(order) // ROWS, 1, BINS))
    ordered = probability[order]
    ends = np.searchsorted(ordered, ordered[np.arange(1, count) * len(order) // count], "left")
    found = []
    for rows in np.split(order, np.unique(ends[ends > 0])):
        hits = int(np.count_nonzero(right[rows]))
        found.append((float(probability[rows].mean()), hits / len(rows), *wilson(hits, len(rows)), len(rows)))
    return found


def reliability(probability: np.ndarray, right: np.ndarray, what: str) -> Chart:
    """What came true against the probability that was given, in groups (`reliable`); on the dotted line probabilities
    can be believed."""
    groups = reliable(probability, right)
    points = [(p, share) for p, share, *_ in groups]
    return Chart(what, "share that came true", [Line("", points)], ranges=tuple((p, a, b) for p, _, a, b, _ in groups))


def roc(parts: Sequence[Part]) -> Chart | None:
    """True positives against false ones at every threshold, with the area beneath; None where no part has both."""
    lines = []
    for name, truth, score in _drawn(parts):
        hits, false = _steps(truth, score)
        points = list(zip(np.append(0, false / false[-1]), np.append(0, hits / hits[-1])))
        lines.append(Line(f"{name}  {number(auroc_influence(truth, score)[0])}", points))
    return Chart("false positive rate", "true positive rate", lines) if lines else None


def precision_recall(parts: Sequence[Part]) -> Chart | None:
    """Precision against recall at every threshold, with the average precision; None where no part has both."""
    lines, shares = [], []
    for name, truth, score in _drawn(parts):
        hits, false = _steps(truth, score)
        precision, recall = hits / (hits + false), hits / hits[-1]
        points = list(zip(np.append(0, recall), np.append(precision[0], precision)))
        lines.append(Line(f"{name}  {number(precision_influence(truth, score)[0])}", points))
        shares.append(float(truth.mean()))
    guess = ((0.0, shares[0]), (1.0, shares[0])) if len(shares) == 1 else None
    return Chart("recall", "precision", lines, guess) if lines else None


def _drawn(parts: Sequence[Part]) -> list[Part]:
    """Those with both positive and other rows; at most seven, with the most positive ones."""
    some = [(n, np.asarray(t, bool), finite(s, f"the scores of {n}")) for n, t, s in parts if 0 < np.sum(t) < len(t)]
    return sorted(some, key=lambda part: -int(part[1].sum()))[: len(COLOURS)]


def _steps(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong rows above each threshold; rows with equal scores enter together."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    return np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]


# ---- as SVG, in a box of 360 x 300 in which letters are 12 high ----

LEFT, TOP, WIDE, HIGH = 48, 8, 300, 228


def svg(chart: Chart) -> str:
    """The chart as one element, its lines told by colour and dashes; what a screen reader says stands in its label."""
    named = [line for line in chart.lines if line.name]
    height = TOP + HIGH + 52 + 17 * len(named)
    out = [
        f'<svg class="chart" viewBox="0 0 360 {height}" role="img" aria-label="{_text(chart.y)} against '
        f'{_text(chart.x)}">'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _at(tick, tick)
        out.append(f'<path class="grid" d="M{x} {TOP}V{TOP + HIGH}M{LEFT} {y}H{LEFT + WIDE}"/>')
        out.append(f'<text x="{x}" y="{TOP + HIGH + 16}" text-anchor="middle">{tick:g}</text>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    out.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 36}" text-anchor="middle">{_text(chart.x)}</text>')
    middle = TOP + HIGH / 2
    out.append(
        f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" text-anchor="middle">{_text(chart.y)}</text>'
    )
    if chart.guess:
        out.append(f'<path class="guess" d="{_path(chart.guess)}"/>')
    for x, low, high in chart.ranges:
        (at, bottom), (_, top) = _at(x, low), _at(x, high)
        out.append(f'<path class="range" d="M{at} {bottom}V{top}"/>')
    for i, line in enumerate(chart.lines[: len(COLOURS)]):
        how = f'style="stroke:{COLOURS[i]}" stroke-dasharray="{DASHES[i]}"'
        out.append(f'<path class="line" {how} d="{_path(_fewer(line.points))}"/>')
        if chart.ranges:
            out += [f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in (_at(*p) for p in line.points)]
    for i, line in enumerate(named):
        y, how = TOP + HIGH + 54 + 17 * i, f'style="stroke:{COLOURS[i]}" stroke-dasharray="{DASHES[i]}"'
        out.append(f'<path class="line" {how} d="M{LEFT} {y - 4}h26"/>')
        out.append(f'<text x="{LEFT + 34}" y="{y}">{_text(shorten(line.name, 42))}</text>')
    return "".join(out) + "</svg>"


def _at(x: float, y: float) -> tuple[float, float]:
    return round(LEFT + WIDE * float(x), 1), round(TOP + HIGH * (1 - float(y)), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join("{} {}".format(*_at(*p)) for p in points)


def _fewer(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 200 of them, the ends among these."""
    some = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).astype(int))
    return [points[i] for i in some]


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
