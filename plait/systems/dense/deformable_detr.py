"""Deformable DETR: Deformable Transformers for End-to-End Object Detection. Zhu et al., 2020. arXiv:2010.04159.

New here: a query looks at a few places around a point of reference, whose offsets and weights it says itself, in maps
of several resolutions at once. So the encoder may read fine maps, small things are found, and training takes a tenth of
the steps. Boxes are told relative to the point; each layer may refine those of the one before, and the first ones may
be chosen among what every place of the encoded maps proposes. Labels are not exclusive (focal loss).

Differs: what starts at zero there (where is looked, the last layer of a head of boxes) starts small.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.block import FeedForward, Stack
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Rule, Tied, under
from plait.parts.convs import Pointwise
from plait.parts.heads.boxes import BoxHead
from plait.parts.heads.proposals import Propose
from plait.parts.maps import flat
from plait.parts.mixers.deformable import Deformable, Small, inverse_sigmoid
from plait.parts.mixers.placed import PlacedAttention
from plait.parts.positions.learned import Learned
from plait.parts.positions.sine import grid_waves
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import detr_layer
from plait.parts.towers.levels import blanked, eyes, real_places
from plait.systems.vision.resnet import BODY

Feed = partial(FeedForward, act=nn.ReLU)


class Rare(nn.Linear):
    """The head of labels: each starts at one in a hundred."""

    def reset(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.constant_(self.bias, -4.595)  # log(0.01 / 0.99)


class DeformableDETR(nn.Module):
    """Pictures (B, 3, H, W), keep (B, H, W) -> what each of Q guesses is, and where (`core.roles.Detector`).

    backbone: a model whose last three maps are read, its last alone with levels=1; further levels halve the last.
    refine: each layer's boxes start from those of the one before, with heads of their own. two_stage: the first are
    chosen among N proposals. labels: K.
    """

    takes, fits, classifier = ("image",), (), ("classes.",)
    exclusive = False

    def __init__(
        self, *, backbone, width=256, heads=8, hidden=1024, depths=(6, 6), queries=300, levels=4, samples=4, labels=91,
        refine=False, two_stage=False, frozen=True, dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        seen = eyes(backbone, frozen)[-min(3, levels) :]
        self.width, self.multiple, self.backbone = width, backbone.multiple, backbone
        self.refine, self.count, self.read = refine, queries, len(seen)
        convs = [Pointwise(c, width) for c in seen]
        for n in range(levels - len(seen)):
            convs.append(nn.Conv2d(width if n else seen[-1], width, 3, 2, 1))
        self.proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(width // 8, width)) for conv in convs)
        self.levels = Learned(levels, width)
        look = partial(Deformable, levels=levels, points=samples)
        layers = partial(post_norm_blocks, width, heads=heads, hidden=hidden, feed=Feed, dropout=dropout)
        self.encoder = Stack(*layers(depths[0], mix=look), gives=("levels", "places"))
        cross = partial(look, stream="image")
        self.decoder = Stack(*layers(depths[1], mix=PlacedAttention, cross=cross), gives=("image", "levels", "places"))
        if two_stage:
            self.propose = Propose(width)
        else:
            self.propose, self.questions, self.point = None, Learned(queries, 2 * width), nn.Linear(width, 2)
        count = (depths[1] if refine else 1) + two_stage
        self.classes = nn.ModuleList(Rare(width, labels) for _ in range(count))
        self.boxes = nn.ModuleList(BoxHead(width, Small) for _ in range(count))

    def levelled(self, x: Tensor, keep: Tensor | None) -> list[Tensor]:
        """(B, D, h, w) of each level, finest first."""
        found = [m for m, _ in self.backbone.features(blanked(x, keep), keep)][-self.read :]
        last, out = found[-1], []
        for n, proj in enumerate(self.proj):
            last = proj(found[n] if n < self.read else last)
            out.append(last)
            last = found[-1] if n + 1 == self.read else last
        return out

    def look(self, x: Tensor, keep: Tensor | None) -> tuple[Tokens, list[Tensor], Tensor]:
        """The encoded maps (B, N, D), which places of each are real, and (B, L, 2) what share of each is, across and
        down."""
        maps = self.levelled(x, keep)
        keeps = [real_places(m, keep) for m in maps]
        share = torch.stack([torch.stack([k[:, 0].float().mean(1), k[:, :, 0].float().mean(1)], 1) for k in keeps], 1)
        pos, places = [], []
        for k, level in zip(keeps, self.levels()):
            pos.append(grid_waves(k, self.width, 0.5).flatten(1, 2).to(x.dtype) + level)
            down, across = (torch.arange(s, device=x.device) + 0.5 for s in k.shape[1:])
            xy = torch.stack([across.expand(*k.shape[1:]) / across.shape[0],
                              down[:, None].expand(*k.shape[1:]) / down.shape[0]], 2).flatten(0, 1)  # fmt: skip
            places.append(xy / share[:, None, len(places)])  # (B, h * w, 2)
        places = torch.cat(places, 1)[:, :, None] * share[:, None]  # (B, N, L, 2)
        real = None if keep is None else torch.cat([k.flatten(1) for k in keeps], 1)
        levels = tuple((m.shape[2], m.shape[3]) for m in maps)
        t = Tokens(torch.cat([flat(m) for m in maps], 1), keep=real, pos=torch.cat(pos, 1))
        return self.encoder(t.reading(levels=levels, places=places.to(x.dtype))), keeps, share

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, N, D): the places of all maps, encoded."""
        return self.look(x, keep)[0]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> dict[str, Any]:
        return self.detect(x, keep)

    def detect(self, x: Tensor, keep: Tensor | None = None) -> dict[str, Any]:
        seen, keeps, share = self.look(x, keep)
        out: dict[str, Any] = {}
        if self.propose is None:
            pos, first = self.questions().chunk(2, 1)
            first = first.expand(x.shape[0], -1, -1)
            at = self.point(pos).sigmoid().expand(x.shape[0], -1, -1)  # (B, Q, 2)
        else:
            places, good = self.propose.places(keeps)
            y = self.propose.norm(self.propose.proj(seen.x.masked_fill(~good[..., None], 0.0)))
            logits, boxes = self.classes[-1](y), self.boxes[-1](y) + places
            out |= {"first_logits": logits, "first_boxes": boxes.sigmoid()}
            best = logits[..., 0].topk(min(self.count, logits.shape[1]), 1).indices
            at = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
            pos, first = self.propose.questions(at, self.width)
        t, said, found = Tokens(first, pos=pos).reading(image=seen, levels=seen.read("levels")), [], []
        for n, block in enumerate(self.decoder.blocks):
            places = at[:, :, None] * (share if at.shape[2] == 2 else torch.cat([share, share], 2))[:, None]
            t = block(t.reading(places=places.to(x.dtype)))
            head = n if self.refine else 0
            step, before = self.boxes[head](t.x), inverse_sigmoid(at)
            box = (step + (before if at.shape[2] == 4 else nn.functional.pad(before, (0, 2)))).sigmoid()
            said.append(self.classes[head](t.x))
            found.append(box)
            at = box.detach() if self.refine else at
        losses = t.with_losses(seen).losses
        out |= {"logits": torch.stack(said, 1), "boxes": torch.stack(found, 1)}
        return out | ({"losses": losses} if losses else {})


MODEL = DeformableDETR
TAKES = ("image",)
ROLES = ("detector",)
PARTS = ("backbone",)
DEFAULT = "nano"
R50 = dict(backbone="resnet_50")
TOY = dict(backbone="resnet_toy", width=32, heads=2, hidden=32, depths=(1, 2), queries=5, samples=2, labels=10)
SMALL = dict(backbone="resnet_nano", width=96, heads=4, hidden=192, depths=(1, 3), queries=30, levels=3)
SIZES = {
    "toy": TOY | dict(levels=2, dropout=0.0),
    "nano": SMALL | dict(refine=True, frozen=False, dropout=0.0),
    "single_scale": R50 | dict(levels=1),
    "single_scale_dc5": dict(backbone="resnet_50_dc5", levels=1),
    "resnet_50": R50,
    "resnet_50_refine": R50 | dict(refine=True),
    "resnet_50_refine_two_stage": R50 | dict(refine=True, two_stage=True),
}

SENSETIME = dict(
    file="model.safetensors", source="transformers", licence="apache-2.0", transformers=True, image=(800, 800),
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
WEIGHTS = {
    "single_scale": SENSETIME | dict(hub="SenseTime/deformable-detr-single-scale"),
    "single_scale_dc5": SENSETIME | dict(hub="SenseTime/deformable-detr-single-scale-dc5"),
    "resnet_50": SENSETIME | dict(hub="SenseTime/deformable-detr"),
    "resnet_50_refine": SENSETIME | dict(hub="SenseTime/deformable-detr-with-box-refine"),
    "resnet_50_refine_two_stage": SENSETIME | dict(hub="SenseTime/deformable-detr-with-box-refine-two-stage"),
}


def deformable(theirs: str, ours: str) -> list[Rule]:
    """transformers' deformable attention."""
    names = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value", "output_proj": "out"}
    return [Rename(f"{theirs}.{name}.{{p}}", f"{ours}.f.{own}.{{p}}") for name, own in names.items()]


def heads(model: DeformableDETR) -> list[Rule]:
    """Heads of their own for each layer have copies in the decoder; those that are shared, one for each layer."""
    found, parts = [], [("class_embed.{i}.{p}", "classes.{i}.{p}")]
    parts += [(f"bbox_embed.{{i}}.layers.{n}.{{p}}", f"boxes.{{i}}.{2 * n}.{{p}}") for n in range(3)]
    for theirs, ours in parts:
        if model.refine:
            found += [Tied([f"model.decoder.{theirs}", theirs], ours)] * (theirs[0] == "b" or model.propose is not None)
            found += [Rename(theirs, ours)]
        else:
            each = [theirs.replace("{i}", str(n)) for n in reversed(range(len(model.decoder.blocks)))]
            found += [Tied(each, ours.replace("{i}", "0")), Rename(each[-1], ours.replace("{i}", "0"))]
    return found


def layout(model: DeformableDETR) -> list[Rule]:
    return [
        Drop("model.backbone.conv_encoder.model.{rest*}.num_batches_tracked"),
        *under(BODY, "model.backbone.conv_encoder.model.", "backbone."),
        Rename("model.input_proj.{i}.{j}.{p}", "proj.{i}.{j}.{p}"),
        Rename("model.level_embed", "levels.table"),
        Rename("model.query_position_embeddings.weight", "questions.table"),
        Rename("model.reference_points.{p}", "point.{p}"),
        Rename("model.enc_output.{p}", "propose.proj.{p}"),
        Rename("model.enc_output_norm.{p}", "propose.norm.{p}"),
        Rename("model.pos_trans.{p}", "propose.ask.{p}"),
        Rename("model.pos_trans_norm.{p}", "propose.ask_norm.{p}"),
        *deformable("model.encoder.layers.{i}.self_attn", "encoder.blocks.{i}.mix"),
        *deformable("model.decoder.layers.{i}.encoder_attn", "decoder.blocks.{i}.cross"),
        Rename("model.decoder.layers.{i}.encoder_attn_layer_norm.{p}", "decoder.blocks.{i}.cross.norm.{p}"),
        *detr_layer("model.decoder.layers.{i}", "decoder.blocks.{i}"),
        *detr_layer("model.encoder.layers.{i}", "encoder.blocks.{i}")[2:],
        *heads(model),
    ]


RULES = {"transformers": layout}
