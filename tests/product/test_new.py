"""`plait new` in a copy of the clone: what it writes works as it is, and nothing is written over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plait.cli.new import write
from plait.errors import UsageError

ROOT = Path(__file__).parents[2]
MADE = {
    "gated_vit": ("system", "--timm", "vit_base_patch16_224"),
    "gated_reader": ("system", "--room", "text"),
    "gated_pair": ("system", "--room", "pairs"),
    "gated_fusion": ("system", "--role", "fuser"),
    "scaled_feed": ("method",),
    "odour": ("kind",),
    "nearness": ("task",),
}


class Clone:
    def __init__(self, root: Path):
        self.root = root
        self.environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def run(self, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def new(self, *words: str) -> subprocess.CompletedProcess:
        return self.run("plait.cli", "new", *words)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    root = tmp_path_factory.mktemp("clone")
    for folder in ("plait", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return Clone(root)


@pytest.fixture(scope="module")
def written(clone) -> dict[str, str]:
    """What was said of each page."""
    said = {}
    for name, (what, *options) in MADE.items():
        done = clone.new(what, name, *options)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    return said


def test_each_page_and_its_test_are_written(clone, written):
    pages = {word for text in written.values() for word in text.split() if word.endswith(".py")}
    assert all((clone.root / page).is_file() for page in pages)
    assert {
        "plait/systems/vision/gated_vit.py",
        "tests/parity/gated_vit.py",
        "tests/methods/test_scaled_feed.py",
    } < pages
    assert {"plait/data/kinds/__init__.py", "plait/tasks/__init__.py", "plait/systems/pairs/gated_pair.py"} < pages


def test_what_is_written_passes_its_contract(clone, written):
    tests = [f"tests/{room}/test_{name}.py" for room, name in (
        ("systems", "gated_vit"), ("systems", "gated_reader"), ("systems", "gated_pair"), ("systems", "gated_fusion"),
        ("methods", "scaled_feed"), ("data", "odour"), ("tasks", "nearness"),
    )]  # fmt: skip
    chosen = " or ".join(MADE)
    contract = ["tests/contract/test_contract.py", "tests/contract/test_methods.py", "tests/contract/test_fusers.py"]
    contract += ["tests/contract/test_roles.py", "tests/test_catalog.py"]
    done = clone.run("pytest", "-p", "no:cacheprovider", "-k", chosen, *contract, *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) > 70


def test_what_is_written_is_formatted(clone, written):
    pages = sorted({word for text in written.values() for word in text.split() if word.endswith(".py")})
    for check in (("format", "--check"), ("check",)):
        done = clone.run("ruff", *check, *pages)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (("system", "gated_vit"), "there is a system 'gated_vit' already"),
        (("kind", "text"), "there is a kind 'text' already"),
        (("system", "Gated"), "expected small letters"),
        (("system", "other", "--room", "speeches"), "there is no page"),
        (("system", "other", "--role", "fusor"), "fuser"),
        (("method", "other", "--timm", "vit"), "only a system"),
        (("method", "sinkformer"), "already"),
    ],
)
def test_a_wrong_name_is_told(clone, written, words, message):
    done = clone.new(*words)
    assert done.returncode == 2 and message in done.stderr


def test_nothing_is_written_over_and_nothing_by_halves(clone):
    (clone.root / "tests" / "systems" / "test_half.py").write_text("mine")
    done = clone.new("system", "half")
    assert done.returncode == 2 and "tests/systems/test_half.py is there already" in done.stderr
    assert not (clone.root / "plait" / "systems" / "vision" / "half.py").exists()
    assert (clone.root / "tests" / "systems" / "test_half.py").read_text() == "mine"


def test_an_installed_package_is_told_from_a_clone(tmp_path):
    with pytest.raises(UsageError, match="without its tests"):
        write(tmp_path, {"plait/tasks/other.py": ""}, [])
