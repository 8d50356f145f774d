"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding. Devlin et al., 2018.
arXiv:1810.04805.

New here: an encoder that sees both sides of every word, trained to fill in masked words and to tell whether one segment
follows another; one vector, the first token's, then answers for the whole text.

Differs: the masked-word head exists only where it is asked for (`mlm=True`); it uses the word table itself, not a
second parameter. With mlm=True and num_classes=2 the model is the published pre-training model, whose head says whether
the second segment follows the first. The small sizes are those of Well-Read Students Learn Better (arXiv:1908.08962),
and of MiniLM (arXiv:2002.10957), whose heads are narrow.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from plait.core.block import Attention, Stack
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Tied, under
from plait.parts.heads.words import WordHead
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, bert_words
from plait.parts.towers.reader import Reader

Norm = partial(nn.LayerNorm, eps=1e-12)


class BERT(Reader):
    """Token ids (B, N) -> logits (B, K), or the pooled features (B, D) with `num_classes=0`, as it is published.

    vocab: number of word pieces. length: the longest text. kinds: of segments. mlm: also build the masked-word head.
    """

    beyond = ("pooler", "head")

    def __init__(
        self, *, vocab=30522, length=512, kinds=2, width, depth, heads, hidden=None, num_classes=0, dropout=0.1,
        mlm=False,
    ):  # fmt: skip
        super().__init__()
        self.width = width
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, kinds=kinds, dropout=dropout)
        how = dict(norm=Norm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, **how))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.mlm = WordHead(width, vocab, Norm) if mlm else None

    def tokens(self, ids: Tensor, keep: Tensor | None = None, kinds: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real), kinds (B, N) int64 segments (None: all the first) ->
        Tokens (B, N, D)."""
        return self.stack(self.text_embedding(ids, keep, kinds))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the first token through the pooler."""
        return self.pooler(t.x[:, 0]).tanh()


BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
H128 = dict(width=128, heads=2)
H256 = dict(width=256, heads=4)
H512 = dict(width=512, heads=8)
H768 = dict(width=768, heads=12)
MINI = dict(width=384, heads=12)
CASED = dict(vocab=28996)

MODEL = BERT
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=16, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base_uncased": BASE,
    "base_cased": BASE | CASED,
    "base_multilingual_uncased": BASE | dict(vocab=105879),
    "base_multilingual_cased": BASE | dict(vocab=119547),
    "base_chinese": BASE | dict(vocab=21128),
    "large_uncased": LARGE,
    "large_cased": LARGE | CASED,
    "large_uncased_whole_word": LARGE,
    "large_cased_whole_word": LARGE | CASED,
    "l2_h128": H128 | dict(depth=2),
    "l2_h256": H256 | dict(depth=2),
    "l2_h512": H512 | dict(depth=2),
    "l2_h768": H768 | dict(depth=2),
    "l4_h128": H128 | dict(depth=4),
    "l4_h256": H256 | dict(depth=4),
    "l4_h512": H512 | dict(depth=4),
    "l4_h768": H768 | dict(depth=4),
    "l6_h128": H128 | dict(depth=6),
    "l6_h256": H256 | dict(depth=6),
    "l6_h512": H512 | dict(depth=6),
    "l6_h768": H768 | dict(depth=6),
    "l8_h128": H128 | dict(depth=8),
    "l8_h256": H256 | dict(depth=8),
    "l8_h512": H512 | dict(depth=8),
    "l8_h768": H768 | dict(depth=8),
    "l10_h128": H128 | dict(depth=10),
    "l10_h256": H256 | dict(depth=10),
    "l10_h512": H512 | dict(depth=10),
    "l10_h768": H768 | dict(depth=10),
    "l12_h128": H128 | dict(depth=12),
    "l12_h256": H256 | dict(depth=12),
    "l12_h512": H512 | dict(depth=12),
    "l12_h768": H768 | dict(depth=12),
    "minilm_l6_h384": MINI | dict(depth=6),
    "minilm_l12_h384": MINI | dict(depth=12),
    "minilm_l12_h384_multilingual": MINI | dict(depth=12, vocab=250037),
}

GOOGLE = dict(source="google", licence="apache-2.0", begin=101, end=102, transformers=True)
FIRST = GOOGLE | dict(file="model.safetensors")
SMALL = GOOGLE | dict(tokenizer="google-bert/bert-base-uncased/tokenizer.json")
MICROSOFT = SMALL | dict(source="microsoft", licence="mit")
MANY = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2/tokenizer.json"
UNIGRAM = MICROSOFT | dict(tokenizer=MANY, begin=0, end=2)
WEIGHTS = {
    "base_uncased": FIRST | dict(hub="google-bert/bert-base-uncased"),
    "base_cased": FIRST | dict(hub="google-bert/bert-base-cased"),
    "base_multilingual_uncased": FIRST | dict(hub="google-bert/bert-base-multilingual-uncased"),
    "base_multilingual_cased": FIRST | dict(hub="google-bert/bert-base-multilingual-cased"),
    "base_chinese": FIRST | dict(hub="google-bert/bert-base-chinese"),
    "large_uncased": FIRST | dict(hub="google-bert/bert-large-uncased"),
    "large_cased": FIRST | dict(hub="google-bert/bert-large-cased"),
    "large_uncased_whole_word": FIRST | dict(hub="google-bert/bert-large-uncased-whole-word-masking"),
    "large_cased_whole_word": FIRST | dict(hub="google-bert/bert-large-cased-whole-word-masking"),
    "l2_h128": SMALL | dict(hub="google/bert_uncased_L-2_H-128_A-2"),
    "l2_h256": SMALL | dict(hub="google/bert_uncased_L-2_H-256_A-4"),
    "l2_h512": SMALL | dict(hub="google/bert_uncased_L-2_H-512_A-8"),
    "l2_h768": SMALL | dict(hub="google/bert_uncased_L-2_H-768_A-12"),
    "l4_h128": SMALL | dict(hub="google/bert_uncased_L-4_H-128_A-2"),
    "l4_h256": SMALL | dict(hub="google/bert_uncased_L-4_H-256_A-4"),
    "l4_h512": SMALL | dict(hub="google/bert_uncased_L-4_H-512_A-8"),
    "l4_h768": SMALL | dict(hub="google/bert_uncased_L-4_H-768_A-12"),
    "l6_h128": SMALL | dict(hub="google/bert_uncased_L-6_H-128_A-2"),
    "l6_h256": SMALL | dict(hub="google/bert_uncased_L-6_H-256_A-4"),
    "l6_h512": SMALL | dict(hub="google/bert_uncased_L-6_H-512_A-8"),
    "l6_h768": SMALL | dict(hub="google/bert_uncased_L-6_H-768_A-12"),
    "l8_h128": SMALL | dict(hub="google/bert_uncased_L-8_H-128_A-2"),
    "l8_h256": SMALL | dict(hub="google/bert_uncased_L-8_H-256_A-4"),
    "l8_h512": SMALL | dict(hub="google/bert_uncased_L-8_H-512_A-8"),
    "l8_h768": SMALL | dict(hub="google/bert_uncased_L-8_H-768_A-12"),
    "l10_h128": SMALL | dict(hub="google/bert_uncased_L-10_H-128_A-2"),
    "l10_h256": SMALL | dict(hub="google/bert_uncased_L-10_H-256_A-4"),
    "l10_h512": SMALL | dict(hub="google/bert_uncased_L-10_H-512_A-8"),
    "l10_h768": SMALL | dict(hub="google/bert_uncased_L-10_H-768_A-12"),
    "l12_h128": SMALL | dict(hub="google/bert_uncased_L-12_H-128_A-2"),
    "l12_h256": SMALL | dict(hub="google/bert_uncased_L-12_H-256_A-4"),
    "l12_h512": SMALL | dict(hub="google/bert_uncased_L-12_H-512_A-8"),
    "l12_h768": SMALL | dict(hub="google/bert_uncased_L-12_H-768_A-12"),
    "minilm_l6_h384": MICROSOFT | dict(hub="nreimers/MiniLM-L6-H384-uncased"),
    "minilm_l12_h384": MICROSOFT | dict(hub="microsoft/MiniLM-L12-H384-uncased"),
    "minilm_l12_h384_multilingual": UNIGRAM | dict(hub="microsoft/Multilingual-MiniLM-L12-H384"),
}


# Everything up to the pooler, and the two heads of pre-training; old files call the norms' weight and bias gamma, beta.
OLD = dict(weight="gamma", bias="beta")
ENCODER = [*bert_input("embeddings"), *bert_layers(), Rename("pooler.dense.{p}", "pooler.{p}")]
OLD_ENCODER = [*bert_input("embeddings", **OLD), *bert_layers(**OLD), Rename("pooler.dense.{p}", "pooler.{p}")]
LAST = [Rename("cls.predictions.bias", "mlm.bias"), Rename("cls.seq_relationship.{p}", "head.{p}")]
HEADS = [*bert_words("cls.predictions.transform", "mlm"), *LAST]
OLD_HEADS = bert_words("cls.predictions.transform", "mlm", **OLD)
WHOLE = under(ENCODER, "bert.")
CLASSIFIER = Rename("classifier.{p}", "head.{p}")
WORDS = ["cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"]
TIED = [
    Tied(WORDS, "text_embedding.words.table.weight"),
    Tied(["cls.predictions.decoder.bias", "cls.predictions.bias"], "mlm.bias"),
]
# Google's published files: old names (new ones in the small sizes), now and then with copies of tied tensors.
PUBLISHED = [*under(OLD_ENCODER, "bert."), *WHOLE]
RULES = {
    "transformers": [*ENCODER, CLASSIFIER],  # BertModel
    "transformers_classifier": [*WHOLE, CLASSIFIER],  # BertForSequenceClassification
    "transformers_pretraining": [*TIED, *WHOLE, *HEADS],  # BertForPreTraining
    "google": [*PUBLISHED, CLASSIFIER, Drop("cls.{rest*}")],  # a published file, its pre-training heads left out
    "microsoft": [*ENCODER, *WHOLE, CLASSIFIER, Drop("cls.{rest*}")],  # with BertModel's names or a whole model's
    # with mlm=True, num_classes=2
    "google_pretraining": [*PUBLISHED, *OLD_HEADS, *HEADS, Drop("cls.predictions.decoder.{p}")],
}
