"""The arrow of imports points one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "plait"
FLOORS = {
    "errors": 0,
    "core": 1,
    "parts": 2,
    "systems": 3,
    "methods": 3,
    "data": 3,
    "tasks": 4,
    "evaluate": 4,
    "train": 3,
    "runs": 5,
    "cli": 6,
    "__main__": 7,
}
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


def literal(tree: ast.Module, name: str) -> str | None:
    """The name that a module's top level gives to `name`."""
    return next((n.value.id for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == name), None)


@pytest.mark.parametrize("path", sorted(ROOT.glob("systems/*/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_system_may_use_a_part_of_another_but_extends_no_model(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    models = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("plait.systems."):
            other = ROOT.parent / (node.module.replace(".", "/") + ".py")
            model = literal(ast.parse(other.read_text(encoding="utf-8")), "MODEL")
            models |= {a.asname or a.name for a in node.names if a.name == model}
    bases = {
        b.id for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for b in node.bases if isinstance(b, ast.Name)
    }
    assert not models & bases


def test_importing_plait_is_light():
    code = (
        "import sys, plait; print([m for m in ('torch', 'numpy', 'pyarrow', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
