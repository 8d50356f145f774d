"""The page of claims: what it names exists, what it says was measured, and its rule is the one that it tells."""

from __future__ import annotations

import ast
import json
import math
from functools import cache

import pytest

import plait
from benchmarks.claims.__main__ import TRIALS
from benchmarks.claims.trial import RESULTS
from benchmarks.claims.verdict import Rule, judge
from docs import claims
from plait.core.catalog import systems
from plait.core.methods import methods
from tests.test_docs import DOCS, ROOT

ROWS = [(name, row) for table in claims.claims().values() for name, rows in table.items() for row in rows]


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_claim_is_of_what_there_is_and_names_what_there_is():
    assert {name for name, _ in ROWS} <= set(systems()) | set(methods()) | set(plait._HOMES)
    for name, (claim, kind, *details) in ROWS:
        match kind:
            case "test":
                for test in details:
                    path, function = test.split("::")
                    assert function.startswith("test_") and function in functions(path), (name, claim, test)
            case "script":
                assert (ROOT / details[0]).is_file() and len(details) == 2, (name, claim)
            case "trial":
                trial, rule = details
                known = [f"{r.first} {r.by} {r.second}" for r in TRIALS[trial].rules]
                assert rule in known, (name, claim, known)
            case _:
                assert kind in ("parity", "no", "cannot", "open"), (name, claim)


def test_every_trial_is_of_some_claim_and_every_figure_of_a_trial():
    assert {row[2] for _, row in ROWS if row[1] == "trial"} == set(TRIALS)
    for path in RESULTS.glob("*.json"):
        row, trial = json.loads(path.read_text()), TRIALS[path.stem]
        assert [Rule(*rule) for rule in row["rules"]] == list(trial.rules), path.stem
        assert all(len(figures) == trial.seeds for figures in row["arms"].values()), path.stem
        assert (row["how"], row["measure"]) == (trial.how, trial.measure), path.stem


def test_the_page_is_made_of_what_was_claimed_and_measured():
    """After new figures: `python docs/claims.py`."""
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == claims.page()


ARMS = {"a": [0.9, 0.8, 0.7], "b": [0.8, 0.6, 0.7], "c": [0.5, 0.4, 0.3]}


@pytest.mark.parametrize(
    "rule, holds",
    [
        (Rule("a", "higher", "c"), True),  # always by 0.4
        (Rule("a", "lower", "c"), False),
        (Rule("c", "lower", "a"), True),
        (Rule("a", "higher", "b"), False),  # 0.1 on average, of a standard error of 0.058
        (Rule("b", "near", "a", 0.2), False),
        (Rule("b", "near", "a", 0.22), True),  # 0.1 and twice 0.058 behind
        (Rule("a", "near", "b", 0.02), True),
        (Rule("c", "near", "a", 0.3), False),
    ],
)
def test_a_claim_holds_where_its_mean_is_above_twice_its_error(rule, holds):
    said = judge(rule, ARMS)
    assert said.holds == holds
    apart = [a - b for a, b in zip(ARMS[rule.first], ARMS[rule.second])]
    mean = sum(apart) / 3
    assert said.mean == pytest.approx(mean)
    assert said.error == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in apart) / 2 / 3))


def test_a_difference_that_is_always_nothing_is_no_difference():
    assert not judge(Rule("a", "higher", "a"), ARMS).holds and judge(Rule("a", "near", "a", 0.01), ARMS).holds


def test_a_trial_that_nobody_ran_is_told_as_such(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "HERE", tmp_path)
    assert claims.trial("cct", "CCT higher ViT-Lite").verdict == claims.OPEN


def test_parity_with_an_error_is_not_reproduced(monkeypatch, tmp_path):
    (tmp_path / "measured" / "parity").mkdir(parents=True)
    monkeypatch.setattr(claims, "HERE", tmp_path)
    for error, verdict in ((3e-7, claims.YES), (3e-5, claims.NO)):
        row = {"x_small": {"reference": "timm", "parameters": 1, "error": error}}
        (tmp_path / "measured" / "parity" / "x.json").write_text(json.dumps(row))
        assert claims.parity("x").verdict == verdict
