"""One thread per process, as the suite's models are tiny; the tests of a file keep to one worker, as some share what
the first made.

Files begin, and the tests that are handed out one by one fill what is left, so that no worker ends long before another.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.changed import Reached, changed, reach

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# long ones whose tests share nothing: a test by itself
SPREAD = {"test_contract.py", "test_parity.py", "test_systems_fit.py"}
REACHED = pytest.StashKey[Reached]()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run only what can be reached by what has changed since this branch left BASE (main), commits or not"
    parser.addoption("--changed", metavar="BASE", nargs="?", const="main", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if base := config.getoption("changed"):
        config.stash[REACHED] = reach(changed(base))


def pytest_report_header(config: pytest.Config) -> str | None:
    if found := config.stash.get(REACHED, None):
        names = ", ".join(sorted(found.names)) or "nothing"
        return f"changed: {names}; {len(found.files)} files whole, {len(found.suites)} suites in part"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    found = config.stash.get(REACHED, None)
    return found is not None and collection_path.is_file() and collection_path not in found.files | found.suites or None


@pytest.hookimpl(optionalhook=True)  # only where xdist is
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return nodeid if file.rsplit("/", 1)[-1] in SPREAD else file

    # else what has the most tests begins, and the ten kills, five tests, come last
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name in SPREAD)
    if (found := config.stash.get(REACHED, None)) is None:
        return
    parameters = {item: list(item.callspec.params.values()) if hasattr(item, "callspec") else [] for item in items}
    out = [i for i in items if i.path not in found.files and not found.case(parameters[i])]
    config.hook.pytest_deselected(items=out)
    items[:] = [i for i in items if i not in set(out)]
