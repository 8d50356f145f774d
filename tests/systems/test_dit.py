"""DiT: diffusers' layout, guidance as the official code has it, and what comes of a condition that says nothing."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.catalog import build
from plait.parts.samplers.guidance import guided
from tests.parity.compare import relative_error
from tests.parity.dit import NUMBERS, filled, inputs
from tests.parity.official import digest
from tests.parity.recorded import noise

SMALL = dict(image=(64, 64), slots=dict(category=dict(kind="category", sizes=(11,))), width=32, depth=2, heads=2)


def small(**more):
    return plait.create_model("dit_xl_2", **SMALL | more)


@torch.no_grad()
def test_diffusers_layout_is_read_and_written():
    """Each of its layers embeds times and labels anew; its waves, which are others, were made the official ones."""
    assert digest(plait.save_weights(build("dit_xl_2").denoiser, "diffusers")) == NUMBERS["diffusers"]["xl_2"]
    model = small(depth=28).denoiser
    state = plait.save_weights(model, "diffusers")
    assert digest(state) == NUMBERS["diffusers"]["keys"]
    for name, t in state.items():
        made = noise("emb." + name.split(".emb.")[1] if ".emb." in name else name, tuple(t.shape))
        state[name] = made * 0.3 if "norm1.linear" in name else made
    plait.load_weights(model, state, "diffusers").eval()
    x, time, ids = inputs(8, 10)
    made = model(x, time, model.labels[0](ids)).flatten()[::97]
    assert relative_error(made, torch.tensor(NUMBERS["diffusers"]["output"])) < 1e-5
    key = "transformer_blocks.5.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(ValueError, match="differ"):
        plait.load_weights(model, state | {key: state[key] + 1}, "diffusers")


@torch.no_grad()
def test_guidance_is_the_official_one_where_three_channels_are_guided():
    model = filled(small().denoiser)
    x, time, _ = inputs(8, 10)
    ids, none = torch.tensor([4, 8, 2]), torch.zeros(3, dtype=torch.int64)
    ask = guided(model, model.labels[0](ids), model.labels[0](none), 4.0, channels=3)
    want = torch.tensor(NUMBERS["guided"])
    assert relative_error(ask(x, time).flatten()[::97], want) < 1e-5
    every = guided(model, model.labels[0](ids), model.labels[0](none), 4.0)
    assert relative_error(every(x, time).flatten()[::97], want) > 1e-2


@torch.no_grad()
def test_it_starts_as_the_identity_that_says_nothing():
    model = small(codec=None).eval()
    x = torch.randn(2, 3, 64, 64)
    assert not model.denoise(x, torch.tensor([3.0, 700.0]), torch.randn(2, 32)).any()
    t = model.denoiser.patch_embed(x)
    assert torch.equal(model.denoiser.stack(t.reading(condition=torch.randn(2, 32))).x, t.x)


@torch.no_grad()
def test_a_condition_says_the_same_whatever_lies_in_cells_that_are_not_there():
    model = plait.create_model("dit_toy").eval()
    ids, text = torch.tensor([[1, 2, 3], [4, 0, 1]]), torch.randint(5, 64, (2, 7))
    keep = torch.tensor([[True, True, True], [True, False, True]])
    there = {"category": torch.ones(2, dtype=torch.bool), "text": torch.tensor([True, False])}
    batch = {"category": ids, "text": text, "keep": {"category": keep}, "present": there}
    said = model.condition(batch)
    ids[1, 1], text[1] = 3, 9
    assert torch.equal(model.condition(batch), said)
    nothing = model.condition(batch | {"present": {slot: torch.zeros(2, dtype=torch.bool) for slot in there}})
    tables = model.denoiser.labels
    assert torch.equal(nothing[0], nothing[1])
    torch.testing.assert_close(nothing[0], sum((t.weight[0] for t in tables), model.words["text"].none))


@torch.no_grad()
def test_latents_have_the_sides_that_the_codec_leaves():
    assert build("dit_xl_2").sample == (4, 32, 32) and build("dit_xl_2_512").sample == (4, 64, 64)
    assert build("dit_nano").sample == (4, 8, 8) and build("dit_toy").sample == (3, 16, 16)
    with pytest.raises(ValueError, match="30 x 32, expected multiples of 8"):
        build("dit_nano", image=(30, 32))
