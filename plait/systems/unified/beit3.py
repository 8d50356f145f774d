"""Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks. Wang et al., 2022.
arXiv:2208.10442.

New here: the multiway transformer. In every layer a picture's patches and a text's words pass through experts of their
own (norms, projections, feed-forward) and meet in one attention. So one network is a picture encoder, a text encoder,
two towers for retrieval, or a reader of both, by which tokens are put in: a picture alone never touches the experts of
words. Each layer norms twice more than usual.

Differs: two pictures beside one text are read one by one, each with the text. A caption is written as the official code
does, by asking a masked word at the next place what stands there; such words are remembered by nobody. The picture's
mask token and the targets of pre-training are not here, nor the first two positions of the public layout, which nothing
reads: coming back they are zeros. The paper's third kind of experts, of pictures with words in the last layers, is in
no public weights and not here. Other picture sizes than `image` are read. An absent text or picture is a blank that
nothing attends to.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import DropPath, Pre, Stack, drop_rates
from plait.core.memory import Memory
from plait.core.tokens import Tokens, by_kind, join
from plait.core.weights import Drop, Join, Lift, Rename, Rule
from plait.errors import PlaitError
from plait.parts.heads.answers import answer_head
from plait.parts.positions.learned import SequencePositions
from plait.parts.presence import Blank, fill_absent, masked
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.multiway import Expert, Multiway
from plait.systems.pairs.git import Cache
from plait.systems.vision.vit_beit3 import Norm, SubAttention, SubFeedForward


def expert(width: int, heads: int, drop: float) -> Expert:
    """One modality's half of a layer."""
    feed = Pre(Norm(width), SubFeedForward(width, 4 * width), DropPath(drop))
    return Expert(SubAttention(width, heads), feed, norm=Norm(width), after=DropPath(drop))


def words(module: nn.Embedding) -> None:
    nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


def pair_head(width: int, answers: int) -> nn.Module:
    """What was read of both pictures, (B, 4 D) -> logits (B, K); named as published."""
    layers = dict(norm1=nn.LayerNorm(4 * width), dense1=nn.Linear(4 * width, 2 * width), norm2=nn.LayerNorm(2 * width))
    return nn.Sequential(OrderedDict(layers | dict(act=nn.GELU(), dense2=nn.Linear(2 * width, answers))))


class BEiT3(nn.Module):
    """A batch of pictures and texts -> a vector of each alone, one that has read both, and what the heads that were
    built say of it.

    image: the (H, W) that positions are learned for. length: most tokens of a text. embed: with heads for retrieval.
    answers: how many, 0 for no such head. captions: with scores of words. normed: the last layer's tokens are normed.
    pair: two pictures are read beside a text, image_0 and image_1; what is fused is (B, 4 D), of each picture the class
    token and the text's first. begin, end: the ids that a caption starts and ends with; mask: of a masked word.
    """

    takes = ("image", "text")
    fits = ("image", "vocab", "mask")
    scheme = {nn.Embedding: words}

    def __init__(
        self, *, image=(224, 224), patch=16, vocab=64010, length=1022, width, depth, heads, drop_path=0.0,
        embed=True, answers=0, captions=False, normed=True, pair=False, begin=0, end=2, mask=64001,
    ):  # fmt: skip
        super().__init__()
        self.eyes = ("image_0", "image_1") if pair else ("image",)
        self.takes, kinds = (*self.eyes, "text"), ("image", "text")
        self.width, self.part_widths, self.embed_width = 4 * width if pair else width, {}, width
        self.begin, self.end, self.mask, self.length = begin, end, mask, length - 1  # the last place asks for a word
        self.blanks: dict[str, Blank] = {eye: ((3, *image), torch.float32) for eye in self.eyes}
        self.blanks["text"] = ((1,), torch.int64)
        self.patch_embed = PatchEmbed(PatchTokens(width, patch), (image[0] // patch, image[1] // patch), width)
        self.words, self.places = WordTokens(vocab, width), SequencePositions(length, width)
        drops = drop_rates(drop_path, depth)
        self.layers = Stack(
            *(Multiway({slot: expert(width, heads, d) for slot in kinds}, causal=captions) for d in drops)
        )
        self.norms = nn.ModuleDict({slot: Norm(width) if normed else nn.Identity() for slot in kinds})
        projections = {slot: nn.Linear(width, width, bias=False) for slot in kinds}
        self.project = nn.ModuleDict(projections) if embed else None
        self.logit_scale = nn.Parameter(torch.empty(1)) if embed else None
        pools = answers > 0 and not pair
        self.pooler = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) if pools else None
        self.answer = (pair_head if pair else answer_head)(width, answers) if answers else None
        self.caption = nn.Linear(width, vocab) if captions else None

    def reset(self) -> None:
        if self.logit_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def inputs(self, batch: dict) -> tuple[dict[str, Tokens], dict[str, Tensor]]:
        """{"image": Tokens (B, 1 + M, D), "text": Tokens (B, N, D)} before the first layer, masked; and {slot: (B,)}
        what is present. Of pairs 2 B rows: those of the first pictures, then those of the second."""
        s = fill_absent(batch, self.blanks)
        text, keep = self.places(self.words(s.values["text"])), s.mask("text")
        text = text.replace(x=text.x * keep[..., None], keep=keep)
        pixels, present = [s.values[eye] for eye in self.eyes], [s.present[eye] for eye in self.eyes]
        if len(pixels) > 1:
            text = text.replace(x=torch.cat([text.x, text.x]), keep=torch.cat([keep, keep]))
            pixels, present = [torch.cat(pixels)], [torch.cat(present)]
        image = self.patch_embed(pixels[0])
        return {"image": image.replace(keep=masked(None, present[0], image.x.shape[1])), "text": text}, s.present

    def read(self, streams: dict[str, Tokens], ahead: Tensor | None = None) -> dict[str, Tokens]:
        """The streams after all layers, each with the losses of all, each token having read all that are there. ahead:
        (N, N) bool, who may attend to whom at all."""
        t = join(*streams.values(), kinds=tuple(streams))
        if ahead is None and self.caption is not None:
            ahead = t.x.new_ones(t.x.shape[1], t.x.shape[1], dtype=torch.bool)
        t = self.layers(t if ahead is None else t.reading(allow=ahead))
        return {kind: s.replace(x=self.norms[kind](s.x), losses=t.losses) for kind, s in by_kind(t).items()}

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{"image": (B, D), "text": (B, D)} unit vectors, each read alone; zeros in rows where the slot is absent."""
        streams, present = self.inputs(batch)
        found = {slot: self.project[slot](self.read({slot: t})[slot].x[:, 0]) for slot, t in streams.items()}
        return {slot: F.normalize(v, dim=-1) * present[slot][:, None] for slot, v in found.items()}

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the picture's class token, which has read patches and
        words; (B, 4 D) of a pair."""
        found = self.read(self.inputs(batch)[0])
        first = found["image"].x[:, 0]
        if len(self.eyes) > 1:
            both = torch.cat([first, found["text"].x[:, 0]], -1).unflatten(0, (2, -1))  # (2, B, 2 D)
            first = both.transpose(0, 1).flatten(1)
        fused = first if self.pooler is None else self.pooler(first)
        return {"fused": fused, "parts": {}, "losses": found["image"].losses or {}}

    def next_words(self, batch: dict) -> tuple[Tensor, Tensor]:
        """(B, N, V) scores of the word after each place of the text, which has read the picture and the words up to
        there; and which of these places are real, (B, N)."""
        streams = self.inputs(batch)[0]
        m, n = (t.x.shape[1] for t in streams.values())
        ahead = torch.ones(m + n, m + n, dtype=torch.bool, device=streams["text"].x.device).tril()
        ahead[:m, :m] = True
        return self.caption(self.read(streams, ahead)["text"].x), streams["text"].keep

    def prefill(self, batch: dict) -> Cache:
        """Read the picture and, where there is one, the text so far."""
        s = fill_absent(batch, self.blanks)
        t = self.patch_embed(s.values["image"])
        m, keep = t.x.shape[1], masked(None, s.present["image"], t.x.shape[1])
        all_seen = torch.ones(m, m, dtype=torch.bool, device=t.x.device)
        t = t.replace(keep=keep, kinds=(("image", m),), memory=Memory()).reading(allow=all_seen)
        cache = Cache(self.layers(t).memory, torch.zeros_like(keep[:, 0], dtype=torch.int64))
        if "text" not in batch:
            return cache
        return self.step(s.values["text"], cache, s.mask("text"))[1]

    def step(self, tokens: Tensor, cache: Cache, keep: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The next words (B, N), one or many, keep (B, N) -> (B, N, V) logits of the word after each, and the cache
        with them in it. After each word a masked one asks, which sees the words up to there and is seen by none."""
        if self.caption is None:
            raise PlaitError("this BEiT-3 writes no captions: got captions=False, build it with captions=True")
        n = tokens.shape[1]
        if n > self.length:
            raise PlaitError(f"a text of {n} tokens, but places for {self.length}: cut it or build a longer model")
        keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
        places = (cache.words[:, None] + keep.cumsum(1) - 1).clamp(min=0)
        ids = torch.cat([tokens, torch.full_like(tokens, self.mask)], 1)
        x = self.places(self.words(ids), torch.cat([places, places + 1], 1)).x
        past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        allow = torch.cat([torch.cat([past, past & ~past], 1), torch.cat([past, past & past.mT], 1)])
        real = torch.cat([keep, keep], 1)
        t = Tokens(x * real[..., None], keep=real, kinds=(("text", 2 * n),), memory=cache.memory).reading(allow=allow)
        t = self.layers(t)
        logits = self.caption(self.norms["text"](t.x[:, n:]))
        return logits, Cache(t.memory.without_last(n), cache.words + keep.sum(1))

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, D), and for each head that was built: image and text (B, D), logit_scale (1,); answer (B, K); words
        (B, V), the scores of the word after the text."""
        out = {"fused": self.fuse(batch)["fused"]}
        if self.project is not None:
            out |= {**self.embed(batch), "logit_scale": self.logit_scale}
        if self.answer is not None:
            out["answer"] = self.answer(out["fused"])
        if self.caption is not None:
            words, keep = self.next_words(batch)
            rows, places = (torch.arange(n, device=words.device) for n in words.shape[:2])
            out["words"] = words[rows, (keep * places).amax(1)]
        return out


BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
I384 = dict(image=(384, 384))
I480 = dict(image=(480, 480))
VQA = dict(embed=False, answers=3129, normed=False)
WORDS = dict(embed=False, captions=True)
PAIR = dict(embed=False, pair=True)
NLVR2 = PAIR | dict(answers=2)
NANO = dict(image=(64, 64), patch=8, vocab=8192, length=128, width=128, depth=6, heads=4, drop_path=0.1)

MODEL = BEiT3
TAKES = ("image", "text")
ROLES = ("fuser", "embedder", "generator")
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=8, vocab=64, length=32, begin=2, end=3, mask=4)
SIZES = {
    "toy": TOY | dict(width=32, depth=2, heads=2, answers=7, captions=True),
    "nano": NANO,
    "nano_nlvr2": NANO | PAIR,
    "base_patch16_224_retrieval": BASE,
    "base_patch16_384_retrieval": BASE | I384,
    "large_patch16_384_retrieval": LARGE | I384,
    "base_patch16_384_vqav2": BASE | I384 | VQA,
    "base_patch16_480_vqav2": BASE | I480 | VQA,
    "large_patch16_384_vqav2": LARGE | I384 | VQA,
    "large_patch16_480_vqav2": LARGE | I480 | VQA,
    "large_patch16_768_vqav2": LARGE | VQA | dict(image=(768, 768)),
    "base_patch16_224_captioning": BASE | WORDS,
    "base_patch16_480_captioning": BASE | I480 | WORDS,
    "large_patch16_480_captioning": LARGE | I480 | WORDS,
    "base_patch16_224_nlvr2": BASE | NLVR2,
    "large_patch16_224_nlvr2": LARGE | NLVR2,
}
PAIRS = ("fuser", "embedder")
FUSER = ("fuser",)
WRITER = ("fuser", "generator")
TWO = ("image", "image", "text")
SIZE_TAKES = {
    "nano_nlvr2": TWO,
    "base_patch16_224_nlvr2": TWO,
    "large_patch16_224_nlvr2": TWO,
}
SIZE_ROLES = {
    "nano": PAIRS,
    "nano_nlvr2": FUSER,
    "base_patch16_224_retrieval": PAIRS,
    "base_patch16_384_retrieval": PAIRS,
    "large_patch16_384_retrieval": PAIRS,
    "base_patch16_384_vqav2": FUSER,
    "base_patch16_480_vqav2": FUSER,
    "large_patch16_384_vqav2": FUSER,
    "large_patch16_480_vqav2": FUSER,
    "large_patch16_768_vqav2": FUSER,
    "base_patch16_224_captioning": WRITER,
    "base_patch16_480_captioning": WRITER,
    "large_patch16_480_captioning": WRITER,
    "base_patch16_224_nlvr2": FUSER,
    "large_patch16_224_nlvr2": FUSER,
}
URL = "https://github.com/addf400/files/releases/download/beit3/"
TOKENS = dict(tokenizer="https://github.com/addf400/files/releases/download/beit3/beit3.spm", begin=0, end=2)
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
OFFICIAL = TOKENS | HALF | dict(source="official", licence="mit", crop_pct=1.0, crop_mode="squash")
WEIGHTS = {
    "base_patch16_224_retrieval": OFFICIAL | dict(url=URL + "beit3_base_itc_patch16_224.pth"),
    "base_patch16_384_retrieval": OFFICIAL | dict(url=URL + "beit3_base_patch16_384_coco_retrieval.pth"),
    "large_patch16_384_retrieval": OFFICIAL | dict(url=URL + "beit3_large_patch16_384_coco_retrieval.pth"),
    "base_patch16_384_vqav2": OFFICIAL | dict(github="microsoft/unilm beit3_base_patch16_384_vqav2"),
    "base_patch16_480_vqav2": OFFICIAL | dict(url=URL + "beit3_base_indomain_patch16_480_vqa.pth"),
    "large_patch16_384_vqav2": OFFICIAL | dict(github="microsoft/unilm beit3_large_patch16_384_vqav2"),
    "large_patch16_480_vqav2": OFFICIAL | dict(url=URL + "beit3_large_indomain_patch16_480_vqa.pth"),
    "large_patch16_768_vqav2": OFFICIAL | dict(url=URL + "beit3_large_indomain_patch16_768_vgqaaug_vqa.pth"),
    "base_patch16_224_captioning": OFFICIAL | dict(github="microsoft/unilm beit3_base_patch16_224_captioning"),
    "base_patch16_480_captioning": OFFICIAL | dict(url=URL + "beit3_base_patch16_480_coco_captioning.pth"),
    "large_patch16_480_captioning": OFFICIAL | dict(url=URL + "beit3_large_patch16_480_coco_captioning.pth"),
    "base_patch16_224_nlvr2": OFFICIAL | dict(url=URL + "beit3_base_patch16_224_nlvr2.pth"),
    "large_patch16_224_nlvr2": OFFICIAL | dict(url=URL + "beit3_large_patch16_224_nlvr2.pth"),
}


def _places(public: str, ours: str) -> Rule:
    """A table of positions whose first two rows nothing reads."""
    view = (lambda x: x[None]) if "patch_embed" in ours else (lambda x: x)
    return Rule(
        (public,), (ours,), lambda ts: [view(ts[0][2:])], lambda ts: [F.pad(ts[0].flatten(0, -2), (0, 0, 2, 0))]
    )


THEIRS, OURS = "beit3.encoder.layers.{i}", "layers.blocks.{i}.experts"
EXPERT = [  # what stands before an expert's letter there and after it, and ours
    ("self_attn.out_proj", "", "mix.out"),
    ("self_attn.inner_attn_ln", "", "mix.norm"),
    ("self_attn_layer_norm", "", "norm"),
    ("ffn", "fc1.", "feed.f.up"),
    ("ffn", "fc2.", "feed.f.down"),
    ("ffn", "ffn_layernorm.", "feed.f.norm"),
    ("final_layer_norm", "", "feed.norm"),
]
EXPERTS = {"A": "image", "B": "text"}
RULES = {
    "official": [
        Drop("beit3.vision_embed.mask_token"),
        Rename("beit3.vision_embed.cls_token", "patch_embed.cls"),
        Rename("beit3.vision_embed.proj.{p}", "patch_embed.stem.proj.{p}"),
        _places("beit3.encoder.embed_positions.A.weight", "patch_embed.positions.table"),
        Rename("beit3.text_embed.weight", "words.table.weight"),
        _places("beit3.encoder.embed_positions.B.weight", "places.table"),
        *(
            Join([f"{THEIRS}.self_attn.{n}_proj.{a}.{{p}}" for n in "qkv"], f"{OURS}.{slot}.mix.qkv.{{p}}")
            for a, slot in EXPERTS.items()
        ),
        *(
            Rename(f"{THEIRS}.{before}.{a}.{after}{{p}}", f"{OURS}.{slot}.{ours}.{{p}}")
            for a, slot in EXPERTS.items()
            for before, after, ours in EXPERT
        ),
        *(Rename(f"beit3.encoder.layer_norm.{a}.{{p}}", f"norms.{slot}.{{p}}") for a, slot in EXPERTS.items()),
        Lift("logit_scale", "logit_scale"),
        Rename("vision_head.weight", "project.image.weight"),
        Rename("language_head.weight", "project.text.weight"),
        Rename("pooler.norm.{p}", "pooler.0.{p}"),
        Rename("pooler.dense.{p}", "pooler.1.{p}"),
        Rename("head.{p*}", "answer.{p*}"),
        Rename("mlm_head.{p}", "caption.{p}"),
    ]
}
