"""BridgeTower: Building Bridges Between Encoders in Vision-Language Representation Learning. Xu, Wu, Rosenman, Lal,
Che, Duan, 2022. arXiv:2206.08657.

New here: bridges. Above a CLIP ViT and a RoBERTa stand cross-modal layers, in which words ask patches and patches ask
words; into each of them leads one of the towers' top layers, the lowest into the first. A bridge is no more than
LayerNorm(what came up + what that layer says), one for each modality and layer, so that the fusion meets what was seen
and read at every height, and not at the last alone.

Differs: the towers need not be equally deep, as each gives its top layers. RoBERTa's own pooler, which the published
code builds and never asks, is left out; so are bridges that scale or share, which no published weights have. Places are
counted over real words only. An absent modality is a blank that nothing attends to, though its leading token still asks
what is there. Other picture sizes than `image` are read. Losses are the tasks' own: the vector of a pair, which the
publishers contrasted with both sides', is not learnt by them.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, CrossAttention, FeedForward, Layer, QuickGELU, Stack
from plait.core.init import torch_default
from plait.core.precision import wide
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Drop, Lift, Rename, View, under
from plait.errors import PlaitError
from plait.parts.heads.words import WordHead, first_place
from plait.parts.positions.learned import CountedPositions
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, bert_words, open_clip_blocks
from plait.parts.towers.picture import PictureTower

Norm = partial(nn.LayerNorm, eps=1e-5)


class Bridge(nn.Module):
    """Tokens (B, N, D) on their way up, and what a layer of their modality's tower says of them, (B, N, D) -> the
    Tokens that the next cross-modal layer reads."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = Norm(width)

    def forward(self, t: Tokens, said: Tensor) -> Tokens:
        return t.replace(x=self.norm(t.x + said))


class CrossModal(Layer):
    """A layer of each stream, which ask each other at once: a text's Tokens (B, N, D), with the picture's (B, M, D) as
    their context's "image" -> the same after it."""

    reads, gives = ("image",), ("text",)

    def __init__(self, text: Block, image: Block):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="its two streams would share it")
        image = self.image(t.read("image").reading(text=t.replace(context=None, losses=None)))
        text = self.text(t).with_losses(image)
        return text.reading(image=image.replace(context=None, losses=None))


class BridgeTower(nn.Module):
    """A batch of pictures and texts -> one vector that has read both, and what the heads that were built say of it.

    image (the (H, W) that positions are learned for), patch, image_*: the picture's tower. vocab, length (most tokens),
    mask (the id of a hidden word), text_depth: the text's. depth: of the cross-modal layers, as wide and with as many
    heads as the text's. Heads: guess (hidden words), match (does the text belong to the picture?), embed_width (of the
    unit vectors of a picture, a text and a pair; 0 for none).
    """

    takes = ("image", "text")
    fits = ("image", "vocab", "mask")
    scheme = {nn.Conv2d: torch_default}

    def __init__(
        self, *, image=(288, 288), patch=16, image_width=768, image_depth=12, image_heads=12, vocab=50265, length=512,
        mask=50264, width=768, text_depth=12, depth=6, heads=12, dropout=0.1, guess=False, match=False, embed_width=0,
    ):  # fmt: skip
        super().__init__()
        if not 0 < depth <= min(image_depth, text_depth):
            raise PlaitError(
                f"depth: got {depth} cross-modal layers above towers of {image_depth} and {text_depth} layers, "
                "expected one at least, and no more than each tower has layers to bridge from"
            )
        self.width, self.embed_width, self.part_widths = 2 * width, embed_width, {}
        self.depth, self.mask = depth, mask
        self.blanks = {"image": ((3, *image), torch.float32), "text": ((1,), torch.int64)}
        quick = partial(FeedForward, act=QuickGELU)
        eyes = image, patch, image_width, image_depth, image_heads
        self.picture = PictureTower(*eyes, before=True, norm=Norm, feed=quick)
        how = dict(kinds=1, dropout=dropout, positions=CountedPositions)
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, **how)
        layers = partial(post_norm_blocks, norm=Norm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        self.stack = Stack(*layers(width, text_depth, heads, 4 * width))
        self.lift = nn.ModuleDict({"image": nn.Linear(image_width, width), "text": nn.Linear(width, width)})
        self.kind = nn.Parameter(torch.empty(2, width))  # text, image
        self.first = nn.ModuleDict({slot: Norm(width) for slot in self.takes})  # below, nothing comes up yet
        self.bridges = nn.ModuleDict({s: nn.ModuleList(Bridge(width) for _ in range(depth - 1)) for s in self.takes})
        asking = (partial(CrossAttention, dropout=dropout, stream=slot) for slot in self.takes)
        pairs = zip(*(layers(width, depth, heads, 4 * width, cross=cross) for cross in asking))
        self.layers = nn.ModuleList(CrossModal(*pair) for pair in pairs)
        self.dense = nn.ModuleDict({slot: nn.Linear(width, width) for slot in self.takes})
        self.match = nn.Linear(2 * width, 2) if match else None  # fused (B, 2 D) -> (B, 2): no pair, a pair
        self.guess = WordHead(width, vocab, Norm) if guess else None
        self.spoken = nn.Parameter(torch.empty(vocab, width)) if guess else None  # the words are read by another table
        widths = {"image": width, "text": width, "pair": 2 * width} if embed_width else {}
        self.project = nn.ModuleDict({name: nn.Linear(w, embed_width) for name, w in widths.items()})
        self.logit_scale = nn.Parameter(torch.empty(1)) if embed_width else None

    def reset(self) -> None:
        for table in (self.kind, self.spoken):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        if self.logit_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def read(self, batch: dict) -> tuple[dict[str, list[Tokens]], dict[str, list[Tensor]], dict[str, Tensor]]:
        """What each tower's top layers say, `depth` of them, the lowest first: {"image": Tokens (B, 1 + M, C), "text":
        Tokens (B, N, D)}; the same as it comes to the bridges, (B, N, D); and {slot: (B,)} what is present."""
        s = fill_absent(batch, self.blanks)
        image = self.picture.patch_embed(s.values["image"])
        keep = masked(None, s.present["image"], image.x.shape[1])
        image = image.replace(x=self.picture.before(image.x), keep=keep)
        text = self.text_embedding(s.values["text"], s.mask("text"))
        found = {"image": self.top(image, self.picture.stack), "text": self.top(text, self.stack)}
        return found, self.said(found), s.present

    def top(self, t: Tokens, tower: Stack) -> list[Tokens]:
        found = []
        for layer in tower.blocks:
            t = layer(t)
            found.append(t)
        return found[-self.depth :]

    def said(self, found: dict[str, list[Tokens]]) -> dict[str, list[Tensor]]:
        """As wide as the cross-modal layers, and told apart. Pictures are normed, all of their layers by the one last
        norm of their tower; texts are already."""
        image = [self.lift["image"](self.picture.norm(t.x)) + self.kind[1] for t in found["image"]]
        return {"image": image, "text": [self.lift["text"](t.x) + self.kind[0] for t in found["text"]]}

    def cross(self, found: dict[str, list[Tokens]], said: dict[str, list[Tensor]]) -> dict[str, Tokens]:
        """{"image": Tokens (B, 1 + M, D), "text": Tokens (B, N, D)} after the cross-modal layers, the text with the
        losses of all."""
        up = {slot: t[0].replace(x=self.first[slot](said[slot][0]), losses=None) for slot, t in found.items()}
        for k, layer in enumerate(self.layers):
            if k:
                up = {slot: self.bridges[slot][k - 1](t, said[slot][k]) for slot, t in up.items()}
            t = layer(up["text"].reading(image=up["image"]))
            up = {"image": t.read("image"), "text": t.replace(context=None)}
        return up | {"text": up["text"].with_losses(*(t[-1] for t in found.values()))}

    def pool(self, up: dict[str, Tokens]) -> Tensor:
        """(B, 2 D) in [-1, 1], from the leading tokens of the text and the picture."""
        return torch.cat([self.dense[slot](up[slot].x[:, 0]).tanh() for slot in ("text", "image")], -1)

    def vectors(
        self, found: dict[str, list[Tokens]], said: dict[str, list[Tensor]], present: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As `embed`: of a picture what comes to its last bridge, of a text what its tower says."""
        if self.logit_scale is None:
            raise PlaitError("this BridgeTower puts nothing into one space: got embed_width=0, build it with a width")
        first = {"image": said["image"][-1][:, 0], "text": found["text"][-1].x[:, 0]}
        return {slot: self.unit(slot, x) * present[slot][:, None] for slot, x in first.items()}

    def unit(self, name: str, x: Tensor) -> Tensor:
        return F.normalize(wide(self.project[name](x)), dim=-1)

    def words(self, x: Tensor) -> Tensor:
        """(..., D) tokens of the text -> (..., V) logits of the words that stand there; needs the `guess` head."""
        return self.guess(x, self.spoken)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{"image", "text"}: (B, E) unit vectors, each of its tower alone; zeros in rows where the slot is absent."""
        return self.vectors(*self.read(batch))

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, 2 D), "parts": {}, "losses": {name: ()}}, and "vectors" as `embed` where they are built."""
        found, said, present = self.read(batch)
        up = self.cross(found, said)
        out = {"fused": self.pool(up), "parts": {}, "losses": up["text"].losses or {}}
        return out if self.logit_scale is None else out | {"vectors": self.vectors(found, said, present)}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, 2 D); and for each head: match (B, 2) logits, words (B, V) logits of what stands in each row's
        first hidden place (its leading token where nothing is hidden), image, text and pair (B, E) unit vectors and
        logit_scale (1,)."""
        found, said, present = self.read(batch)
        up = self.cross(found, said)
        out = {"fused": self.pool(up)}
        if self.match is not None:
            out["match"] = self.match(out["fused"])
        if self.guess is not None:
            s = fill_absent(batch, self.blanks)
            hidden = (s.values["text"] == self.mask) & s.mask("text")
            out["words"] = self.words(first_place(up["text"].x, hidden))
        if self.logit_scale is not None:
            out |= {**self.vectors(found, said, present), "pair": self.unit("pair", out["fused"])}
            out["logit_scale"] = self.logit_scale
        return out


VISUAL, WORDS = "vision_model.visual", "text_model"
CROSS = ("image", "text")
ENCODER = [
    View(f"{VISUAL}.embeddings.class_embedding", "picture.patch_embed.cls", (1, 1, -1), (-1,)),
    Lift(f"{VISUAL}.embeddings.position_embedding.weight", "picture.patch_embed.positions.table"),
    Rename(f"{VISUAL}.embeddings.patch_embedding.weight", "picture.patch_embed.stem.proj.weight"),
    Rename(f"{VISUAL}.ln_pre.{{p}}", "picture.before.{p}"),
    *open_clip_blocks(f"{VISUAL}.transformer.resblocks.{{i}}", "picture.stack.blocks.{i}"),
    Rename(f"{VISUAL}.ln_post.{{p}}", "picture.norm.{p}"),
    Drop(f"{VISUAL}.embeddings.position_ids"),
    *bert_input(f"{WORDS}.embeddings"),
    *bert_layers(f"{WORDS}.encoder.layer.{{i}}"),
    Drop(f"{WORDS}.pooler.dense.{{p}}"),
    Rename("token_type_embeddings.weight", "kind"),
    *(Rename(f"cross_modal_{slot}_transform.{{p}}", f"lift.{slot}.{{p}}") for slot in CROSS),
    *(Rename(f"cross_modal_{slot}_layernorm.{{p}}", f"first.{slot}.{{p}}") for slot in CROSS),
    *(Rename(f"cross_modal_{s}_link_tower.{{i}}.LayerNorm.{{p}}", f"bridges.{s}.{{i}}.norm.{{p}}") for s in CROSS),
    *(rule for s in CROSS for rule in bert_layers(f"cross_modal_{s}_layers.{{i}}", f"layers.{{i}}.{s}")),
    *(Rename(f"cross_modal_{slot}_pooler.dense.{{p}}", f"dense.{slot}.{{p}}") for slot in CROSS),
]
HEADS = [
    Rename("itm_score.fc.{p}", "match.{p}"),
    *bert_words("mlm_score.transform", "guess"),
    Rename("mlm_score.decoder.weight", "spoken"),
    Rename("mlm_score.bias", "guess.bias"),
    *(Rename(f"itc_{slot}_head.fc.{{p}}", f"project.{slot}.{{p}}") for slot in CROSS),
    Rename("itc_cross_modal_head.fc.{p}", "project.pair.{p}"),
    Lift("logit_scale", "logit_scale"),
]
RULES = {
    "transformers": ENCODER + HEADS,  # BridgeTowerModel
    "transformers_whole": [*under(ENCODER, "bridgetower."), *HEADS],  # BridgeTowerFor... any task
}

MODEL = BridgeTower
TAKES = ("image", "text")
ROLES = ("embedder", "fuser")
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=8, image_width=32, image_depth=3, image_heads=2, vocab=64, length=16, mask=4)
TOY_TEXT = dict(width=48, text_depth=3, depth=2, heads=4, dropout=0.0, guess=True, match=True, embed_width=16)
NANO = dict(image=(64, 64), patch=8, image_width=192, image_depth=6, image_heads=3, vocab=8192, length=128, mask=4)
LARGE_EYES = dict(image=(294, 294), patch=14, image_width=1024, image_depth=24, image_heads=16)
LARGE = LARGE_EYES | dict(width=1024, text_depth=24, heads=16)
PAIRS = dict(guess=True, match=True)
SIZES = {
    "toy": TOY | TOY_TEXT,
    "nano": NANO | dict(width=192, text_depth=4, depth=3, heads=3, embed_width=128),
    "base": dict(),
    "base_itm_mlm": PAIRS,
    "large_itm_mlm": LARGE | PAIRS,
    "large_itm_mlm_gaudi": LARGE | PAIRS,
    "large_itm_mlm_itc": LARGE | dict(embed_width=512),
}
SIZE_ROLES = {
    "base": ("fuser",),
    "base_itm_mlm": ("fuser",),
    "large_itm_mlm": ("fuser",),
    "large_itm_mlm_gaudi": ("fuser",),
}
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crop_pct=1.0)
READ = dict(tokenizer="FacebookAI/roberta-base/tokenizer.json", begin=0, end=2, max_tokens=50)
FILE = SEEN | READ | dict(source="transformers_whole", licence="mit", transformers=True)
WEIGHTS = {
    "base": FILE | dict(hub="BridgeTower/bridgetower-base", source="transformers"),
    "base_itm_mlm": FILE | dict(hub="BridgeTower/bridgetower-base-itm-mlm"),
    "large_itm_mlm": FILE | dict(hub="BridgeTower/bridgetower-large-itm-mlm"),
    "large_itm_mlm_gaudi": FILE | dict(hub="BridgeTower/bridgetower-large-itm-mlm-gaudi"),
    "large_itm_mlm_itc": FILE | dict(hub="BridgeTower/bridgetower-large-itm-mlm-itc"),
}
