"""What matters when building vision-language models? Laurençon, Tronchon, Cord, Sanh, 2024. arXiv:2405.02246.

New here: what was left of a hundred comparisons. SigLIP's tower reads each picture in its own shape; a gated layer
brings its patches to the width of the words, of which 64 learned vectors gather what there is (three layers of a
resampler); these stand among the words, for as many pictures as a text has. A picture may be seen five times, its four
quarters and the whole, which spends more places on it where letters are small (`split`).

Differs: one mark in the text stands for a picture, not 64; a picture for which there is none comes first. Adapters are
the method `lora`, DoRA is not here; nor is the cross-attention that the paper compares with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.memory import AnyMemory, Memory
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Join, Lift, Rename
from plait.errors import PlaitError
from plait.parts.among_words import among_words
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.presence import fill_absent
from plait.parts.resampler import Resampler
from plait.parts.tokenizers.patches import patch_grid
from plait.parts.towers.layouts import clip_blocks, llama_layers


class Bridge(GatedFeedForward):
    """A gated feed-forward from one width to another: Tokens (B, N, C) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__(width, hidden, bias=False)
        self.down = nn.Linear(hidden, out, bias=False)


class Idefics2(nn.Module):
    """Pictures and the text so far -> what the next word is. A row may lack either.

    batch["image"] is (B, 3, H, W), or (B, P, 3, H, W) for several a row; with batch["keep"]["image"], (B, H, W) or (B,
    P, H, W) bool, pictures of several sizes lie in the upper left corner, and those without a pixel are not there. What
    of a side does not fill a patch is not seen.
    vision: a picture tower that honours `keep`. words: the language model. hidden: the bridge's. latents: a picture's
    places. layers, heads, kv_heads, head_width: the resampler's. mark: the word in whose place a picture is read, if
    any. around: the word on both sides of pictures, where the text does not say it. split: see above.
    """

    takes = ("image", "text")
    fits = ("image", "vocab")

    def __init__(
        self, *, vision, words, hidden, latents=64, layers=3, heads=16, kv_heads=4, head_width=96, mark=None,
        around=None, split=False, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        self.width, self.length, self.begin, self.end = words.width, words.length, words.begin, words.end
        self.mark, self.around, self.split = -1 if mark is None else mark, around, split
        self.vision, self.words, width = vision, words, words.width
        side = vision.multiple * (2 if split else 1)
        self.bridge = Bridge(vision.width, hidden, width)
        how = dict(kv_heads=kv_heads, head_width=head_width, norm=partial(nn.RMSNorm, eps=eps))
        feed = partial(GatedFeedForward, bias=False)
        self.resampler = Resampler(latents, width, layers, heads, 4 * width, feed=feed, **how)
        self.blanks = {"image": ((3, side, side), torch.float32), "text": ((1,), torch.int64)}

    def see(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W), keep (B, H, W) -> (B, M, D): the pictures as the language model reads them."""
        p, (high, wide) = self.vision.multiple, image.shape[2:]
        high, wide = high // p * p, wide // p * p
        t = self.vision.tokens(image[..., :high, :wide], None if keep is None else keep[:, :high, :wide])
        return self.resampler(self.bridge(t.replace(x=self.vision.norm(t.x)))).x

    def see_split(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 5 M + 4, D): the quarters row by row, then the whole, with the word `around` between."""
        patch_grid(image, 2 * self.vision.multiple)
        quarters = torch.stack([q for half in image.chunk(2, 2) for q in half.chunk(2, 3)], 1)
        seen = self.see(quarters.flatten(0, 1)).unflatten(0, (-1, 4))
        seen = torch.cat([seen, self.see(image)[:, None]], 1)  # (B, 5, M, D)
        if self.around is None:
            return seen.flatten(1, 2)
        word = self.word(seen).expand(seen.shape[0], 5, 1, -1)
        return torch.cat([seen, word], 2).flatten(1, 2)[:, :-1]

    def word(self, like: Tensor) -> Tensor:
        """(D,): that which stands around pictures."""
        return self.words.embed(torch.tensor([[self.around]], device=like.device))[0, 0]

    def prefill(self, batch: dict) -> AnyMemory:
        """Read the pictures and, where there is one, the text so far."""
        s = fill_absent(batch, self.blanks)
        image, keep, present = s.values["image"], s.keep.get("image"), s.present["image"][:, None]
        if image.dim() == 4:
            image, keep = image[:, None], None if keep is None else keep[:, None]
        flat = image.flatten(0, 1)
        if not self.split:
            seen = self.see(flat, None if keep is None else keep.flatten(0, 1))
        elif keep is None:
            seen = self.see_split(flat)
        else:
            raise PlaitError("got padded pictures to be split, expected whole ones: split them before they are padded")
        there = present.expand(image.shape[:2]) if keep is None else keep.flatten(2).any(2)
        ids, real = s.values["text"], s.mask("text")
        text = Tokens(self.words.embed(ids), keep=real)
        seen, word = seen.unflatten(0, image.shape[:2]), None if self.around is None else self.word(seen)
        t = among_words(text, ids == self.mark, seen, there, word)
        return self.words.read(t.replace(memory=Memory())).memory

    def step(self, tokens: Tensor, cache: AnyMemory, keep: Tensor | None = None) -> tuple[Tensor, AnyMemory]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the cache with them."""
        return self.words.step(tokens, cache, keep)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """{"words": (B, V)}: logits of the first word of what is to be said."""
        cache: Any = self.prefill(batch)
        begin = torch.full_like(cache.keep[:, :1], self.begin, dtype=torch.int64)
        return {"words": self.step(begin, cache)[0][:, 0]}


SIGLIP = dict(vision="vit_siglip_so400m_patch14_980", words="llama_mistral_7b_v0.1", hidden=14336)
SPECIAL = dict(around=32000, mark=32001)
TOLD = dict(vocab=32003, end=32002)
OWN = dict(native=True, asks=False, num_classes=0)
TOY = dict(vision="vit_siglip_toy", words="llama_toy", hidden=48, latents=4, layers=2, heads=4, kv_heads=2)
NANO = dict(vision="vit_siglip_nano", words="llama_nano", hidden=512, latents=16, layers=2, heads=4, kv_heads=2)

MODEL = Idefics2
TAKES = ("image", "text")
ROLES = ("generator",)
PARTS = {
    "vision": ("image", "patch", "num_classes", "native", "asks"),
    "words": ("vocab", "length", "begin", "end", "depth"),
}
DEFAULT = "nano"
SIZES = {
    "toy": OWN | TOY | dict(patch=16, head_width=8, mark=5, around=6),
    "nano": OWN | NANO | dict(head_width=48),
    "nano_split": OWN | NANO | dict(head_width=48, split=True),
    "8b": SIGLIP | SPECIAL | TOLD,
    "8b_base": SIGLIP | SPECIAL | dict(vocab=32002),
    "8b_chatty": SIGLIP | SPECIAL | TOLD,
}

HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
FILE = HALF | dict(file="model.safetensors.index.json", source="transformers", licence="apache-2.0", transformers=True)
WEIGHTS = {
    "8b": FILE | dict(hub="HuggingFaceM4/idefics2-8b", begin=1, end=32002),
    "8b_base": FILE | dict(hub="HuggingFaceM4/idefics2-8b-base", begin=1, end=2),
    "8b_chatty": FILE | dict(hub="HuggingFaceM4/idefics2-8b-chatty", begin=1, end=32002),
}

EYE, POOL = "model.vision_model", "model.connector.perceiver_resampler"
RULES = {
    "transformers": [
        Rename(f"{EYE}.embeddings.patch_embedding.{{p}}", "vision.patch_embed.stem.proj.{p}"),
        Lift(f"{EYE}.embeddings.position_embedding.weight", "vision.patch_embed.positions.table"),
        *clip_blocks(f"{EYE}.encoder.layers.{{i}}", "vision.stack.blocks.{i}"),
        Rename(f"{EYE}.post_layernorm.{{p}}", "vision.norm.{p}"),
        Join([f"model.connector.modality_projection.{n}_proj.weight" for n in ("gate", "up")], "bridge.up.weight"),
        Rename("model.connector.modality_projection.down_proj.weight", "bridge.down.weight"),
        Rename(f"{POOL}.latents", "resampler.latents.table"),
        Rename(f"{POOL}.layers.{{i}}.input_latents_norm.weight", "resampler.stack.blocks.{i}.mix.norm.weight"),
        Rename(f"{POOL}.layers.{{i}}.input_context_norm.weight", "resampler.stack.blocks.{i}.mix.f.norm.weight"),
        Rename(f"{POOL}.layers.{{i}}.self_attn.q_proj.weight", "resampler.stack.blocks.{i}.mix.f.q.weight"),
        Join(
            [f"{POOL}.layers.{{i}}.self_attn.{n}_proj.weight" for n in "kv"],
            "resampler.stack.blocks.{i}.mix.f.kv.weight",
        ),
        Rename(f"{POOL}.layers.{{i}}.self_attn.o_proj.weight", "resampler.stack.blocks.{i}.mix.f.out.weight"),
        Rename(f"{POOL}.layers.{{i}}.post_attention_layernorm.weight", "resampler.stack.blocks.{i}.feed.norm.weight"),
        Join(
            [f"{POOL}.layers.{{i}}.mlp.{n}_proj.weight" for n in ("gate", "up")],
            "resampler.stack.blocks.{i}.feed.f.up.weight",
        ),
        Rename(f"{POOL}.layers.{{i}}.mlp.down_proj.weight", "resampler.stack.blocks.{i}.feed.f.down.weight"),
        Rename(f"{POOL}.norm.weight", "resampler.norm.weight"),
        Rename("model.text_model.embed_tokens.weight", "words.words.table.weight"),
        *llama_layers("model.text_model.layers.{i}", "words.stack.blocks.{i}"),
        Drop("model.text_model.rotary_emb.{p}"),
        Rename("model.text_model.norm.weight", "words.norm.weight"),
        Rename("lm_head.weight", "words.head.weight"),
    ],
}
