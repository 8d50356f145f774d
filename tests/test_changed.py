"""What a change is said to reach is what it can break, and little more."""

from __future__ import annotations

import ast

import pytest

from plait.core.catalog import systems
from tests.changed import ROOT, changed, iterates, reach
from tests.contract.examples import SYSTEMS


def reached(*changes: str) -> tuple[set[str], set[str], set[str]]:
    found = reach(set(changes))
    files, suites = ({p.relative_to(ROOT).as_posix() for p in paths} for paths in (found.files, found.suites))
    return files, suites, found.names - set(changes)


def test_a_system_runs_its_cases_and_the_tests_that_name_it():
    found = reach({"plait/systems/vision/sequencer2d.py"})
    files, suites, names = reached("plait/systems/vision/sequencer2d.py")
    assert names == {"sequencer2d"} and files == {"tests/systems/test_sequencer2d.py"}
    assert {
        "tests/contract/test_contract.py",
        "tests/contract/test_parallel.py",
        "tests/parity/test_parity.py",
    } <= suites
    assert {"tests/product/test_systems_fit.py", "tests/test_catalog.py"} <= suites
    rooms = ("tests/data", "tests/train", "tests/parts")
    assert {s for s in suites if s.startswith(rooms)} <= {"tests/train/test_sharding.py"}  # a system of each role
    assert [s.name for s in SYSTEMS if found.case([s])] == ["sequencer2d"]
    assert found.case([]) and found.case([3, "no system"]) and found.case(["sequencer2d_toy"])
    assert not found.case(["vit"]) and found.case(["sinkformer", systems()["sequencer2d"]])


def test_what_uses_a_part_of_another_system_is_reached():
    assert {"swin", "s3_autoformer_v2"} <= reached("plait/systems/vision/swin.py")[2]


def test_what_a_child_process_runs_is_reached():
    files, _, names = reached("plait/cli/shell.py")
    assert {"tests/product/test_cli.py", "tests/product/test_kills.py"} <= files and not names
    assert "tests/train/test_loop.py" in reached("tests/train/toyjob.py")[0]


def test_the_default_of_fit_reaches_every_fit_and_that_of_a_task_its_own():
    assert "tests/product/test_kills.py" in reached("plait/systems/unified/auto.py")[0]
    files, _, _ = reached("plait/systems/speech/zipformer.py")
    assert "tests/product/test_transcribe.py" in files and "tests/product/test_kills.py" not in files


def test_a_floor_that_everything_stands_on_reaches_every_system():
    files, suites, names = reached("plait/core/tokens.py")
    assert set(systems()) <= names and "tests/contract/test_contract.py" in files | suites


def test_a_suite_runs_whole_when_its_own_helper_changes():
    files, _, _ = reached("tests/contract/examples.py")
    assert {"tests/contract/test_contract.py", "tests/contract/test_methods.py"} <= files
    assert "tests/parity/test_parity.py" not in files


def test_other_files():
    assert reached("tests/parity/vit_resnas.json")[2] == {"vit_resnas"}
    assert "tests/data/test_kinds.py" not in reached("docs/images/hits.png")[0]
    assert "tests/methods/test_slab.py" in reached("tests/methods/conftest.py")[0]
    everything = reached("constraints.txt")[0]
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py")} == everything


@pytest.mark.parametrize(
    "code, answer",
    [
        ("for s in systems().values(): pass", True),
        ("CASES = [s for s in SYSTEMS if s]", True),
        ("list(modules())", True),
        ("HOST = systems()['vit']", False),
        ("HOST = SYSTEMS[0]", False),
        ("plait.fit(table)", False),
    ],
)
def test_a_suite_goes_through_the_catalogue(code, answer):
    assert iterates(list(ast.walk(ast.parse(code)))) is answer


def test_an_unknown_base_is_told():
    if not (ROOT / ".git").exists():
        pytest.skip("no clone of git")
    with pytest.raises(RuntimeError, match="no-such-branch"):
        changed("no-such-branch")
