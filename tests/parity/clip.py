"""CLIP against open_clip and, where a size is published there too, transformers, on padded texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "clip"
CASES = {f"{SYSTEM}_{size}": row["references"] for size, row in systems()[SYSTEM].weights.items()}
TEXT = dict(hidden_size=512, num_attention_heads=8, num_hidden_layers=12, projection_dim=512)
WIDE_TEXT = dict(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, projection_dim=1024)
BASE = dict(hidden_size=768, num_attention_heads=12, num_hidden_layers=12)
LARGE = dict(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, patch_size=14)
LARGE_TEXT = dict(hidden_size=768, num_attention_heads=12, num_hidden_layers=12, projection_dim=768)
# What the published config.json files say, by the part of the name that tells them apart; the first that fits counts.
CONFIGS = {
    "base-patch32": (BASE | dict(patch_size=32), TEXT),
    "base-patch16": (BASE | dict(patch_size=16), TEXT),
    "large-patch14-336": (LARGE | dict(image_size=336), LARGE_TEXT),
    "large-patch14": (LARGE, LARGE_TEXT),
    "ViT-B-32": (BASE | dict(patch_size=32), TEXT),
    "ViT-B-16": (BASE | dict(patch_size=16), TEXT),
    "ViT-L-14": (LARGE, LARGE_TEXT),
    "ViT-H-14": (dict(hidden_size=1280, num_attention_heads=16, num_hidden_layers=32, patch_size=14), WIDE_TEXT),
    "ViT-g-14": (
        dict(hidden_size=1408, num_attention_heads=16, num_hidden_layers=40, patch_size=14, intermediate_size=6144),
        WIDE_TEXT,
    ),
    "ViT-bigG-14": (
        dict(hidden_size=1664, num_attention_heads=16, num_hidden_layers=48, patch_size=14, intermediate_size=8192),
        dict(hidden_size=1280, num_attention_heads=20, num_hidden_layers=32, projection_dim=1280),
    ),
}


def config(reference: str):
    from transformers import CLIPConfig

    image, text = next(c for part, c in CONFIGS.items() if part in reference)
    act = "quick_gelu" if reference.startswith("openai/") else "gelu"
    shared = dict(hidden_act=act, projection_dim=text["projection_dim"])
    return CLIPConfig(
        text_config={"intermediate_size": 4 * text["hidden_size"], "eos_token_id": 49407, **text, **shared},
        vision_config={"intermediate_size": 4 * image["hidden_size"], **image, **shared},
        projection_dim=text["projection_dim"],
    )


def inputs(side: int, vocab: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (2, 3, side, side), ids (2, 77) that stop at `end` and are 0 after it, and their mask."""
    g = torch.Generator().manual_seed(1)
    keep = torch.arange(77) < torch.tensor([77, 12])[:, None]
    ids = torch.randint(3, vocab - 2, (2, 77), generator=g) * keep
    ids[0, 76] = ids[1, 11] = end
    return torch.randn(2, 3, side, side, generator=g), ids, keep


def difference(ours: nn.Module, batch: dict, images: Tensor, text: Tensor, logit_scale: Tensor) -> float:
    """Largest relative error of both vectors and of the scores: of these relative to the largest that there can be, as
    scores of random towers are near zero by chance, and their rounding is that of the unit vectors."""
    got = ours(batch)
    scores, expected = (
        s.exp() * a @ b.T for s, a, b in ((got["logit_scale"], got["image"], got["text"]), (logit_scale, images, text))
    )
    far = float((scores - expected).abs().max() / logit_scale.exp())
    return max(far, relative_error(got["image"], images), relative_error(got["text"], text))


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    import open_clip
    from transformers import CLIPModel

    reference = CASES[name]["open_clip"]
    theirs = perturb(open_clip.create_model(reference))
    end = theirs.text_eos_id if theirs.text_pool_type == "eos" else theirs.vocab_size - 1
    x, ids, keep = inputs(theirs.visual.image_size[0], theirs.vocab_size, end)
    batch = {"image": x, "text": ids, "keep": {"text": keep}}
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="open_clip")
    assert epsilons(ours) == epsilons(theirs)
    images, text = theirs.encode_image(x, normalize=True), theirs.encode_text(ids, normalize=True)
    row = Row(
        name,
        f"open_clip {reference}",
        count(ours),
        count(theirs),
        difference(ours, batch, images, text, theirs.logit_scale),
    )
    if "transformers" not in CASES[name]:
        return row

    del theirs
    theirs = perturb(CLIPModel(config(CASES[name]["transformers"])))
    plait.load_weights(ours, theirs.state_dict(), source="transformers")
    images = F.normalize(theirs.get_image_features(pixel_values=x).pooler_output, dim=-1)
    text = F.normalize(theirs.get_text_features(input_ids=ids, attention_mask=keep.long()).pooler_output, dim=-1)
    error = difference(ours, batch, images, text, theirs.logit_scale)
    assert count(theirs) == row.parameters and epsilons(ours) == epsilons(theirs)
    return row._replace(error=max(error, row.error), reference=f"{row.reference}, transformers")
