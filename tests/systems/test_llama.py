"""Llama beyond its parity: a window shorter than the text, vectors in the place of words, words of its tokenizers."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import plait
from plait.core.memory import Memory
from plait.core.tokens import Tokens
from plait.data.kinds import KINDS
from plait.data.kinds.base import FitOptions, Place
from plait.parts.generation import beam, generate
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision

SHAPE = dict(vocab=97, width=32, depth=2, heads=4, kv_heads=2, hidden=48, begin=1, end=2, tied=False)


@torch.no_grad()
@pytest.mark.parametrize("form", [None, Memory.laid_out], ids=["growing", "laid out"])
def test_a_word_sees_as_many_as_the_window_has(form):
    declare_torchvision()
    from transformers import MistralConfig, MistralForCausalLM

    made = MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=5, rms_norm_eps=1e-5, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    theirs = perturb(MistralForCausalLM(made))
    ours = plait.create_model("llama_toy", **SHAPE, window=5).eval()
    plait.load_weights(ours, theirs.state_dict(), "transformers")
    ids = torch.randint(1, 97, (2, 19), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(19) >= torch.tensor([0, 6])[:, None]
    want = theirs(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(1) - 1).clamp(min=0)).logits
    assert relative_error(ours(ids, keep)[keep], want[keep]) < 1e-5
    whole = plait.create_model("llama_toy", **SHAPE).eval()
    whole.load_state_dict(ours.state_dict())
    assert relative_error(whole(ids, keep)[keep], want[keep]) > 1e-2  # the window tells
    cache = ours.prefill({"text": ids[:, :9], "keep": {"text": keep[:, :9]}})
    cache = cache if form is None else form(cache, 19)
    for i in range(9, 19):
        got, cache = ours.step(ids[:, i : i + 1], cache)
        assert relative_error(got[:, 0], want[:, i]) < 1e-5


@torch.no_grad()
def test_vectors_stand_in_the_place_of_words():
    model = plait.create_model("llama_toy", seed=1).eval()
    ids = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(0))
    want, x = model(ids), model.embed(ids)
    torch.testing.assert_close(model.say(model.read(Tokens(x))), want)
    first = model.read(Tokens(x[:, :6], memory=Memory()))
    then = model.read(Tokens(x[:, 6:], memory=first.memory))
    torch.testing.assert_close(torch.cat([model.say(first), model.say(then)], 1), want, rtol=1e-5, atol=1e-5)
    told = model.read(Tokens(x, pos=torch.arange(10) + 3))  # only differences count
    torch.testing.assert_close(model.say(told), want, rtol=1e-4, atol=1e-5)
    spread = model.read(Tokens(x, pos=2 * torch.arange(10)))
    assert (model.say(spread) - want).abs().max() > 1e-3


def test_beams_begin_where_nothing_was_read():
    model = plait.create_model("llama_toy", seed=1).eval()
    assert beam(model, {}, most=4, size=1, penalty=0.0).tokens.tolist() == generate(model, {}, most=4).tokens.tolist()


@pytest.mark.parametrize("puts, first, last", [("<s>", 0, 1), ("", 1, 1)], ids=["begins", "puts nothing"])
def test_a_text_that_is_written_ends_though_its_tokenizer_ends_none(tmp_path, puts, first, last):
    made = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "cat": 3, "dog": 4, "x": 5}, "x"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if puts:
        made.post_processor = processors.TemplateProcessing(single=f"{puts} $A", special_tokens=[(puts, 0)])
    else:
        made = Tokenizer(models.WordLevel({"</s>": 1, "a": 2, "cat": 3, "dog": 4, "x": 5}, "x"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    options = FitOptions(Place(), tokenizer_file=str(tmp_path / "tokenizer.json"))
    column = pa.chunked_array([pa.array(["a cat", "a dog"])])
    asked = KINDS["text"].fit_target(column, options)
    assert KINDS["text"].encode("a cat", asked, Place()).tolist() == [first, 2, 3, last]
    read = KINDS["text"].fit(column, options)
    assert KINDS["text"].encode("a cat", read, Place()).tolist()[-1] == (3 if puts else 1)
