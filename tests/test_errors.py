"""What plait raises on purpose is one of its own errors: the command line calls all others defects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from plait.cli.shell import _explained
from plait.errors import DataError, PlaitError, UsageError

ROOT = Path(__file__).parent.parent / "plait"
INSIDE = {"data/kinds/datetime.py"}  # raised and caught in one function


def bare(path: Path) -> list[int]:
    """Lines that raise a plain ValueError."""
    raised = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Raise)]
    return [n.lineno for n in raised if isinstance(n.exc, ast.Call) and getattr(n.exc.func, "id", "") == "ValueError"]


def test_no_plain_value_error_is_raised():
    found = {p.relative_to(ROOT).as_posix(): bare(p) for p in sorted(ROOT.rglob("*.py"))}
    assert {name: lines for name, lines in found.items() if lines and name not in INSIDE} == {}


@pytest.mark.parametrize("error, code", [(PlaitError("x"), 2), (UsageError("x"), 2), (DataError("x"), 3)])
def test_exit_codes(error, code):
    assert isinstance(error, ValueError) and _explained(error) == (code, "x")


def test_a_value_error_of_others_is_a_defect():
    code, message = _explained(ValueError("x"))
    assert code == 1 and message.startswith("this is a defect: ValueError: x")
