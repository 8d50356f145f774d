"""Zorro's layers against timm's blocks under the mask of the paper, its readouts against torch's attention; and the
gated layers against the numbers of github.com/lucidrains/zorro-pytorch.

That code was run once with tokens in the place of what it reads. zorro.json holds its keys and shapes without the
readers', and what it made: of the tokens after the layers each `every`-th number, of the vectors each seventh, as it
gives them ("published") and with the pair of parentheses that its mask of single modalities lacks ("pure").
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import model_info
from plait.core.tokens import Tokens, by_kind
from plait.core.weights import State, convert, load_strict
from plait.parts.towers.layouts import timm_blocks
from plait.systems.unified.zorro import FUSION, RULES, Zorro
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.recorded import weights
from tests.peers import declare_torchvision

SYSTEM = "zorro"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {"zorro_toy": "timm", "zorro_geglu_512": "zorro-pytorch", "zorro_base": "timm"}
TRUNK = ("stack.", "norm.", "fusion.", "read_out.")  # what is not of readers and heads
BLOCKS = {"zorro_toy": (32, 2, 2, 3), "zorro_base": (768, 12, 12, 16)}  # width, depth, heads and fusion tokens there


def streams(width: int) -> dict[str, Tokens]:
    """Two rows of ten tokens of sounds and 14 of pictures; small, so that a wrong eps shows."""
    g = torch.Generator().manual_seed(11)
    return {"audio": Tokens(0.05 * torch.randn(2, 10, width, generator=g)),
            "image": Tokens(0.05 * torch.randn(2, 14, width, generator=g))}  # fmt: skip


def two(name: str, **arguments) -> Zorro:
    """The size with the slots of the paper, as far as there are readers."""
    slots = {slot: model_info(name).arguments["slots"][slot] for slot in ("audio", "image")}
    return plait.create_model(name, slots=slots, **arguments).eval()


def load(model: Zorro, found: State) -> None:
    """Weights of what there is a peer of, in our layout; readers and heads stay."""
    load_strict(model, {k: v for k, v in model.state_dict().items() if not k.startswith(TRUNK)} | found)


def trunk(model: Zorro) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith(TRUNK))


def made(model: Zorro, given: dict[str, Tokens]) -> tuple[dict[str, Tensor], Tensor]:
    """{stream: (B, N, D)}, the tokens after all layers, and the vectors (B, 3, D)."""
    t = model.mingle(given, {slot: torch.ones(len(s.x), dtype=torch.bool) for slot, s in given.items()})
    return {name: s.x for name, s in by_kind(t).items()}, model.read_out(t).x


class Masked(nn.Module):
    """timm's blocks under the mask of the paper, and torch's attention as the readout."""

    def __init__(self, width: int, depth: int, heads: int, fusion: int):
        super().__init__()
        declare_torchvision()
        from timm.models.vision_transformer import Block

        how = dict(qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        self.blocks = nn.ModuleList(Block(width, heads, **how) for _ in range(depth))
        self.norm, self.pool_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.fusion, self.queries = nn.Parameter(torch.randn(fusion, width)), nn.Parameter(torch.randn(3, width))
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, given: dict[str, Tokens]) -> tuple[dict[str, Tensor], Tensor]:
        parts = [*(s.x for s in given.values()), self.fusion.expand(2, -1, -1)]
        counts = [x.shape[1] for x in parts]
        kind = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
        mask = (kind[:, None] == kind) | (kind[:, None] == 2)
        x = torch.cat(parts, 1)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        x, queries = self.norm(x), self.queries.expand(2, -1, -1)
        forbidden = torch.arange(3)[:, None] != kind
        found, _ = self.pool(self.pool_norm(queries), x, x, attn_mask=forbidden, need_weights=False)
        return dict(zip((*given, FUSION), x.split(counts, 1))), queries + found

    def ours(self) -> State:
        """Its weights in our layout."""
        state, made = self.state_dict(), {"fusion.table": self.fusion, "read_out.queries": self.queries}
        blocks = {k: v for k, v in state.items() if k.startswith("blocks.")}
        made |= convert(blocks, timm_blocks("blocks.{i}", "stack.blocks.{i}"))
        for name in ("weight", "bias"):
            q, k, v = state[f"pool.in_proj_{name}"].chunk(3)
            made |= {f"read_out.q.{name}": q, f"read_out.kv.{name}": torch.cat([k, v])}
            made[f"norm.{name}"], made[f"read_out.norm.{name}"] = state[f"norm.{name}"], state[f"pool_norm.{name}"]
            made[f"read_out.out.{name}"] = state[f"pool.out_proj.{name}"]
        return made


@torch.no_grad()
def gated() -> Row:
    """The size "geglu_512" against what was recorded."""
    name, facts = "zorro_geglu_512", NUMBERS
    ours = two(name)
    load(ours, convert(weights(facts["keys"]), RULES["zorro_pytorch"]))
    assert set(epsilons(ours)) == {1e-5}
    tokens, vectors = made(ours, streams(ours.width))
    theirs = {key: torch.tensor(facts["tokens"][key]) for key in ("audio", "video", FUSION)}
    pairs = [(x.flatten()[:: facts["every"]], want) for x, want in zip(tokens.values(), theirs.values())]
    pure, fused = (torch.tensor(facts[key]) for key in ("pure", "published"))
    found = vectors.flatten()[::7]
    third = torch.arange(vectors.numel()).view_as(vectors)[:, 2].flatten()
    last = torch.isin(torch.arange(vectors.numel())[::7], third)  # of the fusion, as it was published
    pairs += [(found[~last], pure[~last]), (found[last], fused[last])]
    error = max(relative_error(*pair) for pair in pairs)
    return Row(name, "zorro-pytorch, recorded", trunk(ours), facts["parameters"], error)


@torch.no_grad()
def parity(name: str) -> Row:
    if name == "zorro_geglu_512":
        return gated()
    ours = two(name)
    theirs = perturb(Masked(*BLOCKS[name]))
    load(ours, theirs.ours())
    assert epsilons(ours) == epsilons(theirs)
    given = streams(ours.width)
    (tokens, vectors), (want, read) = made(ours, given), theirs(given)
    error = max(relative_error(tokens[s], want[s]) for s in want)
    error = max(error, *(relative_error(*pair) for pair in zip(vectors.unbind(1), read.unbind(1))))
    told = f"timm Block x {len(theirs.blocks)} under the paper's mask, torch's attention"
    return Row(name, told, trunk(ours), count(theirs), error)
