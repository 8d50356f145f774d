"""The arrow of imports points one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "plait"
FLOORS = {"errors": 0, "core": 1, "parts": 2, "systems": 3, "data": 3, "tasks": 4, "evaluate": 4, "train": 5, "cli": 6}
FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module)
    return [m for m in found if m.split(".")[0] == "plait"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_points_up(path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imports(path):
        there = room(module)
        assert there == "" or FLOORS[there] <= FLOORS[here], f"{path} imports {module}"
        if here == "systems" and there == "systems":
            pytest.fail(f"{path} imports the system {module}")


def test_importing_plait_is_light():
    code = "import sys, plait; print([m for m in ('torch', 'numpy', 'pyarrow', 'PIL', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
