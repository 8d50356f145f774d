"""Idefics2 in small: held to transformers whole, and what stands where."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.memory import Memory
from plait.core.tokens import Tokens
from plait.systems.pairs.idefics2 import Idefics2
from tests.parity import idefics2 as peers
from tests.parity.compare import TOLERANCE, count, perturb
from tests.peers import declare_torchvision

MARK, AROUND = 61, 62


@pytest.fixture(scope="module")
def pair():
    """transformers' model of a tiny configuration, and ours with its weights."""
    declare_torchvision()
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration

    torch.manual_seed(0)
    made = Idefics2Config(
        vision_config=dict(
            hidden_size=32, image_size=56, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2,
            patch_size=8,
        ),
        perceiver_config=dict(
            hidden_size=32, rms_norm_eps=1e-5, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=4,
            resampler_head_dim=6, num_key_value_heads=2,
        ),
        text_config=dict(
            model_type="mistral", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=64, rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        ),
        image_token_id=MARK,
    )  # fmt: skip
    theirs = perturb(Idefics2ForConditionalGeneration(made))
    for p in theirs.parameters():
        if p.dim() > 1:
            p.data.mul_(10)  # from 0.02, at which a tiny model says the same of everything
    return plait.load_weights(tiny(), theirs.state_dict(), "transformers"), theirs


def tiny(eye: dict | None = None, tongue: dict | None = None, **other) -> Idefics2:
    """Ours of the same configuration, but for what is given."""
    seen = dict(image=(56, 56), native=True, asks=False, num_classes=0, tanh=True) | (eye or {})
    usual = dict(hidden=64, latents=3, layers=2, heads=4, kv_heads=2, head_width=6, mark=MARK, around=AROUND) | other
    vision = plait.create_model("vit_siglip_toy", **seen)
    return Idefics2(vision=vision, words=plait.create_model("llama_toy", tied=False, **(tongue or {})), **usual).eval()


@pytest.mark.parametrize("split", [False, True])
def test_several_padded_pictures_of_any_shape_whole_and_split(pair, split):
    ours, theirs = pair
    assert count(ours) == count(theirs) and peers.root_epsilons(ours) == peers.root_epsilons(theirs)
    for least, most in ((24, 61), (40, 90)):  # smaller and larger than positions were learned for
        assert peers.differs(ours, theirs, split, least, most, words=4, mark=MARK, around=AROUND) < TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [
        dict(eye=dict(heads=4)),
        dict(eye=dict(tanh=False)),
        dict(eye=dict(native=False)),
        dict(eye=dict(patch=4)),
        dict(tongue=dict(heads=2, kv_heads=1, head_width=16)),
        dict(tongue=dict(base=1e6)),
        dict(tongue=dict(window=9)),
        dict(tongue=dict(act="gelu")),
        dict(heads=6, kv_heads=3, head_width=4),
        dict(heads=8, kv_heads=4, head_width=3),
        dict(heads=2, kv_heads=1, head_width=12),
        dict(eps=1e-2),
        dict(latents=4),
        dict(layers=1),
        dict(hidden=60),
        dict(mark=AROUND),
    ],
    ids=str,
)
def test_a_wrong_argument_shows(pair, wrong):
    right, theirs = pair
    made = tiny(**wrong)
    try:
        plait.load_weights(made, right.state_dict())
    except ValueError:
        return
    assert peers.differs(made, theirs, False, 24, 61, words=4, mark=MARK, around=AROUND) > 2 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("split", [False, True])
def test_greedy_writing_behind_a_memory_is_the_same(pair, split):
    ours, theirs = pair
    image, real = peers.prepared(split, 24, 61)
    ids, keep = peers.texts(split, 4, MARK, AROUND)
    told, heard = peers.spread(ids, keep, 3, MARK)
    pictures = dict(pixel_values=image, pixel_attention_mask=real.long())
    expected = theirs.generate(
        input_ids=told, attention_mask=heard.long(), max_new_tokens=12, do_sample=False, use_cache=True, **pictures
    )[:, told.shape[1] :]
    batch = {"image": image, "text": ids[:, :-1], "keep": {"image": real, "text": keep[:, :-1]}}
    logits, cache = ours.step(ids[:, -1:], ours.prefill(batch))
    got = []
    for _ in range(12):
        got.append(logits[:, -1].argmax(1))
        logits, cache = ours.step(got[-1][:, None], cache)
    assert torch.equal(torch.stack(got, 1), expected) and len(expected.unique()) > 4


@pytest.fixture(scope="module")
def toy():
    return plait.create_model("idefics2_toy", patch=8).eval()


def pictures(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, count, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_pictures_are_read_in_the_marks_places_and_first_where_there_are_none(toy):
    mark, around = toy.mark, toy.around
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(7, 64, (5, 8), generator=g)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, :3] = keep[2, 6:] = False
    ids[0, 2] = ids[0, 5] = mark  # one each
    ids[1, 0] = ids[1, 4] = ids[1, 5] = mark  # the first is not real, and another is one too many
    ids[2, 7] = ids[2, 3] = mark  # the last is not real: the first picture has none
    ids[4, 1] = mark  # no picture at all
    image, real = pictures(5, 2), torch.ones(5, 2, 32, 48, dtype=torch.bool)
    real[1, 0] = False
    present = torch.tensor([True, True, True, True, False])
    seen, words = toy.see(image.flatten(0, 1)).unflatten(0, (5, 2)), toy.words.embed(ids)
    edge = toy.words.embed(torch.tensor([[around]]))[0]

    def texts(row: int, *places: int) -> torch.Tensor:
        return words[row, list(places)]

    expected = [
        torch.cat([texts(0, 0, 1), seen[0, 0], texts(0, 3, 4), seen[0, 1], texts(0, 6, 7)]),
        torch.cat([texts(1, 3), seen[1, 1], texts(1, 6, 7)]),
        torch.cat([edge, seen[2, 0], edge, texts(2, 0, 1, 2), seen[2, 1], texts(2, 4, 5)]),
        torch.cat([edge, seen[3, 0], edge, seen[3, 1], edge, texts(3, *range(8))]),
        texts(4, 0, *range(2, 8)),
    ]
    on = torch.randint(7, 64, (5, 3), generator=g)
    batch = {"image": image, "text": ids, "keep": {"text": keep, "image": real}, "present": {"image": present}}
    got, _ = toy.step(on, toy.prefill(batch))
    for row, alone in enumerate(expected):
        memory = toy.words.read(Tokens(alone[None], memory=Memory())).memory
        torch.testing.assert_close(
            got[row : row + 1], toy.words.step(on[row : row + 1], memory)[0], rtol=1e-5, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("around", [6, None])
def test_a_split_picture_is_five_with_a_word_between(toy, around):
    own = ("hidden", "latents", "layers", "heads", "kv_heads", "head_width")
    parts = {name: plait.model_info("idefics2_toy").arguments[name] for name in own}
    parts |= dict(vision=toy.vision, words=toy.words)
    split, whole = (type(toy)(**parts, mark=5, around=around, split=s).eval() for s in (True, False))
    for made in (split, whole):
        plait.load_weights(made, toy.state_dict())
    image = pictures(2, 1)[:, 0]
    quarters = [image[:, :, :16, :24], image[:, :, :16, 24:], image[:, :, 16:, :24], image[:, :, 16:, 24:], image]
    five, real = torch.zeros(2, 5, 3, 32, 48), torch.zeros(2, 5, 32, 48, dtype=torch.bool)
    for i, q in enumerate(quarters):
        five[:, i, :, : q.shape[2], : q.shape[3]], real[:, i, : q.shape[2], : q.shape[3]] = q, True
    on = torch.tensor([[20, 21, 22]] * 2)
    said = split.step(on, split.prefill({"image": image, "text": torch.tensor([[9, 5, 10]] * 2)}))[0]
    marks = [5, 6] * 4 + [5] if around else [5] * 5
    ids = torch.tensor([[9, *marks, 10]] * 2)
    got = whole.step(on, whole.prefill({"image": five, "text": ids, "keep": {"image": real}}))[0]
    torch.testing.assert_close(said, got, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="split them before"):
        split.prefill({"image": image, "keep": {"image": real[:, -1]}})
    with pytest.raises(ValueError, match="patches of 16"):
        split.prefill({"image": image[..., :40]})


@torch.no_grad()
def test_how_far_a_picture_is_padded_and_with_what_changes_nothing(toy):
    image = pictures(1, 1)[0]
    alone = toy.see(image)
    for high, wide in ((32, 56), (48, 48), (45, 70)):
        padded = torch.full((1, 3, high, wide), torch.nan)
        padded[:, :, :32, :48] = image
        keep = torch.zeros(1, high, wide, dtype=torch.bool)
        keep[:, :32, :48] = True
        torch.testing.assert_close(toy.see(padded, keep), alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(toy.see(image, torch.arange(48).expand(1, 32, 48) < 40), alone, atol=1e-3)
    torch.testing.assert_close(toy.see(image[..., :47]), toy.see(image[..., :40]))  # what fills no patch


@torch.no_grad()
def test_without_a_picture_it_is_the_language_model(toy):
    ids, on = torch.arange(10, 16)[None], torch.tensor([[20, 21]])
    got, _ = toy.step(on, toy.prefill({"text": ids}))
    torch.testing.assert_close(got, toy.words(torch.cat([ids, on], 1))[:, -2:], rtol=1e-5, atol=1e-5)


def test_what_a_table_decides_goes_on_to_the_part_that_it_is_of():
    model = plait.create_model("idefics2_nano", vocab=70, image=(32, 48), begin=1, end=2)
    assert model.words.words.table.num_embeddings == 70 and (model.begin, model.end) == (1, 2)
    assert model.vision.patch_embed.positions.grid == (4, 6)
