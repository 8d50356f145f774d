"""V-MoE's published layouts: heads that are not 64 wide, and a head with a hidden layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plait
from plait.core.catalog import build
from tests.parity import vmoe
from tests.parity.compare import count
from tests.parity.official import digest

NUMBERS = json.loads(Path(vmoe.__file__).with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", ["h14_last5", "l16_every2", "s32_last2_e8", "s32_last2_e8_384"])
def test_published_sizes_have_the_official_names_shapes_and_counts(size):
    model = build(f"vmoe_{size}")
    assert count(model) == NUMBERS[size]["parameters"]
    assert digest(plait.save_weights(model, "flax")) == NUMBERS[size]["digest"]


def test_without_classes_there_is_no_hidden_layer_either():
    assert plait.create_model("vmoe_toy", hidden=16).head[2].out_features == 10
    assert not list(plait.create_model("vmoe_toy", hidden=16, num_classes=0).head.parameters())
