"""Mixture-of-Transformers: a dense transformer where all copies are equal, and at its cost; no modality writes into
another's weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.core.block import Stack
from plait.core.catalog import build, systems
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.core.weights import convert
from plait.parts.towers.multiway import Multiway
from plait.systems.unified.mixture_of_transformers import RULES, expert
from tests.parity.compare import count, perturb
from tests.parity.mixture_of_transformers import THREE, sequence
from tests.peers import declare_torchvision

WIDTH, HEADS, HIDDEN = 32, 4, 64
SLOTS = ("text", "image", "audio")


def mixture(depth: int = 2, slots: tuple[str, ...] = SLOTS) -> Stack:
    with torch.device("meta"):
        layers = (Multiway({slot: expert(WIDTH, HEADS, HIDDEN, True) for slot in slots}) for _ in range(depth))
        model = Stack(*layers)
    return perturb(initialise(model))


class Chameleon(nn.Module):
    """The paper's dense model in transformers: layers that norm behind their steps. Nothing is turned by its place,
    every token sees all, and queries and keys are normed as in the mixture's official code."""

    def __init__(self, depth: int = 2):
        super().__init__()
        declare_torchvision()
        from transformers import ChameleonConfig
        from transformers.models.chameleon.modeling_chameleon import ChameleonSwinDecoderLayer

        how = dict(hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS, intermediate_size=HIDDEN)
        how |= dict(rms_norm_eps=1e-5, attn_implementation="eager")
        self.layers = nn.ModuleList(ChameleonSwinDecoderLayer(ChameleonConfig(**how), i) for i in range(depth))
        for layer in self.layers:
            layer.self_attn.q_norm, layer.self_attn.k_norm = (nn.RMSNorm(WIDTH // HEADS, 1e-5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        unturned = torch.ones(1, x.shape[1], WIDTH // HEADS), torch.zeros(1, x.shape[1], WIDTH // HEADS)
        for layer in self.layers:
            x = layer(x, attention_mask=None, position_embeddings=unturned)[0]
        return x


def copies(state: dict[str, Tensor], slot: int) -> dict[str, Tensor]:
    """The weights of the dense model as those of one modality, in the layout of the official code."""
    names = {f"self_attn.{n}_proj": f"attention.local_experts_w{n}" for n in "qkvo"}
    names |= {f"self_attn.{n}_norm": f"attention.local_experts_{n}_normalization" for n in "qk"}
    names |= {"input_layernorm": "attention.local_experts_attention_norm"}
    names |= {"post_attention_layernorm": "feed_forward.local_experts_ffn_norm"}
    feed = {"mlp.gate_proj": "w1", "mlp.up_proj": "w3", "mlp.down_proj": "w2"}
    found = {}
    for key, tensor in state.items():
        _, i, name = key.removesuffix(".weight").split(".", 2)
        told = f"feed_forward.local_experts.{slot}.{feed[name]}" if name in feed else f"{names[name]}.{slot}"
        found[f"layers.{i}.{told}.weight"] = tensor
    return found


@torch.no_grad()
def test_equal_copies_are_the_dense_chameleon_of_transformers():
    theirs, ours, public = perturb(Chameleon()), mixture(), {}
    for slot in range(3):
        public |= copies(theirs.state_dict(), slot)
    ours.load_state_dict({k.removeprefix("stack."): v for k, v in convert(public, RULES["official"]).items()})
    t = sequence(WIDTH, THREE)
    torch.testing.assert_close(ours(t).x, theirs(t.x), rtol=1e-5, atol=1e-5)
    ours.blocks[0].experts["audio"].feed.after.weight.mul_(1.5)  # copies that differ are no longer it
    assert not torch.allclose(ours(t).x, theirs(t.x), atol=1e-3)


def test_a_mixture_costs_what_the_dense_transformer_costs():
    def spent(model: nn.Module, given: Tokens | Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            y = model(given)
            (y.x if isinstance(y, Tokens) else y).sum().backward()
        return counter.get_total_flops()

    t, theirs = sequence(WIDTH, THREE), Chameleon()
    ours = mixture()
    assert count(ours) == 3 * count(theirs)
    assert spent(with_backend(ours, "eager"), t) == spent(theirs, t.x) > 0


def test_gradients_reach_only_the_copy_of_a_tokens_modality():
    model = mixture(1)
    y = model(sequence(WIDTH, (("text", 8), ("image", 12))))
    y.x[:, :8].sum().backward()  # what is asked of words
    text, image, audio = (model.blocks[0].experts[slot] for slot in SLOTS)
    assert all(p.grad is None for p in audio.parameters())  # nobody speaks
    assert all(p.grad is not None and bool(p.grad.any()) for p in text.parameters())
    reached = {name for name, p in image.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"mix.qkv.weight", "mix.k_norm.weight"}  # words attended to the picture's keys and values
    assert not image.mix.qkv.weight.grad[:WIDTH].any()  # and asked nothing of its queries


@torch.no_grad()
def test_a_modality_keeps_its_weights_wherever_its_tokens_stand():
    model, t = mixture(), sequence(WIDTH, THREE)
    order = torch.tensor([*range(13, 18), *range(4, 10), *range(18, 20), *range(4), *range(10, 13)])
    sorted_kinds = (("audio", 5), ("image", 8), ("text", 7))
    moved = model(t.replace(x=t.x[:, order], kinds=sorted_kinds))
    torch.testing.assert_close(moved.x, model(t).x[:, order], rtol=1e-5, atol=1e-5)
    other = model(t.replace(kinds=(("text", 10), ("audio", 10))))
    assert not torch.allclose(other.x, model(t).x, atol=1e-3)


def test_a_kind_without_weights_is_told():
    with pytest.raises(ValueError, match="got tokens of kind smell, expected text, image, audio"):
        mixture(1)(sequence(WIDTH, (("text", 8), ("smell", 12))))


@torch.no_grad()
def test_each_slot_of_the_model_has_weights_of_its_own():
    model = plait.create_model("mixture_of_transformers_toy").eval()
    batch = {"image": torch.rand(2, 3, 32, 32), "text": torch.randint(5, 64, (2, 12))}
    before = model(batch)["fused"]
    for kind in ("audio", "number", "category", "vector"):  # of which the batch has nothing
        perturb(model.stack.blocks[0].experts[kind])
        model.norms[kind].weight.fill_(9.0)
    assert torch.equal(model(batch)["fused"], before)
    for part in (model.norms, model.stack.blocks[0].experts):
        perturb(part["text"])
        assert not torch.allclose(after := model(batch)["fused"], before, atol=1e-3)
        before = after


@pytest.mark.parametrize("size", [s for s in systems()["mixture_of_transformers"].sizes if s[0].isdigit()])
def test_a_size_is_called_by_the_parameters_of_its_dense_model(size):
    """One copy, and a vocabulary that is read and written."""
    model = build(f"mixture_of_transformers_{size}")
    dense = count(model.stack) / 3 + 2 * count(model.slots["text"]) + model.width
    digits = float(size[:-1].replace("_", ".")) * {"m": 1e6, "b": 1e9}[size[-1]]
    assert dense == pytest.approx(digits, rel=0.03)
