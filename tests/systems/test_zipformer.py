"""Zipformer: the published sizes' layouts, streaming, shared weights, and rows that do not see each other's padding."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core import attend
from plait.errors import PlaitError
from tests.parity import zipformer as recorded
from tests.parity.compare import TOLERANCE, count, relative_error

SIZES = recorded.NUMBERS["sizes"]


def test_every_recorded_row_agrees():
    for what, ours, theirs in recorded.comparisons():
        assert relative_error(ours, theirs) < TOLERANCE, what
    for run, numbers in recorded.NUMBERS["runs"].items():
        assert recorded.digest(recorded.official(run)) == numbers["digest"]


@pytest.mark.parametrize("size", SIZES)
def test_a_published_size_has_the_official_keys_and_shapes(size):
    model = recorded.bare(f"zipformer_{size}")
    assert (count(model), recorded.digest(model)) == (SIZES[size]["parameters"], SIZES[size]["digest"])


def noisy(chunk: int, left: int):
    """A causal toy whose scales, edges and shares are not those of the start."""
    model = plait.create_model("zipformer_toy", chunk=chunk, left=left, num_classes=0).eval()
    state = {k: recorded.noise(k, v.shape) for k, v in plait.save_weights(model, "icefall").items()}
    return plait.load_weights(model, state, "icefall")


@pytest.mark.parametrize("chunk, left", [(4, 8), (8, 16), (8, 64)])
@torch.no_grad()
def test_chunk_by_chunk_equals_the_masked_whole(chunk, left):
    model = noisy(chunk, left)
    sound = 0.1 * torch.randn(3, 4000, generator=torch.Generator().manual_seed(1))
    keep = torch.arange(4000) < torch.tensor([4000, 2870, 555])[:, None]
    whole = model.tokens(sound, keep)
    x, real = model.features(sound, keep)
    # the last chunk is filled up, and two more bring out what is still inside
    short = (13 - x.shape[1]) % (2 * chunk) + 4 * chunk
    x, real = torch.nn.functional.pad(x, (0, 0, 0, short)), torch.nn.functional.pad(real, (0, short))
    state, found, masks = model.begin(x[:, :13]), [], []
    state = state._replace(keep=real[:, :13])
    for start in range(13, x.shape[1], 2 * chunk):
        t, state = model.stream(x[:, start : start + 2 * chunk], state, real[:, start : start + 2 * chunk])
        found.append(t.x)
        masks.append(t.keep)
    found, masks = torch.cat(found, 1), torch.cat(masks, 1)
    n = whole.x.shape[1]
    assert n > 3 * chunk // 2 and not masks[:, n:].any() and torch.equal(masks[:, :n], whole.keep)
    torch.testing.assert_close(found[:, :n][whole.keep], whole.x[whole.keep], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_stream_does_not_hear_what_is_yet_to_come():
    model = noisy(8, 16)
    a = 0.1 * torch.randn(1, 6000, generator=torch.Generator().manual_seed(1))
    b = a.clone()
    b[:, 3000:] = 0.0  # features change from frame 75 + 4 on, so the stem's from frame 32 on: chunk 4
    same = (model.tokens(a).x - model.tokens(b).x).abs().amax((0, 2)) < 1e-5
    assert same[:16].all() and not same[20:].any()


def test_the_state_of_a_stream_is_a_plain_pytree():
    state = noisy(8, 16).begin(torch.zeros(2, 13, 40))
    leaves = torch.utils._pytree.tree_leaves(state)
    assert len(leaves) == 4 + 6 * 4 and all(isinstance(leaf, torch.Tensor) and leaf.shape[0] == 2 for leaf in leaves)


def test_a_stream_says_what_it_needs():
    with pytest.raises(ValueError, match="for a model with a chunk"):
        plait.create_model("zipformer_toy").begin(torch.zeros(1, 13, 40))
    model = noisy(8, 16)
    with pytest.raises(ValueError, match="expected 2 \\* chunk = 16"):
        model.stream(torch.zeros(1, 10, 40), model.begin(torch.zeros(1, 13, 40)))
    with pytest.raises(ValueError, match="multiple"):
        plait.create_model("zipformer_toy", chunk=6, left=12)
    with pytest.raises(PlaitError, match="without chunk"):
        plait.create_model("zipformer_toy", left=8)


@torch.no_grad()
def test_a_layer_computes_its_weights_once():
    model = plait.create_model("zipformer_toy").eval()
    watched, maps = attend.recorded(model)
    watched(torch.randn(2, 1600))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 20, 20), (2, 4, 10, 10), (2, 4, 10, 10), (2, 2, 5, 5)]


@torch.no_grad()
def test_a_row_does_not_see_the_padding_of_its_batch():
    model = recorded.official("toy")
    sound = 0.1 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(1))
    for length in (1, 39, 40, 41, 700, 1333):
        alone = model.tokens(sound[:, :length])
        keep = torch.arange(3000) < torch.tensor([[length]])
        padded = model.tokens(sound, keep)
        assert alone.x.shape[1] == int(padded.keep.sum()) == model.frames(length) >= 1
        torch.testing.assert_close(padded.x[padded.keep], alone.x[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_transcribe_gives_logits_per_frame():
    model = plait.create_model("zipformer_toy", labels=12).eval()
    keep = torch.arange(1600) < torch.tensor([[1600], [801]])
    logits, lengths = model.transcribe(torch.randn(2, 1600), keep)
    assert logits.shape == (2, model.frames(1600), 12) and lengths.tolist() == [model.frames(1600), model.frames(801)]
    assert not logits[1, lengths[1] :].any() and logits[1, : lengths[1]].any()
    with pytest.raises(ValueError, match="labels=0"):
        plait.create_model("zipformer_toy").transcribe(torch.randn(1, 1600))
