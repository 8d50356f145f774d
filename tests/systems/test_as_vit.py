"""As-ViT: windows that are shares of the grid, what untrained networks tell, the search and the growth."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded
from plait.core.block import Attention
from plait.core.catalog import build
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.untrained import (
    best_ranked,
    changed,
    circle,
    grow,
    length_distortion,
    ntk_condition,
    reader,
    search,
    without_norms,
)
from plait.systems.vision.as_vit import Split, coarsen
from tests.parity.compare import count
from tests.parity.official import picture
from tests.parity.recorded import noise


def official(name):
    model = plait.create_model(name).eval()
    state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(model, "official").items()}
    return plait.load_weights(model, state, "official")


def test_the_largest_published_size():
    assert abs(count(build("as_vit_large")) / 1e6 - 87.58) < 0.01


def test_windows_are_shares_of_the_grid():
    watched, maps = recorded(plait.create_model("as_vit_toy").eval())
    watched(torch.rand(2, 3, 48, 64))
    assert [m.shape[-1] for m in maps] == [6 * 8, 6 * 8, 6 * 8] and maps[0].shape[0] == 2 * 4


@torch.no_grad()
def test_a_window_hears_nobody_else_and_tokens_stay_in_place():
    f = initialise(Split(Attention(8, 2), 2))
    x = torch.randn(1, 4 * 6, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 0] += 1
    reached = (f(Tokens(x, grid=(4, 6))).x != f(Tokens(other, grid=(4, 6))).x).any(-1).view(4, 6)
    assert reached[:2, :3].all() and reached.sum() == 6
    plain = Split(torch.nn.Identity(), 2)
    assert torch.equal(plain(Tokens(x, grid=(4, 6))).x, x)
    with pytest.raises(PlaitError, match="5 x 6 does not divide into 2 x 2"):
        plain(Tokens(torch.zeros(1, 30, 8), grid=(5, 6)))


def test_coarse_patches_have_the_same_weights_and_cost_a_quarter_of_the_tokens():
    model, x = plait.create_model("as_vit_nano").eval(), torch.rand(1, 3, 128, 128)
    fine = model(x)

    def cost():
        with FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops()

    keys, whole = list(model.state_dict()), cost()
    coarsen(model, 2)
    assert model.maps(x)[0].shape[2:] == (16, 16) and list(model.state_dict()) == keys and cost() < 0.3 * whole
    assert not torch.allclose(model(x), fine)
    coarsen(model, 1)
    assert torch.equal(model(x), fine)


def test_measures_are_those_of_the_official_code():
    """Its procedures were run once on its network with the same weights, circle and pictures."""
    model = official("as_vit_toy")
    at, along = circle((3, 32, 32), 10, torch.Generator().manual_seed(0))
    assert length_distortion(reader(without_norms(model)), at, along) == pytest.approx(0.5274451673, rel=1e-5)
    assert length_distortion(reader(model), at, along) != pytest.approx(0.5274451673, rel=1e-2)
    x = torch.cat([picture(32, 32), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))])
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert ntk_condition(reader(model), weights, x) == pytest.approx(12.3802938, rel=1e-4)
    assert without_norms(model) is not model and model.norm.weight is not None


def test_a_curve_is_as_long_as_the_map_makes_it():
    at, along = circle((1, 4, 4), 9, torch.Generator().manual_seed(0))
    assert torch.allclose(at.flatten(1).norm(dim=1), torch.ones(9)) and torch.allclose(
        (at * along).sum((1, 2, 3)), torch.zeros(9), atol=1e-6
    )
    assert length_distortion(lambda x: 3 * x.flatten(1), at, along) == pytest.approx(27, rel=1e-5)


def test_the_search_finds_what_is_rewarded():
    space = {"kernel": [4, 5, 6], "split": [1, 2]}

    def measure(choice):
        return {"near": -abs(choice["kernel"] - 5), "more": choice["split"]}

    assert search(space, measure, steps=200) == {"kernel": 5, "split": 2}
    assert search(space, lambda c: {"less": -c["kernel"]}, steps=200)["kernel"] == 4
    with pytest.raises(PlaitError, match="nothing to choose from"):
        search({"kernel": []}, measure)


def test_changes_are_shares_of_the_range():
    assert changed([1.0]) == 0 and changed([1.0, 3.0, 2.0]) == pytest.approx(-0.5, rel=1e-5)


def test_ranks_are_added_and_ties_go_to_what_differs_most():
    rows = {"a": {"x": 1, "y": 3}, "b": {"x": 3, "y": 2.9}, "c": {"x": 2, "y": 1}}
    assert best_ranked(list(rows), rows.get) == "b"
    assert best_ranked(["a", "c"], {"a": {"x": 1, "y": 10}, "c": {"x": 2, "y": 1}}.get) == "a"


def test_growth_ends_where_nothing_fits():
    family = grow(8, (1, 1), lambda c: {"deep": -c[1][0], "narrow": -c[0]}, lambda w, d: w * sum(d) <= 40)
    assert family == [(9, (1, 2)), (10, (1, 3))]
