"""The pages of the site: all public names, all systems, no link into nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import plait
from plait.core.catalog import model_info, systems

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]


def test_every_public_name_has_its_place_in_the_reference():
    told = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(f"{home}.{name}" for name, home in plait._HOMES.items())


def test_every_system_has_a_page_and_no_page_is_of_none():
    pages = {p.stem for p in (DOCS / "systems").glob("*.md")} - {"README"}
    assert pages == set(systems())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{page} links to {target}"


def test_no_file_holds_the_marks_of_a_merge():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("is no clone")
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    for name in files.stdout.split("\0")[:-1]:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yml", ".cff", ".txt", "") and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            assert not [line for line in lines if line.startswith(marks)], name


def test_the_readme_names_every_system_and_every_method():
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in [*systems(), *plait.list_methods()] if f"`{name}`" not in said]
    for extra in re.findall(r"pip install '\.\[(\w+)\]'", said):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra


def test_the_readme_counts_what_was_measured():
    """Every size that somebody published, or that was compared with what was published, by what was run of it."""
    ran: Counter[str] = Counter()
    for system in systems().values():
        file = DOCS / "measured" / "parity" / f"{system.name}.json"
        rows = json.loads(file.read_text()) if file.exists() else {}
        for size in set(system.sizes) - {"toy"}:
            info = model_info(f"{system.name}_{size}")
            row = rows.get(info.name)
            if info.references or info.weights or row:
                ran["published"] += 1
                ran[row.get("ran", "output") if row else "nothing"] += 1
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    agree = ran["output"] + ran["layers"] + ran["toy"]
    small = f", {ran['toy']} in a small shape" if ran["toy"] else ""
    rest = f", of {ran['nothing']} nothing" if ran["nothing"] else ""
    whole = (
        f"Of {ran['published']} published sizes {agree} give the original's outputs, to 1e-5 relative "
        f"({ran['layers']} of them compared with fewer layers{small}); of "
        f"{ran['keys']} the names, shapes and counts of the weights were compared alone{rest};"
    )
    assert whole in said, dict(ran)
