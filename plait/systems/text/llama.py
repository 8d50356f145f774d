"""LLaMA: Open and Efficient Foundation Language Models. Touvron et al., 2023. arXiv:2302.13971.

New here: a decoder of words alone, put together of what had each proved itself: a norm by the root of the mean square
before every step, positions as angles by which queries and keys are turned, a gated feed-forward, no biases. Llama 2
(arXiv:2307.09288) lets several heads of queries share keys and values; Llama 3 (arXiv:2407.21783) has more words and,
from 3.1 on, turns stretched for long texts. TinyLlama and SmolLM are of the same layout. So are, but for a few
arguments, Qwen2 (arXiv:2407.10671: biases on queries, keys and values), Mistral 7B (arXiv:2310.06825: a word sees the
last `window` ones) and Gemma (arXiv:2403.08295: wide heads, GELU in the gate, scaled words, norms around one).

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing. The window counts
them too.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Tied
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.positions.rotary import Rotary, Turned
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import llama_layers
from plait.parts.towers.writer import Writer, back, following

ACTS = {"silu": nn.SiLU, "gelu": partial(nn.GELU, approximate="tanh")}


class NormAroundOne(nn.RMSNorm):
    """Gemma's: the weight says how far from one each factor is."""

    def reset(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), self.normalized_shape, 1 + wide(self.weight), self.eps).to(x.dtype)


class Llama(Writer):
    """Words (B, N) -> logits (B, N, V) of the word after each.

    vocab: V. length: the longest text it was trained for. begin, end: ids. kv_heads: of keys and values, `heads` unless
    given. head_width: E, D / heads unless given. base, stretch: of the turns (`Rotary`). qkv_bias: on queries, keys and
    values. window: how many words back are seen, itself included; 0: all. act: of the gate, "silu" or "gelu". tied: the
    word table is also the head. gemma: scaled words, and norms around one.
    """

    beyond = ("head",)

    def __init__(
        self, *, vocab=32000, length=2048, begin=1, end=2, width, depth, heads, hidden, kv_heads=None, head_width=None,
        base=10000.0, stretch=None, eps=1e-5, qkv_bias=False, window=0, act="silu", tied=False, gemma=False,
    ):  # fmt: skip
        super().__init__()
        self.width, self.length, self.begin, self.end, self.window = width, length, begin, end, window
        self.words, self.scale = WordTokens(vocab, width), width**0.5 if gemma else None
        norm = partial(NormAroundOne if gemma else nn.RMSNorm, eps=eps)
        self.rotary = Rotary(head_width or width // heads, base, stretch)
        how = dict(kv_heads=kv_heads, head_width=head_width, qkv_bias=qkv_bias, out_bias=False)
        mix = partial(Attention, causal=True, rotary=Turned(), **how)
        feed = partial(GatedFeedForward, act=ACTS[act], bias=False)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden, norm=norm, mix=mix, feed=feed))
        self.norm = norm(width)
        self.head = None if tied else nn.Linear(width, vocab, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        x = self.words(ids).x
        return x if self.scale is None else x * torch.tensor(self.scale, dtype=x.dtype)

    def read(self, t: Tokens) -> Tokens:
        places = following(t) if t.pos is None else t.pos
        seen = t if not self.window else self.near(t, places)
        out = self.stack(seen.replace(pos=self.rotary(places)))
        return t.carry(out, self.norm(out.x))

    def near(self, t: Tokens, places: Tensor) -> Tokens:
        """The tokens with who sees whom, (B, N, M + N), where some texts are longer than the window."""
        past = None if t.memory is None else t.memory.keep
        m = 0 if past is None else past.shape[1]
        if m + t.x.shape[1] <= self.window:
            return t
        far = back(t, places)  # (B, N, M + N)
        order = torch.ones_like(far[0], dtype=torch.bool).tril(m)
        return t.reading(allow=(far < self.window) & order)

    def say(self, t: Tokens) -> Tensor:
        return F.linear(t.x, self.words.table.weight) if self.head is None else self.head(t.x)


W4096 = dict(width=4096, depth=32, heads=32)
W8192 = dict(width=8192, depth=80, heads=64)
L7B = W4096 | dict(hidden=11008)
L13B = dict(width=5120, depth=40, heads=40, hidden=13824)
L70B = W8192 | dict(kv_heads=8, hidden=28672)
TWO = dict(length=4096)
THREE = dict(vocab=128256, length=8192, begin=128000, end=128001, base=500000.0)
CHAT = dict(end=128009)
STRETCHED = THREE | dict(length=131072, stretch=(8.0, 1.0, 4.0, 8192.0))
SMALL = STRETCHED | dict(stretch=(32.0, 1.0, 4.0, 8192.0), kv_heads=8, hidden=8192, tied=True)
L8B = W4096 | dict(kv_heads=8, hidden=14336)
L1B = SMALL | dict(width=2048, depth=16, heads=32)
L3B = SMALL | dict(width=3072, depth=28, heads=24)
TINY = dict(width=2048, depth=22, heads=32, kv_heads=4, hidden=5632)
SMOL = dict(vocab=49152, begin=0, end=0, tied=True)
SMOL_135M = SMOL | dict(width=576, depth=30, heads=9, kv_heads=3, hidden=1536)
SMOL_360M = SMOL | dict(width=960, depth=32, heads=15, kv_heads=5, hidden=2560)
SMOL_1_7B = SMOL | dict(width=2048, depth=24, heads=32, hidden=8192)
LONGER = dict(length=8192, base=100000.0)
TALKS = dict(begin=1, end=2)
QWEN = dict(vocab=151936, length=131072, begin=151643, end=151643, base=1e6, eps=1e-6, qkv_bias=True)
QWEN_0_5B = QWEN | dict(width=896, depth=24, heads=14, kv_heads=2, hidden=4864, tied=True)
QWEN_1_5B = QWEN | dict(width=1536, depth=28, heads=12, kv_heads=2, hidden=8960, tied=True)
QWEN_3B = QWEN | dict(width=2048, depth=36, heads=16, kv_heads=2, hidden=11008, tied=True)
BIG_QWEN = QWEN | dict(vocab=152064)
QWEN_7B = BIG_QWEN | dict(width=3584, depth=28, heads=28, kv_heads=4, hidden=18944)
QWEN_14B = BIG_QWEN | dict(width=5120, depth=48, heads=40, kv_heads=8, hidden=13824, eps=1e-5)
QWEN_32B = QWEN_14B | dict(depth=64, hidden=27648)
QWEN_72B = BIG_QWEN | W8192 | dict(kv_heads=8, hidden=29568, eps=1e-5)
SHORTER = dict(length=32768)
MISTRAL = L8B | SHORTER
LATER = dict(base=1e6)
GEMMA = dict(vocab=256000, length=8192, begin=2, end=1, head_width=256, eps=1e-6, act="gelu", tied=True, gemma=True)

MODEL = Llama
TAKES = ("text",)
ROLES = ("generator",)
DEFAULT = "nano"
TRIED = dict(begin=2, end=3, tied=True)
SIZES = {
    "toy": TRIED | dict(vocab=64, length=32, width=32, depth=2, heads=4, kv_heads=2, hidden=64),
    "nano": TRIED | dict(vocab=8192, length=512, width=192, depth=4, heads=4, hidden=512),
    "7b": L7B | dict(eps=1e-6),
    "13b": L13B | dict(eps=1e-6),
    "30b": dict(width=6656, depth=60, heads=52, hidden=17920, eps=1e-6),
    "65b": W8192 | dict(hidden=22016),
    "2_7b": L7B | TWO,
    "2_7b_chat": L7B | TWO,
    "2_13b": L13B | TWO,
    "2_13b_chat": L13B | TWO,
    "2_70b": L70B | TWO,
    "2_70b_chat": L70B | TWO,
    "3_8b": L8B | THREE,
    "3_8b_instruct": L8B | THREE | CHAT,
    "3_70b": L70B | THREE,
    "3_70b_instruct": L70B | THREE | CHAT,
    "3.1_8b": L8B | STRETCHED,
    "3.1_8b_instruct": L8B | STRETCHED | CHAT,
    "3.1_70b": L70B | STRETCHED,
    "3.1_70b_instruct": L70B | STRETCHED | CHAT,
    "3.2_1b": L1B,
    "3.2_1b_instruct": L1B | CHAT,
    "3.2_3b": L3B,
    "3.2_3b_instruct": L3B | CHAT,
    "3.3_70b_instruct": L70B | STRETCHED | CHAT,
    "tiny_1.1b": TINY,
    "tiny_1.1b_chat": TINY,
    "smollm_135m": SMOL_135M,
    "smollm_360m": SMOL_360M,
    "smollm_1.7b": SMOL_1_7B,
    "smollm2_135m": SMOL_135M | LONGER,
    "smollm2_135m_instruct": SMOL_135M | LONGER | TALKS,
    "smollm2_360m": SMOL_360M | LONGER,
    "smollm2_360m_instruct": SMOL_360M | LONGER | TALKS,
    "smollm2_1.7b": SMOL_1_7B | LONGER | dict(base=130000.0),
    "smollm2_1.7b_instruct": SMOL_1_7B | LONGER | TALKS | dict(base=130000.0),
    "qwen2_0.5b": QWEN_0_5B,
    "qwen2_1.5b": QWEN_1_5B,
    "qwen2_7b": QWEN_7B,
    "qwen2_72b": QWEN_72B,
    "qwen2.5_0.5b": QWEN_0_5B | SHORTER,
    "qwen2.5_0.5b_instruct": QWEN_0_5B | SHORTER | dict(end=151645),
    "qwen2.5_1.5b": QWEN_1_5B,
    "qwen2.5_1.5b_instruct": QWEN_1_5B | SHORTER | dict(end=151645),
    "qwen2.5_3b": QWEN_3B | SHORTER,
    "qwen2.5_7b": QWEN_7B,
    "qwen2.5_7b_instruct": QWEN_7B | SHORTER | dict(end=151645),
    "qwen2.5_14b": QWEN_14B,
    "qwen2.5_32b": QWEN_32B,
    "qwen2.5_72b": QWEN_72B,
    "mistral_7b_v0.1": MISTRAL | dict(window=4096),
    "mistral_7b_instruct_v0.1": MISTRAL | dict(window=4096),
    "mistral_7b_instruct_v0.2": MISTRAL | LATER,
    "mistral_7b_v0.3": MISTRAL | LATER | dict(vocab=32768),
    "mistral_7b_instruct_v0.3": MISTRAL | LATER | dict(vocab=32768),
    "gemma_2b": GEMMA | dict(width=2048, depth=18, heads=8, kv_heads=1, hidden=16384),
    "gemma_7b": GEMMA | dict(width=3072, depth=28, heads=16, hidden=24576),
}

FILE = dict(file="model.safetensors", transformers=True)
UNTIED = FILE | dict(source="transformers")
TIED = FILE | dict(source="transformers_tied")
SHARDS = dict(file="model.safetensors.index.json")
BINS = dict(file="pytorch_model.bin.index.json")
FIRST = UNTIED | BINS | dict(licence="llama1", begin=1, end=2)
SECOND = UNTIED | SHARDS | dict(licence="llama2", begin=1, end=2)
THIRD = UNTIED | SHARDS | dict(licence="llama3", begin=128000, end=128001)
THIRD_1 = THIRD | dict(licence="llama3.1")
THIRD_2 = TIED | dict(licence="llama3.2", begin=128000, end=128001)
OPEN = UNTIED | dict(licence="apache-2.0", begin=1, end=2)
SMOLLM = TIED | dict(licence="apache-2.0", begin=0, end=0)
SMOLLM_CHAT = SMOLLM | dict(begin=1, end=2)
TIED_QWEN = TIED | dict(licence="apache-2.0", begin=151643, end=151643)
BIGGER = TIED_QWEN | SHARDS | dict(source="transformers")
MISTRALAI = OPEN | SHARDS
GOOGLE = TIED | SHARDS | dict(licence="gemma", begin=2, end=1)
WEIGHTS = {
    "7b": FIRST | dict(hub="huggyllama/llama-7b"),
    "13b": FIRST | dict(hub="huggyllama/llama-13b"),
    "30b": FIRST | dict(hub="huggyllama/llama-30b"),
    "65b": FIRST | dict(hub="huggyllama/llama-65b"),
    "2_7b": SECOND | dict(hub="meta-llama/Llama-2-7b-hf"),
    "2_7b_chat": SECOND | dict(hub="meta-llama/Llama-2-7b-chat-hf"),
    "2_13b": SECOND | dict(hub="meta-llama/Llama-2-13b-hf"),
    "2_13b_chat": SECOND | dict(hub="meta-llama/Llama-2-13b-chat-hf"),
    "2_70b": SECOND | dict(hub="meta-llama/Llama-2-70b-hf"),
    "2_70b_chat": SECOND | dict(hub="meta-llama/Llama-2-70b-chat-hf"),
    "3_8b": THIRD | dict(hub="meta-llama/Meta-Llama-3-8B"),
    "3_8b_instruct": THIRD | CHAT | dict(hub="meta-llama/Meta-Llama-3-8B-Instruct"),
    "3_70b": THIRD | dict(hub="meta-llama/Meta-Llama-3-70B"),
    "3_70b_instruct": THIRD | CHAT | dict(hub="meta-llama/Meta-Llama-3-70B-Instruct"),
    "3.1_8b": THIRD_1 | dict(hub="meta-llama/Llama-3.1-8B"),
    "3.1_8b_instruct": THIRD_1 | CHAT | dict(hub="meta-llama/Llama-3.1-8B-Instruct"),
    "3.1_70b": THIRD_1 | dict(hub="meta-llama/Llama-3.1-70B"),
    "3.1_70b_instruct": THIRD_1 | CHAT | dict(hub="meta-llama/Llama-3.1-70B-Instruct"),
    "3.2_1b": THIRD_2 | dict(hub="meta-llama/Llama-3.2-1B"),
    "3.2_1b_instruct": THIRD_2 | CHAT | dict(hub="meta-llama/Llama-3.2-1B-Instruct"),
    "3.2_3b": THIRD_2 | SHARDS | dict(hub="meta-llama/Llama-3.2-3B"),
    "3.2_3b_instruct": THIRD_2 | SHARDS | CHAT | dict(hub="meta-llama/Llama-3.2-3B-Instruct"),
    "3.3_70b_instruct": THIRD_1 | CHAT | dict(hub="meta-llama/Llama-3.3-70B-Instruct", licence="llama3.3"),
    "tiny_1.1b": OPEN | dict(hub="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"),
    "tiny_1.1b_chat": OPEN | dict(hub="TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "smollm_135m": SMOLLM | dict(hub="HuggingFaceTB/SmolLM-135M"),
    "smollm_360m": SMOLLM | dict(hub="HuggingFaceTB/SmolLM-360M"),
    "smollm_1.7b": SMOLLM | dict(hub="HuggingFaceTB/SmolLM-1.7B"),
    "smollm2_135m": SMOLLM | dict(hub="HuggingFaceTB/SmolLM2-135M"),
    "smollm2_135m_instruct": SMOLLM_CHAT | dict(hub="HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2_360m": SMOLLM | dict(hub="HuggingFaceTB/SmolLM2-360M"),
    "smollm2_360m_instruct": SMOLLM_CHAT | dict(hub="HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2_1.7b": SMOLLM | dict(hub="HuggingFaceTB/SmolLM2-1.7B"),
    "smollm2_1.7b_instruct": SMOLLM_CHAT | dict(hub="HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    "qwen2_0.5b": TIED_QWEN | dict(hub="Qwen/Qwen2-0.5B"),
    "qwen2_1.5b": TIED_QWEN | dict(hub="Qwen/Qwen2-1.5B"),
    "qwen2_7b": BIGGER | dict(hub="Qwen/Qwen2-7B"),
    "qwen2_72b": BIGGER | dict(hub="Qwen/Qwen2-72B", licence="tongyi-qianwen"),
    "qwen2.5_0.5b": TIED_QWEN | dict(hub="Qwen/Qwen2.5-0.5B"),
    "qwen2.5_0.5b_instruct": TIED_QWEN | dict(hub="Qwen/Qwen2.5-0.5B-Instruct", end=151645),
    "qwen2.5_1.5b": TIED_QWEN | dict(hub="Qwen/Qwen2.5-1.5B"),
    "qwen2.5_1.5b_instruct": TIED_QWEN | dict(hub="Qwen/Qwen2.5-1.5B-Instruct", end=151645),
    "qwen2.5_3b": TIED_QWEN | SHARDS | dict(hub="Qwen/Qwen2.5-3B", licence="qwen-research"),
    "qwen2.5_7b": BIGGER | dict(hub="Qwen/Qwen2.5-7B"),
    "qwen2.5_7b_instruct": BIGGER | dict(hub="Qwen/Qwen2.5-7B-Instruct", end=151645),
    "qwen2.5_14b": BIGGER | dict(hub="Qwen/Qwen2.5-14B"),
    "qwen2.5_32b": BIGGER | dict(hub="Qwen/Qwen2.5-32B"),
    "qwen2.5_72b": BIGGER | dict(hub="Qwen/Qwen2.5-72B", licence="qwen"),
    "mistral_7b_v0.1": MISTRALAI | dict(hub="mistralai/Mistral-7B-v0.1"),
    "mistral_7b_instruct_v0.1": MISTRALAI | dict(hub="mistralai/Mistral-7B-Instruct-v0.1"),
    "mistral_7b_instruct_v0.2": MISTRALAI | dict(hub="mistralai/Mistral-7B-Instruct-v0.2"),
    "mistral_7b_v0.3": MISTRALAI | dict(hub="mistralai/Mistral-7B-v0.3"),
    "mistral_7b_instruct_v0.3": MISTRALAI | dict(hub="mistralai/Mistral-7B-Instruct-v0.3"),
    "gemma_2b": GOOGLE | dict(hub="google/gemma-2b"),
    "gemma_7b": GOOGLE | dict(hub="google/gemma-7b"),
}

TABLE = Rename("model.embed_tokens.weight", "words.table.weight")
BODY = [*llama_layers(), Drop("model.rotary_emb.{p}"), Rename("model.norm.weight", "norm.weight")]
RULES = {
    "transformers": [TABLE, *BODY, Rename("lm_head.weight", "head.weight")],
    "transformers_tied": [Tied(["lm_head.weight", "model.embed_tokens.weight"], "words.table.weight"), TABLE, *BODY],
}
