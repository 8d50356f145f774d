"""GPT-2 against transformers: logits of texts padded in front, at once and after a cached beginning."""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "gpt2", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 4e8  # parameters of a model that is compared whole
SHAPES = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25)}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    width, depth, heads = SHAPES[CASES[name].split("/")[1]]
    made = GPT2Config(n_embd=width, n_layer=depth, n_head=heads)
    parameters = plait.model_info(name).parameters, count_whole(partial(GPT2LMHeadModel, made))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {CASES[name]}", *parameters, float("inf"))
    said, cut = (f", 4 of {depth} layers", 4) if parameters[0] > LIMIT else ("", depth)
    made.n_layer = cut
    theirs = perturb(GPT2LMHeadModel(made))
    ours = plait.create_model(name, depth=cut).eval()
    plait.load_weights(ours, theirs.transformer.state_dict(), source="transformers")
    plait.load_weights(ours, theirs.state_dict(), source="transformers_lm")
    assert epsilons(ours) == epsilons(theirs) and count(ours) == count(theirs)
    ids = torch.randint(0, 50257, (2, 24), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(24) >= torch.tensor([0, 9])[:, None]
    want = theirs(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(1) - 1).clamp(min=0)).logits
    errors = [relative_error(ours(ids, keep)[keep], want[keep])]
    cache = ours.prefill({"text": ids[:, :20], "keep": {"text": keep[:, :20]}})
    got, _ = ours.step(ids[:, 20:], cache)
    errors.append(relative_error(got, want[:, 20:]))
    ran = "layers" if said else "output"
    return Row(name, f"transformers {CASES[name]}{said}", *parameters, max(errors), ran)
