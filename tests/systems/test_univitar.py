"""UniViTAR's own claims: packing changes nothing and costs nothing for padding, any size and shape, clips with the same
weights."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded, with_backend
from plait.core.packing import unpack
from tests.parity.official import as_published
from tests.parity.univitar import NUMBERS

SIZES = [(32, 32), (16, 40), (24, 8), (32, 32), (8, 8), (48, 16)]
REAL = {"0.3b": 310e6, "0.6b": 637e6, "1b": 1419e6}  # the published counts


def pictures(seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(3, h, w, generator=g) for h, w in SIZES]


def test_published_sizes_have_the_published_numbers_of_parameters():
    for size, published in REAL.items():
        assert abs(plait.model_info(f"univitar_{size}").parameters / published - 1) < 0.001
    assert as_published("univitar_0.3b", NUMBERS["0.3b"])


def test_sizes_whose_heads_are_a_guess_name_no_weights():
    assert {size for size in REAL if plait.model_info(f"univitar_{size}").weights} == {"0.3b"}
    with pytest.raises(ValueError, match="univitar_0.6b"):
        plait.create_model("univitar_0.6b", pretrained=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["sdpa", "eager", "flex"])
@torch.no_grad()
def test_a_packed_batch_equals_its_pictures_one_by_one(name):
    model = plait.create_model("univitar_toy").eval()
    whole = pictures()
    other = with_backend(model, name)
    t = other.packed(whole)
    parts, pooled = unpack(t), other.pool(t)
    assert t.x.shape == (1, sum(h * w // 64 for h, w in SIZES), model.width)  # no token of padding
    for picture, part, vector in zip(whole, parts, pooled):
        alone = model.tokens(picture[None])
        torch.testing.assert_close(part, alone.x[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vector, model.pool(alone)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_nothing_leaks_between_pictures():
    model = plait.create_model("univitar_toy").eval()
    whole = pictures()
    before = unpack(model.packed(whole))
    whole[3] = torch.full_like(whole[3], 1e4)
    after = unpack(model.packed(whole))
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [i != 3 for i in range(len(SIZES))]


def test_gradients_of_a_packed_batch_are_those_of_its_pictures():
    model = plait.create_model("univitar_toy")
    model.head(model.pool(model.packed(pictures()))).square().sum().backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for picture in pictures():
        model(picture[None]).square().sum().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(packed[n], p.grad, rtol=1e-4, atol=1e-4 * float(p.grad.abs().max()), msg=n)


@torch.no_grad()
def test_attention_costs_the_sum_of_the_squares():
    model = plait.create_model("univitar_toy").eval()
    watched, maps = recorded(model)
    watched.packed(pictures())
    assert sum(m.numel() for m in maps) == 2 * 2 * sum((h * w // 64) ** 2 for h, w in SIZES)  # two layers of two heads
    with FlopCounterMode(display=False) as packed:
        model.packed(pictures())
    with FlopCounterMode(display=False) as alone:
        for picture in pictures():
            model.tokens(picture[None])
    assert packed.get_total_flops() == alone.get_total_flops()


@torch.no_grad()
def test_a_picture_is_a_clip_shown_twice_and_clips_are_packed_with_pictures():
    model = plait.create_model("univitar_toy").eval()
    g = torch.Generator().manual_seed(2)
    picture, clip = torch.rand(3, 16, 24, generator=g), torch.rand(4, 3, 16, 24, generator=g)
    still = model.tokens(picture.expand(1, 2, -1, -1, -1))
    torch.testing.assert_close(still.x, model.tokens(picture[None]).x, rtol=1e-5, atol=1e-5)
    parts = unpack(model.packed([picture, clip]))
    torch.testing.assert_close(parts[1], model.tokens(clip[None]).x[0], rtol=1e-5, atol=1e-5)
    assert parts[1].shape[0] == 2 * parts[0].shape[0]
    with pytest.raises(ValueError, match="even number"):
        model.packed([clip[:3]])


def test_sizes_that_do_not_divide_raise():
    with pytest.raises(ValueError, match="30 x 32 do not divide into patches of 8"):
        plait.create_model("univitar_toy").packed([torch.rand(3, 30, 32)])
