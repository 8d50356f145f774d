"""Mixture-of-Mamba: Enhancing Multi-Modal State-Space Models with Modality-Aware Sparsity. Liang et al., 2025.
arXiv:2501.16295.

New here: a Mamba layer whose four projections (in, to what the scan chooses, to its step sizes, out) exist once per
modality, and a token goes through those of its own. The convolution, the rates and the scan are shared, so that one
recurrence runs over the mixed sequence. What a token costs is what it costs in a dense Mamba. A layer here is two such
mixers, as the official code puts them in a transformer's place.

Differs: the paper trains on sequences of discrete tokens or on image latents; here pictures, sounds and columns become
tokens as in `meta_transformer`, each slot a modality, and the answer is the mean of all real tokens. Padding is passed
over, in the convolution too: a row reads as if it had none. The step knows each token's modality, which the official
one is not told. Sizes are those of the paper by width and depth (its vocabularies of 65,536 or, in the 163M size,
32,000 words), but the official code publishes no configuration.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Block, Pre, Stack
from plait.core.init import torch_default
from plait.core.tokens import Tokens, join, mean, refuse
from plait.core.weights import Rename
from plait.parts.mixers.scan import selective_scan, step
from plait.parts.presence import fill_absent, masked
from plait.systems.unified.meta_transformer import tokenizer


class Layout(NamedTuple):
    """Which token is of which kind, and where the real ones are.

    kinds   ((kind, count), ...): runs of tokens, the same in all rows; or (B, N) int64, any kind in any place, which
            costs as much as all
            kinds together
    order   (B * N,) int64: rows of the flattened tokens with each sequence's real ones first; None: all are real
    back    (B * N,) int64: undoes it
    """

    kinds: tuple[tuple[int, int], ...] | Tensor
    order: Tensor | None = None
    back: Tensor | None = None


def layout(kinds: tuple[tuple[int, int], ...] | Tensor, keep: Tensor | None) -> Layout:
    """The layout of tokens of these kinds, of which `keep` (B, N) are real."""
    if keep is None:
        return Layout(kinds)
    order = (~keep).int().argsort(dim=1, stable=True)
    first = keep.shape[1] * torch.arange(keep.shape[0], device=keep.device)[:, None]
    return Layout(kinds, (first + order).flatten(), (first + order.argsort(dim=1)).flatten())


class Routed(nn.Module):
    """A linear layer per kind of token: x (..., C) -> (..., D)."""

    def __init__(self, kinds: int, inside: int, outside: int, *, bias: bool = False):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(inside, outside, bias=bias) for _ in range(kinds))

    def forward(self, x: Tensor, kinds: tuple[tuple[int, int], ...] | Tensor) -> Tensor:
        """kinds as in `Layout`; a tensor has the shape of x without its last dimension."""
        if not isinstance(kinds, Tensor):
            runs = x.split([count for _, count in kinds], 1)
            return torch.cat([self.experts[kind](run) for (kind, _), run in zip(kinds, runs)], 1)
        y = self.experts[0](x)
        for kind, expert in enumerate(self.experts[1:], 1):
            y = torch.where((kinds == kind)[..., None], expert(x), y)
        return y


class State(NamedTuple):
    """What a mixer remembers: the inputs of its convolution (B, taps - 1, C), and the scan's state (B, S, C)."""

    inputs: Tensor
    hidden: Tensor


States = tuple[tuple[State, State], ...]  # of both mixers of each layer


class MambaMixture(nn.Module):
    """The mixer: Tokens (B, N, D) -> Tokens (B, N, D), causal. With one kind it is a dense Mamba (arXiv:2312.00752).

    size: S, states per channel. taps: of the convolution. expand: C / D.
    """

    reads = ("layout",)

    def __init__(self, width: int, kinds: int, *, size: int = 16, taps: int = 4, expand: int = 2):
        super().__init__()
        inner, self.rank, self.size = expand * width, math.ceil(width / 16), size
        self.into = Routed(kinds, width, 2 * inner)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner)  # its weights; `recent` computes it
        self.choose = Routed(kinds, inner, self.rank + 2 * size)
        self.pace = Routed(kinds, self.rank, inner, bias=True)
        self.rates = nn.Parameter(torch.empty(inner, size))  # log of the rates of decay
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = Routed(kinds, inner, width)

    def reset(self) -> None:
        self.conv.reset_parameters()
        nn.init.ones_(self.skip)
        self.rates.copy_(torch.arange(1, self.size + 1).log().expand_as(self.rates))
        for expert in self.pace.experts:
            nn.init.uniform_(expert.weight, -(self.rank**-0.5), self.rank**-0.5)
            dt = torch.empty_like(expert.bias).uniform_(math.log(0.001), math.log(0.1)).exp()
            expert.bias.copy_(dt + (-torch.expm1(-dt)).log())  # so that softplus gives dt, spread over (0.001, 0.1)

    def start(self, rows: int) -> State:
        """The state before the first token."""
        inner, taps = self.conv.in_channels, self.conv.kernel_size[0]
        return State(self.skip.new_zeros(rows, taps - 1, inner), self.skip.new_zeros(rows, self.size, inner))

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="a scan reads every token once, in order")
        return t.replace(x=self.run(t.x, t.read("layout"), t.keep, self.start(t.x.shape[0]))[0])

    def run(self, x: Tensor, layout: Layout, keep: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Tokens (B, N, D), of which `keep` (B, N) are real, after `state` -> (B, N, D), and the state after them."""
        x, gate = self.into(x, layout.kinds).chunk(2, -1)
        x, inputs = self.recent(x, layout, keep, state.inputs)
        dt, b, c = self.chosen(x, layout.kinds)
        if keep is not None:
            dt = dt.masked_fill(~keep[..., None], 0.0)
        y, hidden = selective_scan(x, dt, self.decay(), b, c, state.hidden)
        return self.out(torch.addcmul(y, x, self.skip) * F.silu(gate), layout.kinds), State(inputs, hidden)

    def step(self, x: Tensor, kinds: Tensor, state: State) -> tuple[Tensor, State]:
        """One token per row: x (B, D) of kinds (B,) -> (B, D), and the state with it."""
        x, gate = self.into(x, kinds).chunk(2, -1)
        window = torch.cat([state.inputs, x[:, None]], 1)  # (B, taps, C)
        x = F.silu((window * self.conv.weight[:, 0].T).sum(1) + self.conv.bias)
        dt, b, c = self.chosen(x, kinds)
        y, hidden = step(x, dt, self.decay(), b, c, state.hidden)
        return self.out(torch.addcmul(y, x, self.skip) * F.silu(gate), kinds), State(window[:, 1:], hidden)

    def decay(self) -> Tensor:
        """(S, C) rates, negative."""
        return -self.rates.float().exp().T.contiguous()

    def chosen(self, x: Tensor, kinds: tuple[tuple[int, int], ...] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each token chooses: step sizes (..., C), how it enters and how it is read, (..., S) each."""
        dt, b, c = self.choose(x, kinds).split([self.rank, self.size, self.size], -1)
        dt = self.pace(dt, kinds)
        return torch.logaddexp(dt, dt.new_zeros(())), b, c  # softplus, twice as fast

    def recent(self, x: Tensor, layout: Layout, keep: Tensor | None, past: Tensor) -> tuple[Tensor, Tensor]:
        """A causal convolution per channel over the real tokens, activated; and the last inputs of each row."""
        n, taps = x.shape[1], self.conv.kernel_size[0]
        if layout.order is not None:
            x = x.flatten(0, 1).index_select(0, layout.order).view_as(x)
        window = torch.cat([past.to(x.dtype), x], 1)  # (B, taps - 1 + N, C)
        y = self.conv.bias
        for i, weight in enumerate(
            self.conv.weight[:, 0].T.contiguous()
        ):  # a convolution would turn the tokens around: thirty times slower
            y = torch.addcmul(y, window[:, i : i + n], weight)
        y = F.silu(y)
        if layout.back is None:
            return y, window[:, n:]
        last = keep.sum(1, keepdim=True) + torch.arange(taps - 1, device=x.device)  # (B, taps - 1)
        return y.flatten(0, 1).index_select(0, layout.back).view_as(y), window.gather(
            1, last[..., None].expand(-1, -1, window.shape[2])
        )


class Mixers(Block):
    """Two mixers, each with its residual: Tokens (B, N, D) with their layout in the context -> Tokens (B, N, D)."""

    def step(self, x: Tensor, kinds: Tensor, states: tuple[State, State]) -> tuple[Tensor, tuple[State, State]]:
        """One token per row, as `MambaMixture.step`."""
        after = []
        for part, state in zip((self.mix, self.feed), states, strict=True):
            y, state = part.f.step(part.norm(x), kinds, state)
            x = x + y
            after.append(state)
        return x, tuple(after)


class MixtureOfMamba(nn.Module):
    """A batch of any modalities, in one sequence -> one vector that has read them all.

    slots: as in `MetaTransformer`; the order is that of reading, and each slot has projections of its own. depth: pairs
    of mixers.
    """

    attends = False
    fits = ("slots",)
    scheme = {nn.Linear: torch_default}

    def __init__(self, *, slots, patch=16, width, depth, size=16):
        super().__init__()
        self.takes, self.width, self.part_widths = tuple(slots), width, {}
        made = {slot: tokenizer(width, patch, spec) for slot, spec in slots.items()}
        self.blanks = {slot: blank for slot, (_, blank) in made.items()}
        self.slots = nn.ModuleDict({slot: reader for slot, (reader, _) in made.items()})

        def mixer() -> Pre:
            return Pre(nn.RMSNorm(width, eps=1e-5), MambaMixture(width, len(slots), size=size))

        self.stack = Stack(*(Mixers(mixer(), mixer()) for _ in range(depth)), gives=("layout",))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def read(self, batch: dict) -> Tokens:
        """Tokens (B, N, D) of all slots after one another, normed; those of absent slots are there, and not real."""
        s, streams = fill_absent(batch, self.blanks), []
        for slot, reader in self.slots.items():
            t = reader(s.values[slot], s.keep.get(slot))
            streams.append(Tokens(t.x, masked(t.keep, s.present[slot], t.x.shape[1])))
        t = join(*streams)
        kinds = tuple((kind, stream.x.shape[1]) for kind, stream in enumerate(streams))
        t = self.stack(t.reading(layout=layout(kinds, t.keep)))
        return t.replace(x=self.norm(t.x), context=None)

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the modalities meet in the first layer, so that none has a vector of its
        own."""
        t = self.read(batch)
        return {"fused": mean(t), "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict:
        return self.fuse(batch)

    def start(self, rows: int) -> States:
        """The states of all layers before the first token."""
        return tuple((layer.mix.f.start(rows), layer.feed.f.start(rows)) for layer in self.stack.blocks)

    def step(self, x: Tensor, kinds: Tensor, states: States) -> tuple[Tensor, States]:
        """One token per row: x (B, D) that a slot's reader made, kinds (B,) the numbers of these slots -> (B, D)
        normed, and the states with it. It costs the same after any number of tokens."""
        after = []
        for layer, state in zip(self.stack.blocks, states, strict=True):
            x, state = layer.step(x, kinds, state)
            after.append(state)
        return self.norm(x), tuple(after)


MODEL = MixtureOfMamba
TAKES = ("image", "text", "audio", "number", "category", "vector")
ROLES = ("fuser",)
DEFAULT = "nano"
TOY_SLOTS = {
    "number": dict(kind="number", features=4),
    "category": dict(kind="category", sizes=(5, 5, 5)),
    "vector": dict(kind="vector", features=6),
    "image": dict(kind="image", size=(32, 32)),
    "audio": dict(kind="audio", rate=8000),
    "text": dict(kind="text", vocab=64),
}
SLOTS = {
    "image": dict(kind="image", size=(256, 256)),
    "audio": dict(kind="audio", rate=16000),
    "text": dict(kind="text", vocab=65536),
}
SIZES = {
    "toy": dict(slots=TOY_SLOTS, patch=8, width=32, depth=1, size=4),
    "nano": dict(slots=TOY_SLOTS, patch=8, width=128, depth=2),
    "37m": dict(slots=SLOTS, width=256, depth=4),
    "94m": dict(slots=SLOTS, width=512, depth=8),
    "163m": dict(slots=SLOTS | {"text": dict(kind="text", vocab=32000)}, width=768, depth=16),
    "443m": dict(slots=SLOTS, width=1024, depth=24),
    "880m": dict(slots=SLOTS, width=1536, depth=24),
    "1_5b": dict(slots=SLOTS, width=2048, depth=24),
}
WEIGHTS = {}
NAMES = {
    "into": "local_experts_in_proj",
    "choose": "local_experts_x_proj",
    "pace": "local_experts_dt_proj",
    "out": "local_experts_out_proj",
}
RULES = {
    "official": [  # the layers; nobody published the rest, which keeps our names
        rule
        for theirs, ours in (("block1", "mix"), ("block2", "feed"))
        for rule in (
            Rename(f"layers.{{i}}.{theirs}.norm.weight", f"stack.blocks.{{i}}.{ours}.norm.weight"),
            Rename(f"layers.{{i}}.{theirs}.mamba_model.conv1d.{{p}}", f"stack.blocks.{{i}}.{ours}.f.conv.{{p}}"),
            Rename(f"layers.{{i}}.{theirs}.mamba_model.A_log", f"stack.blocks.{{i}}.{ours}.f.rates"),
            Rename(f"layers.{{i}}.{theirs}.mamba_model.D", f"stack.blocks.{{i}}.{ours}.f.skip"),
            *(
                Rename(
                    f"layers.{{i}}.{theirs}.mamba_model.{public}.{{k}}.{{p}}",
                    f"stack.blocks.{{i}}.{ours}.f.{name}.experts.{{k}}.{{p}}",
                )
                for name, public in NAMES.items()
            ),
        )
    ]
    + [Rename("slots.{rest*}", "slots.{rest*}"), Rename("norm.{p}", "norm.{p}")]
}
