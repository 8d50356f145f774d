"""Distances of two samples: equal to scipy's or to what a hand counts, and beyond chance as seldom as is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstwobign

from plait.errors import PlaitError
from plait.evaluate.drift import kolmogorov_smirnov, stability_index, total_variation, unseen_words


def test_kolmogorov_smirnov_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), np.round(rng.normal(0.3, 1, size=200), 1)  # with ties
    found = kolmogorov_smirnov(a, b, 0.01)
    assert found.value == pytest.approx(ks_2samp(a, b).statistic)
    assert kstwobign.sf(found.chance * np.sqrt(300 * 200 / 500)) == pytest.approx(0.01, rel=0.01)
    assert kolmogorov_smirnov(a, a).value == 0 and not kolmogorov_smirnov(a, a).beyond


def test_total_variation_and_stability_of_counts() -> None:
    found = total_variation(np.array([50, 30, 20]), np.array([10, 30, 10]))
    assert found.value == pytest.approx((0.3 + 0.3 + 0.0) / 2) and found.beyond
    p, q = np.array([50.5, 30.5, 20.5]) / 101.5, np.array([10.5, 30.5, 10.5]) / 51.5
    assert stability_index([50, 30, 20], [10, 30, 10]) == pytest.approx(((q - p) * np.log(q / p)).sum())
    with pytest.raises(PlaitError, match="a row in each"):
        total_variation(np.array([1, 2]), np.array([0, 0]))


def test_chance_is_exceeded_as_seldom_as_is_said() -> None:
    rng, beyond = np.random.default_rng(0), []
    for _ in range(300):
        a, b = rng.multinomial(200, [0.5, 0.3, 0.2]), rng.multinomial(100, [0.5, 0.3, 0.2])
        beyond.append(total_variation(a, b, 0.1).beyond)
    assert 0.04 < np.mean(beyond) < 0.17


def test_unseen_words_are_those_beyond_what_is_usual() -> None:
    reference = ["red house", "red car", "Blue house", "tree"]  # car, blue and tree stand in one text each
    found, share = unseen_words(reference, ["red zork", "house blip car", "red red", "car"])
    assert share == pytest.approx(2 / 8) and found.value == 0.0  # 3 of 7 are usual
    found, share = unseen_words(["red house"] * 30, ["red zork"] * 30)
    assert share == 0.5 and found.value == 0.5 and found.beyond
    with pytest.raises(PlaitError, match="no word"):
        unseen_words(["a"], [" "])
