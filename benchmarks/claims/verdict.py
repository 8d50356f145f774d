"""The rule by which a claim holds, stated before anything is run.

Two arms are tried with the same seeds, so that their figures differ in pairs. A claim that one is higher (or lower)
than the other holds where the mean of these differences is above twice its standard error; a claim that one is near
the other holds where it is not behind by more than a margin, with twice the error taken off.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal, NamedTuple


class Rule(NamedTuple):
    """What a paper says of the arms `first` and `second`. margin: how far `first` may be behind and still be "near"."""

    first: str
    by: Literal["higher", "lower", "near"]
    second: str
    margin: float = 0.0


class Verdict(NamedTuple):
    """mean: of the first's figures less the second's; error: the standard error of that mean."""

    mean: float
    error: float
    holds: bool


def judge(rule: Rule, arms: dict[str, list[float]]) -> Verdict:
    """arms: the figures of each, one a seed."""
    apart = [a - b for a, b in zip(arms[rule.first], arms[rule.second], strict=True)]
    mean, error = statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
    match rule.by:
        case "higher":
            holds = mean > 2 * error
        case "lower":
            holds = -mean > 2 * error
        case "near":
            holds = mean - 2 * error > -rule.margin
    return Verdict(mean, error, holds)
