"""Zorro: streams that stay pure under the mask, vectors that can therefore be contrasted, and what leaks without it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from plait.core.attend import recorded
from plait.core.block import Attention
from plait.core.memory import Page
from plait.core.surgery import swap
from plait.core.tokens import Tokens, by_kind, real
from plait.parts.presence import masked
from plait.systems.unified.zorro import FUSION, StreamAttention, objective
from tests.contract.examples import example
from tests.parity.compare import perturb
from tests.parity.recorded import weights
from tests.parity.zorro import NUMBERS, convert, load, made, streams, two
from tests.parity.zorro import RULES as OFFICIAL

PAIR = {"image": {"kind": "image", "size": (32, 32)}, "text": {"kind": "text", "vocab": 64}}


def toy(**arguments):
    return plait.create_model("zorro_toy", **arguments)


class Plain(Attention):
    """All tokens attend to all that are real, or to whom the paper's mask allows."""

    reads = ("seen",)

    def __init__(self, old: StreamAttention, mask: bool):
        super().__init__(old.qkv.in_features, old.heads)
        self.qkv, self.out, self.mask = old.qkv, old.out, mask

    def forward(self, t: Tokens) -> Tokens:
        if not self.mask:
            return super().forward(t)
        kind = torch.repeat_interleave(torch.arange(len(t.kinds)), torch.tensor([n for _, n in t.kinds]))
        fusion, own = kind == kind.max(), kind[:, None] == kind
        allow = torch.where(fusion[:, None], (t.read("seen") & real(t))[:, None], own & real(t)[:, None])
        return self.merge(self.attend(t.reading(allow=allow), *self.project(t)))


def plain(model: nn.Module, *, mask: bool) -> nn.Module:
    swap(model, StreamAttention, lambda old: Plain(old, mask))
    return model


@torch.no_grad()
def test_attentions_of_each_stream_are_one_under_the_mask_at_less_cost():
    model = perturb(toy())
    batch = example(model)
    batch["present"]["audio"][0] = False
    batch["visible"] = {"image": torch.tensor([True, False, True])}
    apart, few = recorded(model)
    mine = apart(batch)
    one, many = recorded(plain(model, mask=True))
    theirs = one(batch)
    for key in ("fused", FUSION):
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-5, atol=1e-6)
    for slot in model.takes:
        torch.testing.assert_close(mine["parts"][slot], theirs["parts"][slot], rtol=1e-5, atol=1e-6)
    assert sum(m.numel() for m in few) < 0.6 * sum(m.numel() for m in many)


@torch.no_grad()
def test_a_stream_is_the_same_bit_for_bit_whatever_becomes_of_another():
    model = toy().eval()
    batch, other = example(model), example(model, seed=1)
    whole = model(batch)
    for slot in model.takes:
        gone = {**batch["present"], slot: torch.zeros(3, dtype=torch.bool)}
        for changed in ({**batch, slot: other[slot]}, {**batch, "present": gone}):
            found = model(changed)
            for s in model.takes:
                same = s != slot
                assert torch.equal(found["parts"][s], whole["parts"][s]) is same, (slot, s)
                assert torch.equal(found["vectors"][s], whole["vectors"][s]) is same
            assert not torch.allclose(found["fused"], whole["fused"], atol=1e-5), f"the fusion does not see {slot}"
            assert not torch.allclose(found[FUSION], whole[FUSION], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("gated", [False, True])
def test_a_modality_alone_reads_as_in_company(gated):
    model = perturb(toy(gated=gated))
    batch = example(model)
    whole = model(batch)
    for slot in model.takes:
        keep = {slot: batch["keep"][slot]} if slot in batch["keep"] else {}
        alone = model({slot: batch[slot], "keep": keep})
        torch.testing.assert_close(alone["parts"][slot], whole["parts"][slot], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone["vectors"][slot], whole["vectors"][slot], rtol=1e-6, atol=1e-6)
        assert not any(v.any() for s, v in alone["parts"].items() if s != slot)


def test_the_loss_of_a_stream_teaches_what_reads_it_and_that_of_the_fusion_all():
    model = toy()
    out = model(example(model))
    for slot in model.takes:
        grads = learnt(model, out["parts"][slot])
        assert all((grads[s] > 0) is (s == slot) for s in model.takes) and not grads[FUSION]
    assert all(size > 0 for size in learnt(model, out["fused"]).values())


def learnt(model: nn.Module, out: Tensor) -> dict[str, float]:
    """The size of the gradients of each slot's reader and of the fusion tokens."""
    readers = {**{s: list(m.parameters()) for s, m in model.slots.items()}, FUSION: [model.fusion.table]}
    flat = [p for ps in readers.values() for p in ps]
    grads = torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[1])).sum(), flat, None, True, allow_unused=True)
    size = {id(p): 0.0 if g is None else float(g.abs().sum()) for p, g in zip(flat, grads)}
    return {s: sum(size[id(p)] for p in ps) for s, ps in readers.items()}


@torch.no_grad()
def test_the_public_readouts_of_single_modalities_are_the_mean_of_all_tokens():
    """What is said of them in the docstring: their weights are all alike, so that each modality leaks into the other's
    vector; what ours reads is pure."""
    ours = two("zorro_geglu_512")
    load(ours, convert(weights(NUMBERS["keys"]), OFFICIAL["zorro_pytorch"]))
    tokens, vectors = made(ours, streams(ours.width))
    _, v = ours.read_out.kv(torch.cat(list(tokens.values()), 1)).chunk(2, -1)
    everything = ours.read_out.queries + ours.read_out.out(v.mean(1, keepdim=True))  # (2, 3, D)
    published, pure = torch.zeros(vectors.numel()), torch.zeros(vectors.numel())
    published[::7], pure[::7] = torch.tensor(NUMBERS["published"]), torch.tensor(NUMBERS["pure"])
    there = torch.zeros(vectors.numel(), dtype=torch.bool)
    there[::7] = True
    single = there.view_as(vectors)[:, :2]
    torch.testing.assert_close(
        everything[:, :2][single], published.view_as(vectors)[:, :2][single], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(vectors[:, :2][single], pure.view_as(vectors)[:, :2][single], rtol=1e-4, atol=1e-4)
    assert (vectors - everything)[:, :2].abs().max() > 0.5


def coded(seed: int, texts: int | None = None) -> dict:
    """16 pairs in some order: a coarse pattern under noise, and the word for it; texts: the seed by which words that
    have nothing to do with the pictures are drawn."""
    patterns = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(seed)
    codes = torch.randperm(16, generator=g)
    image = F.interpolate(patterns[codes], size=(32, 32))
    image = image + 1.5 * torch.randn(image.shape, generator=g)
    text = codes if texts is None else torch.randperm(16, generator=torch.Generator().manual_seed(texts))
    return {"image": image, "text": 10 + text[:, None]}


def contrasted(model: nn.Module, related: bool) -> float:
    """Trained by the paper's losses for 80 steps; that of pictures with texts in the last ten of them."""
    learner, losses = torch.optim.AdamW(model.train().parameters()), []
    rates = torch.optim.lr_scheduler.OneCycleLR(learner, 5e-3, 80)
    for step in range(80):
        found = objective(model, coded(step, None if related else 1000 + step), None, torch.Generator())
        learner.zero_grad()
        sum(found.values()).backward()
        learner.step()
        rates.step()
        losses.append(float(found["image_text"].detach()))
    model.eval()
    return sum(losses[-10:]) / 10


@torch.no_grad()
def recall(model: nn.Module) -> float:
    """How often a picture, read alone, finds its text, read alone, among 16; by chance 1 / 16."""
    right = []
    for seed in range(10_000, 10_004):
        batch = coded(seed)
        image, text = (model.embed({slot: batch[slot]})[slot] for slot in ("image", "text"))
        right.append((image @ text.mT).argmax(1) == torch.arange(16))
    return float(torch.cat(right).float().mean())


def test_contrasted_streams_find_each_other():
    model = toy(slots=PAIR, patch=16).eval()
    assert recall(model) < 0.2
    assert contrasted(model, related=True) < 0.5
    assert recall(model) > 0.8


def test_without_the_mask_each_vector_hears_the_other():
    """Of pairs that have nothing in common nothing can be found, unless each side is told of the other."""
    chance = torch.tensor(16.0).log()
    for mask in (True, False):
        model = plain(toy(slots=PAIR, patch=16), mask=mask)
        loss = contrasted(model, related=False)
        assert (loss > 0.9 * chance) if mask else (loss < 0.3 * chance), loss
        batch = coded(0)
        with torch.no_grad():
            one, other = (model.embed(b)["image"] for b in (batch, batch | {"text": batch["text"].flip(0)}))
        assert torch.allclose(one, other, atol=1e-6) is mask


def test_losses_are_of_each_two_streams_and_count_whole_pairs_alone():
    model = toy(slots=PAIR).eval()
    batch, there = coded(0), torch.arange(16) != 3
    whole = objective(model, batch, None, torch.Generator())
    assert set(whole) == {"image_text", f"image_{FUSION}", f"text_{FUSION}"}
    holed = batch | {"present": {"image": there, "text": torch.ones(16, dtype=torch.bool)}}
    found, want = (
        objective(model, b, None, torch.Generator()) for b in (holed, {k: v[there] for k, v in batch.items()})
    )
    for name in ("image_text", f"image_{FUSION}"):
        torch.testing.assert_close(found[name], want[name])
    assert not torch.allclose(found[f"text_{FUSION}"], want[f"text_{FUSION}"])
    twice = objective(model, batch | {"same": torch.arange(16) // 2}, None, torch.Generator())
    assert not torch.allclose(twice["image_text"], whole["image_text"])


@torch.no_grad()
def test_what_its_layers_cannot_honour_they_refuse():
    model = toy(slots=PAIR).eval()
    layer = model.stack.blocks[0]
    t = Tokens(torch.randn(2, 5, 32), kinds=(("image", 3), (FUSION, 2)))
    seen = masked(None, torch.tensor([True, False]), 5)
    t = t.reading(seen=seen | (torch.arange(5) > 2))
    assert by_kind(layer(t)).keys() == {"image", FUSION}
    with pytest.raises(ValueError, match="allow"):
        layer(t.reading(allow=torch.ones(5, 5, dtype=torch.bool)))
    for part in (layer, model.read_out):
        for wrong in (dict(weight=torch.ones(2, 5)), dict(memory=Page({}, None)), dict(kinds=None)):
            with pytest.raises(ValueError, match="expected"):
                part(t.replace(**wrong))
