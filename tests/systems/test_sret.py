"""SReT: loops without parameters, slices that exchange tokens and cost less, published sizes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.core.block import Attention
from plait.core.catalog import build
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.systems.vision.sret import Recursion, dealt
from tests.parity.compare import TOLERANCE, count
from tests.parity.sret import drawn

SLICED = {"t": (4.8, 1.1), "lt": (5.0, 1.2), "s": (20.9, 4.2)}
PUBLISHED = SLICED | {"t_whole": (4.8, 1.4), "s_whole": (20.9, 4.7), "s_whole_384": (21.0, 18.5)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    model = build(f"sret_{size}").eval()
    side = model.stem[-1].f.grid[0] * 8
    eager = with_backend(model, "eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        eager(torch.empty(1, 3, side, side, device="meta"))
    millions, giga = PUBLISHED[size]
    assert abs(count(model) / 1e6 - millions) < 0.1
    assert abs(counter.get_total_flops() / 2e9 - giga) < 0.06


def recursion(*groups):
    return initialise(Recursion(Attention(8, 2), groups, [torch.nn.Identity() for _ in groups])).eval()


def tokens(n=16):
    return Tokens(torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0)), grid=(1, n))


def reached(module, place):
    """The places whose answer changes when the token at `place` does."""
    t, x = tokens(), tokens().x.clone()
    x[:, place] += 1
    return (module(t).x != module(t.replace(x=x)).x).any(-1).any(0).nonzero().flatten().tolist()


@torch.no_grad()
def test_scattering_and_its_inverse_leave_every_token_in_its_place():
    assert dealt(torch.arange(8), 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    module = recursion(1, 4)
    module.block = torch.nn.Identity()
    for mode in (True, False):
        assert torch.equal(module.train(mode)(tokens()).x, tokens().x)


@torch.no_grad()
def test_tokens_that_do_not_divide_into_slices_are_refused():
    """Else the last ones would be given the answer of the first."""
    with pytest.raises(PlaitError, match="got 18 tokens for 4 slices, expected a multiple"):
        recursion(4)(tokens(18))
    model = plait.create_model("sret_t", image=(240, 240))
    with pytest.raises(PlaitError, match="got 900 tokens for 8 slices"):
        model(torch.zeros(1, 3, 240, 240))


@torch.no_grad()
def test_one_group_is_full_attention():
    module = recursion(1, 1)
    torch.testing.assert_close(module(tokens()).x, module.block(module.block(tokens())).x, rtol=0, atol=0)


@torch.no_grad()
def test_slices_are_neighbours_first_and_scattered_then():
    assert reached(recursion(4), 5) == [4, 5, 6, 7]
    # alone in the first loop, with every second place in the next
    assert reached(recursion(16, 2), 5) == list(range(1, 16, 2))
    assert reached(recursion(4, 4), 5) == list(range(16))


@torch.no_grad()
def test_training_draws_the_order_and_agrees_with_the_official_code():
    module = recursion(1, 4).train()
    assert not torch.equal(module(tokens()).x, module(tokens()).x)
    assert drawn() < TOLERANCE


def test_more_loops_add_only_the_steps_between():
    two, four = (build("sret_toy", groups=((4, 2) * n, (1, 1) * n)) for n in (1, 2))
    steps = [p.numel() for name, p in two.named_parameters() if ".steps." in name]
    assert count(four) - count(two) == sum(steps)
