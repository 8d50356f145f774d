"""Visual Instruction Tuning. Liu, Li, Wu, Lee, 2023. arXiv:2304.08485.

New here: nothing but a bridge. A picture tower that was trained with texts and a language model, both as they were
published, and between them a projector that makes words of patches: the language model reads these in their place
among the words, and goes on as it always did. So what is asked, and what is answered, is free text. LLaVA-1.5
(arXiv:2310.03744) has two layers in the projector, larger pictures, and is the one whose sizes are here.

Differs: a picture stands where the text says (`mark`), or before it where it says nothing; one picture a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plait.core.memory import AnyMemory, Memory
from plait.core.surgery import freeze
from plait.core.tokens import Tokens
from plait.core.weights import Rename, under
from plait.parts.among_words import among_words
from plait.parts.presence import fill_absent
from plait.parts.towers.layouts import clip_vision
from plait.systems.text.llama import RULES as LLAMA


class LLaVA(nn.Module):
    """A picture and the text so far -> what the next word is. A row may lack either.

    vision: the picture tower, of which the last `skip` layers and the special tokens are left out; it takes no gradient
    where it is `frozen`. words: the language model. mark: the word in whose place the picture is read, if any.
    """

    takes = ("image", "text")
    fits = ("image", "vocab")

    def __init__(self, *, vision, words, skip=0, frozen=True, mark=None):
        super().__init__()
        self.width, self.length, self.begin, self.end = words.width, words.length, words.begin, words.end
        self.skip, self.mark = skip, -1 if mark is None else mark
        self.vision, self.words = vision, words
        width, side = words.width, vision.multiple
        self.bridge = nn.Sequential(nn.Linear(vision.width, width), nn.GELU(), nn.Linear(width, width))
        self.blanks = {"image": ((3, side, side), torch.float32), "text": ((1,), torch.int64)}
        if frozen:
            freeze(vision)

    def see(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, D): its patches as the language model reads them."""
        t = self.vision.stack.without_last(self.vision.embed(image), self.skip)
        return self.bridge(t.body())

    def prefill(self, batch: dict) -> AnyMemory:
        """Read the picture and, where there is one, the text so far."""
        s = fill_absent(batch, self.blanks)
        image, ids, keep = self.see(s.values["image"]), s.values["text"], s.mask("text")
        text = Tokens(self.words.embed(ids), keep=keep)
        t = among_words(text, ids == self.mark, image[:, None], s.present["image"][:, None])
        return self.words.read(t.replace(memory=Memory())).memory

    def step(self, tokens: Tensor, cache: AnyMemory, keep: Tensor | None = None) -> tuple[Tensor, AnyMemory]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the cache with them."""
        return self.words.step(tokens, cache, keep)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """{"words": (B, V)}: logits of the first word of what is to be said."""
        cache: Any = self.prefill(batch)
        begin = torch.full_like(cache.keep[:, :1], self.begin, dtype=torch.int64)
        return {"words": self.step(begin, cache)[0][:, 0]}


L336 = "vit_clip_large_patch14_quickgelu_336"
TOWER = dict(vision=L336, num_classes=0, skip=1, mark=32000)

MODEL = LLaVA
TAKES = ("image", "text")
ROLES = ("generator",)
PARTS = {"vision": ("image", "num_classes"), "words": ("vocab", "length", "begin", "end", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(vision="vit_clip_toy", num_classes=0, words="llama_toy", skip=1, mark=5),
    "nano": dict(vision="vit_clip_nano", num_classes=0, words="llama_nano", frozen=False),
    "nano_frozen": dict(vision="vit_clip_nano", num_classes=0, words="llama_nano", skip=1),
    "1.5_7b": TOWER | dict(words="llama_2_7b", vocab=32064),
    "1.5_13b": TOWER | dict(words="llama_2_13b", vocab=32064),
    "bakllava": TOWER | dict(words="llama_mistral_7b_v0.1", vocab=32064),
}

FILE = dict(source="transformers", file="model.safetensors.index.json", begin=1, end=2, transformers=True, crop_pct=1.0)
VICUNA = FILE | dict(licence="llama2")
WEIGHTS = {
    "1.5_7b": VICUNA | dict(hub="llava-hf/llava-1.5-7b-hf"),
    "1.5_13b": VICUNA | dict(hub="llava-hf/llava-1.5-13b-hf"),
    "bakllava": FILE | dict(hub="llava-hf/bakLlava-v1-hf", licence="llama2"),
}
RULES = {
    "transformers": [
        *clip_vision("vision_tower.vision_model.", "vision."),
        Rename("multi_modal_projector.linear_1.{p}", "bridge.0.{p}"),
        Rename("multi_modal_projector.linear_2.{p}", "bridge.2.{p}"),
        *under(LLAMA["transformers"], "language_model.", "words."),
    ],
}
