"""RoBERTa: A Robustly Optimized BERT Pretraining Approach. Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer,
Stoyanov, 2019. arXiv:1907.11692.

New here: BERT as it is, trained longer on more text, by masked words alone, which are drawn anew each time; whether one
segment follows another is not asked. Words are pieces of bytes, so that none is unknown. XLM-R (arXiv:1911.02116) is
the same model of a hundred languages, and DistilRoBERTa one of half the layers that learnt from it (arXiv:1910.01108).

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing; the published
code tells padding by its id. The masked-word head exists only where it is asked for (`mlm=True`).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.block import Attention, Stack
from plait.core.weights import Drop, Rename, under
from plait.parts.heads.words import WordHead
from plait.parts.positions.learned import CountedPositions
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, roberta_words
from plait.parts.towers.reader import Reader, hidden_head


class RoBERTa(Reader):
    """Token ids (B, N) -> logits (B, K), or the first token's features (B, D) with `num_classes=0`.

    vocab: number of word pieces. length: the longest text. mlm: also build the masked-word head.
    """

    def __init__(
        self, *, vocab=50265, length=512, width, depth, heads, hidden=None, num_classes=0, dropout=0.1, mlm=False
    ):
        super().__init__()
        self.width = width
        how = dict(kinds=1, dropout=dropout, positions=CountedPositions)
        self.text_embedding = TextEmbedding(vocab, length, width, nn.LayerNorm, **how)
        mix = partial(Attention, dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, mix=mix, dropout=dropout))
        self.head = hidden_head(width, num_classes)
        self.mlm = WordHead(width, vocab, nn.LayerNorm) if mlm else None


BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
XLM = dict(vocab=250002)

MODEL = RoBERTa
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=16, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base": BASE,
    "large": LARGE,
    "distil": BASE | dict(depth=6),
    "xlm_base": BASE | XLM,
    "xlm_large": LARGE | XLM,
}

FACEBOOK = dict(source="facebook", licence="mit", begin=0, end=2, file="model.safetensors", transformers=True)
WEIGHTS = {
    "base": FACEBOOK | dict(hub="FacebookAI/roberta-base"),
    "large": FACEBOOK | dict(hub="FacebookAI/roberta-large"),
    "distil": FACEBOOK | dict(hub="distilbert/distilroberta-base", licence="apache-2.0"),
    "xlm_base": FACEBOOK | dict(hub="FacebookAI/xlm-roberta-base"),
    "xlm_large": FACEBOOK | dict(hub="FacebookAI/xlm-roberta-large"),
}

ENCODER = [*bert_input("embeddings"), *bert_layers(), Drop("pooler.dense.{p}")]
CLASSIFIER = [Rename("classifier.dense.{p}", "head.0.{p}"), Rename("classifier.out_proj.{p}", "head.2.{p}")]
WHOLE = [*under(ENCODER, "roberta."), *CLASSIFIER]
RULES = {
    "transformers": [*ENCODER, *CLASSIFIER],  # RobertaModel, XLMRobertaModel
    "transformers_classifier": WHOLE,  # RobertaForSequenceClassification
    "transformers_mlm": [*roberta_words("roberta"), *WHOLE],  # RobertaForMaskedLM, with mlm=True
    "facebook": [*WHOLE, Drop("lm_head.{rest*}")],  # a published file, its pre-training head left out
}
