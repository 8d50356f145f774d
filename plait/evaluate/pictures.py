"""Pictures for reports, each a function from numbers to the bytes of a PNG. Figures are made without pyplot, so nothing
global is touched.

Colours are Okabe and Ito's, which colour-blind readers tell apart; right and wrong also differ in line style and
sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from plait.errors import PlaitError
from plait.evaluate.intervals import Score, digits, finite, number
from plait.evaluate.metrics import IGNORED, precision_influence
from plait.evaluate.style import GREY, bare_axes, new_figure, png, shorten, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#222222",
)
LINES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (AMBER, "-"), (SKY, "--"), (BLACK, "-.")]
MOST_CLASSES, SIDE = 20, 192


def heat() -> LinearSegmentedColormap:
    """From nothing to all."""
    from matplotlib.colors import LinearSegmentedColormap  # here, as in `style`

    return LinearSegmentedColormap.from_list("share", ["#FFFFFF", SKY, BLUE, "#003A5D"])


def confusion_matrix(truth: np.ndarray, answer: np.ndarray, names: Sequence[str]) -> bytes:
    """Counts of truth (rows) against answer (columns), shaded by the share of the row; classes (n,) int, names (K,).

    The 20 most frequent true classes are shown, the rest together as "others". Targets of -100 are left out."""
    truth, answer = np.asarray(truth), np.asarray(answer)
    kept = truth != IGNORED
    fit = truth.shape == answer.shape and bool(kept.any())
    truth, answer = (truth[kept], answer[kept]) if fit else (truth, answer)
    if not fit or max(truth.max(), answer.max()) >= len(names) or min(truth.min(), answer.min()) < 0:
        raise PlaitError(
            f"got {len(truth)} targets and {len(answer)} answers for {len(names)} names, "
            "expected as many of both (at least one), each 0 to K-1"
        )
    shown = np.argsort(-np.bincount(truth, minlength=len(names)), kind="stable")[:MOST_CLASSES]
    shown = np.sort(shown)
    place = np.full(len(names), len(shown))
    place[shown] = np.arange(len(shown))
    labels = [shorten(names[k], 18) for k in shown] + (["others"] if len(names) > len(shown) else [])
    size = len(labels)
    table = np.bincount(place[truth] * size + place[answer], minlength=size * size).reshape(size, size)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = float(np.clip(0.46 * size + 1.8, 4.2, 9.5))
    figure = new_figure(side + 0.6, side, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap=heat(), vmin=0, vmax=1)
    font = 10 if size <= 8 else 7.5 if size <= 14 else 6
    for row, column in np.argwhere(table):
        axes.text(
            column,
            row,
            f"{table[row, column]}",
            ha="center",
            va="center",
            fontsize=font,
            color="white" if share[row, column] > 0.45 else BLACK,
        )
    slant = size > 4 or max(map(len, labels)) > 9
    axes.set_xticks(
        range(size), labels, rotation=45 if slant else 0, ha="right" if slant else "center", rotation_mode="anchor"
    )
    axes.set_yticks(range(size), labels)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    bar = figure.colorbar(image, ax=axes, shrink=0.72, pad=0.02, aspect=30)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return png(figure)


def residuals(truth: np.ndarray, predicted: np.ndarray, name: str = "target") -> bytes:
    """Prediction against truth with the line of perfect answers, and truth - prediction against the prediction; (n,)
    each."""
    truth, predicted = finite(truth, "the truth"), finite(predicted, "the predictions")
    figure = new_figure(5.0, 7.2, layout="constrained")  # one above the other: letters stay legible on a phone
    left, right = figure.subplots(2, 1)
    for axes, x, y in ((left, truth, predicted), (right, predicted, truth - predicted)):
        if len(x) > 3000:
            bins = axes.hexbin(x, y, gridsize=45, bins="log", mincnt=1, cmap=heat(), linewidths=0)
            bins.set_clim(0.3, None)  # a single row must not be white on white
        else:
            axes.scatter(
                x, y, s=14 if len(x) < 800 else 7, color=BLUE, alpha=0.5 if len(x) < 800 else 0.3, linewidths=0
            )
        bare_axes(axes)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    left.plot(ends, ends, color=ORANGE, linestyle="--", linewidth=1.4, label="perfect")
    left.legend(frameon=False, loc="upper left")
    right.axhline(0, color=ORANGE, linestyle="--", linewidth=1.4)
    label = shorten(name, 24)
    left.set(xlabel=f"true {label}", ylabel=f"predicted {label}")
    right.set(xlabel=f"predicted {label}", ylabel="truth − prediction")
    return png(figure)


def curves(rows: Sequence[dict], losses: Sequence[str], score: str) -> bytes:
    """Losses (above) and the score (below) per epoch. rows: dicts with "epoch" and any of the named values; absent
    values leave gaps."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(5.0, 5.4, layout="constrained")
    left, right = figure.subplots(2, 1)
    for axes, names in ((left, list(losses)), (right, [score])):
        for name, (colour, style) in zip(names, LINES):
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None and np.isfinite(row[name])]
            if points:
                axes.plot(
                    *zip(*points),
                    color=colour,
                    linestyle=style,
                    marker="o",
                    markersize=3.5,
                    linewidth=1.6,
                    label=shorten(name, 28),
                )
        bare_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("epoch")
    left.set_ylabel("loss")
    right.set_ylabel(shorten(score, 28))
    if len(losses) > 1 and left.lines:
        left.legend(frameon=False)
    return png(figure)


def score_bars(rows: Sequence[tuple[str, Score]], baseline: tuple[str, float] | None = None) -> bytes:
    """One bar with its 95% interval per (label, score), the full model first; `baseline` (label, value) is drawn as a
    dotted line."""
    if not rows:
        raise PlaitError("got no scores to draw, expected at least one (label, Score)")
    figure = new_figure(5.9, 0.9 + 0.42 * len(rows) + 0.25 * (baseline is not None), layout="constrained")
    axes = figure.add_subplot()
    ends = [s.high for _, s in rows] + [s.low for _, s in rows] + [0.0] + ([baseline[1]] if baseline else [])
    spread = (max(ends) - min(ends)) or 1.0
    for place, (_, score) in enumerate(rows):
        axes.barh(place, score.value, height=0.62, color=BLUE if place == 0 else "#9CC9E6")
        axes.plot([score.low, score.high], [place, place], color=BLACK, linewidth=1.5, solid_capstyle="butt")
        for end in (score.low, score.high):
            axes.plot([end, end], [place - 0.14, place + 0.14], color=BLACK, linewidth=1.5)
        text = "{}  [{}, {}]".format(*digits(score))
        axes.text(
            max(score.high, score.value, 0) + 0.02 * spread,
            place,
            text,
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if baseline:
        axes.axvline(
            baseline[1], color=ORANGE, linestyle=":", linewidth=1.8, zorder=0.5 if baseline[1] > max(ends[:-1]) else 2.5
        )
        label = f"{shorten(baseline[0], 24)} {number(baseline[1])}"
        axes.text(baseline[1], -0.62, label, color=ORANGE, ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(rows)), [shorten(label, 28) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.45, -0.6)
    axes.set_xlim(min(ends) - 0.02 * spread * (min(ends) < 0), max(ends) + 0.42 * spread)
    name = rows[0][1]
    axes.set_xlabel(f"{shorten(name.name, 30)} ({name.better} is better), 95% interval")
    bare_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= max(ends) + 0.05 * spread])
    return png(figure)


def precision_recall(parts: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """Precision against recall for each (name, truth (n,) of 0, 1, -100, score (n,)); the dotted line is what guessing
    gives.

    At most seven curves are drawn, those with the most positive rows; parts without a positive row are left out."""
    drawn = []
    for name, truth, score in parts:
        truth, score = np.asarray(truth), np.asarray(score)
        if truth.shape != score.shape:
            raise PlaitError(f"got truth {truth.shape} and score {score.shape} for {name}, expected (n,) twice")
        positive, score = truth[truth != IGNORED] == 1, np.asarray(score[truth != IGNORED], np.float64)
        if positive.any():
            drawn.append((name, positive, finite(score, f"the scores of {name}")))
    if not drawn:
        raise PlaitError("got no positive row, expected at least one; precision and recall need something to find")
    drawn = sorted(drawn, key=lambda part: -int(part[1].sum()))[: len(LINES)]
    figure = new_figure(5.0, 4.2 + 0.12 * len(drawn), layout="constrained")
    axes = figure.add_subplot()
    for (name, positive, score), (colour, style) in zip(drawn, LINES):
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)  # rows with equal scores enter together
        right, taken = np.cumsum(positive[order])[last], np.arange(1, len(score) + 1)[last]
        recall, precision = np.append(0, right / right[-1]), np.append(right[0] / taken[0], right / taken)
        value, _ = precision_influence(positive, score)
        label = f"{shorten(name, 24)}  AP {number(value)}"
        axes.step(recall, precision, where="pre", color=colour, linestyle=style, linewidth=1.7, label=label)
        axes.axhline(positive.mean(), color=colour, linestyle=":", linewidth=0.9, alpha=0.6)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    bare_axes(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return png(figure)


Cell = tuple[object, str, "bool | None"]  # image array or None, caption, right?


def contact_sheet(rows: Sequence[tuple[str, Sequence[Cell]]]) -> bytes:
    """Rows of pictures under their titles. Each cell is (image array or None, caption, ok): True draws a solid blue
    frame with a tick,
    False a dashed orange one with a cross. Images are (H, W), (H, W, 3 or 4) or (3, H, W); uint8, bool, or float in [0,
    1]."""
    return _sheet(rows, 0.0, 0.36)


def retrieval_sheet(rows: Sequence[tuple[str, Sequence[Cell]]]) -> bytes:
    """Each query's text at the left, its first answers in order to the right, framed as in `contact_sheet`."""
    return _sheet(rows, 1.75, 0.0)


def _sheet(rows: Sequence[tuple[str, Sequence[Cell]]], margin: float, head: float) -> bytes:
    """One drawing in units of a picture's side: titles in a left margin, or in a head above each row."""
    if not rows:
        raise PlaitError("got no rows to draw, expected at least one (title, cells)")
    columns, step, pitch = max(1, max(len(cells) for _, cells in rows)), 1.14, 1.3 + head
    width, height = margin + columns * step + 0.1, len(rows) * pitch + 0.1
    inch = float(np.clip(9.5 / width, 0.8, 1.45))
    figure = new_figure(width * inch, height * inch)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    per_column = int(inch * 72 / 4.6)  # letters of this size across one picture
    for index, (title, cells) in enumerate(rows):
        top = index * pitch + 0.08 + head
        if margin:
            axes.text(
                0.1, top + 0.5, wrap(title, int(per_column * margin * 0.78), 5), va="center", fontsize=9.5, color=BLACK
            )
        else:
            axes.text(
                0.1,
                top - 0.1,
                shorten(title, int(per_column * columns * 0.9)),
                va="bottom",
                fontsize=10,
                color=BLACK,
                weight="bold",
            )
        for column, (image, caption, ok) in enumerate(cells):
            _cell(axes, margin + 0.1 + column * step, top, image, ok)
            axes.text(
                margin + 0.6 + column * step,
                top + 1.06,
                shorten(caption, per_column),
                ha="center",
                va="top",
                fontsize=7.5,
            )
    return png(figure)


def _cell(axes: Axes, left: float, top: float, image: object, ok: bool | None) -> None:
    from matplotlib.patches import Rectangle

    if image is None:
        axes.add_patch(Rectangle((left, top), 1, 1, facecolor="#F4F4F4", edgecolor="#CFCFCF", hatch="//", linewidth=0))
        axes.text(
            left + 0.5,
            top + 0.5,
            "no picture",
            ha="center",
            va="center",
            fontsize=7.5,
            color=GREY,
            bbox={"facecolor": "#F4F4F4", "edgecolor": "none", "pad": 2},
        )
    else:
        pixels = thumbnail(image)
        high, wide = pixels.shape[:2]
        scale = 1 / max(high, wide)
        x, y = left + (1 - wide * scale) / 2, top + (1 - high * scale) / 2
        axes.add_patch(Rectangle((left, top), 1, 1, facecolor="#F4F4F4", linewidth=0))
        axes.imshow(
            pixels,
            extent=(x, x + wide * scale, y + high * scale, y),
            aspect="auto",
            zorder=1,
            interpolation="nearest" if high < 48 else "antialiased",
        )
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    if ok is None:
        return
    colour = BLUE if ok else ORANGE
    style = "-" if ok else (0, (3, 1.5))
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=colour, linewidth=2.6, linestyle=style, zorder=2))
    axes.text(
        left + 0.94,
        top + 0.07,
        "✓" if ok else "✗",
        ha="right",
        va="top",
        fontsize=9,
        color="white",
        weight="bold",
        zorder=3,
        bbox={"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.22"},
    )


def thumbnail(image: object) -> np.ndarray:
    """An image array of any accepted layout as uint8 (h, w, 3) with sides of at most 192 pixels; transparency is laid
    on white."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise PlaitError(f"got an image of shape {pixels.shape}, expected (H, W), (H, W, 3 or 4) or (3, H, W)")
    if pixels.dtype != np.uint8:
        pixels = (np.clip(finite(pixels, "the image"), 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))
