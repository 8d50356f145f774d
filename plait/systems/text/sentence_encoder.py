"""Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. Reimers, Gurevych, 2019. arXiv:1908.10084.

New here: an encoder of words trained so that one vector of each text, mostly the mean of its tokens, lies near those of
texts that mean the same. Texts are then compared by a product and no longer by reading two together. All that is asked
of the encoder is its tokens, so that any will do; E5 (arXiv:2212.03533), GTE (arXiv:2308.03281) and BGE
(arXiv:2309.07597) differ in what they learnt from, and in what is put before a text that asks and one that answers.
E5-Mistral (arXiv:2401.00368) reads the last token of a language model.

Differs: a vector is always of length one, so that models which were trained for products of longer ones are left out.
The factor of a cosine is given and not learnt, as it was in training.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from plait.core.create import rules_of
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Rule, under
from plait.errors import PlaitError
from plait.parts.towers.sentences import POOLING, Sentences, bare


class SentenceEncoder(Sentences):
    """Token ids (B, N) -> unit vectors (B, E).

    tower: the encoder, of which what only its own answers need is taken off. slots: names of the inputs that it reads,
    each with its kind, if they are not one text. pooling: what is read of the tokens, one of `POOLING`. project: E,
    where a layer and a tanh stand behind that. scale: the factor of a cosine, in training.
    """

    def __init__(self, *, tower, slots=None, pooling="mean", project=None, scale=20.0):
        super().__init__(slots, scale)
        if pooling not in POOLING:
            raise PlaitError(f"pooling: got {pooling!r}, expected one of {', '.join(POOLING)}")
        self.tower = bare(tower)
        self.read, self.embed_width = POOLING[pooling], project or tower.width
        self.project = nn.Linear(tower.width, project) if project else None

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        x = self.read(t)
        return x if self.project is None else self.project(x).tanh()


TUNED = dict(scale=100.0)
BERT = dict(tower="bert_base_uncased")
BIG_BERT = dict(tower="bert_large_uncased")
MINI = dict(tower="bert_minilm_l12_h384")
MANY = dict(tower="bert_minilm_l12_h384_multilingual")
XLM = dict(tower="roberta_xlm_base")
BIG_XLM = dict(tower="roberta_xlm_large")
CLS = TUNED | dict(pooling="cls")

MODEL = SentenceEncoder
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="bert_toy", project=16),
    "nano": dict(tower="bert_nano"),
    "minilm_l6": dict(tower="bert_minilm_l6_h384"),
    "minilm_l12": MINI,
    "mpnet_base": dict(tower="mpnet_base"),
    "distilroberta": dict(tower="roberta_distil"),
    "roberta_large": dict(tower="roberta_large"),
    "multilingual_minilm_l12": MANY,
    "multilingual_mpnet_base": XLM,
    "distiluse_multilingual": dict(tower="distilbert_base_multilingual_cased", project=512),
    "labse": BERT | dict(vocab=501153, pooling="cls", project=768),
    "e5_small_v2": MINI | TUNED,
    "e5_base_v2": BERT | TUNED,
    "e5_large_v2": BIG_BERT | TUNED,
    "multilingual_e5_small": MANY | TUNED,
    "multilingual_e5_base": XLM | TUNED,
    "multilingual_e5_large": BIG_XLM | TUNED,
    "e5_mistral_7b": dict(tower="llama_mistral_7b_v0.1", pooling="last") | TUNED,
    "gte_small": MINI | TUNED,
    "gte_base": BERT | TUNED,
    "gte_large": BIG_BERT | TUNED,
    "bge_small_en_v1.5": MINI | CLS,
    "bge_base_en_v1.5": BERT | CLS,
    "bge_large_en_v1.5": BIG_BERT | CLS,
    "bge_m3": BIG_XLM | CLS | dict(length=8192),
}

FILE = dict(source="sentence_transformers", file="model.safetensors", transformers=True, max_tokens=512)
SBERT = FILE | dict(licence="apache-2.0", max_tokens=128)
DENSE = dict(folders=("2_Dense",))
INTFLOAT = FILE | dict(licence="mit", prefixes=dict(text="query: ", query="query: ", passage="passage: "))
ASKED = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
MISTRAL = dict(max_tokens=4096, file="model.safetensors.index.json", prefixes=dict(query=ASKED))
ALIBABA = FILE | dict(licence="mit")
ASK = "Represent this sentence for searching relevant passages: "
BAAI = FILE | dict(licence="mit", prefixes=dict(query=ASK))
M3 = FILE | dict(licence="mit", max_tokens=8192, file="pytorch_model.bin")
ST = "sentence-transformers/"
WEIGHTS = {
    "minilm_l6": SBERT | dict(hub=ST + "all-MiniLM-L6-v2", max_tokens=256),
    "minilm_l12": SBERT | dict(hub=ST + "all-MiniLM-L12-v2"),
    "mpnet_base": SBERT | dict(hub=ST + "all-mpnet-base-v2", max_tokens=384),
    "distilroberta": SBERT | dict(hub=ST + "all-distilroberta-v1", max_tokens=512),
    "roberta_large": SBERT | dict(hub=ST + "all-roberta-large-v1", max_tokens=256),
    "multilingual_minilm_l12": SBERT | dict(hub=ST + "paraphrase-multilingual-MiniLM-L12-v2"),
    "multilingual_mpnet_base": SBERT | dict(hub=ST + "paraphrase-multilingual-mpnet-base-v2"),
    "distiluse_multilingual": SBERT | DENSE | dict(hub=ST + "distiluse-base-multilingual-cased-v2"),
    "labse": SBERT | DENSE | dict(hub=ST + "LaBSE", max_tokens=256),
    "e5_small_v2": INTFLOAT | dict(hub="intfloat/e5-small-v2"),
    "e5_base_v2": INTFLOAT | dict(hub="intfloat/e5-base-v2"),
    "e5_large_v2": INTFLOAT | dict(hub="intfloat/e5-large-v2"),
    "multilingual_e5_small": INTFLOAT | dict(hub="intfloat/multilingual-e5-small"),
    "multilingual_e5_base": INTFLOAT | dict(hub="intfloat/multilingual-e5-base"),
    "multilingual_e5_large": INTFLOAT | dict(hub="intfloat/multilingual-e5-large"),
    "e5_mistral_7b": INTFLOAT | MISTRAL | dict(hub="intfloat/e5-mistral-7b-instruct"),
    "gte_small": ALIBABA | dict(hub="thenlper/gte-small"),
    "gte_base": ALIBABA | dict(hub="thenlper/gte-base"),
    "gte_large": ALIBABA | dict(hub="thenlper/gte-large"),
    "bge_small_en_v1.5": BAAI | dict(hub="BAAI/bge-small-en-v1.5"),
    "bge_base_en_v1.5": BAAI | dict(hub="BAAI/bge-base-en-v1.5"),
    "bge_large_en_v1.5": BAAI | dict(hub="BAAI/bge-large-en-v1.5"),
    "bge_m3": M3 | dict(hub="BAAI/bge-m3"),
}


def published(model: SentenceEncoder) -> list[Rule]:
    """The tower's own layout, as transformers saves it without a head, and the layer behind it in a folder of its
    own."""
    bare = [
        replace(rule, public=tuple(key.removeprefix("model.") for key in rule.public))
        for rule in rules_of(model.tower, "transformers")
    ]
    return [Drop("pooler.dense.{p}"), *under(bare, ours="tower."), Rename("2_Dense.linear.{p}", "project.{p}")]


RULES = {"sentence_transformers": published}
