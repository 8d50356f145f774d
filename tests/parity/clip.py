"""CLIP against open_clip and, where a size is published there too, transformers, on padded texts.

Sizes over 4 GB are compared with one layer of each tower, and no more words than OpenAI's.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "clip", True
CASES = {f"{SYSTEM}_{size}": row["references"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 1e9  # parameters of a model that is compared whole
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


def cut(reference: str, parameters: int) -> tuple[dict, dict, str]:
    """Arguments of ours and of open_clip's smaller model of the same width, and how they are told."""
    import open_clip

    if parameters <= LIMIT:
        return {}, {}, ""
    made = open_clip.get_model_config(reference)
    image, text = made["vision_cfg"], made["text_cfg"]
    words = min(text["vocab_size"], 49408)
    said = f", 1 of {image['layers']} and 1 of {text['layers']} layers, {words:,} words"
    theirs = dict(vision_cfg=image | dict(layers=1), text_cfg=text | dict(layers=1, vocab_size=words))
    return dict(depth=1, text_depth=1, vocab=words), theirs, said


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
    make = partial(open_clip.create_model, reference)
    counts = plait.model_info(name).parameters, count_whole(partial(make, device="meta"))
    if counts[0] != counts[1]:
        return Row(name, f"open_clip {reference}", *counts, float("inf"))
    arguments, given, said = cut(reference, counts[1])
    theirs = perturb(make(**given))
    end = theirs.text_eos_id if theirs.text_pool_type == "eos" else theirs.vocab_size - 1
    x, ids, keep = inputs(theirs.visual.image_size[0], theirs.vocab_size, end)
    batch = {"image": x, "text": ids, "keep": {"text": keep}}
    ours = plait.create_model(name, **arguments).eval()
    plait.load_weights(ours, theirs.state_dict(), source="open_clip")
    assert epsilons(ours) == epsilons(theirs) and count(ours) == count(theirs)
    images, text = theirs.encode_image(x, normalize=True), theirs.encode_text(ids, normalize=True)
    error = difference(ours, batch, images, text, theirs.logit_scale)
    row = Row(name, f"open_clip {reference}{said}", *counts, error, "layers" if said else "output")
    if "transformers" not in CASES[name]:
        return row

    del theirs
    made = config(CASES[name]["transformers"])
    assert count_whole(partial(CLIPModel, made)) == row.parameters
    if said:
        made.vision_config.num_hidden_layers = made.text_config.num_hidden_layers = 1
    theirs = perturb(CLIPModel(made))
    plait.load_weights(ours, theirs.state_dict(), source="transformers")
    images = F.normalize(theirs.get_image_features(pixel_values=x).pooler_output, dim=-1)
    text = F.normalize(theirs.get_text_features(input_ids=ids, attention_mask=keep.long()).pooler_output, dim=-1)
    error = difference(ours, batch, images, text, theirs.logit_scale)
    assert count(theirs) == count(ours) and epsilons(ours) == epsilons(theirs)
    return row._replace(error=max(error, row.error), reference=f"open_clip {reference}, transformers{said}")
