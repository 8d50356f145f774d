"""DETR: End-to-End Object Detection with Transformers. Carion et al., 2020. arXiv:2005.12872.

New here: a picture is asked a fixed number of learned questions, and each answers with one thing or with nothing. The
questions attend to each other and to the encoded map, so that no two of them claim the same thing: boxes are a set,
learnt by matching it to the set that is true, and nothing has to be suppressed afterwards. Positions are added to
queries and keys in every layer, never to values.

Differs: published sizes keep their backbone's batch norms as they are given, nano learns them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.block import FeedForward, Stack
from plait.core.init import xavier_uniform
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, under
from plait.parts.convs import Pointwise
from plait.parts.heads.boxes import BoxHead
from plait.parts.maps import flat
from plait.parts.mixers.placed import PlacedAttention, PlacedCross
from plait.parts.positions.learned import Learned
from plait.parts.positions.sine import grid_waves
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import detr_cross, detr_layer
from plait.parts.towers.levels import blanked, eyes, real_places
from plait.systems.vision.resnet import BODY

Feed = partial(FeedForward, act=nn.ReLU)
Cross = partial(PlacedCross, stream="image")


class OfNothing(nn.Linear):
    """The first projection of questions, which are zeros: the bias speaks alone, and starts where it is heard."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out)
        self.weight.requires_grad_(False)

    def reset(self) -> None:
        xavier_uniform(self)
        nn.init.trunc_normal_(self.bias, std=0.02)


class DETR(nn.Module):
    """Pictures (B, 3, H, W), keep (B, H, W) -> what each of Q guesses is, and where (`core.roles.Detector`).

    backbone: a model whose coarsest map is read. frozen: its batch norms are given. depths: of the encoder and of the
    decoder. labels: K; one more logit stands for nothing.
    """

    takes, fits, classifier = ("image",), (), ("classes.",)
    exclusive = True

    def __init__(
        self, *, backbone, width=256, heads=8, hidden=2048, depths=(6, 6), queries=100, labels=91, frozen=True,
        dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        self.proj = Pointwise(eyes(backbone, frozen)[-1], width)
        self.width, self.multiple, self.backbone = width, backbone.multiple, backbone
        layers = partial(post_norm_blocks, width, heads=heads, hidden=hidden, mix=PlacedAttention, feed=Feed)
        self.encoder = Stack(*layers(depths[0], dropout=dropout))
        self.decoder = Stack(*layers(depths[1], cross=Cross, dropout=dropout), gives=("image",))
        self.decoder.blocks[0].mix.f.qkv = OfNothing(width, 3 * width)
        self.norm, self.questions = nn.LayerNorm(width), Learned(queries, width)
        self.classes, self.boxes = nn.Linear(width, labels + 1), BoxHead(width)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, h * w, D): the map, encoded; pos: where each lies."""
        x, _ = self.backbone.features(blanked(x, keep), keep)[-1]
        real = real_places(x, keep)
        pos = grid_waves(real, self.width).flatten(1, 2).to(x.dtype)
        x = self.proj(x)
        t = Tokens(flat(x), keep=None if keep is None else real.flatten(1), pos=pos, grid=(x.shape[2], x.shape[3]))
        return self.encoder(t)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> dict[str, Any]:
        return self.detect(x, keep)

    def detect(self, x: Tensor, keep: Tensor | None = None) -> dict[str, Any]:
        seen = self.tokens(x, keep)
        pos = self.questions()
        t, said = Tokens(torch.zeros_like(pos).expand(x.shape[0], -1, -1), pos=pos).reading(image=seen), []
        for block in self.decoder.blocks:
            t = block(t)
            said.append(self.norm(t.x))
        y = torch.stack(said, 1)  # (B, L, Q, D)
        losses = t.with_losses(seen).losses
        return {"logits": self.classes(y), "boxes": self.boxes(y).sigmoid()} | ({"losses": losses} if losses else {})


MODEL = DETR
TAKES = ("image",)
ROLES = ("detector",)
PARTS = ("backbone",)
DEFAULT = "nano"
TOY = dict(backbone="resnet_toy", width=32, heads=2, hidden=32, depths=(1, 2), queries=5, labels=10)
SMALL = dict(width=128, heads=4, hidden=256, depths=(2, 3), queries=30)
SIZES = {
    "toy": TOY | dict(dropout=0.0),
    "nano": SMALL | dict(backbone="resnet_nano", frozen=False, dropout=0.0),
    "resnet_50": dict(backbone="resnet_50"),
    "resnet_50_dc5": dict(backbone="resnet_50_dc5"),
    "resnet_101": dict(backbone="resnet_101"),
    "resnet_101_dc5": dict(backbone="resnet_101_dc5"),
}

FACEBOOK = dict(
    file="model.safetensors", source="transformers", licence="apache-2.0", transformers=True, image=(800, 800),
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
WEIGHTS = {
    "resnet_50": FACEBOOK | dict(hub="facebook/detr-resnet-50"),
    "resnet_50_dc5": FACEBOOK | dict(hub="facebook/detr-resnet-50-dc5"),
    "resnet_101": FACEBOOK | dict(hub="facebook/detr-resnet-101"),
    "resnet_101_dc5": FACEBOOK | dict(hub="facebook/detr-resnet-101-dc5"),
}

RULES = {
    "transformers": [
        Drop("model.backbone.conv_encoder.model.{rest*}.num_batches_tracked"),
        *under(BODY, "model.backbone.conv_encoder.model.", "backbone."),
        Rename("model.input_projection.{p}", "proj.{p}"),
        Rename("model.query_position_embeddings.weight", "questions.table"),
        *detr_layer("model.encoder.layers.{i}", "encoder.blocks.{i}"),
        *detr_layer("model.decoder.layers.{i}", "decoder.blocks.{i}"),
        *detr_cross("model.decoder.layers.{i}", "decoder.blocks.{i}"),
        Rename("model.decoder.layernorm.{p}", "norm.{p}"),
        Rename("class_labels_classifier.{p}", "classes.{p}"),
        *(Rename(f"bbox_predictor.layers.{n}.{{p}}", f"boxes.{2 * n}.{{p}}") for n in range(3)),
    ]
}
