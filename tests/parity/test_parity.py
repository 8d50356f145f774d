"""The smallest size of every system against its peer, and some small ones that were recorded; `make parity` runs all
sizes."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.catalog import systems
from tests.parity import modules
from tests.parity.compare import TOLERANCE, whole_files
from tests.parity.mutation import module_of

# published sizes whose outputs are on record; test_mutation.py has others
RECORDED = (
    "cct_7_3x1_32_sine",
    "crossformer_tiny",
    "fcaformer_l1",
    "flatformer_waymo_1f",
    "hornet_tiny_gf",
    "lit_ti",
    "mixture_of_mamba_37m",
    "mixture_of_transformers_37m",
    "resformer_tiny_patch16",
    "s3_autoformer_v2_tiny",
    "unireplknet_a",
    "univitar_0.3b",
    "vision_rwkv_tiny",
    "vit_resnas_tiny",
    "vmoe_s32_last2_e8",
    "zorro_geglu_512",
)


def smallest(module) -> str:
    """The toy, or the size with the fewest parameters."""
    toy = f"{module.SYSTEM}_toy"
    return toy if toy in module.CASES else min(module.CASES, key=lambda name: plait.model_info(name).parameters)


@pytest.mark.parametrize("module", [pytest.param(m, id=m.__name__.rsplit(".")[-1]) for m in modules()])
def test_smallest_size_agrees_with_its_peer(module):
    name = smallest(module)
    torch.manual_seed(0)  # some references draw their weights from the global state
    with whole_files():
        row = module.parity(name)
    assert row.parameters == row.reference_parameters
    assert row.error < TOLERANCE


@pytest.mark.parametrize("name", RECORDED)
def test_a_published_size_gives_what_was_recorded(name):
    row = module_of(name).parity(name)
    assert row.ok and row.ran in ("output", "layers"), row


def test_every_published_size_has_a_case():
    cases = {name for m in modules() for name in m.CASES}
    published = {f"{s.name}_{size}" for s in systems().values() for size in s.weights}
    assert published <= cases, sorted(published - cases)
