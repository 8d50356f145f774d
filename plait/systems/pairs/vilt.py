"""ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision. Kim, Son, Kim, 2021.
arXiv:2102.03334.

New here: one transformer reads words and picture patches in one sequence. There is no picture tower and no detector:
patches enter as words do, by one projection, and a learned vector per modality tells them apart. Pictures keep their
shape: the grid of positions is stretched to each picture's own.

Differs: stochastic depth takes the place of dropout. Patches are never sampled: long pictures are read whole. An absent
modality is a blank that nothing attends to; the leading token, which is pooled, belongs to the text, so that an absent
text still asks the picture with one padding token. The variant for pairs of pictures (NLVR2) is left out.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.tokens import Tokens, join, prepend
from plait.core.weights import Drop, Join, Rename, Tied, under
from plait.parts.heads.answers import answer_head
from plait.parts.heads.words import WordHead, first_place
from plait.parts.positions.resample import resample, square
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_words

Norm = partial(nn.LayerNorm, eps=1e-12)


class Picture(nn.Module):
    """(B, 3, H, W) -> Tokens (B, 1 + N, D): a class token and patches, positions stretched to each picture's own grid.

    pixels (B, H, W): which are real, where pictures of several shapes were padded to one, each in the upper left.
    """

    def __init__(self, image: tuple[int, int], patch: int, width: int):
        super().__init__()
        self.patches = PatchTokens(width, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.grid = (image[0] // patch, image[1] // patch)
        self.positions = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor, pixels: Tensor | None, present: Tensor) -> Tokens:
        t = self.patches(x)
        real = None if pixels is None else pixels[:, :: self.patches.patch, :: self.patches.patch]  # (B, h, w)
        t = prepend(self.cls + self.positions[:, :1], t.replace(x=t.x + self.places(t.grid, real)))
        keep = None if real is None else F.pad(real.flatten(1), (1, 0), value=True)
        return t.replace(keep=masked(keep, present, t.x.shape[1]))

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """Published positions of another square grid, as those of this grid."""
        if key != "positions" or (grid := square(tensor.shape[1] - 1)) is None:
            return None
        table = tensor[:, 1:].transpose(1, 2).unflatten(2, grid)
        table = resample(table, self.grid, "bilinear", align_corners=True).flatten(2).transpose(1, 2)
        return torch.cat([tensor[:, :1], table], 1)

    def places(self, grid: tuple[int, int], real: Tensor | None) -> Tensor:
        """(1 or B, N, D): the learned grid laid over each picture's real patches, corner on corner, bilinear."""
        table = self.positions[:, 1:].transpose(1, 2).unflatten(2, self.grid)  # (1, D, h, w)
        if real is None:
            table = table if grid == self.grid else resample(table, grid, "bilinear", align_corners=True)
        else:
            down = along(real[:, :, 0])[:, :, None].expand(-1, *grid)  # (B, h, w) in [-1, 1] where real
            across = along(real[:, 0])[:, None, :].expand(-1, *grid)
            table = table.expand(real.shape[0], -1, -1, -1)
            table = F.grid_sample(table, torch.stack([across, down], -1), padding_mode="border", align_corners=True)
        return table.flatten(2).transpose(1, 2)


def along(real: Tensor) -> Tensor:
    """(B, n) bool, leading ones real -> (B, n) from -1 at the first to 1 at the last real one."""
    count = real.sum(1, keepdim=True)
    return 2 * torch.arange(real.shape[1], device=real.device) / (count - 1).clamp(min=1) - 1


class ViLT(nn.Module):
    """A batch of pictures and texts -> one vector that has read both, and what the heads that were built say of it.

    image: the (H, W) that positions are learned for; other multiples of the patch are read too. length: most tokens of
    a text; mask: the id of a hidden word. Heads: guess (hidden words), match (does the text belong to the picture?),
    answers (how many, 0 for none).
    """

    takes = ("image", "text")
    fits = ("image", "vocab", "mask")

    def __init__(
        self, *, image=(384, 384), patch=32, vocab=30522, length=40, mask=103, width=768, depth=12, heads=12,
        drop_path=0.0, guess=False, match=False, answers=0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.part_widths, self.mask = width, {}, mask
        self.blanks = {"image": ((3, *image), torch.float32), "text": ((1,), torch.int64)}
        self.text_embedding, self.picture = TextEmbedding(vocab, length, width, Norm), Picture(image, patch, width)
        self.kind = nn.Parameter(torch.empty(2, width))  # text, image
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, norm=Norm, drop_path=drop_path))
        self.norm, self.dense = Norm(width), nn.Linear(width, width)
        self.guess = WordHead(width, vocab, Norm) if guess else None
        self.match = nn.Linear(width, 1) if match else None
        self.answer = answer_head(width, answers) if answers else None

    def reset(self) -> None:
        nn.init.trunc_normal_(self.kind, std=0.02)

    def read(self, batch: dict) -> tuple[Tokens, Tensor]:
        """Tokens (B, N + 1 + M, D) of N words, the picture's class token and M patches, all normed; and the ids (B, N).

        batch["keep"] may hold "image", (B, H, W): which pixels are real.
        """
        s = fill_absent(batch, self.blanks)
        ids = s.values["text"]
        text = self.text_embedding(ids, s.mask("text"))
        image = self.picture(s.values["image"], s.keep.get("image"), s.present["image"])
        text, image = text.replace(x=text.x + self.kind[0]), image.replace(x=image.x + self.kind[1], prefix=0)
        t = self.stack(join(text, image, kinds=("text", "image")))
        return t.replace(x=self.norm(t.x)), ids

    def pool(self, t: Tokens) -> Tensor:
        """(B, D) in [-1, 1], from the leading token."""
        return self.dense(t.x[:, 0]).tanh()

    def words(self, x: Tensor) -> Tensor:
        """(..., D) tokens -> (..., V) logits of the words that stand there; needs the `guess` head."""
        return self.guess(x, self.text_embedding.table)

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the modalities meet in the first layer, so that none
        has a vector of its own."""
        t, _ = self.read(batch)
        return {"fused": self.pool(t), "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, D); and for each head: match (B, 1) logits, answer (B, K) logits, words (B, V) logits of what
        stands in each row's first hidden place (its leading token where nothing is hidden)."""
        t, ids = self.read(batch)
        out = {"fused": self.pool(t)}
        if self.match is not None:
            out["match"] = self.match(out["fused"])
        if self.answer is not None:
            out["answer"] = self.answer(out["fused"])
        if self.guess is not None:
            out["words"] = self.words(first_place(t.x, (ids == self.mask) & t.keep[:, : ids.shape[1]]))
        return out


LAYER, OURS = "encoder.layer.{i}", "stack.blocks.{i}"
ENCODER = [
    *bert_input("embeddings.text_embeddings"),
    Rename("embeddings.cls_token", "picture.cls"),
    Rename("embeddings.position_embeddings", "picture.positions"),
    Rename("embeddings.patch_embeddings.projection.{p}", "picture.patches.proj.{p}"),
    Rename("embeddings.token_type_embeddings.weight", "kind"),
    Join([f"{LAYER}.attention.attention.{n}.{{p}}" for n in ("query", "key", "value")], f"{OURS}.mix.f.qkv.{{p}}"),
    Rename(f"{LAYER}.attention.output.dense.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
    Rename(f"{LAYER}.intermediate.dense.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
    Rename(f"{LAYER}.output.dense.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
    Rename(f"{LAYER}.layernorm_before.{{p}}", f"{OURS}.mix.norm.{{p}}"),
    Rename(f"{LAYER}.layernorm_after.{{p}}", f"{OURS}.feed.norm.{{p}}"),
    Rename("layernorm.{p}", "norm.{p}"),
    Rename("pooler.dense.{p}", "dense.{p}"),
]
HEADS = [
    *bert_words("mlm_score.transform", "guess"),
    Rename("mlm_score.decoder.bias", "guess.bias"),
    Rename("rank_output.{p}", "match.{p}"),
    Rename("classifier.{rest*}", "answer.{rest*}"),
    Drop("mlm_score.bias"),  # older files hold the word head's bias twice
]
WHOLE = [*under(ENCODER, "vilt."), *HEADS]
WORDS = ["mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"]
RULES = {
    "transformers": ENCODER + HEADS,  # ViltModel
    "transformers_words": [Tied(WORDS, "text_embedding.words.table.weight"), *WHOLE],  # ViltForMaskedLM
    "transformers_heads": WHOLE,  # ViltFor... any other task
}

MODEL = ViLT
TAKES = ("image", "text")
ROLES = ("fuser",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=8, vocab=64, length=16, mask=4, width=32)
SIZES = {
    "toy": TOY | dict(depth=2, heads=2, guess=True, match=True, answers=7),
    "nano": dict(image=(64, 64), patch=8, vocab=8192, length=128, mask=4, width=192, depth=6, heads=3, drop_path=0.1),
    "b_32": dict(guess=True),
    "b_32_coco": dict(match=True),
    "b_32_flickr30k": dict(match=True),
    "b_32_vqa": dict(answers=3129),
}  # fmt: skip

HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DANDELIN = HALF | dict(source="transformers_heads", licence="apache-2.0", begin=101, end=102, transformers=True)
MLM = DANDELIN | dict(source="transformers_words")
WEIGHTS = {
    "b_32": MLM | dict(hub="dandelin/vilt-b32-mlm"),
    "b_32_coco": DANDELIN | dict(hub="dandelin/vilt-b32-finetuned-coco"),
    "b_32_flickr30k": DANDELIN | dict(hub="dandelin/vilt-b32-finetuned-flickr30k"),
    "b_32_vqa": DANDELIN | dict(hub="dandelin/vilt-b32-finetuned-vqa"),
}
