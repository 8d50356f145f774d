"""Every command that a page or a docstring gives is one that works in a fresh clone.

What is quick runs as written. Of the rest, what is said is checked: the options of `plait` parse, scripts answer
--help, targets of make and extras of pip are there; the jobs themselves are run by tests/product/test_examples.py and
tests/product/test_cli.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from sklearn.datasets import load_wine

from plait.cli import main
from plait.cli.shell import application

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("docs/systems/README.md")]
SCRIPTS = [
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("docs/*.py"),
    *ROOT.glob("examples/*.py"),
    *ROOT.rglob("plait/*.py"),
]
COMMAND = re.compile(r"^ {4,}(?:\$ )?((?:plait|python|make|pip) .+)$|`((?:plait|python|make|pip) [^`]+)`", re.MULTILINE)
QUICK = ("models", "methods", "show")  # these run as they are written
NEW = ("mean*", "mean_mixer")  # what a reader of docs/adding_a_system.md has just made


def said() -> dict[str, str]:
    """Each command and the page that gives it."""
    found = {}
    for path in [*PAGES, *SCRIPTS]:
        for groups in COMMAND.findall(path.read_text(encoding="utf-8")):
            text = re.split(r"\s{2,}#|\s+#\s", next(filter(None, groups)))[0].strip()
            if "(" not in text.split(maxsplit=1)[-1][:1] and not text.startswith("python import"):
                found.setdefault(text, path.relative_to(ROOT).as_posix())
    return found


SAID = said()


def of(program: str) -> list:
    return [pytest.param(text, id=text) for text in SAID if text.split()[0] == program]


def test_the_pages_give_commands():
    assert len(of("plait")) > 20 and len(of("python")) > 10 and len(of("make")) >= 4 and len(of("pip")) >= 2


@pytest.mark.parametrize("text", of("plait"))
def test_a_command_of_plait_parses(text):
    words = shlex.split(text.replace(" ...", ""))[1:]
    if words[:1] in (["--help"], ["--version"]) or any(w.isupper() for w in words[1:2]):  # a placeholder: NAME, RUN
        return
    commands = typer.main.get_command(application()).commands
    assert words[0] in commands
    if len(words) == 2 and words[1].startswith("--"):  # an option is named
        assert words[1] in {name for option in commands[words[0]].params for name in option.opts} | {"--help"}
    elif len(words) > 1:
        commands[words[0]].make_context(words[0], words[1:])


def quick(text: str) -> bool:
    """Whether it is whole and quick: not the name of a command or an option that is spoken of, nor a placeholder."""
    name, *words = text.split()[1:]
    whole = words and not words[-1].startswith("--") and not words[-1].isupper()
    return name in QUICK and bool(whole or (name != "show" and not words))


@pytest.mark.parametrize("text", [p for p in of("plait") if quick(p.id)])
def test_a_quick_command_runs(text, capsys):
    words = shlex.split(text)[1:]
    if words[-1] not in NEW:
        assert main(words) == 0 and capsys.readouterr().out


def test_a_table_is_checked_and_learnt_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_wine(as_frame=True).frame.to_csv("wine.csv", index=False)
    for text in ("plait check wine.csv --target target", "plait fit wine.csv --target target"):
        assert text in SAID
        words = shlex.split(text)[1:] + (["--epochs", "3"] if " fit " in text else [])
        assert main(words) == 0
    assert "plait predict runs/wine wine.csv -o answers.csv" in SAID
    assert main(["predict", "runs/wine", "wine.csv", "-o", "answers.csv"]) == 0 and Path("answers.csv").is_file()


@pytest.mark.parametrize("script", sorted({p.id.split()[1] for p in of("python") if p.id.split()[1] != "-m"}))
def test_a_script_is_there_and_answers(script):
    path = ROOT / script
    assert path.is_file()
    if path.parent.name == "examples":  # run whole, by test_examples.py
        return
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": ""}
    if subprocess.run([sys.executable, "-c", "import plait"], cwd="/", env=environment, capture_output=True).returncode:
        pytest.skip("plait is not installed here, only on the path")
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr[-1000:]


@pytest.mark.parametrize("text", [p for p in of("python") if p.id.split()[1] == "-m"])
def test_a_module_is_there(text):
    module, *rest = shlex.split(text)[2:]
    path = ROOT / module.replace(".", "/")
    assert module == "pytest" or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    for word in rest:
        assert not word.startswith("tests") or (ROOT / word).exists()


@pytest.mark.parametrize("text", of("make"))
def test_make_has_the_target(text):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(text.split()[1:]) <= set(targets)


@pytest.mark.parametrize("text", of("pip"))
def test_pip_has_the_extra(text):
    said = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = re.findall(r"^(\w+) = \[", said.split("\n[")[0], re.MULTILINE)
    assert set(re.findall(r"\[(\w+)\]", text)) <= set(extras)
