"""One thread per process, as the suite's models are tiny; the tests of a file keep to one worker, as some share what
the first made.

Files begin, and the tests that are handed out one by one fill what is left, so that no worker ends long before another.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# long ones whose tests share nothing: a test by itself
SPREAD = {"test_contract.py", "test_parity.py", "test_systems_fit.py"}


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name in SPREAD)
