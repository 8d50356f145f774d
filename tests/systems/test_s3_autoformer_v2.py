"""S3: published sizes, layers that differ from each other, and nets that are slices of a supernet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import plait
from plait.core.catalog import build
from plait.systems.vision.s3_autoformer_v2 import subnet
from tests.parity.compare import perturb, relative_error

LARGE = dict(widths=(32, 64), depths=(3, 2), heads=((2, 2, 1), 3), windows=(4, 8), ratios=((3, 2, 2), 2))
# half as wide, so twice the ratios
SMALL = dict(widths=(16, 32), depths=(2, 1), heads=((1, 2), 2), windows=(4, 8), ratios=((2, 4), 3))


def supernet():
    return perturb(plait.create_model("s3_autoformer_v2_toy", **LARGE))


def picture(rows=2):
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size, millions", [("tiny", 28), ("small", 50), ("base", 71)])
def test_published_sizes(size, millions):
    assert round(plait.model_info(f"s3_autoformer_v2_{size}").parameters / 1e6) == millions


def mask_the_rest(model: nn.Module) -> None:
    """Leave the supernet whole and silence what the small net lacks: norms see half of the channels, heads and hidden
    places are off."""

    def halve(norm, args, out):
        # the norm of four neighbours has four pieces
        x, count = args[0], 4 if norm.normalized_shape[0] == 4 * 32 else 1
        x = x.permute(0, 2, 3, 1) if x.dim() == 4 and x.shape[-1] != norm.normalized_shape[0] else x
        kept = torch.arange(norm.normalized_shape[0]).unflatten(0, (count, -1)).chunk(2, 1)[0].flatten()
        y = torch.zeros_like(x).index_copy(
            -1, kept, F.layer_norm(x[..., kept], (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps)
        )
        return y if y.shape == out.shape else y.permute(0, 3, 1, 2)

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(halve)
    for s, (heads, ratios) in enumerate(zip(((1, 2, 0), (2, 0)), ((2, 4, 0), (3, 0)))):
        for i, block in enumerate(model.stages[s][1].f.blocks):
            block.mix.f.out.weight.data[:, 32 * heads[i] :] = 0
            block.feed.f.down.weight.data[:, ratios[i] * SMALL["widths"][s] :] = 0
            if heads[i] == 0:
                block.mix.f.out.bias.data.zero_()
                block.feed.f.down.bias.data.zero_()


@torch.no_grad()
def test_a_slice_equals_the_masked_supernet_and_the_net_alone():
    large, small = supernet(), build("s3_autoformer_v2_toy", **SMALL).eval()
    alone = plait.create_model("s3_autoformer_v2_toy", **SMALL).eval()
    alone.load_state_dict({k: v.clone() for k, v in subnet(large, small).items()})
    buffers = dict(alone.named_buffers())
    sliced = functional_call(small, subnet(large, small) | buffers, picture())
    assert torch.equal(sliced, alone(picture()))
    whole = large(picture())
    mask_the_rest(large)
    assert relative_error(sliced, large(picture())) < 1e-5
    assert relative_error(sliced, whole) > 0.1


def test_training_a_slice_trains_that_part_of_the_supernet():
    large, small = supernet(), plait.create_model("s3_autoformer_v2_toy", **SMALL)
    functional_call(small, subnet(large, small), picture()).square().sum().backward()
    weight = large.stages[0][1].f.blocks[0].mix.f.qkv.weight.grad  # of 2 heads and 32 channels, 1 and 16 were used
    used = torch.zeros(3, 64, 32, dtype=torch.bool)
    used[:, :32, :16] = True
    assert torch.equal(weight.unflatten(0, (3, -1)) != 0, used)
    assert large.stages[0][1].f.blocks[2].mix.f.qkv.weight.grad is None


@pytest.mark.parametrize(
    "change", [dict(depths=(4, 2), heads=(1, 1), ratios=(1, 1)), dict(widths=(16, 96)), dict(windows=(2, 8))]
)
def test_what_is_no_slice_is_refused(change):
    with pytest.raises(ValueError, match="is no slice of the supernet"):
        subnet(supernet(), build("s3_autoformer_v2_toy", **SMALL | change))


def test_every_layer_of_a_stage_has_a_choice():
    with pytest.raises(ValueError, match="got 3 choices for a stage of 2 layers"):
        build("s3_autoformer_v2_toy", heads=((1, 1, 1), 2))
