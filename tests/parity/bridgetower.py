"""BridgeTower against transformers: every token of both streams, what is pooled, and every head of the size, of texts
of two lengths.

RoBERTa's own pooler, which transformers builds and its forward never asks, is taken off before anything is counted.
What is too large is run at full width with three layers in each tower, two of which meet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "bridgetower", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 4e8  # parameters of a model that is compared whole
CUT = dict(image_depth=3, text_depth=3, depth=2)
HEADS = {
    "match": "BridgeTowerForImageAndTextRetrieval",
    "words": "BridgeTowerForMaskedLM",
    "vectors": "BridgeTowerForContrastiveLearning",
}
LARGE = dict(hidden_size=1024, num_hidden_layers=24)
LARGE_TEXT = LARGE | dict(num_attention_heads=16, intermediate_size=4096)


def config(reference: str, cut: dict):
    """What the published config.json of `reference` says, but for the depths in `cut`."""
    from transformers import BridgeTowerConfig

    large = "large" in reference
    text, eyes = (LARGE_TEXT, LARGE | dict(patch_size=14, image_size=294)) if large else ({}, {})
    own = dict(hidden_size=1024, num_attention_heads=16) if large else {}
    if cut:
        text = text | dict(num_hidden_layers=cut["text_depth"])
        eyes, own = eyes | dict(num_hidden_layers=cut["image_depth"]), own | dict(num_hidden_layers=cut["depth"])
    contrast = dict(contrastive_hidden_size=512, logit_scale_init_value=2.6592)
    return BridgeTowerConfig(text_config=text, vision_config=eyes, **own, **contrast)


def heads(reference: str) -> tuple[str, ...]:
    """The classes that read the file, by what they give."""
    return ("vectors",) if "itc" in reference else ("match", "words") if "itm" in reference else ()


def peers(made, given: tuple[str, ...]) -> nn.ModuleDict:
    """The bare "encoder", and around it the classes of these heads."""
    declare_torchvision()
    import transformers

    encoder = transformers.BridgeTowerModel(made)
    encoder.text_model.pooler = None
    found = nn.ModuleDict({"encoder": encoder} | {name: getattr(transformers, HEADS[name])(made) for name in given})
    for name in given:
        found[name].bridgetower = encoder
    return found


def state_of(found: nn.ModuleDict) -> dict[str, Tensor]:
    """What a file of all of them holds."""
    whole = {key: tensor for name in HEADS if name in found for key, tensor in found[name].state_dict().items()}
    return whole or found["encoder"].state_dict()


def inputs(vocab: int, side: int, mask: int) -> dict:
    """Two pictures, and texts of fourteen and nine words, padded with 1; one word of the first is hidden."""
    g = torch.Generator().manual_seed(1)
    keep = torch.arange(14) < torch.tensor([14, 9])[:, None]
    ids = torch.randint(5, vocab, (2, 14), generator=g)
    ids[0, 4] = mask
    x = torch.randn(2, 3, side, side, generator=g)
    return {"image": x, "text": torch.where(keep, ids, 1), "keep": {"text": keep}}


@torch.no_grad()
def difference(ours: nn.Module, found: nn.ModuleDict, batch: dict) -> float:
    keep = batch["keep"]["text"]
    given = dict(input_ids=batch["text"], attention_mask=keep.long(), pixel_values=batch["image"])
    up, got, want = ours.cross(*ours.read(batch)[:2]), ours(batch), found["encoder"](**given)
    pairs = [(up["text"].x[keep], want.text_features[keep]), (up["image"].x, want.image_features)]
    pairs += [(got["fused"], want.pooler_output)]
    if "match" in found:
        pairs.append((got["match"], found["match"](**given).logits))
    if "words" in found:
        logits = found["words"](**given).logits
        pairs += [(ours.words(up["text"].x[keep]), logits[keep])]
        pairs += [(got["words"], torch.stack([logits[0, 4], logits[1, 0]]))]
    if "vectors" in found:
        seen, scale = found["vectors"](**given), found["vectors"].logit_scale.exp()
        pairs += [(got["image"], seen.image_embeds), (got["text"], seen.text_embeds), (got["pair"], seen.cross_embeds)]
        scores = (
            got["text"] @ got["image"].T * got["logit_scale"].exp(),
            seen.text_embeds @ seen.image_embeds.T * scale,
        )
        pairs.append(scores)
    return max(relative_error(mine, theirs) for mine, theirs in pairs)


def parity(name: str) -> Row:
    reference, info = CASES[name], plait.model_info(name)
    with torch.device("meta"):
        counts = info.parameters, count(peers(config(reference, {}), heads(reference)))
    row = Row(name, f"transformers {reference}", *counts, float("inf"))
    if not row._replace(error=0.0).ok:
        return row
    cut = CUT if counts[0] > LIMIT else {}
    found = perturb(peers(config(reference, cut), heads(reference)))
    ours = plait.create_model(name, **cut).eval()
    plait.load_weights(ours, state_of(found), info.weights["source"])
    assert count(ours) == count(found) and epsilons(ours) == epsilons(found)
    error = difference(ours, found, inputs(50264, ours.blanks["image"][0][1], 50264))
    if not cut:
        return row._replace(error=error)
    whole = config(reference, {}).text_config.num_hidden_layers
    told = f"{row.reference}, {cut['text_depth']} of {whole} layers"
    return row._replace(error=error, reference=told, ran="layers")
