"""FlatFormer: voxels of a cloud, the order they are read in, and clouds in one row."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.tokens import Tokens, real
from plait.systems.points.flatformer import FlatAttention, flat_order
from tests.parity.compare import perturb


def toy(**size):
    return perturb(plait.create_model("flatformer_toy", **size))


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_a_voxel_is_what_points_lie_in_it_in_whatever_order():
    read, x = toy().voxels, cloud(40)
    t = read(x[None], None)
    cells = ((x + 1) / 2 * 8).floor().long()
    assert set(map(tuple, t.pos[0][real(t)[0]].tolist())) == set(map(tuple, cells.tolist()))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    other = read(x[order][None], None)
    assert torch.equal(t.pos, other.pos) and torch.equal(t.keep, other.keep)
    torch.testing.assert_close(other.x, t.x)
    one = read(x[(cells == cells[0]).all(1)][None], None)  # of one voxel's points alone
    at = (t.pos[0] == cells[0]).all(1) & t.keep[0]
    torch.testing.assert_close(t.x[0][at], one.x[0][one.keep[0]])
    assert not t.x[0][~t.keep[0]].any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_order_goes_window_by_window_to_and_fro(axis, shifted):
    side, window = 12, 4
    pos = torch.cartesian_prod(*[torch.arange(side)] * 2, torch.arange(1))[None]
    number = flat_order(pos, (side, side, 1), window, axis, shifted)[0]
    assert len(number.unique()) == side * side
    path = pos[0][number.argsort()]
    homes = [tuple(p) for p in ((path[:, :2] + shifted * window // 2) // window).tolist()]
    visits = [home for i, home in enumerate(homes) if i == 0 or homes[i - 1] != home]
    assert len(visits) == len(set(visits)) == (16 if shifted else 9)  # each window once
    rows = [home[1 - axis] for home in visits]
    assert rows == sorted(rows)  # rows of windows one after another, the axis to and fro
    along = [[home[axis] for home in visits if home[1 - axis] == row] for row in dict.fromkeys(rows)]
    assert along[0] == along[1][::-1] == along[2] and along[0] in (sorted(along[0]), sorted(along[0])[::-1])


@torch.no_grad()
@pytest.mark.parametrize("axis, shifted", [(0, False), (1, True)])
def test_attention_is_that_of_groups_in_this_order(axis, shifted):
    layer = FlatAttention(32, 2, cells=(8, 8, 8), window=4, group=5, axis=axis, shifted=shifted).eval()
    pos = torch.cartesian_prod(*[torch.arange(8)] * 3)[torch.randperm(512)[:23]]
    x = torch.randn(23, 32)
    got = layer(Tokens(x[None], pos=pos[None])).x[0]
    order = flat_order(pos, (8, 8, 8), 4, axis, shifted).argsort()
    for group in order.split(5):  # the last has three
        alone = layer(Tokens(x[group][None], pos=pos[group][None])).x[0]
        torch.testing.assert_close(got[group], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_clouds_in_one_row_are_as_one_by_one_and_as_padded():
    model, sizes = toy(depth=2), (17, 48, 5, 30)
    clouds = [cloud(n, seed) for seed, n in enumerate(sizes)]
    packed = model.head(model.pool(model.packed(clouds)))
    alone = torch.cat([model(c[None]) for c in clouds])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    wide, keep = torch.full((4, 48, 3), 5.0), torch.arange(48) < torch.tensor(sizes)[:, None]
    wide[keep] = torch.cat(clouds)
    torch.testing.assert_close(model(wide, keep), alone, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_read_is_said():
    layer = toy().stack.blocks[0].mix.f
    with pytest.raises(ValueError, match="expected where each voxel lies"):
        layer(Tokens(torch.randn(1, 8, 32)))
    with pytest.raises(ValueError, match="weight"):
        layer(Tokens(torch.randn(1, 8, 32), pos=torch.zeros(1, 8, 3, dtype=torch.int64), weight=torch.ones(1, 8)))
