"""The lowest Python that pyproject.toml names: no newer syntax, nothing newer of the standard library."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOWEST = tuple(
    map(int, re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups())
)
FILES = [
    p for room in ("plait", "tests", "benchmarks", "docs", "examples") for p in sorted((ROOT / room).rglob("*.py"))
]
# what came after 3.10: modules, and names of modules
NEWER = {
    "tomllib",
    "enum.StrEnum",
    "enum.verify",
    "datetime.UTC",
    "contextlib.chdir",
    "itertools.batched",
    "asyncio.timeout",
}
NEWER |= {
    f"typing.{name}"
    for name in ("Self", "LiteralString", "Never", "Unpack", "TypeVarTuple", "override", "assert_never")
}


def used(tree: ast.Module) -> set[str]:
    """Modules that a file imports, and names of modules that it takes."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found |= {a.name for a in node.names}
            case ast.ImportFrom(module=str(source)):
                found |= {source, *(f"{source}.{a.name}" for a in node.names)}
            case ast.Attribute(value=ast.Name(id=source), attr=name):
                found.add(f"{source}.{name}")
            case ast.Name(id="ExceptionGroup"):
                found.add("ExceptionGroup")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_lowest_python_reads_it(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=LOWEST)
    assert not used(tree) & (NEWER | {"ExceptionGroup"})
