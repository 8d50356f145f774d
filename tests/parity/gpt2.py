"""GPT-2 against transformers: logits of texts padded in front, at once and after a cached beginning."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "gpt2", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
SHAPES = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25)}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    width, depth, heads = SHAPES[CASES[name].split("/")[1]]
    said, cut = (f", 4 of {depth} layers", 4) if width > 1024 else ("", depth)
    theirs = perturb(GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=cut, n_head=heads)))
    ours = plait.create_model(name, depth=cut).eval()
    plait.load_weights(ours, theirs.transformer.state_dict(), source="transformers")
    plait.load_weights(ours, theirs.state_dict(), source="transformers_lm")
    assert epsilons(ours) == epsilons(theirs)
    ids = torch.randint(0, 50257, (2, 24), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(24) >= torch.tensor([0, 9])[:, None]
    want = theirs(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(1) - 1).clamp(min=0)).logits
    errors = [relative_error(ours(ids, keep)[keep], want[keep])]
    cache = ours.prefill({"text": ids[:, :20], "keep": {"text": keep[:, :20]}})
    got, _ = ours.step(ids[:, 20:], cache)
    errors.append(relative_error(got, want[:, 20:]))
    return Row(name, f"transformers {CASES[name]}{said}", count(ours), count(theirs), max(errors))
