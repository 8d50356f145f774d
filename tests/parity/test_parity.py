"""The smallest published size of every system against its peer; `make parity` runs them all."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity import modules
from tests.parity.compare import TOLERANCE, whole_files


def smallest() -> list:
    return [
        pytest.param(m, min(m.CASES, key=lambda n: plait.model_info(n).parameters), id=m.__name__.rsplit(".")[-1])
        for m in modules()
    ]


@pytest.mark.parametrize("module, name", smallest())
def test_smallest_size_agrees_with_its_peer(module, name):
    torch.manual_seed(0)  # some references draw their weights from the global state
    with whole_files():
        row = module.parity(name)
    assert row.parameters == row.reference_parameters
    assert row.error < TOLERANCE


@pytest.mark.parametrize("module", [pytest.param(m, id=m.__name__.rsplit(".")[-1]) for m in modules()])
def test_every_referenced_size_has_a_case(module):
    infos = [plait.model_info(n) for n in plait.list_models()]
    sizes = {i.name for i in infos if i.references and i.system.name == module.SYSTEM}
    assert sizes <= set(module.CASES)
