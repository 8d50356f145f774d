"""Pictures decode, are not blank, survive odd labels, and leave matplotlib's global state alone."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from plait.evaluate import pictures as P
from plait.evaluate.intervals import Score

ODD = [
    "漢字 かな 한국어",
    "$x^2_{broken",
    "line\nbreak\ttab\x00\x07",
    "\ud800 lone",
    "🙂 شكرا ไทย",
    "",
    "w" * 300,
    "<script>",
]


def pixels(data):
    """The decoded picture, which must be large enough to read and hold more than one colour."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 100 and max(image.shape[:2]) < 20_000 and image.std() > 3
    return image


def has(image, colour, least=30):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image - rgb).max(-1) < 12).sum()) >= least


def score(value):
    return Score("accuracy", value, value - 0.03, value + 0.02, 400, "higher")


@pytest.mark.parametrize("K", [2, 8, 45])
def test_confusion_matrix(K):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, K, 400)
    image = pixels(P.confusion_matrix(np.append(truth, -100), np.append(truth, 0), [ODD[i % 8] for i in range(K)]))
    assert has(image, "#003A5D", 200)  # everything right: full cells on the diagonal
    assert not has(
        pixels(P.confusion_matrix(truth, (truth + rng.integers(0, K, 400)) % K, ["a"] * K))[:, :500], "#003A5D", 5000
    )


def test_confusion_matrix_refuses_what_does_not_fit():
    for truth, answer in (([0, 3], [0, 1]), ([-100], [0]), ([0, 1], [0])):
        with pytest.raises(ValueError, match="expected as many"):
            P.confusion_matrix(np.array(truth), np.array(answer)[: len(truth)], ["a", "b"])


@pytest.mark.parametrize("n", [1, 300, 1500, 20_000])
def test_residuals(n):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    assert has(pixels(P.residuals(truth, truth + 0.1 * rng.normal(size=n), ODD[n % 8])), P.ORANGE)
    with pytest.raises(ValueError, match="NaN"):
        P.residuals(truth, truth * np.nan)


def test_curves_skip_what_is_absent():
    rows = [{"epoch": e, "train": 1 / e, "valid": 2 / e, "accuracy": 0.5} for e in range(1, 5)]
    rows[1]["valid"], rows[0]["accuracy"] = None, float("nan")
    image = pixels(P.curves(rows, ["train", "valid"], "accuracy"))
    assert has(image, P.BLUE) and has(image, P.ORANGE)
    pixels(P.curves([], ["train"], "accuracy"))


def test_score_bars():
    image = pixels(P.score_bars([("all", score(0.87)), *((label, score(0.7)) for label in ODD)], ("majority", 0.52)))
    assert has(image, P.BLUE, 3000) and has(image, "#9CC9E6", 3000) and has(image, P.ORANGE)
    pixels(P.score_bars([("worse than the mean", Score("R2", -0.4, -0.9, 0.1, 30, "higher"))], ("mean", 0.0)))
    with pytest.raises(ValueError, match="no scores"):
        P.score_bars([])


def test_precision_recall():
    rng = np.random.default_rng(0)
    truth, guess = np.append((rng.random(300) < 0.3).astype(int), -100), np.append(np.round(rng.random(300), 2), np.nan)
    assert has(pixels(P.precision_recall([("match", truth, guess)])), P.BLUE)
    pixels(P.precision_recall([(name, truth, guess) for name in ODD * 2]))
    with pytest.raises(ValueError, match="no positive"):
        P.precision_recall([("none", np.zeros(3), np.ones(3))])


@pytest.mark.parametrize("sheet", [P.contact_sheet, P.retrieval_sheet])
def test_sheets(sheet):
    rng = np.random.default_rng(0)
    images = [
        rng.random((20, 90, 3)),
        rng.integers(0, 256, (64, 64), np.uint8),
        rng.random((3, 40, 30)),
        rng.random((30, 30, 4)),
        None,
        np.ones((8, 8), bool),
    ]
    rows = [
        (title, [(image, caption, ok) for image, caption, ok in zip(images, ODD, (True, False, None) * 2)])
        for title in ODD
    ]
    image = pixels(sheet(rows))
    assert has(image, P.BLUE) and has(image, P.ORANGE)
    assert not has(pixels(sheet([("q", [(images[0], "c", None)])])), P.ORANGE)
    with pytest.raises(ValueError, match="no rows"):
        sheet([])
    with pytest.raises(ValueError, match="image of shape"):
        sheet([("q", [(np.zeros((2, 3, 4, 5)), "c", True)])])


def test_a_sheets_picture_keeps_its_colours():
    red = np.zeros((60, 60, 3), np.uint8)
    red[..., 0] = 220
    assert has(pixels(P.contact_sheet([("q", [(red, "c", None)])])), "#DC0000", 10_000)


def test_thumbnails_have_one_form():
    image = np.random.default_rng(0).random((300, 500, 3))
    small = P.thumbnail(image)
    assert small.shape == (115, 192, 3) and small.dtype == np.uint8
    assert (P.thumbnail(image.transpose(2, 0, 1)) == small).all()
    clear = np.zeros((5, 5, 4), np.uint8)
    assert (P.thumbnail(clear) == 255).all()


def test_shorten_counts_wide_characters_twice():
    assert P.shorten("abcdef", 6) == "abcdef" and P.shorten("abcdefg", 6) == "abcde…"
    assert P.shorten("漢字漢字", 8) == "漢字漢字" and P.shorten("漢字漢字漢", 8) == "漢字漢…"
    assert P.shorten(" a\n\tb\x00c ", 9) == "a b c" and P.shorten(None, 9) == "None"


def test_nothing_global_is_touched():
    before = dict(matplotlib.rcParams)
    P.score_bars([("all", score(0.8))])
    assert dict(matplotlib.rcParams) == before
    code = "import sys, plait.evaluate.pictures, plait.evaluate.report\n"
    code += "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, plait.evaluate.metrics; assert not {'torch', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
