"""Deformable DETR against transformers: a batch of two pictures, one of them smaller and padded, every layer's answers.

Of the size that refines boxes without a first stage transformers 5 builds one head of labels for all layers; the
authors' and the published weights have one each, which it is given here.
"""

from __future__ import annotations

import copy

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.detr import perturbed, pictures, published
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "deformable_detr"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}


def reference(name: str):
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    refine, two = "refine" in name, "two_stage" in name
    config = DeformableDetrConfig(
        num_labels=91, num_feature_levels=1 if "single" in name else 4, dilation="dc5" in name,
        with_box_refine=refine, two_stage=two, disable_custom_kernels=True,
    )  # fmt: skip
    model = DeformableDetrForObjectDetection(config)
    if refine and not two:
        model.class_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
    return model


def answers(model, x: torch.Tensor, keep: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Of every layer, as theirs makes them of what its decoder gives."""
    from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

    out = model(x, pixel_mask=None if keep is None else keep.long())
    before = [out.init_reference_points, *out.intermediate_reference_points.unbind(1)]
    logits, boxes = [], []
    for n, (y, at) in enumerate(zip(out.intermediate_hidden_states.unbind(1), before)):
        box, at = model.bbox_embed[n](y), inverse_sigmoid(at)
        boxes.append((box + torch.nn.functional.pad(at, (0, 4 - at.shape[2]))).sigmoid())
        logits.append(model.class_embed[n](y))
    assert torch.equal(boxes[-1], out.pred_boxes) and torch.equal(logits[-1], out.logits)
    found = {"logits": torch.stack(logits, 1), "boxes": torch.stack(boxes, 1)}
    if out.enc_outputs_class is not None:
        found |= {"first_logits": out.enc_outputs_class, "first_boxes": out.enc_outputs_coord_logits.sigmoid()}
    return found


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    theirs = perturbed(reference(name))
    ours = plait.load_weights(plait.create_model(name).eval(), published(theirs), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    error = 0.0
    for x, keep in (pictures(256, 320), (pictures(230, 281)[0], None)):
        want, got = answers(theirs, x, keep), ours(x, keep)
        assert want.keys() == got.keys()
        error = max(error, *(relative_error(got[key], want[key]) for key in want))
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs), error)
