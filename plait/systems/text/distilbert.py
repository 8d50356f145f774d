"""DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. Sanh, Debut, Chaumond, Wolf, 2019.
arXiv:1910.01108.

New here: every second layer of a trained BERT, trained on to give the words, and the features, that the whole gives. It
has no segments and no pooler.

Differs: distillation itself is left out. The masked-word head exists only where it is asked for (`mlm=True`).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.block import Attention, Stack
from plait.core.weights import Drop, Join, Rename, Tied, under
from plait.parts.heads.words import WordHead
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input
from plait.parts.towers.reader import Reader, hidden_head

Norm = partial(nn.LayerNorm, eps=1e-12)


class DistilBERT(Reader):
    """Token ids (B, N) -> logits (B, K), or the first token's features (B, D) with `num_classes=0`.

    vocab: number of word pieces. length: the longest text. mlm: also build the masked-word head.
    """

    def __init__(
        self, *, vocab=30522, length=512, width=768, depth=6, heads=12, hidden=None, num_classes=0, dropout=0.1,
        mlm=False,
    ):  # fmt: skip
        super().__init__()
        self.width = width
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, kinds=0, dropout=dropout)
        how = dict(norm=Norm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, **how))
        self.head = hidden_head(width, num_classes, nn.ReLU)
        self.mlm = WordHead(width, vocab, Norm) if mlm else None


MODEL = DistilBERT
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=16, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(vocab=8192, length=256, width=192, depth=2, heads=3),
    "base_uncased": dict(),
    "base_cased": dict(vocab=28996),
    "base_multilingual_cased": dict(vocab=119547),
}

HUGGING = dict(
    source="huggingface", licence="apache-2.0", begin=101, end=102, file="model.safetensors", transformers=True
)
WEIGHTS = {
    "base_uncased": HUGGING | dict(hub="distilbert/distilbert-base-uncased"),
    "base_cased": HUGGING | dict(hub="distilbert/distilbert-base-cased"),
    "base_multilingual_cased": HUGGING | dict(hub="distilbert/distilbert-base-multilingual-cased"),
}

LAYER, OURS = "transformer.layer.{i}", "stack.blocks.{i}"
ENCODER = [
    *bert_input("embeddings"),
    Join([f"{LAYER}.attention.{n}_lin.{{p}}" for n in "qkv"], f"{OURS}.mix.f.qkv.{{p}}"),
    Rename(f"{LAYER}.attention.out_lin.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
    Rename(f"{LAYER}.sa_layer_norm.{{p}}", f"{OURS}.mix.norm.{{p}}"),
    Rename(f"{LAYER}.ffn.lin1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
    Rename(f"{LAYER}.ffn.lin2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
    Rename(f"{LAYER}.output_layer_norm.{{p}}", f"{OURS}.feed.norm.{{p}}"),
]
CLASSIFIER = [Rename("pre_classifier.{p}", "head.0.{p}"), Rename("classifier.{p}", "head.2.{p}")]
WHOLE = [*under(ENCODER, "distilbert."), *CLASSIFIER]
TABLE = ["vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"]
RULES = {
    "transformers": [*ENCODER, *CLASSIFIER],  # DistilBertModel
    "transformers_classifier": WHOLE,  # DistilBertForSequenceClassification
    # DistilBertForMaskedLM, with mlm=True
    "transformers_mlm": [
        Tied(TABLE, "text_embedding.words.table.weight"),
        *WHOLE,
        Rename("vocab_transform.{p}", "mlm.dense.{p}"),
        Rename("vocab_layer_norm.{p}", "mlm.norm.{p}"),
        Rename("vocab_projector.bias", "mlm.bias"),
    ],
    # a published file, its pre-training head left out
    "huggingface": [*WHOLE, *map(Drop, ("vocab_transform.{p}", "vocab_layer_norm.{p}", "vocab_projector.{p}"))],
}
