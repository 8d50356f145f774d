"""Gemma Encoder against transformers' T5GemmaEncoderModel, which has Gemma 2's layers and sees both sides: tokens of
padded texts, within the window and beyond it.

The weights are given under the names that Gemma 2's files have. Sizes are compared at their full width with two layers,
one of each kind, and fewer words; those of the whole are counted.
"""

from __future__ import annotations

import re
from functools import partial

import torch

import plait
from plait.core.catalog import build, systems
from plait.systems.text.llama import NormAroundOne
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.peers import declare_torchvision

SYSTEM, CUTS = "gemma_encoder", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
SHAPES = {"2b": (2304, 9216, 26, 8, 4), "9b": (3584, 14336, 42, 16, 8)}
FEW, NEAR = 1000, 12
NORMS = {"pre_self_attn_layernorm": "input_layernorm", "post_self_attn_layernorm": "post_attention_layernorm"}


def named(key: str) -> str:
    """A key of T5Gemma's encoder as Gemma 2's files have it."""
    key = re.sub("|".join(NORMS), lambda m: NORMS[m[0]], key)
    return key.replace("encoder.", "model.", 1)


def config(reference: str, **cut):
    from transformers import T5GemmaConfig, T5GemmaModuleConfig

    width, hidden, depth, heads, groups = SHAPES[reference.rsplit("-", 1)[1]]
    made = dict(hidden_size=width, intermediate_size=hidden, num_hidden_layers=depth) | cut
    encoder = T5GemmaModuleConfig(num_attention_heads=heads, num_key_value_heads=groups, head_dim=256, **made)
    return T5GemmaConfig(encoder=encoder, is_encoder_decoder=False)


def peer(made):
    from transformers import T5GemmaEncoderModel

    return T5GemmaEncoderModel._from_config(made, attn_implementation="eager")


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    info, reference = plait.model_info(name), CASES[name]
    made = config(reference)
    parameters = info.parameters, count_whole(partial(peer, made))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers T5GemmaEncoderModel as {reference}", *parameters, float("inf"))
    whole, errors = made.encoder.num_hidden_layers, []
    assert build(name).window == made.encoder.sliding_window
    for window in (build(name).window, NEAR):
        made = config(reference, num_hidden_layers=2, vocab_size=FEW, sliding_window=window)
        theirs = perturb(peer(made))
        for key, p in theirs.named_parameters():  # scores far enough from nothing that the cap shows
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                p.mul_(3)
        own = dict(window=NEAR) if window == NEAR else {}
        ours = build(name, depth=2, vocab=FEW, **own).to_empty(device="cpu").eval()
        plait.load_weights(ours, {named(k): t for k, t in theirs.state_dict().items()}, source="transformers")
        assert count(ours) == count(theirs)
        assert {m.eps for m in ours.modules() if isinstance(m, NormAroundOne)} == {made.encoder.rms_norm_eps}
        ids = torch.randint(1, FEW, (3, 40), generator=torch.Generator().manual_seed(1))
        keep = torch.arange(40) < torch.tensor([40, 25, 7])[:, None]
        want = theirs(ids, attention_mask=keep.long()).last_hidden_state
        t = ours.tokens(ids, keep)
        errors.append(relative_error(t.x[keep], want[keep]))
        mean = (want * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
        errors.append(relative_error(ours(ids, keep), mean))
    told = f"transformers T5GemmaEncoderModel as {reference}, 2 of {whole} layers, {FEW} words"
    return Row(name, told, *parameters, max(errors), "layers")
