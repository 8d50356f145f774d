"""LLaMA and its kin against transformers: logits of padded texts, and of words one by one after a cached beginning.

Sizes over 4 GB are compared at their full width with fewer layers and words; the row says how many.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import plait
from plait.core.catalog import build, systems
from plait.core.create import rules_of
from plait.core.tokens import Tokens
from plait.core.weights import convert
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.peers import declare_torchvision

SYSTEM, CUTS = "llama", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 1e9  # parameters of a model that is compared whole


def config(reference: str):
    """What the published config.json of `reference` says, as transformers' class of this architecture reads it."""
    from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config

    name = reference.split("/")[1].lower().removesuffix("-hf").removesuffix("-chat").removesuffix("-instruct")
    if name.startswith("gemma"):
        width, hidden, depth, heads, groups = {"2b": (2048, 16384, 18, 8, 1), "7b": (3072, 24576, 28, 16, 16)}[name[6:]]
        return GemmaConfig(
            hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth, num_attention_heads=heads,
            num_key_value_heads=groups,
        )  # fmt: skip
    if name.startswith("mistral"):
        first, third = name.endswith("v0.1"), name.endswith("v0.3")
        return MistralConfig(
            vocab_size=32768 if third else 32000, sliding_window=4096 if first else None,
            rope_parameters=dict(rope_type="default", rope_theta=1e4 if first else 1e6), rms_norm_eps=1e-5,
            max_position_embeddings=32768,
        )  # fmt: skip
    if name.startswith("qwen"):
        size = name.split("-")[1]
        width, hidden, depth, heads, groups = {
            "0.5b": (896, 4864, 24, 14, 2),
            "1.5b": (1536, 8960, 28, 12, 2),
            "3b": (2048, 11008, 36, 16, 2),
            "7b": (3584, 18944, 28, 28, 4),
            "14b": (5120, 13824, 48, 40, 8),
            "32b": (5120, 27648, 64, 40, 8),
            "72b": (8192, 29568, 80, 64, 8),
        }[size]
        small = size in ("0.5b", "1.5b", "3b")
        return Qwen2Config(
            hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth, num_attention_heads=heads,
            num_key_value_heads=groups, vocab_size=151936 if small else 152064, tie_word_embeddings=small,
            rms_norm_eps=1e-5 if size in ("14b", "32b", "72b") else 1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
        )  # fmt: skip
    made_for = 2048
    stretched = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    theta, vocab, eps, tied, rope = 1e4, 32000, 1e-5, False, dict(rope_type="default")
    if name.startswith("smollm"):
        vocab, tied = 49152, True
        theta = {"smollm2-1.7b": 1.3e5}.get(name, 1e5) if name.startswith("smollm2") else 1e4
    elif name.startswith(("llama-3.", "meta-llama-3-")):
        theta, vocab, tied = 5e5, 128256, "llama-3.2" in name
        if "llama-3." in name:
            made_for = 131072
            rope = dict(rope_type="llama3", factor=32.0 if tied else 8.0, **stretched)
    elif name.startswith("llama-") and not name.startswith("llama-2") and name != "llama-65b":
        eps = 1e-6
    width, hidden, depth, heads, groups = next(
        shape for part, shape in {
            "tinyllama": (2048, 5632, 22, 32, 4),
            "smollm2-135m": (576, 1536, 30, 9, 3),
            "smollm-135m": (576, 1536, 30, 9, 3),
            "-360m": (960, 2560, 32, 15, 5),
            "-1.7b": (2048, 8192, 24, 32, 32),
            "3.2-1b": (2048, 8192, 16, 32, 8),
            "3.2-3b": (3072, 8192, 28, 24, 8),
            "-8b": (4096, 14336, 32, 32, 8),
            "-7b": (4096, 11008, 32, 32, 32),
            "-13b": (5120, 13824, 40, 40, 40),
            "-30b": (6656, 17920, 60, 52, 52),
            "-65b": (8192, 22016, 80, 64, 64),
            "-70b": (8192, 28672, 80, 64, 8),
        }.items() if part in name
    )  # fmt: skip
    return LlamaConfig(
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=vocab, rms_norm_eps=eps, tie_word_embeddings=tied,
        max_position_embeddings=made_for, rope_parameters=rope | dict(rope_theta=theta),
    )  # fmt: skip


def peer(made):
    """transformers' model of a config."""
    from transformers import GemmaForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

    kinds = dict(llama=LlamaForCausalLM, mistral=MistralForCausalLM, qwen2=Qwen2ForCausalLM, gemma=GemmaForCausalLM)
    return kinds[made.model_type](made)


def cut(made, parameters: int) -> tuple[dict, str]:
    """Arguments of a smaller model of the same width, and how they are told; the config is changed with them."""
    if parameters <= LIMIT:
        return {}, ""
    whole = made.num_hidden_layers
    made.num_hidden_layers, made.vocab_size = 1 if made.hidden_size > 3000 else 2, 2048
    said = f", {made.num_hidden_layers} of {whole} layers, 2,048 words"
    return dict(depth=made.num_hidden_layers, vocab=2048), said


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    made = config(CASES[name])
    parameters = plait.model_info(name).parameters, count_whole(partial(peer, made))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {CASES[name]}", *parameters, float("inf"))
    arguments, said = cut(made, parameters[0])
    made.bos_token_id = made.eos_token_id = made.pad_token_id = None
    theirs = perturb(peer(made))
    ours = build(name, **arguments).eval()  # on meta: what both have alike is held once
    state = convert(theirs.state_dict(), rules_of(ours, plait.model_info(name).weights["source"]))
    ours.load_state_dict(state, assign=True)
    del state
    assert {m.eps for m in ours.modules() if isinstance(m, nn.RMSNorm)} == {made.rms_norm_eps}
    assert count(ours) == count(theirs) and ours.window == (getattr(made, "sliding_window", None) or 0)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1, made.vocab_size, (2, 40), generator=g)
    keep = torch.arange(40) >= torch.tensor([0, 13])[:, None]
    want = theirs(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(1) - 1).clamp(min=0)).logits
    errors = [relative_error(ours(ids, keep)[keep], want[keep])]
    cache = ours.prefill({"text": ids[:, :30], "keep": {"text": keep[:, :30]}})
    for i in (30, 31):
        got, cache = ours.step(ids[:, i : i + 1], cache)
        errors.append(relative_error(got[:, 0], want[:, i]))
    far = torch.arange(0, 1600, 40)[None] + torch.arange(2)[:, None]  # far apart, so that stretched turns show
    want = theirs(ids, position_ids=far * 20).logits
    errors.append(relative_error(ours.say(ours.read(Tokens(ours.embed(ids), pos=far * 20))), want))
    ran = "layers" if said else "output"
    return Row(name, f"transformers {CASES[name]}{said}", *parameters, max(errors), ran)
