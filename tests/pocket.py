"""Published sizes that fit into a pocket: rows of the catalogue as they are, of models so small that their peers answer
at once, with words of `tests.published`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plait.core.catalog import systems

VOCAB = 1100
ENDS = {"clip": dict(begin=VOCAB - 2, end=VOCAB - 1), "bert": dict(begin=101, end=102)}


@contextmanager
def pocket(system: str, like: str, arguments: dict, **row) -> Iterator[str]:
    """The name of a size of `system` with arguments of its own, and the weights row of the size `like` with `row` in
    it."""
    found = systems()[system]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(found.sizes, "pocket", arguments)
        patch.setitem(found.weights, "pocket", found.weights[like] | row)
        yield f"{system}_pocket"
