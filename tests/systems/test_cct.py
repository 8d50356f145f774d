"""CCT's own claims: its sizes, sequence pooling, convolutional tokens of any picture."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.cct import CASES, NUMBERS
from tests.parity.official import as_published


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"cct_toy"}))
def test_published_sizes_have_the_official_names_shapes_and_counts(name):
    assert as_published(name, NUMBERS[name.removeprefix("cct_")])


@torch.no_grad()
def test_sequence_pooling_is_a_mean_weighed_by_a_learned_score():
    model = plait.create_model("cct_toy").eval()
    t = model.tokens(torch.rand(2, 3, 32, 32))
    x = model.norm(t.x)
    shares = (x @ model.weigh.score.weight[0]).exp()
    by_hand = torch.stack([(x[b] * (shares[b] / shares[b].sum())[:, None]).sum(0) for b in range(2)])
    torch.testing.assert_close(model.pool(t), by_hand, rtol=1e-5, atol=1e-6)
    # of any order
    torch.testing.assert_close(model.pool(t), model.pool(t.replace(x=t.x.flip(1))), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["2_3x2_32", "6_3x1_32", "7_7x2_224"])
def test_the_grid_is_what_the_convolutions_leave(name):
    model = plait.create_model(f"cct_{name}").eval()
    for size in ((32, 32), (45, 70), (7, 9)):
        assert model.stem(torch.rand(1, 3, *size)).grid == tuple(model.stem.side(n) for n in size)
