"""Align before Fuse: Vision and Language Representation Learning with Momentum Distillation. Li et al., 2021.
arXiv:2107.07651.

New here: BERT is cut in two. Its first half reads the text alone, and a contrastive loss aligns what it says with what
a ViT says of the picture; its second half asks the picture, by cross-attention. Alignment comes first, so that the
fusion meets features that already speak of the same things; and a momentum teacher softens all targets, because web
captions lie (`parts/objectives/align_fuse.py`). A question is answered by a second BERT, which reads the fused words
and writes (`parts/towers/answerer.py`), or says how likely each of a list of answers is (`rank`).

Differs: the teacher has no dropout, follows the whole model and is trusted over 1,000 steps instead of an epoch. Queues
start empty, not with noise; every process keeps its own. Rows of one group (`batch["same"]`, else `batch["row"]`) are
never each other's negatives, in the queue too, as in the official retrieval fine-tuning. The losses leave out what a
batch lacks: an absent picture or text makes no pair, though a text alone still has words to guess. `queue=0` (nano)
contrasts within the batch: the paper's towers come pre-trained, and from scratch a queue of stale vectors holds the
alignment back (scanned digits and words, 300 steps of it alone, two seeds: 0.39 and 0.37 of the held-out digits named
without a queue, 0.29 and 0.23 with one of 256). The published teacher and its queues (`*_m.*`, `*_queue`) are dropped,
since training makes its own. Answers are learnt from what is true alone, without a teacher; where there is no
question, the leading token asks the picture all the same. Pairs of pictures are for `albef_nlvr`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention
from plait.core.init import torch_default
from plait.core.precision import wide
from plait.core.tokens import Tokens, real
from plait.core.weights import Drop, Rename, Tied, View
from plait.errors import PlaitError
from plait.parts.generation import Ranked, rank
from plait.parts.heads.words import WordHead, first_place
from plait.parts.objectives import align_fuse
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.answerer import Answerer, Answering
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, bert_words, timm_vit
from plait.parts.towers.picture import PictureTower

PictureNorm = partial(nn.LayerNorm, eps=1e-6)
TextNorm = partial(nn.LayerNorm, eps=1e-12)


class ALBEF(nn.Module):
    """A batch of pictures and texts -> unit vectors of each, and their fusion.

    image, patch, image_*: the picture's tower. vocab, length (most tokens), mask (the id of a hidden word): the texts.
    width, text_depth, fusion_depth, heads: BERT's two halves. embed_width: of the unit vectors, 0 for neither vectors
    nor the head that tells pairs. guess: whether there is a word head; without it the objective hides no words. queue:
    how many vectors the objective remembers, or 0. answer_depth: layers of what writes answers, 0 for none; begin, end:
    the ids that an answer starts and ends with.
    """

    takes = ("image", "text")
    fits = ("image", "vocab", "mask")
    scheme = {nn.Conv2d: torch_default}

    def __init__(
        self, *, image=(256, 256), patch=16, image_width=768, image_depth=12, image_heads=12, vocab=30522, length=512,
        mask=103, width=768, text_depth=6, fusion_depth=6, heads=12, embed_width=256, dropout=0.1, guess=True,
        queue=65536, answer_depth=0, begin=101, end=102,
    ):  # fmt: skip
        super().__init__()
        self.width, self.embed_width, self.part_widths = width, embed_width, {}
        self.vocab, self.mask, self.text_depth, self.queue = vocab, mask, text_depth, queue
        self.begin, self.end, self.length = begin, end, length
        self.blanks = {"image": ((3, *image), torch.float32), "text": ((1,), torch.int64)}
        self.picture = PictureTower(image, patch, image_width, image_depth, image_heads, norm=PictureNorm)
        self.text_embedding = TextEmbedding(vocab, length, width, TextNorm, dropout=dropout)
        layers = partial(post_norm_blocks, norm=TextNorm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        cross = partial(CrossAttention, context_width=image_width, dropout=dropout, stream="image")
        first = layers(width, text_depth, heads, 4 * width)
        self.layers = nn.ModuleList(first + layers(width, fusion_depth, heads, 4 * width, cross=cross))
        aligns = embed_width > 0
        self.image_proj = nn.Linear(image_width, embed_width) if aligns else None
        self.text_proj = nn.Linear(width, embed_width) if aligns else None
        self.match = nn.Linear(width, 2) if aligns else None  # fused (B, D) -> (B, 2): no pair, a pair
        self.guess = WordHead(width, vocab, TextNorm) if guess else None
        self.temperature = nn.Parameter(torch.empty(1)) if aligns else None
        self.writer = Answerer(vocab, length, width, answer_depth, heads, TextNorm, dropout) if answer_depth else None

    def reset(self) -> None:
        if self.temperature is not None:
            nn.init.constant_(self.temperature, 0.07)

    @property
    def logit_scale(self) -> Tensor:
        """(1,): the log of what similarities are multiplied by, which is one over the temperature."""
        return -self.temperature.log()

    def see(self, image: Tensor, present: Tensor) -> Tokens:
        """(B, 3, H, W), (B,) -> Tokens (B, 1 + N, image_width); none of an absent picture's is real."""
        t = self.picture(image)
        return t.replace(keep=masked(None, present, t.x.shape[1]))

    def read(self, ids: Tensor, keep: Tensor) -> Tokens:
        """(B, N), (B, N) -> Tokens (B, N, D) from BERT's first half."""
        t = self.text_embedding(ids, keep)
        for layer in self.layers[: self.text_depth]:
            t = layer(t)
        return t

    def cross(self, text: Tokens, image: Tokens) -> Tokens:
        """The text asks, the picture answers: Tokens (B, N, D) from BERT's second half."""
        text = text.reading(image=image)
        for layer in self.layers[self.text_depth :]:
            text = layer(text)
        return text.replace(context=None)

    def words(self, x: Tensor) -> Tensor:
        """(..., D) fused tokens -> (..., V) logits of the words that stand there."""
        return self.guess(x, self.text_embedding.table)

    def vectors(self, image: Tokens, text: Tokens) -> dict[str, Tensor]:
        """{"image", "text"}: (B, E) float32 unit vectors of the leading tokens."""
        return {
            "image": F.normalize(wide(self.image_proj(image.x[:, 0])), dim=-1),
            "text": F.normalize(wide(self.text_proj(text.x[:, 0])), dim=-1),
        }

    def open(self, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a batch holds, blanks where it lacks something: image (B, 3, H, W), present (B,), ids (B, N), keep
        (B, N)."""
        s = fill_absent(batch, self.blanks)
        return s.values["image"], s.present["image"], s.values["text"], s.mask("text")

    def encode(self, batch: dict) -> tuple[Tokens, Tokens]:
        """The tokens of both towers, before they meet."""
        image, present, ids, keep = self.open(batch)
        return self.see(image, present), self.read(ids, keep)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{"image", "text"}: (B, E) unit vectors."""
        return self.vectors(*self.encode(batch))

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "vectors": as `embed`, "losses": {name: ()}}: the text's leading token after
        it has seen the picture."""
        image, text = self.encode(batch)
        t = self.cross(text, image).with_losses(image)
        out = {"fused": t.x[:, 0], "parts": {}, "losses": t.losses or {}}
        return out if self.match is None else out | {"vectors": self.vectors(image, text)}

    def prefill(self, batch: dict) -> Answering:
        """Read the picture and the question about it; nothing of the answer is written."""
        if self.writer is None:
            raise PlaitError("this ALBEF writes no answers: got answer_depth=0, build it with layers that write")
        image, text = self.encode(batch)
        return self.asked(self.cross(text, image))

    def asked(self, t: Tokens) -> Answering:
        """What answers the fused tokens (B, N, D) of a question, of which the leading one is always read."""
        leading = torch.arange(t.x.shape[1], device=t.x.device) == 0
        return self.writer.begin(t.replace(keep=real(t) | leading))

    def step(self, tokens: Tensor, cache: Answering, keep: Tensor | None = None) -> tuple[Tensor, Answering]:
        """The next words (B, N) of the answer, one or many -> (B, N, V) logits of the word after each, and the cache
        with them."""
        return self.writer(tokens, cache, keep)

    def rank(self, batch: dict, answers: Tensor, keep: Tensor, most: int = 128) -> Ranked:
        """The likeliest `most` of the answers (A, N), each with its beginning and end, keep (A, N): those with the
        likeliest first words, by their whole probability."""
        return rank(self, batch, answers, keep, most=most)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Everything at once: fused (B, D); with its heads image, text (B, E), match (B, 2), logit_scale (1,); with a
        word head, words (B, V): what stands in each row's first hidden place (its leading token where nothing is
        hidden); with what writes answers, answer (B, V): the logits of the answer's first word."""
        pixels, present, ids, keep = self.open(batch)
        image, text = self.see(pixels, present), self.read(ids, keep)
        t = self.cross(text, image)
        fused = t.x
        out = {"fused": fused[:, 0]}
        if self.match is not None:
            out |= self.vectors(image, text)
            out |= {"match": self.match(fused[:, 0]), "logit_scale": self.logit_scale}
        if self.guess is not None:
            out["words"] = self.words(first_place(fused, (ids == self.mask) & keep))
        if self.writer is not None:
            start = torch.full_like(ids[:, :1], self.begin)
            out["answer"] = self.step(start, self.asked(t))[0][:, 0]
        return out


objective, make_state, after_step = align_fuse.objective, align_fuse.make_state, align_fuse.after_step

OWN = [
    *(Drop(f"{name}_m.{{rest*}}") for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj")),
    Drop("text_decoder_m.{rest*}"),
    *(Drop(name) for name in ("image_queue", "text_queue", "idx_queue", "queue_ptr")),
    *timm_vit("visual_encoder.", "picture."),
    *bert_words("text_encoder.cls.predictions.transform", "guess"),
    Tied(["text_encoder.cls.predictions.decoder.bias", "text_encoder.cls.predictions.bias"], "guess.bias"),
    Rename("vision_proj.{p}", "image_proj.{p}"),
    Rename("text_proj.{p}", "text_proj.{p}"),
    Rename("itm_head.{p}", "match.{p}"),
    View("temp", "temperature", (1,), ()),
    Tied(
        ["text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"],
        "writer.text_embedding.words.table.weight",
    ),
    *bert_input("text_decoder.bert.embeddings", "writer.text_embedding"),
    *bert_layers("text_decoder.bert.encoder.layer.{i}", "writer.stack.blocks.{i}"),
    *bert_words("text_decoder.cls.predictions.transform", "writer.guess"),
    Tied(["text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"], "writer.guess.bias"),
]
BERT = [*bert_input("text_encoder.bert.embeddings"), *bert_layers("text_encoder.bert.encoder.layer.{i}", "layers.{i}")]
FINE_BERT = [*bert_input("text_encoder.embeddings"), *bert_layers("text_encoder.encoder.layer.{i}", "layers.{i}")]
WORDS = ["text_encoder.cls.predictions.decoder.weight", "text_encoder.bert.embeddings.word_embeddings.weight"]
RULES = {
    "official": [Tied(WORDS, "text_embedding.words.table.weight"), *OWN, *BERT],
    "official_retrieval": OWN + FINE_BERT,  # fine-tuned: BERT without its word head
}

MODEL = ALBEF
TAKES = ("image", "text")
ROLES = ("embedder", "fuser", "generator")
DEFAULT = "nano"
FINE = dict(image=(384, 384), guess=False)
WRITES = dict(guess=False, embed_width=0, queue=0)
TOY = dict(image=(32, 32), patch=8, image_width=32, image_depth=2, image_heads=2, vocab=64, length=16, mask=4)
TOY_TEXT = dict(width=48, text_depth=2, fusion_depth=2, heads=4, embed_width=16, dropout=0.0, queue=12)
NANO = dict(image=(64, 64), patch=8, image_width=192, image_depth=6, image_heads=3, vocab=8192, mask=4)
NANO_TEXT = dict(width=192, text_depth=3, fusion_depth=3, heads=3)
SIZES = {
    "toy": TOY | TOY_TEXT | dict(answer_depth=2, begin=2, end=3),
    "nano": NANO | NANO_TEXT | dict(embed_width=128, queue=0),
    "nano_vqa": NANO | NANO_TEXT | WRITES | dict(answer_depth=2, begin=2, end=3),
    "base": dict(),
    "base_4m": dict(),
    "base_384_flickr30k": FINE,
    "base_384_coco": FINE,
    "base_384_refcoco": FINE,
    "base_384_vqa": FINE | WRITES | dict(answer_depth=6),
}
PAIRS = ("embedder", "fuser")
WRITER = ("generator", "fuser")
SIZE_ROLES = {
    "nano": PAIRS,
    "nano_vqa": WRITER,
    "base": PAIRS,
    "base_4m": PAIRS,
    "base_384_flickr30k": PAIRS,
    "base_384_coco": PAIRS,
    "base_384_refcoco": PAIRS,
    "base_384_vqa": WRITER,
}
URL = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"
TOKENS = dict(tokenizer="google-bert/bert-base-uncased/tokenizer.json", begin=101, end=102, closed=False)
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
SALESFORCE = TOKENS | SEEN | dict(source="official_retrieval", licence="bsd-3-clause", crop_pct=1.0, crop_mode="squash")
OFFICIAL = SALESFORCE | dict(source="official")
WEIGHTS = {
    "base": OFFICIAL | dict(url=URL + "ALBEF.pth"),
    "base_4m": OFFICIAL | dict(url=URL + "ALBEF_4M.pth"),
    "base_384_flickr30k": SALESFORCE | dict(url=URL + "flickr30k.pth"),
    "base_384_coco": SALESFORCE | dict(url=URL + "mscoco.pth"),
    "base_384_refcoco": SALESFORCE | dict(url=URL + "refcoco.pth"),
    "base_384_vqa": SALESFORCE | dict(url=URL + "vqa.pth", task="answer"),
}
