"""GIT against transformers: logits at every place of padded texts, of a picture and, where the size has them, of a film
of six frames."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "git"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)


def config(reference: str):
    """What the published config.json of `reference` says."""
    from transformers import GitConfig, GitVisionConfig

    large, film = "large" in reference, "vatex" in reference or "msrvtt" in reference
    side = (420 if large else 480) if "vqa" in reference else 224
    vision = GitVisionConfig(image_size=side, **(LARGE if large else {}))
    return GitConfig(vision_config=vision.to_dict(), num_image_with_embedding=6 if film else None)


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import GitForCausalLM

    made = config(CASES[name])
    theirs = perturb(GitForCausalLM(made))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    g, side = torch.Generator().manual_seed(1), made.vision_config.image_size
    ids = torch.randint(1, made.vocab_size, (2, 14), generator=g)
    keep = torch.arange(14) < torch.tensor([14, 9])[:, None]
    shapes = [(3, side, side)] + [(made.num_image_with_embedding, 3, side, side)] * bool(made.num_image_with_embedding)
    error = 0.0
    for shape in shapes:
        x = torch.randn(2, *shape, generator=g)
        expected = theirs(input_ids=ids, pixel_values=x, attention_mask=keep.long()).logits[:, -14:]
        got, _ = ours.step(ids, ours.prefill({"image": x}), keep)
        error = max(error, relative_error(got[keep], expected[keep]))
        answer = ours({"image": x, "text": ids, "keep": {"text": keep}})["words"]
        error = max(error, relative_error(answer, expected[torch.arange(2), keep.sum(1) - 1]))
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs), error)
