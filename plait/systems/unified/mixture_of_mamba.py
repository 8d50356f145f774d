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

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Block, Pre, Stack
from plait.core.init import torch_default
from plait.core.tokens import Tokens, join, mean
from plait.core.weights import Rename
from plait.parts.mixers.mamba import Kinds, Mamba, State, layout
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.readers import tokenizer


class Routed(nn.Module):
    """A linear layer per kind of token: x (..., C) -> (..., D)."""

    def __init__(self, kinds: int, inside: int, outside: int, *, bias: bool = False):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(inside, outside, bias=bias) for _ in range(kinds))

    def forward(self, x: Tensor, kinds: Kinds) -> Tensor:
        """kinds as in `Layout`; a tensor has the shape of x without its last dimension."""
        if not isinstance(kinds, Tensor):
            runs = x.split([count for _, count in kinds], 1)
            return torch.cat([self.experts[kind](run) for (kind, _), run in zip(kinds, runs)], 1)
        y = self.experts[0](x)
        for kind, expert in enumerate(self.experts[1:], 1):
            y = torch.where((kinds == kind)[..., None], expert(x), y)
        return y


class MambaMixture(Mamba):
    """A Mamba mixer whose projections exist once per kind of token; with one kind it is a dense Mamba."""

    def __init__(self, width: int, kinds: int, *, size: int = 16):
        super().__init__(width, partial(Routed, kinds), size=size)

    def reset(self) -> None:
        super().reset()
        for expert in self.pace.experts:
            self.reset_pace(expert)


States = tuple[tuple[State, State], ...]  # of both mixers of each layer


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

    slots: as in `MetaTransformer`, in the order of reading; each has projections of its own. depth: pairs of mixers.
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
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the modalities meet in the first layer, so that none
        has a vector of its own."""
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
BLOCKS = {f"layers.{{i}}.block{n}": f"stack.blocks.{{i}}.{part}" for n, part in enumerate(("mix", "feed"), 1)}
RULES = {
    "official": [  # the layers; nobody published the rest, which keeps our names
        *(Rename(f"{a}.norm.weight", f"{b}.norm.weight") for a, b in BLOCKS.items()),
        *(Rename(f"{a}.mamba_model.conv1d.{{p}}", f"{b}.f.conv.{{p}}") for a, b in BLOCKS.items()),
        *(Rename(f"{a}.mamba_model.A_log", f"{b}.f.rates") for a, b in BLOCKS.items()),
        *(Rename(f"{a}.mamba_model.D", f"{b}.f.skip") for a, b in BLOCKS.items()),
        *(
            Rename(f"{a}.mamba_model.{public}.{{k}}.{{p}}", f"{b}.f.{name}.experts.{{k}}.{{p}}")
            for a, b in BLOCKS.items()
            for name, public in NAMES.items()
        ),
        Rename("slots.{rest*}", "slots.{rest*}"),
        Rename("norm.{p}", "norm.{p}"),
    ]
}
