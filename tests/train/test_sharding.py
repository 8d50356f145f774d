"""A model that is sharded over processes answers, and learns, through every method of its roles."""

from __future__ import annotations

from inspect import isfunction

import pytest

from plait.core.catalog import model_info
from plait.core.roles import ROLES
from tests.processes import both

# A system of each role, and what is asked of it.
ASKED = {
    "vit_toy": ("tokens", "pool", "features", "answer"),
    "swin_toy": ("features",),
    "clip_toy": ("embed",),
    "vilt_toy": ("fuse",),
    "zipformer_toy": ("transcribe",),
    "deformable_detr_toy": ("detect",),
    "git_toy": ("prefill", "step"),
    "llava_toy": ("step",),
    "autoencoder_kl_toy": ("encode", "decode"),
    "dit_toy": ("condition", "denoise"),
    "decision_transformer_toy": ("act",),
    "crate_mae_toy": ("guess",),
}
CASES = [f"{name}.{method}" for name, methods in ASKED.items() for method in methods]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """What `sharding.py` measured: one pair of processes for all."""
    folder = tmp_path_factory.mktemp("sharding")
    return both("tests.train.sharding", folder, *CASES)


def test_every_role_and_every_method_is_asked():
    asked = {role for name in ASKED for role in model_info(name).roles}
    assert asked == set(ROLES)
    methods = {n for role in ROLES.values() for n, f in vars(role).items() if isfunction(f) and n[0] != "_"}
    assert methods - {"forward", "frames", "places"} <= {method for methods in ASKED.values() for method in methods}


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_model_answers_through_the_methods_of_its_roles(rows, case):
    row = rows[case]
    assert "error" not in row, row["error"]
    assert row["sharded"] and row["size"] > 0
    assert row["apart"] <= 1e-4 * row["size"] and row["weights"] <= 1e-5
