"""Going on from texts: transformers' own words, padding in front, stops, repetition, streams, talks."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import plait
from plait.core.memory import LaidOut
from plait.core.packed import PackedLinear, packed
from plait.errors import UsageError
from plait.parts.chat import ChatTemplate
from plait.parts.generation import asking, generate, pieces, roomy, stream
from tests.parity.compare import perturb
from tests.peers import declare_torchvision

SHAPE = dict(vocab=97, length=512, width=32, depth=2, heads=4, kv_heads=2, hidden=48, begin=1, end=2)
PROMPTS = [[1, 17, 5, 33], [1, 8], [1, 90, 41, 7, 7, 12, 60]]


@pytest.fixture(scope="module")
def both():
    declare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=2, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        peer = perturb(LlamaForCausalLM(made))
    with torch.no_grad():  # as sure of itself as a trained one, and led by what it has read
        for name, p in peer.named_parameters():
            p.mul_(5 if "o_proj" in name or "down_proj" in name else 6 if p.dim() > 1 else 1)
        peer.lm_head.weight[2] = -peer.lm_head.weight[2].abs()
    ours = plait.create_model("llama_toy", **SHAPE, tied=False).eval()
    return plait.load_weights(ours, peer.state_dict(), "transformers"), peer


def theirs(peer, prompts, **how):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return peer.generate(ids, attention_mask=mask, do_sample=False, **how)[:, longest:]


@pytest.mark.parametrize("repetition", [1.0, 1.3])
def test_the_words_are_those_of_transformers_over_256_steps(both, repetition):
    ours, peer = both
    want = theirs(peer, PROMPTS, max_new_tokens=256, repetition_penalty=repetition)
    batch, begin = asking(PROMPTS)
    for laid_out in (False, True):
        got = generate(ours, batch, most=256, begin=begin, repetition=repetition, laid_out=laid_out)
        assert torch.equal(got.tokens.masked_fill(~got.keep, 0), want)
    assert got.keep.sum(1).max() == 256 and len({tuple(row) for row in want[:, :40].tolist()}) == 3
    assert len(want.unique()) > 20  # not one word for ever


def test_padding_in_front_changes_no_text(both):
    batch, begin = asking(PROMPTS)
    assert not batch["keep"]["text"][1, :5].any() and batch["keep"]["text"][2].all()
    together = generate(both[0], batch, most=60, begin=begin)
    for row, prompt in enumerate(PROMPTS):
        one, last = asking([prompt])
        assert "keep" not in one
        alone = generate(both[0], one, most=60, begin=last)
        count = alone.tokens.shape[1]  # the others may write on
        assert torch.equal(alone.tokens[0], together.tokens[row, :count]) and not together.tokens[row, count:].any()
        torch.testing.assert_close(alone.score[0], together.score[row], rtol=1e-5, atol=1e-4)


def test_a_stop_ends_its_row_alone_and_is_part_of_the_text(both):
    batch, begin = asking(PROMPTS)
    whole = generate(both[0], batch, most=30, begin=begin).tokens
    stop = whole[1, 4:6].tolist()
    cut = generate(both[0], batch, most=30, begin=begin, stop=[stop, [95, 94, 93]])
    where = next(n for n in range(2, 31) if whole[1, n - 2 : n].tolist() == stop)
    assert cut.keep.sum(1).tolist()[1] == where and torch.equal(cut.tokens[1, :where], whole[1, :where])
    assert torch.equal(cut.tokens[0], whole[0]) and not cut.tokens[1, where:].any()


def test_words_come_out_as_they_are_written(both):
    batch, begin = asking(PROMPTS[:2])
    whole = generate(both[0], batch, most=9, begin=begin)
    words = stream(both[0], batch, most=9, begin=begin)
    first = next(words)
    assert torch.equal(first.tokens, whole.tokens[:, 0])  # nothing more was written to know this
    assert torch.equal(torch.stack([first.tokens, *(w.tokens for w in words)], 1), whole.tokens)

    def decode(ids: list[int]) -> str:  # a word of two bytes, of which the second is missing at odd lengths
        return "é" * (len(ids) // 2) + "\N{REPLACEMENT CHARACTER}" * (len(ids) % 2)

    told = list(pieces(stream(both[0], batch, most=9, begin=begin), decode))
    assert [t[0] for t in told] == ["", "é"] * 4 + [""]


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_packed_weights_write_the_same(both, kind):
    model = plait.create_model("llama_toy", **SHAPE, dtype=kind).eval()
    swift, ids = packed(model, rows=3), torch.randint(3, 97, (3, 12))
    tolerance = dict(rtol=1e-5, atol=1e-5) if kind == torch.float32 else dict(rtol=0.05, atol=0.05)
    torch.testing.assert_close(swift(ids), model(ids), **tolerance)
    cache, other = swift.prefill({"text": ids[:, :6]}), model.prefill({"text": ids[:, :6]})
    got = swift.step(ids[:, 6:7], cache)[0]
    torch.testing.assert_close(got, model.step(ids[:, 6:7], other)[0], **tolerance)
    assert swift.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(swift.parameters(), model.parameters()))
    with torch.enable_grad(), pytest.raises(ValueError, match="no gradients"):
        swift(ids)
    with pytest.raises(ValueError, match="0 rows"):
        packed(model, 0)
    with pytest.raises(ValueError, match="float64"):
        packed(plait.create_model("llama_toy", dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("home", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("shape", [(24, 72), (72, 24)], ids=["wider", "narrower"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kernel_of_packed_weights_multiplies(home, rows, shape, bias, monkeypatch):
    monkeypatch.setattr("plait.core.packed.at_home", lambda: home)
    torch.manual_seed(0)
    linear = torch.nn.Linear(*shape, bias=bias)
    swift = PackedLinear(linear, rows)
    for size in [(rows, 1), (rows, 5), (2, 1)]:
        x = torch.randn(*size, shape[0])
        torch.testing.assert_close(swift(x), linear(x), rtol=1e-5, atol=1e-5)
    expected = linear(x)
    half = PackedLinear(linear.bfloat16(), rows)(x.bfloat16())
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_what_makes_no_sense_is_refused(both):
    with pytest.raises(ValueError, match="without a word"):
        asking([[1, 2], []])
    with pytest.raises(ValueError, match="penalty of 0"):
        generate(both[0], {}, most=2, repetition=0)
    assert generate(both[0], {}, most=3).tokens.shape == (1, 3)  # from the beginning of a text
    cache = plait.create_model("git_toy").eval().prefill({"image": torch.zeros(1, 3, 32, 32)})
    assert isinstance(roomy(cache, 5).memory, LaidOut) and torch.equal(roomy(cache, 5).words, cache.words)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('no ' + m.role) }}{% endif %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [{"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Hm?"}]


def test_a_talk_is_told_by_the_tokenizers_own_template(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": TEMPLATE}]})
    )
    read = ChatTemplate.read(tmp_path)
    want = "<s><user>Hello</s>\n<assistant>Hm?</s>\n"
    assert read.render(TALK, answering=False) == want and read.render(TALK) == want + "<assistant>"
    with pytest.raises(UsageError, match="no tool"):
        read.render([{"role": "tool", "content": ""}])
    (tmp_path / "chat_template.jinja").write_text("{{ messages.append(1) }}")
    with pytest.raises(UsageError, match="refuses"):  # nothing of the caller's is changed
        ChatTemplate.read(tmp_path).render(TALK)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UsageError, match="cannot be read"):
        ChatTemplate.read(tmp_path)
    with pytest.raises(UsageError, match="no chat template"):
        ChatTemplate.read(tmp_path / "nowhere")


def test_without_jinja_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
    with pytest.raises(UsageError, match=r"plait\[chat\]"):
        ChatTemplate("")
