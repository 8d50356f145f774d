"""DETR against transformers: a batch of two pictures, one of them smaller and padded, every layer's answers."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "detr"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}


def published(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of transformers' `model` as it is published: a file's keys are not those in memory."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, model.state_dict())


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """As `perturb`; also the scales and shifts of norms that are frozen, which are no parameters."""
    g = torch.Generator().manual_seed(3)
    for name, b in perturb(model).named_buffers():
        if name.endswith((".weight", ".bias")):
            b.add_(0.2 * torch.randn(b.shape, generator=g))
    return model


def pictures(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, 3, H, W) and keep (2, H, W): the second is about two thirds as high and half as wide."""
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    keep = torch.ones(2, height, width, dtype=torch.bool)
    keep[1, height * 2 // 3 + 3 :] = False
    keep[1, :, width // 2 + 5 :] = False
    return x * keep[:, None], keep


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import DetrConfig, DetrForObjectDetection

    reference = CASES[name]
    config = DetrConfig(
        backbone="resnet101" if "101" in reference else "resnet50", dilation="dc5" in reference,
        num_labels=91,
    )  # fmt: skip
    theirs = perturbed(DetrForObjectDetection(config))
    ours = plait.load_weights(plait.create_model(name).eval(), published(theirs), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    error = 0.0
    for x, keep in (pictures(160, 224), (pictures(131, 97)[0], None)):
        mask = None if keep is None else keep.long()
        # with auxiliary_loss=True theirs would norm what the next layer reads, which the paper's code does not
        *layers, last = theirs.model(x, pixel_mask=mask, output_hidden_states=True).decoder_hidden_states[1:]
        hidden = torch.stack([*map(theirs.model.decoder.layernorm, layers), last], 1)  # (B, L, Q, D)
        want = {"logits": theirs.class_labels_classifier(hidden), "boxes": theirs.bbox_predictor(hidden).sigmoid()}
        answer = theirs(x, pixel_mask=mask)
        got = ours(x, keep)
        error = max(error, *(relative_error(got[key], want[key]) for key in want))
        error = max(error, relative_error(got["boxes"][:, -1], answer.pred_boxes))
    return Row(name, f"transformers {reference}", count(ours), count(theirs), error)
