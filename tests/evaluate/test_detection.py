"""Average precision against pycocotools on the same answers, its interval, and F1 by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from plait.evaluate.detection import Curves, average_precision, detection, f1_rows


def pictures(n: int, seed: int, labels: int = 3, most: int = 8) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truth and guesses near it; some of another label, some of nothing, some with equal scores; empty pictures."""
    rng = np.random.default_rng(seed)
    truth, guesses = [], []
    for _ in range(n):
        m = rng.integers(0, most)
        low, size = rng.uniform(0, 80, (m, 2)), rng.uniform(4, 30, (m, 2))
        real = np.column_stack([rng.integers(0, labels, m), low, low + size])
        near = real[rng.uniform(size=m) < 0.8]
        near = np.concatenate([near, near[: len(near) // 2]])
        near[:, 1:] += rng.normal(0, 2, (len(near), 4))
        near[:, 3:] = np.maximum(near[:, 3:], near[:, 1:3] + 1)
        near[rng.uniform(size=len(near)) < 0.1, 0] = rng.integers(0, labels)
        wild = np.column_stack([rng.integers(0, labels, 4), *(v := rng.uniform(0, 50, (2, 4))), *(v + 20)])
        mine = np.concatenate([near, wild])
        truth.append(real)
        guesses.append(np.column_stack([mine, rng.uniform(size=len(mine)).round(2)]))
    return truth, guesses


def coco(truth: list[np.ndarray], guesses: list[np.ndarray]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def things(rows: list[np.ndarray]) -> list[dict]:
        return [
            {"image_id": i, "category_id": int(r[0]), "bbox": [r[1], r[2], r[3] - r[1], r[4] - r[2]], "iscrowd": 0,
             "area": (r[3] - r[1]) * (r[4] - r[2]), **({"score": r[5]} if len(r) > 5 else {})}
            for i, picture in enumerate(rows) for r in picture.tolist()
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": [{"id": n + 1, **t} for n, t in enumerate(things(truth))],
            "categories": [{"id": k} for k in range(10)],
        }
        known.createIndex()
        made = COCOeval(known, known.loadRes(things(guesses)), "bbox")
        made.evaluate()
        made.accumulate()
        made.summarize()
    return dict(zip(("AP", "AP50", "AP75"), made.stats[:3]))


@pytest.mark.parametrize("n, seed, most", [(1, 0, 8), (40, 1, 8), (25, 2, 30)])
def test_it_equals_pycocotools(n: int, seed: int, most: int) -> None:
    given = pictures(n, seed, most=most)
    assert average_precision(*given) == pytest.approx(coco(*given), abs=1e-9)


def test_more_guesses_than_count_and_none_at_all() -> None:
    truth, guesses = pictures(6, 3)
    many = [np.concatenate([g, *[g + [0, 0.1, 0, 0.1, 0, -0.001 * i] for i in range(20)]]) for g in guesses]
    assert max(map(len, many)) > 100
    assert average_precision(truth, many) == pytest.approx(coco(truth, many), abs=1e-9)
    nothing = [g[:0] for g in guesses]
    assert average_precision(truth, nothing) == {"AP": 0, "AP50": 0, "AP75": 0}
    perfect = [np.column_stack([t, np.ones(len(t))]) for t in truth]
    assert average_precision(truth, perfect) == {"AP": 1, "AP50": 1, "AP75": 1}


def test_a_picture_that_is_drawn_twice_counts_twice() -> None:
    truth, guesses = pictures(10, 4)
    weights = np.array([2, 0, 1, 1, 3, 0, 0, 1, 1, 1])
    again = np.repeat(np.arange(10), weights)
    drawn = Curves([truth[i] for i in again], [guesses[i] for i in again]).precision()
    np.testing.assert_allclose(Curves(truth, guesses).precision(weights), drawn, atol=0.02)  # equal scores are in turn


def test_scores_have_intervals_around_them() -> None:
    found = detection(*pictures(30, 5))
    assert [s.name for s in found] == ["AP50", "AP", "AP75", "F1"]
    assert all(0 <= s.low < s.value < s.high <= 1 and s.n == 30 for s in found)


def test_f1_of_a_picture_counts_what_is_sure() -> None:
    real = np.array([[0, 0, 0, 10, 10], [1, 20, 20, 30, 30.0]])
    mine = np.array([[0, 1, 0, 10, 10, 0.9], [1, 0, 0, 10, 10, 0.8], [1, 20, 20, 30, 30, 0.4]])
    empty = np.zeros((0, 5))
    assert f1_rows([real, empty, empty], [mine, mine[:0], mine]).tolist() == [0.5, 1, 0]
