"""ViLT against transformers, on square, wide and ragged pictures and padded texts.

transformers shuffles the patches (it draws them without replacement), so that patch tokens are compared by their mean;
everything else one by one. Where pictures are ragged its patch tokens include padding, and only the text tokens and
heads are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "vilt"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
HEADS = {"mlm": "ViltForMaskedLM", "coco": "ViltForImageAndTextRetrieval", "flickr30k": "ViltForImageAndTextRetrieval"}


def peer(name: str, **config) -> nn.Module:
    """The class whose checkpoint `name` is, with random weights."""
    declare_torchvision()
    import transformers

    kind = HEADS.get(name.rsplit("-")[-1], "ViltForQuestionAnswering")
    labels = {"num_labels": 3129} if kind == "ViltForQuestionAnswering" else {}
    return perturb(getattr(transformers, kind)(transformers.ViltConfig(**{**labels, **config})))


def batches(image: int, patch: int, vocab: int, words: int):
    """Square, wide, and ragged: two pictures of different shapes in one frame. The second text is shorter than the
    first."""
    g = torch.Generator().manual_seed(1)
    for height, width, ragged in ((image, image, False), (image, image + patch, False), (image, image + patch, True)):
        pixels = torch.ones(2, height, width, dtype=torch.bool)
        if ragged:
            pixels[0, :, image - patch :] = False
            pixels[1, image - 2 * patch :] = False
        keep = torch.ones(2, words, dtype=torch.bool)
        keep[1, words // 2 :] = False
        x = torch.randn(2, 3, height, width, generator=g) * pixels[:, None]
        yield x, torch.randint(5, vocab, (2, words), generator=g), pixels, keep, ragged


@torch.no_grad()
def outputs(theirs: nn.Module, x: Tensor, ids: Tensor, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, pooled, and the head's logits (those of the words at real places only)."""
    out = theirs.vilt(input_ids=ids, attention_mask=keep.long(), pixel_values=x, pixel_mask=pixels.long())
    if hasattr(theirs, "mlm_score"):
        logits = theirs.mlm_score(out.last_hidden_state[:, : ids.shape[1]])[keep]
    elif hasattr(theirs, "rank_output"):
        logits = theirs.rank_output(out.pooler_output)
    else:
        logits = theirs.classifier(out.pooler_output)
    return out.last_hidden_state, out.pooler_output, logits


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, image: int, patch: int, vocab: int, words: int) -> float:
    worst = 0.0
    for x, ids, pixels, keep, ragged in batches(image, patch, vocab, words):
        hidden, pooled, logits = outputs(theirs, x, ids, pixels, keep)
        masks = {"text": keep, "image": pixels} if ragged else {"text": keep}
        batch = {"image": x, "text": ids, "keep": masks}
        t, _ = ours.read(batch)
        said = ours(batch)
        mine = ours.words(t.x[:, :words][keep]) if ours.guess is not None else said.get("match", said.get("answer"))
        pairs = [(t.x[:, :words][keep], hidden[:, :words][keep]), (said["fused"], pooled), (mine, logits)]
        if not ragged:
            pairs += [(t.x[:, words], hidden[:, words]), (t.x[:, words + 1 :].mean(1), hidden[:, words + 1 :].mean(1))]
        worst = max(worst, *(relative_error(a, b) for a, b in pairs))
    return worst


def parity(name: str) -> Row:
    theirs = peer(CASES[name])
    ours = plait.load_weights(
        plait.create_model(name).eval(), theirs.state_dict(), source=plait.model_info(name).weights["source"]
    )
    assert epsilons(ours) == epsilons(theirs)
    return Row(
        name, f"transformers {CASES[name]}", count(ours), count(theirs), difference(ours, theirs, 384, 32, 30522, 20)
    )
