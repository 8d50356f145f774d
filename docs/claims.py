"""Writes docs/claims.md: what the papers claim, and what was found when it was tried.

    python docs/claims.py

The claims stand in docs/claims/*.json, a list for each system and method. A claim is its sentence, then
    "parity" [name]             outputs and parameters against the original, from docs/measured/parity
    "test" path::function ...   tests that would fail if it did not hold
    "trial" name rule           tried in small by `python -m benchmarks.claims name`, from docs/measured/claims
    "script" path figure        a benchmark, and what it gave
    "no" why                    it does not hold here
    "cannot" why                it cannot be tried here
    "open" what is missing      nobody tried yet, as with a trial that was not run
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.claims.verdict import Rule, judge

HERE = Path(__file__).parent
TABLES = {"pictures": "Pictures", "others": "Texts, sounds, points and several kinds", "methods": "Methods"}
YES, NO, CANNOT, OPEN = "reproduced", "not reproduced", "not triable here", "not tried yet"
RAN = {"output": "", "layers": " with fewer layers", "toy": " in a small shape"}  # as tests/parity/compare.py has it
TOLERANCE = 1e-5
HEAD = """# Claims

What the papers of plait's systems and methods claim, tried here: {papers} papers, {claims} claims. {yes} are
reproduced ({share:.0%}), {no} are not, {cannot} cannot be tried here, {open} were not tried yet. Of {whole} papers
({part:.0%}) all that can be tried is reproduced. What is claimed on ImageNet and other large data is left out: it
cannot be tried here.

Identities, invariances and costs are held by tests, which are named; the suite runs them. What a system learns is
tried in small (`python -m benchmarks.claims NAME`): a model of a few ten thousand parameters, some hundred steps on
one CPU thread, each seed once with the paper's novelty and once with another module in its place. The rule was
written before anything was run: a claim that one is higher (or lower) holds where the mean of the paired differences
is above twice its standard error, one that it is near where it is not behind by more than the margin, twice the error
taken off. What is not reproduced so is no refutation: sizes and data are far from the paper's, and of three seeds
much is noise. Figures are kept in `docs/measured/claims`; this page is made by `python docs/claims.py`.
"""


class Told(NamedTuple):
    verdict: str
    by: str


def claims() -> dict[str, dict[str, list]]:
    """{table: {system or method: [[claim, kind, ...]]}}."""
    return {name: json.loads((HERE / "claims" / f"{name}.json").read_text(encoding="utf-8")) for name in TABLES}


def told(name: str, kind: str, details: list[str]) -> Told:
    match kind:
        case "parity":
            return parity(*details or [name])
        case "test":
            return Told(YES, "<br>".join(f"`{test}`" for test in details))
        case "trial":
            return trial(*details)
        case "script":
            return Told(YES, f"`{details[0]}`: {details[1]}")
        case "no":
            return Told(NO, details[0])
        case "cannot":
            return Told(CANNOT, details[0])
        case "open":
            return Told(OPEN, details[0])
    raise ValueError(
        f"{name}: got a claim of the kind {kind!r}, expected parity, test, trial, script, no, cannot or open"
    )


def parity(name: str) -> Told:
    rows = json.loads((HERE / "measured" / "parity" / f"{name}.json").read_text(encoding="utf-8"))
    ran = Counter("toy" if size.endswith("_toy") else row.get("ran", "output") for size, row in rows.items())
    worst = max(row["error"] for row in rows.values() if row["error"] is not None)
    said = [f"{ran[kind]} sizes{how}" for kind, how in RAN.items() if ran[kind]]
    said.append(f"relative error at most {worst:.0e}" if worst else "no difference")
    if ran["keys"]:
        said.append(f"of {ran['keys']} more the names and shapes")
    text = re.sub(r"\b1 sizes", "1 size", ", ".join(said))
    return Told(YES if worst < TOLERANCE else NO, f"`tests/parity/{name}.py`: {text}")


def trial(name: str, wanted: str) -> Told:
    path = HERE / "measured" / "claims" / f"{name}.json"
    if not path.exists():
        return Told(OPEN, f"`python -m benchmarks.claims {name}`")
    row = json.loads(path.read_text(encoding="utf-8"))
    rule = next(r for r in map(lambda r: Rule(*r), row["rules"]) if f"{r.first} {r.by} {r.second}" == wanted)
    said, arms = judge(rule, row["arms"]), row["arms"]
    means = ", ".join(f"{arm}: {statistics.mean(arms[arm]):.3f}" for arm in (rule.first, rule.second))
    by = f"`benchmarks.claims {name}`, {row['measure']}: {means}; {said.mean:+.3f} ± {said.error:.3f}"
    if rule.by == "near":
        by += f", margin {rule.margin:g}"
    elif not said.holds:
        other = abs(said.mean) > 2 * said.error
        by += ", the other way round" if other else ", within noise"
    return Told(YES if said.holds else NO, f"{by} ({len(arms[rule.first])} seeds; {row['how']})")


def page() -> str:
    found: dict[str, list[str]] = {}
    lines = []
    for table, systems in claims().items():
        lines += ["", f"## {TABLES[table]}", "", "| | claim | verdict | by |", "|---|---|---|---|"]
        for name, rows in systems.items():
            found[name] = []
            for i, (claim, kind, *details) in enumerate(rows):
                verdict, by = told(name, kind, details)
                found[name].append(verdict)
                link = f"[{name}]({'methods.md' if table == 'methods' else f'systems/{name}.md'})" if i == 0 else ""
                lines.append(f"| {link} | {claim} | **{verdict}** | {by} |")
    count = Counter(verdict for verdicts in found.values() for verdict in verdicts)
    whole = sum(not {NO, OPEN} & set(verdicts) for verdicts in found.values())
    head = HEAD.format(
        papers=len(found), claims=count.total(), yes=count[YES], no=count[NO], cannot=count[CANNOT], open=count[OPEN],
        share=count[YES] / count.total(), whole=whole, part=whole / len(found),
    )  # fmt: skip
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    (HERE / "claims.md").write_text(page(), encoding="utf-8")
