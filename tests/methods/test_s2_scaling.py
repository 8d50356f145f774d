"""One encoder at several scales of a picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import plait
from plait.core.surgery import freeze
from plait.core.tokens import Tokens

ENCODERS = ("vit", "deit3", "swin", "pvt", "crossvit")


def by_hand(encoder, x, scales):
    """Each scale's picture tile by tile, its tokens written place by place into one map: (special, map) of all scales
    side by side."""
    specials, maps = [], []
    for scale in scales:
        big = F.interpolate(x, scale_factor=scale, mode="bicubic") if scale > 1 else x
        h, w = x.shape[-2:]
        rows, special = [], []
        for i in range(scale):
            row = []
            for j in range(scale):
                t = encoder.tokens(big[..., i * h : (i + 1) * h, j * w : (j + 1) * w])
                special.append(t.x[:, : t.prefix])
                row.append(t.x[:, t.prefix :].reshape(len(x), *t.grid, -1))
            rows.append(torch.cat(row, 2))
        maps.append(F.adaptive_avg_pool2d(torch.cat(rows, 1).permute(0, 3, 1, 2), t.grid).flatten(2).transpose(1, 2))
        specials.append(torch.stack(special).mean(0))
    return torch.cat([torch.cat(specials, 2), torch.cat(maps, 2)], 1)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3)])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_equals_tiles_read_one_by_one(name, scales):
    encoder = plait.create_model(f"{name}_toy").eval()
    model, x = plait.apply_method(encoder, "s2_scaling", scales=scales), torch.rand(2, 3, 32, 32)
    t, plain = model.tokens(x), encoder.tokens(x)
    torch.testing.assert_close(t.x, by_hand(encoder, x, scales), rtol=1e-6, atol=1e-6)
    assert t.x.shape == (2, plain.x.shape[1], len(scales) * plain.x.shape[2]) and (t.grid, t.prefix) == (
        plain.grid,
        plain.prefix,
    )
    assert model.pool(t).shape == (2, model.width) == (2, len(scales) * encoder.width)
    torch.testing.assert_close(model.pool(t)[:, : encoder.width], encoder.pool(plain), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_one_scale_is_the_encoder_and_pictures_need_not_be_square():
    encoder = plait.create_model("vit_toy").eval()
    x = torch.rand(2, 3, 32, 48)
    assert torch.equal(plait.apply_method(encoder, "s2_scaling", scales=(1,))(x), encoder.pool(encoder.tokens(x)))
    x = torch.rand(2, 3, 64, 32)
    t = plait.apply_method(encoder, "s2_scaling", scales=(1, 1.5, 2)).tokens(x)
    assert t.grid == (8, 4) and t.x.shape == (2, 33, 96)


def test_it_is_a_backbone_with_a_head_of_its_own():
    model = plait.apply_method(plait.create_model("vit_toy").train(), "s2_scaling", num_classes=7)
    out = model(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 7) and model.training and model.takes == ("image",)
    out.square().sum().backward()
    idle = {"model.head.weight", "model.head.bias"}
    assert {n for n, p in model.named_parameters() if p.grad is None} == idle


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match="image alone"):
        plait.apply_method(plait.create_model("clip_toy"), "s2_scaling")
    with pytest.raises(ValueError, match="positive"):
        plait.apply_method(plait.create_model("vit_toy"), "s2_scaling", scales=())
    model = plait.apply_method(plait.create_model("vit_toy"), "s2_scaling")
    model.model.tokens = lambda x: Tokens(torch.zeros(len(x), 5, 32))
    with pytest.raises(ValueError, match="fill no grid"):
        model(torch.rand(1, 3, 32, 32))


def probe(features, y, split):
    """Accuracy of ridge regression on classes."""
    x = torch.cat(
        [(features - features[:split].mean(0)) / (features[:split].std(0) + 1e-4), torch.ones(len(y), 1)], 1
    ).double()
    a, b = x[:split], F.one_hot(y[:split]).double()
    weights = torch.linalg.solve(a.T @ a + 10 * torch.eye(a.shape[1]).double(), a.T @ b)
    return ((x[split:] @ weights).argmax(1) == y[split:]).float().mean().item()


def test_small_things_are_seen_better_at_two_scales():
    found = load_digits()
    digits, y = (
        torch.tensor(found.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1),
        torch.tensor(found.target),
    )
    encoder = plait.create_model("vit_toy").train()
    large, optimizer = (
        F.interpolate(digits, scale_factor=4, mode="bilinear"),
        torch.optim.AdamW(encoder.parameters(), lr=3e-3),
    )
    for step in range(200):
        rows = torch.arange(step * 32, step * 32 + 32) % 900
        optimizer.zero_grad()
        F.cross_entropy(encoder(large[rows]), y[rows]).backward()
        optimizer.step()
    freeze(encoder.eval())
    g = torch.Generator().manual_seed(0)
    small = torch.zeros(len(y), 3, 32, 32)
    for picture, digit, (i, j) in zip(small, digits, 16 * torch.randint(2, (len(y), 2), generator=g)):
        picture[:, i : i + 16, j : j + 16] = F.interpolate(digit[None], scale_factor=2, mode="bilinear")[0]
    two = plait.apply_method(encoder, "s2_scaling", scales=(1, 2))
    small, y = small[900:], y[900:]
    accuracy = [probe(f(small), y, 600) for f in (lambda x: encoder.pool(encoder.tokens(x)), two)]
    assert accuracy[1] > accuracy[0] + 0.05, accuracy
