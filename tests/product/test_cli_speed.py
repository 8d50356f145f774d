"""What a person waits for before anything happens: medians of five fresh processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "plait.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def seconds(command: list[str]) -> float:
    """The median processor time of five runs: unlike the clock on the wall, other work on the machine does not stretch
    it."""

    def once(words: list[str]) -> float:
        before = os.times()
        subprocess.run(words, check=True, capture_output=True, env=ENVIRONMENT)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    once(command)  # writes the byte code
    return statistics.median(once(command) for _ in range(5))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the processor time of children")
@pytest.mark.parametrize(
    "command, limit",
    [
        ([sys.executable, "-c", "import plait"], 0.2),
        ([*COMMAND, "--help"], 0.5),
        ([*COMMAND, "fit", "--help"], 0.5),
        ([*COMMAND, "search", "--help"], 0.5),
        ([*COMMAND, "models"], 1.0),
    ],
    ids=["import", "--help", "fit --help", "search --help", "models"],
)
def test_starts_within_its_limit(command, limit):
    assert seconds(command) < limit


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["models"], ["fit", "--nonsense"]])
def test_light_commands_import_nothing_heavy(words):
    code = (
        "import sys; from plait.cli import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'PIL', 'matplotlib', 'accelerate'} & set(sys.modules)), "
        "file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert out.stderr.splitlines()[-1] == "[]"
