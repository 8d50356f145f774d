"""DETR and Deformable DETR: masks of padding, places that are sampled, backbones of all sorts."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.mixers.deformable import Deformable
from plait.parts.objectives.sets import set_losses
from tests.parity.compare import perturb

SIZES = {
    "detr": {},
    "deformable_detr": dict(levels=4),
    "deformable_detr two stages": dict(levels=4, refine=True, two_stage=True),
}
every_size = pytest.mark.parametrize("name", SIZES)


def made(name: str, **more):
    return perturb(plait.create_model(f"{name.split()[0]}_toy", **SIZES[name], **more))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    keep = torch.ones(2, 96, 128, dtype=torch.bool)
    keep[1, 64:] = keep[1, :, 96:] = False
    return x, keep


@torch.no_grad()
@every_size
def test_what_lies_in_the_padding_changes_nothing_and_the_mask_something(name):
    model, (x, keep) = made(name), padded()
    out, loud = model(x, keep), model(torch.where(keep[:, None], x, 7.0), keep)
    bare = model(x * keep[:, None])
    for key in out:
        assert out[key].isfinite().all() and torch.equal(out[key], loud[key])
        assert not torch.allclose(out[key][1], bare[key][1], atol=1e-3)
        torch.testing.assert_close(out[key][0], bare[key][0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every_size
def test_tokens_that_are_not_real_are_those_of_the_padding(name):
    model, (x, keep) = made(name), padded()
    t = model.tokens(x, keep)
    real = 2 * 3 if name == "detr" else 8 * 12 + 4 * 6 + 2 * 3 + 2 * 2  # of 64 x 96 pixels; 64 of 96 round up to 2 of 2
    assert t.keep[0].all() and int(t.keep[1].sum()) == real
    assert model.tokens(x).keep is None


@every_size
def test_all_that_is_trained_learns(name):
    model = made(name).train()
    truth = torch.tensor([[[1.0, 0.1, 0.2, 0.5, 0.6], [3.0, 0.5, 0.5, 0.9, 0.8]]]).expand(2, -1, -1)
    out = model(padded()[0])
    losses = set_losses(out["logits"], out["boxes"], truth, model.exclusive)
    if "first_logits" in out:
        first = set_losses(out["first_logits"][:, None], out["first_boxes"][:, None], truth, False)
        losses |= {f"first {k}": v for k, v in first.items()}
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


def by_hand(f: Deformable, t: Tokens, levels, places) -> torch.Tensor:
    """Bilinear samples one by one, zeros beyond the border."""
    v = f.value(t.x).masked_fill(~t.keep[..., None], 0).unflatten(2, (f.heads, -1))
    asks = t.x + t.pos
    step = f.offsets(asks).unflatten(2, (f.heads, f.levels, f.points, 2))
    share = f.weights(asks).unflatten(2, (f.heads, -1)).softmax(3).unflatten(3, (f.levels, f.points))
    out = torch.zeros_like(v[:, : t.x.shape[1]])
    for b, n, h in torch.cartesian_prod(*map(torch.arange, (len(v), t.x.shape[1], f.heads))).tolist():
        begun = 0
        for i, (high, wide) in enumerate(levels):
            for p in range(f.points):
                at = places[b, n, i, :2] * torch.tensor([wide, high]) - 0.5
                if places.shape[-1] == 2:
                    at = at + step[b, n, h, i, p]
                else:
                    at = at + step[b, n, h, i, p] / f.points * places[b, n, i, 2:] / 2 * torch.tensor([wide, high])
                low = at.floor()
                for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    x, y = int(low[0]) + dx, int(low[1]) + dy
                    if 0 <= x < wide and 0 <= y < high:
                        w = (1 - abs(float(at[0]) - x)) * (1 - abs(float(at[1]) - y))
                        out[b, n, h] += share[b, n, h, i, p] * w * v[b, begun + y * wide + x, h]
            begun += high * wide
    return f.out(out.flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("boxes", [False, True])
def test_places_are_sampled_as_by_hand(boxes):
    f = perturb(initialise(Deformable(8, 2, levels=2, points=3)))
    levels, g = ((3, 4), (2, 2)), torch.Generator().manual_seed(0)
    x, pos = torch.randn(2, 2, 16, 8, generator=g)
    places = torch.rand(2, 16, 2, 4 if boxes else 2, generator=g)
    keep = torch.rand(2, 16, generator=g) < 0.8
    t = Tokens(x, keep=keep, pos=pos).reading(levels=levels, places=places)
    torch.testing.assert_close(f(t).x, by_hand(f, t, levels, places), rtol=1e-4, atol=1e-5)
    with pytest.raises(PlaitError, match="one for each place"):
        f(t.reading(levels=((3, 4), (2, 3))))


@pytest.mark.parametrize("backbone", ["vit_toy", "swin_toy", "pvt_toy", "nextvit_toy", "dinov2_toy", "univitar_toy"])
@pytest.mark.parametrize("name", ["detr", "deformable_detr"])
def test_any_backbone_that_gives_maps_is_read_and_learns(name, backbone):
    model = plait.create_model(f"{name}_toy", backbone=backbone).train()
    m = model.multiple
    out = model(torch.rand(2, 3, -(-64 // m) * m, -(-96 // m) * m))
    assert out["boxes"].shape == (2, 2, 5, 4)
    g = torch.Generator().manual_seed(0)
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


def test_a_backbone_without_maps_is_refused():
    for backbone, why in (("autoencoder_kl_toy", "gives no maps"), ("gmlp_toy", "every size")):
        with pytest.raises(PlaitError, match=why):
            plait.create_model("detr_toy", backbone=backbone)


@torch.no_grad()
def test_layers_of_a_plain_tower_are_maps_too():
    model = plait.create_model("vit_toy").eval()
    x = torch.rand(2, 3, 32, 40)
    (a, stride), (b, _) = model.features(x, layers=(0, -1))
    assert stride == 8 and a.shape == b.shape == (2, 32, 4, 5) and not torch.allclose(a, b)
    assert torch.equal(b, model.features(x)[0][0])
    first = model.stack.blocks[0](model.patch_embed(x))
    assert torch.equal(a.flatten(2).mT, model.norm(first.x)[:, 1:])
    ((only, stride),) = plait.create_model("swin_toy").eval().features(torch.rand(2, 3, 64, 64), layers=(0,))
    assert only.shape[2] * stride == 64
