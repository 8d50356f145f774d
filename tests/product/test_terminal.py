"""What the terminal is sent: nothing of the user's that drives it; and what is done where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plait.cli import main
from plait.cli.shell import _explained
from plait.core.printed import clean
from plait.train import checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ESCAPES = ("\x1b[31m", "\u202e", "\x07", "\u2066", "\x9b2J")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("terminal")
    mark = "".join(ESCAPES)
    head = f"a{mark},note{mark},empty{mark},y{mark}"
    lines = [f"{i % 7}.5,word{mark} {i % 5} of them,,{'pq'[i % 2]}{mark}" for i in range(60)]
    (home / f"t{ESCAPES[0]}{ESCAPES[1]}.csv").write_text("\n".join([head, *lines]), encoding="utf-8")
    return home


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_no_name_and_no_cell_reaches_the_terminal_as_it_is(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    (table,) = home.glob("t*.csv")
    target = "y" + "".join(ESCAPES)
    fit = ["fit", table.name, "--target", target, "--system", "auto_toy", "--epochs", "1", "--out", f"run{ESCAPES[0]}"]
    run = f"run{ESCAPES[0]}"
    commands = [
        ["check", table.name, "--target", target],
        fit,
        fit,
        ["predict", run, table.name, "-o", f"out{ESCAPES[1]}.csv"],
        ["evaluate", run, table.name],
        ["show", run],
        ["verify", run],
        ["predict", run, f"no{ESCAPES[0]}.csv", "-o", "out.csv"],
        ["fit", table.name, "--target", f"z{ESCAPES[1]}"],
        ["show", f"no{ESCAPES[0]}"],
    ]
    codes = []
    for words in commands:
        codes.append(main(words))
        out = "".join(capfd.readouterr())
        assert out and not [e for e in ESCAPES if e in out] and "Traceback" not in out, words
    assert codes == [0, 0, 2, 0, 0, 0, 0, 3, 2, 2]


def test_clean_keeps_letters_of_all_scripts():
    assert clean("naïve 日本 می‌خواهم \U0001f468‍\U0001f469 a\tb\n") == "naïve 日本 می‌خواهم \U0001f468‍\U0001f469 a b "
    assert clean("".join(ESCAPES)) == "�[31m����2J"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "words, where, code, said",
    [
        ("check t.csv", ">&-", 0, "standard output is closed"),
        ("check t.csv", "> /dev/full", 3, "cannot write standard output: the disk is full"),
        ("check t.csv --json", "> /dev/full", 3, "cannot write standard output: the disk is full"),
        ("models", ">&- 2>&-", 0, ""),
    ],
)
def test_closed_and_full_output(tmp_path, words, where, code, said):
    (tmp_path / "t.csv").write_text("a,y\n1.5,p\n2.5,q\n3.1,p\n")
    line = f"{sys.executable} -m plait.cli {words} {where}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == bool(said) and said in done.stderr and "Traceback" not in done.stderr


def test_no_memory_and_a_panic_are_sentences():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 52)
    assert _explained(error.value) == (3, "out of memory: give a smaller --batch-size, --image-size or --system")

    class PanicException(BaseException):
        """As pyo3 makes it, which is no Exception."""

    code, said = _explained(PanicException("called `Option::unwrap()` on a `None` value"))
    assert code == 3 and said.startswith("a library gave up (a panic in Rust): called")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_files_are_as_open_as_the_umask_lets_them(home, tmp_path, monkeypatch, mask, mode):
    monkeypatch.chdir(home)
    (table,) = home.glob("t*.csv")
    before = os.umask(mask)
    try:
        words = ["fit", table.name, "--target", "y" + "".join(ESCAPES), "--system", "auto_toy", "--epochs", "1", "-q"]
        assert main([*words, "--out", str(tmp_path / "run")]) == 0
    finally:
        os.umask(before)
    found = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert any(name.startswith(f"run/{checkpoint.HOME}/") for name in found)
    assert {name: oct(m) for name, m in found.items() if m != mode and not name.endswith(".lock")} == {}


@pytest.mark.parametrize("words", ["predict run t.csv -o t.csv/x.csv", "embed run t.csv -o t.csv/x.parquet"])
def test_outputs_that_cannot_be_written_are_found_before_work(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,y\n1.5,p\n")
    assert main(words.split()) == 3  # `run` is not even there
    assert "cannot write into" in capsys.readouterr().err
