"""LXMERT: Learning Cross-Modality Encoder Representations from Transformers. Tan, Bansal, 2019. arXiv:1908.07490.

New here: a picture is a set of things, each a vector and a box. One transformer relates them to each other, another
reads the text, and then both streams grow together: in each layer words ask things and things ask words through one
cross-attention with one set of weights, then each stream attends to itself. Training hides words and things, exchanges
texts, and asks questions (`parts/objectives/two_streams.py`).

Differs: things come from a picture system named in the row (`vision`): the places of its coarsest map, their cells as
boxes. Published sizes have none, since nobody's places are the detector's regions that they were trained on: to those
who call them from Python they read batch["regions"] (B, R, C) and batch["boxes"] (B, R, 4), and of a table the text.
Hidden things are zeros, and they alone are asked what they are, as the paper says; the official code leaves a tenth of
them, exchanges another, and asks all things for their labels. Where the paper takes one of several answers by chance,
the answer is given. An absent picture or text is a blank that nothing attends to; the text's leading token asks the
picture all the same.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, Layer, Post, Stack
from plait.core.tokens import Tokens, mean, quiet, refuse
from plait.core.weights import Join, Rename, Rule, Tied, under
from plait.errors import PlaitError
from plait.parts.heads.words import WordHead, first_place
from plait.parts.maps import flat
from plait.parts.objectives import two_streams
from plait.parts.presence import Blank, fill_absent, masked
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, bert_words
from plait.parts.towers.levels import blanked, eyes, real_places

Norm = partial(nn.LayerNorm, eps=1e-12)


class RegionTokens(nn.Module):
    """Regions (B, R, C), pos: their boxes ((B,) R, 4) -> Tokens (B, R, D): the mean of what both say, each normed."""

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        self.what, self.what_norm = nn.Linear(features, width), Norm(width)
        self.where, self.where_norm = nn.Linear(4, width), Norm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, t: Tokens) -> Tokens:
        x = self.what_norm(self.what(quiet(t))) + self.where_norm(self.where(t.pos))
        return t.replace(x=self.drop(x / 2), pos=None)


class TwoWays(Layer):
    """Words (B, N, D), the regions (B, R, D) in their context -> the words, and in a context of their own the regions:
    each stream asks the other as it was before, through the same weights, then attends to itself."""

    reads, gives = ("regions",), ("other",)

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        cross = CrossAttention(width, heads, dropout=dropout, stream="other")
        self.ask = Post(Norm(width), cross, nn.Dropout(dropout))
        self.words, self.regions = layers(width, 2, heads, dropout)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="regions grow with the words, and a memory of them would be of other words")
        seen, context = t.read("regions"), t.context
        words = self.words(self.ask(t.reading(other=seen)).replace(context=context))
        regions = self.regions(self.ask(seen.reading(other=t)).replace(context=seen.context))
        return words.reading(regions=regions.replace(losses=None)).with_losses(regions)


def layers(width: int, depth: int, heads: int, dropout: float) -> list:
    """BERT's."""
    mix = partial(Attention, dropout=dropout)
    return post_norm_blocks(width, depth, heads, 4 * width, norm=Norm, mix=mix, dropout=dropout)


class RegionHead(nn.Module):
    """Regions (..., D) -> {name: (..., K)}: what stands there, said in several ways by one hidden layer. counts: {name:
    K}, none with 0."""

    def __init__(self, width: int, counts: dict[str, int]):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), Norm(width)
        self.say = nn.ModuleDict({name: nn.Linear(width, count) for name, count in counts.items() if count})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.norm(nn.functional.gelu(self.dense(x)))
        return {name: say(x) for name, say in self.say.items()}


def answer_head(width: int, answers: int) -> nn.Sequential:
    """Fused features (B, D) -> logits (B, K); ViLT's has the norm before the activation."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), Norm(2 * width), nn.Linear(2 * width, answers))


def cells(x: Tensor) -> Tensor:
    """(h w, 4): left, top, right, bottom of each place of a map (B, C, h, w), as shares of it."""
    h, w = x.shape[2:]
    top, left = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    y, x0 = (side.to(x.dtype) for side in (top, left))
    sides = (x0 / w, y[:, None] / h, (x0 + 1) / w, (y[:, None] + 1) / h)
    return flat(torch.stack([side.expand(h, w) for side in sides])[None])[0]


class LXMERT(nn.Module):
    """A batch of pictures, or regions, and texts -> one vector that has read both, and what its heads say of it.

    vision: a model whose coarsest map is read; None: regions are given, of C = `features`. vocab, length (most tokens),
    mask (the id of a hidden word): the texts. depths: of the layers that read, that relate regions, and that do both.
    Heads: guess (hidden words, a region's features, and whether the two belong together), objects, attributes (how many
    a region may be or have), answers (how many to a question); none with 0.
    """

    takes: tuple[str, ...] = ("image", "text")
    fits = ("vocab", "mask")

    def __init__(
        self, *, vision=None, features=2048, vocab=30522, length=512, mask=103, width=768, depths=(9, 5, 5), heads=12,
        dropout=0.1, guess=True, objects=1600, attributes=400, answers=9500,
    ):  # fmt: skip
        super().__init__()
        self.width, self.part_widths, self.vocab, self.mask = width, {}, vocab, mask
        self.blanks: dict[str, Blank] = {"text": ((1,), torch.int64)}
        if vision is None:
            self.takes = ("text",)
            self.blanks |= {"regions": ((1, features), torch.float32), "boxes": ((1, 4), torch.float32)}
        else:
            features, side = eyes(vision, False)[-1], -(-32 // vision.multiple) * vision.multiple
            self.blanks["image"] = ((3, side, side), torch.float32)
        self.vision = vision
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, dropout=dropout)
        self.region_tokens = RegionTokens(features, width, dropout)
        self.reader, self.relate = (Stack(*layers(width, depth, heads, dropout)) for depth in depths[:2])
        self.fusion = Stack(*(TwoWays(width, heads, dropout) for _ in range(depths[2])), gives=("regions",))
        self.pooler = nn.Linear(width, width)
        self.guess = WordHead(width, vocab, Norm) if guess else None
        self.match = nn.Linear(width, 2) if guess else None  # fused (B, D) -> (B, 2): no pair, a pair
        counts = {"objects": objects, "attributes": attributes, "features": features if guess else 0}
        self.regions = RegionHead(width, counts) if any(counts.values()) else None
        self.answer = answer_head(width, answers) if answers else None

    def open(self, batch: dict) -> tuple[Tensor, Tensor, Tokens]:
        """What a batch holds, blanks where it lacks something: ids (B, N), keep (B, N), regions (B, R, C) with their
        boxes, left, top, right, bottom as shares of the picture, as pos."""
        s = fill_absent(batch, self.blanks)
        ids, keep = s.values["text"], s.mask("text")
        if self.vision is None:
            x, boxes, c = s.values["regions"], s.values["boxes"], self.blanks["regions"][0][1]
            if ("regions" in batch) != ("boxes" in batch) or x.shape[2] != c or boxes.shape != (*x.shape[:2], 4):
                told = ", ".join(f"{name} {tuple(batch[name].shape)}" for name in ("regions", "boxes") if name in batch)
                raise PlaitError(f"got {told}: expected regions (B, R, {c}), and boxes (B, R, 4) for them")
            return ids, keep, Tokens(x, keep=s.mask("regions"), pos=boxes)
        pixels = s.keep.get("image")
        x, _ = self.vision.features(blanked(s.values["image"], pixels), pixels)[-1]
        real = real_places(x, pixels).flatten(1)
        return ids, keep, Tokens(flat(x), keep=masked(real, s.present["image"], real.shape[1]), pos=cells(x))

    def meet(self, ids: Tensor, keep: Tensor, regions: Tokens, kinds: Tensor | None = None) -> tuple[Tokens, Tokens]:
        """The words (B, N, D) and the regions (B, R, D) after they have met. kinds (B, N): of the text's segments."""
        seen = self.relate(self.region_tokens(regions))
        t = self.reader(self.text_embedding(ids, keep, kinds)).reading(regions=seen)
        t = self.fusion(t)
        return t.replace(context=None), t.read("regions")

    def pool(self, t: Tokens) -> Tensor:
        """(B, D) in [-1, 1], from the words' leading token."""
        return self.pooler(t.x[:, 0]).tanh()

    def words(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) logits of the words that stand there; needs the `guess` head."""
        return self.guess(x, self.text_embedding.table)

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}."""
        t, _ = self.meet(*self.open(batch))
        return {"fused": self.pool(t), "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, D); and for each head: words (B, V), what stands in each row's first hidden place (its leading
        token where nothing is hidden); match (B, 2); features (B, C), objects, attributes (B, K), what all regions
        together are; answer (B, K)."""
        ids, keep, regions = self.open(batch)
        t, seen = self.meet(ids, keep, regions)
        out = {"fused": self.pool(t)}
        if self.guess is not None and self.match is not None:
            out["words"] = self.words(first_place(t.x, (ids == self.mask) & keep))
            out["match"] = self.match(out["fused"])
        if self.regions is not None:
            out |= self.regions(mean(seen))
        if self.answer is not None:
            out["answer"] = self.answer(out["fused"])
        return out


objective = two_streams.objective

CROSS, OURS = "encoder.x_layers.{i}", "fusion.blocks.{i}"


def _stream(theirs: str, ours: str) -> list[Rule]:
    """One stream's own part of a layer that both pass."""
    return [
        Join([f"{theirs}_self_att.self.{n}.{{p}}" for n in ("query", "key", "value")], f"{ours}.mix.f.qkv.{{p}}"),
        Rename(f"{theirs}_self_att.output.dense.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}_self_att.output.LayerNorm.{{p}}", f"{ours}.mix.norm.{{p}}"),
        Rename(f"{theirs}_inter.dense.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}_output.dense.{{p}}", f"{ours}.feed.f.down.{{p}}"),
        Rename(f"{theirs}_output.LayerNorm.{{p}}", f"{ours}.feed.norm.{{p}}"),
    ]


ENCODER = [
    *bert_input("embeddings"),
    Rename("encoder.visn_fc.visn_fc.{p}", "region_tokens.what.{p}"),
    Rename("encoder.visn_fc.visn_layer_norm.{p}", "region_tokens.what_norm.{p}"),
    Rename("encoder.visn_fc.box_fc.{p}", "region_tokens.where.{p}"),
    Rename("encoder.visn_fc.box_layer_norm.{p}", "region_tokens.where_norm.{p}"),
    *bert_layers("encoder.layer.{i}", "reader.blocks.{i}"),
    *bert_layers("encoder.r_layers.{i}", "relate.blocks.{i}"),
    Rename(f"{CROSS}.visual_attention.att.query.{{p}}", f"{OURS}.ask.f.q.{{p}}"),
    Join([f"{CROSS}.visual_attention.att.{n}.{{p}}" for n in ("key", "value")], f"{OURS}.ask.f.kv.{{p}}"),
    Rename(f"{CROSS}.visual_attention.output.dense.{{p}}", f"{OURS}.ask.f.out.{{p}}"),
    Rename(f"{CROSS}.visual_attention.output.LayerNorm.{{p}}", f"{OURS}.ask.norm.{{p}}"),
    *_stream(f"{CROSS}.lang", f"{OURS}.words"),
    *_stream(f"{CROSS}.visn", f"{OURS}.regions"),
    Rename("pooler.dense.{p}", "pooler.{p}"),
]
HEADS = [
    *bert_words("cls.predictions.transform", "guess"),
    Rename("cls.predictions.bias", "guess.bias"),
    Rename("cls.seq_relationship.{p}", "match.{p}"),
    Rename("obj_predict_head.transform.dense.{p}", "regions.dense.{p}"),
    Rename("obj_predict_head.transform.LayerNorm.{p}", "regions.norm.{p}"),
    Rename("obj_predict_head.decoder_dict.obj.{p}", "regions.say.objects.{p}"),
    Rename("obj_predict_head.decoder_dict.attr.{p}", "regions.say.attributes.{p}"),
    Rename("obj_predict_head.decoder_dict.feat.{p}", "regions.say.features.{p}"),
    Rename("answer_head.logit_fc.{i}.{p}", "answer.{i}.{p}"),
    Rename("vision.{rest*}", "vision.{rest*}"),  # which no published layout has
]
WHOLE = [*under(ENCODER, "lxmert."), *HEADS]
WORDS = ["cls.predictions.decoder.weight", "lxmert.embeddings.word_embeddings.weight"]
RULES = {
    "transformers": ENCODER + HEADS,  # LxmertModel
    "transformers_pretraining": [Tied(WORDS, "text_embedding.words.table.weight"), *WHOLE],
    "transformers_answers": WHOLE,  # LxmertForQuestionAnswering
}

MODEL = LXMERT
TAKES = ("image", "text")
ROLES = ("fuser",)
PARTS = {"vision": ("dilated",)}
DEFAULT = "nano"
TOY = dict(vision="resnet_toy", dilated=True, vocab=64, length=16, mask=4, width=32, depths=(2, 1, 2), heads=2)
NANO = dict(vision="resnet_nano", dilated=True, vocab=8192, length=128, mask=4, width=192, depths=(3, 2, 2), heads=3)
ANSWERS = dict(guess=False, objects=0, attributes=0)
SIZES = {
    "toy": TOY | dict(dropout=0.0, objects=6, attributes=5, answers=7),
    "nano": NANO | dict(objects=0, attributes=0, answers=0),
    "base_uncased": dict(),
    "vqa_uncased": ANSWERS | dict(answers=3129),
    "gqa_uncased": ANSWERS | dict(answers=1842),
}
SIZE_TAKES = {  # of a table: regions are given from Python
    "base_uncased": ("text",),
    "vqa_uncased": ("text",),
    "gqa_uncased": ("text",),
}
TOKENS = dict(tokenizer="unc-nlp/lxmert-base-uncased/tokenizer.json", begin=101, end=102)
UNC = TOKENS | dict(source="transformers_answers", licence="none stated", transformers=True)
WEIGHTS = {
    "base_uncased": UNC | dict(hub="unc-nlp/lxmert-base-uncased", source="transformers_pretraining"),
    "vqa_uncased": UNC | dict(hub="unc-nlp/lxmert-vqa-uncased"),
    "gqa_uncased": UNC | dict(hub="unc-nlp/lxmert-gqa-uncased"),
}
