"""MixEncoder: Once is Enough: A Light-Weight Cross-Attention for Fast Sentence Pair Modeling. Yang, Qi, Liu, Wang,
Gao, Xu, 2022. arXiv:2210.05261.

New here: a text that might answer is kept as a few vectors, made beforehand: what its encoder makes of a few learnt
tokens in front of it. While a question is read, once however many answers there are, these vectors read along: in
layers with an interaction each asks the question's words, and its own answer's vectors, by projections of their own.
What a question says is told anew for each answer, by a query that its vectors make. So answers are told apart by
something like reading both together, and a thousand of them cost one reading of the question.

Differs: the few tokens of a text that answers begin it always, where the public code cuts the text at its own end. The
public code drops nothing of attention's weights while it trains.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, Block, FeedForward, Post, Stack, merge_heads, split_heads
from plait.core.tokens import Tokens, real
from plait.core.weights import Drop, Join, Rename, Rule, Tied
from plait.errors import PlaitError
from plait.parts.presence import Blank, fill_absent
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers

Norm = partial(nn.LayerNorm, eps=1e-12)


class Gate(nn.Module):
    """What is new and what was (..., D), weighed by a hint (..., D) -> (..., D)."""

    def __init__(self, width: int):
        super().__init__()
        self.weigh = nn.Linear(3 * width, width)

    def forward(self, new: Tensor, old: Tensor, hint: Tensor) -> Tensor:
        share = self.weigh(torch.cat([hint, new, old], -1)).sigmoid()
        return share * new + (1 - share) * old


class Meeting(Block):
    """A layer of the question, along with which the vectors of K answers are read where the context holds some:
    "answers" (B, K, C, D), and "told" (B, K, D), what the question said so far for each. Both go on anew."""

    reads = ("answers", "told")

    def __init__(self, mix: Post, feed: Post, width: int, heads: int, hidden: int, dropout: float, gates: list[Gate]):
        super().__init__(mix, feed)
        self.heads, self.gates = heads, gates  # one for all layers, in a list, so that it is no part of each
        self.q, self.kv, self.hint = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.attend, self.attend_question = Attend(cross=True), Attend(cross=True)
        self.out, self.norm = nn.Linear(width, width), Norm(width)
        self.after, self.after_norm = FeedForward(width, hidden), Norm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, t: Tokens) -> Tokens:
        if t.context is None or "answers" not in t.context:
            return super().forward(t)
        answers, told = self.met(t, t.read("answers"), t.read("told"))
        return super().forward(t).reading(answers=answers, told=told)

    def met(self, t: Tokens, x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors and what was told, before the layer and after it."""
        count, c = x.shape[1:3]
        _, k, v = self.mix.f.project(t)  # (B, H, N, E)
        hint = x.mean(2)
        (ask,) = split_heads(self.hint(hint), 1, self.heads)
        gathered = self.attend_question(Tokens(hint), ask, k, v, to=Tokens(t.x, keep=t.keep, weight=t.weight))
        # each answer's vectors ask the words and one another: a row an answer
        rows = x.flatten(0, 1)
        (q,), own = split_heads(self.q(rows), 1, self.heads), split_heads(self.kv(rows), 2, self.heads)

        def behind(words: Tensor, vectors: Tensor) -> Tensor:
            wide = words[:, None].expand(-1, count, *words.shape[1:]).flatten(0, 1)
            return torch.cat([wide, vectors], -2)

        keys, values = (behind(a, z) for a, z in zip((k, v), own, strict=True))
        ones = torch.ones_like(rows[..., 0])
        keep = torch.cat([real(t)[:, None].expand(-1, count, -1).flatten(0, 1), ones > 0], 1)
        weight = None
        if t.weight is not None:
            weight = torch.cat([t.weight[:, None].expand(-1, count, -1).flatten(0, 1), ones], 1)
        found = self.attend(Tokens(rows), q, keys, values, to=Tokens(behind(t.x, rows), keep=keep, weight=weight))
        found = self.drop(self.out(merge_heads(found.x))).view_as(x)
        said = self.drop(self.out(merge_heads(gathered.x)))
        (gate,) = self.gates
        return self.fed(self.norm(found + x)), self.fed(self.norm(gate(said, told, hint)))

    def fed(self, x: Tensor) -> Tensor:
        y = self.after(Tokens(x.flatten(1, -2))).x.view_as(x)
        return self.after_norm(x + self.drop(y))


class MixEncoder(nn.Module):
    """A batch of a question and K texts that might answer it -> (B, 3 K D), of each text what the question says for it,
    its own vectors' mean, and the product of both; of one text, its first token's state.

    slots: names of the inputs, each with its kind, if they are not two texts; the first asks. vocab: V. length: the
    longest text. vectors: C, of a text that answers. meets: how many of the last layers have an interaction.
    """

    fits = ("slots", "vocab")

    def __init__(
        self, *, slots=None, vocab=30522, length=512, width, depth, heads, hidden=None, vectors=1, meets=1, dropout=0.1
    ):
        super().__init__()
        self.takes, self.part_widths, self.vectors = tuple(slots or ("text_0", "text_1")), {}, vectors
        self.width = width * max(3 * (len(self.takes) - 1), 1)
        self.blanks: dict[str, Blank] = dict.fromkeys(self.takes, ((1,), torch.int64))
        hidden = hidden or 4 * width
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, dropout=dropout)
        self.gate = Gate(width)
        layers = post_norm_blocks(width, depth, heads, hidden, norm=Norm, mix=Attention, dropout=dropout)
        for i in range(depth - meets, depth):
            layers[i] = Meeting(layers[i].mix, layers[i].feed, width, heads, hidden, dropout, [self.gate])
        self.stack, self.meets = Stack(*layers, gives=("answers", "told")), meets
        self.first = nn.Parameter(torch.empty(vectors, width))

    def reset(self) -> None:
        nn.init.xavier_normal_(self.first)

    def store(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Texts that might answer (B, N), each with its beginning, keep (B, N) -> (B, C, D), what is kept of them."""
        return self.stored(ids, keep).x[:, : self.vectors]

    def stored(self, ids: Tensor, keep: Tensor) -> Tokens:
        """As `store`, all tokens, of which the learnt ones stand in the place of the first."""
        e = self.text_embedding
        words = e.words(ids[:, 1:], keep[:, 1:])
        first = self.first.to(words.x.dtype).expand(ids.shape[0], -1, -1)
        there = torch.cat([keep.any(1, keepdim=True).expand(-1, self.vectors), real(words)], 1)
        t = e.positions(Tokens(torch.cat([first, words.x], 1), keep=there))
        return self.stack(t.replace(x=e.drop(e.norm(t.x + e.kinds(ids.new_zeros(1, 1))))))

    def ask(self, ids: Tensor, keep: Tensor, x: Tensor) -> tuple[Tokens, Tensor, Tensor]:
        """A question (B, N) and the vectors (B, K, C, D) of texts -> its tokens, and (B, K, D) each: what it says for
        each of them, and the mean of its vectors."""
        if x.shape[0] != ids.shape[0]:
            raise PlaitError(f"got vectors for {x.shape[0]} questions, expected {ids.shape[0]}: expand what all share")
        t = self.text_embedding(ids, keep).reading(answers=x, told=torch.zeros_like(x[:, :, 0]))
        t = self.stack(t)
        return t.replace(context=None), t.read("told"), t.read("answers").mean(2)

    def scores(self, ids: Tensor, keep: Tensor, x: Tensor) -> Tensor:
        """As `ask` -> (B, K): how well each answers; softmax over K in training."""
        _, told, answers = self.ask(ids, keep, x)
        return (told * answers).sum(-1)

    def met(self, batch: dict) -> tuple[Tensor, Tensor, dict]:
        """What `ask` gives of the slots of a batch, zeros where an answer is absent, and the losses."""
        s = fill_absent(batch, self.blanks)
        asks, *answers = self.takes
        read = [self.stored(s.values[n], s.mask(n)) for n in answers]
        x = torch.stack([t.x[:, : self.vectors] for t in read], 1)
        t, told, found = self.ask(s.values[asks], s.mask(asks), x)
        there = torch.stack([s.present[n] for n in answers], 1)[..., None]
        return told * there, found * there, t.with_losses(*read).losses or {}

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, 3 K D), "parts": {}, "losses": {name: ()}}."""
        if len(self.takes) == 1:
            s = fill_absent(batch, self.blanks)
            t = self.stack(self.text_embedding(s.values[self.takes[0]], s.mask(self.takes[0])))
            return {"fused": t.x[:, 0] * s.present[self.takes[0]][:, None], "parts": {}, "losses": t.losses or {}}
        told, found, losses = self.met(batch)
        return {"fused": torch.cat([told, found, told * found], -1).flatten(1), "parts": {}, "losses": losses}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, 3 K D), and scores (B, K) of the answers."""
        told, found, _ = self.met(batch)
        both = torch.cat([told, found, told * found], -1)
        return {"fused": both.flatten(1), "scores": (told * found).sum(-1)}


BASE = dict(width=768, depth=12, heads=12)
TEXT = dict(kind="text", vocab=64)
TEXTS = {"text_0": TEXT, "text_1": TEXT, "text_2": TEXT}

MODEL = MixEncoder
TAKES = ("text", "text")
ROLES = ("fuser",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(slots=TEXTS, vocab=64, length=16, width=32, depth=2, heads=2, vectors=2, dropout=0.0),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "small": dict(width=512, depth=4, heads=8),
    "base": BASE,
    "base_meets_3": BASE | dict(meets=3),
    "base_meets_3_vectors_2": BASE | dict(meets=3, vectors=2),
}
WEIGHTS = {}


COPY = "embeddings.weight"  # of the word table


def _official(model: MixEncoder) -> list[Rule]:
    """Theirs are numbered with their layers."""
    early = len(model.stack.blocks) - model.meets
    found: list[Rule] = [
        *(Drop(f"bert_model.pooler.dense.{p}") for p in ("weight", "bias")),
        Tied([COPY, "bert_model.embeddings.word_embeddings.weight"], "text_embedding.words.table.weight"),
        *bert_input("bert_model.embeddings"),
        *bert_layers("bert_model.encoder.layer.{i}"),
        Rename("context_cls", "first"),
        Rename("decoder.LSTM.weight_layer.{p}", "gate.weigh.{p}"),
    ]
    for theirs in range(early, len(model.stack.blocks)):
        ours = f"stack.blocks.{theirs}"
        pairs = [f"decoder.candidate_{n}.{theirs}.{{p}}" for n in ("key", "value")]
        chunk = f"decoder.layer_chunks.{theirs}"
        found += [
            Rename(f"decoder.candidate_query.{theirs}.{{p}}", f"{ours}.q.{{p}}"),
            Join(pairs, f"{ours}.kv.{{p}}"),
            Rename(f"decoder.compress_query.{theirs}.{{p}}", f"{ours}.hint.{{p}}"),
            Rename(f"{chunk}.attention.dense.{{p}}", f"{ours}.out.{{p}}"),
            Rename(f"{chunk}.attention.LayerNorm.{{p}}", f"{ours}.norm.{{p}}"),
            Rename(f"{chunk}.intermediate.dense.{{p}}", f"{ours}.after.up.{{p}}"),
            Rename(f"{chunk}.output.dense.{{p}}", f"{ours}.after.down.{{p}}"),
            Rename(f"{chunk}.output.LayerNorm.{{p}}", f"{ours}.after_norm.{{p}}"),
        ]
    return found


RULES = {"official": _official}
