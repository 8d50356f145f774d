"""Scalable Diffusion Models with Transformers. Peebles and Xie, 2022. arXiv:2212.09748.

New here: a plain transformer over patches of a noisy latent says what noise is in it. What it should show, and how
noisy it is, come in through the norms alone (adaLN-Zero): a linear layer makes of the condition what each norm scales
and shifts by, and gates for what is added, which start at zero, so that every layer starts as the identity. Nothing
else is particular to pictures or to diffusion; what grows is the transformer.

Differs: a class that is not known is the first row of the table of labels, not the last. A condition may have several
columns, each with a table, and texts, each read by a small tower: their vectors are added. Latents may be those of any
autoencoder, or the pictures themselves. Positions are computed for any grid. Labels and times start with a spread that
small models learn from, not with the 0.02 of the official code. diffusers' times follow other waves than
the official code, which its published weights were trained with; these are the official ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward, Layer, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, mean
from plait.core.weights import Drop, Join, Rename, Rule, Tied, under
from plait.data.kinds import KINDS
from plait.errors import PlaitError
from plait.parts.presence import fill_absent
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.encoder import pre_norm_blocks

Norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=False)
TanhGELU = partial(nn.GELU, approximate="tanh")
WAVES = 256  # numbers that tell a time


def moved(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Start(nn.Linear):
    """A linear layer that starts at zero, or within a `spread` of it."""

    def __init__(self, width: int, out: int, spread: float):
        super().__init__(width, out)
        self.spread = spread

    def reset(self) -> None:
        for p in self.parameters():
            nn.init.normal_(p, std=self.spread)


class DiTBlock(Layer):
    """A layer that the condition (B, D) of the tokens' context scales, shifts and gates."""

    reads = ("condition",)

    def __init__(self, width: int, heads: int, start: float):
        super().__init__()
        self.mix_norm, self.feed_norm, self.modulation = Norm(width), Norm(width), Start(width, 6 * width, start)
        self.mix, self.feed = Attention(width, heads), FeedForward(width, 4 * width, act=TanhGELU)

    def forward(self, t: Tokens) -> Tokens:
        a, b, gate, c, d, last = self.modulation(F.silu(t.read("condition")))[:, None].chunk(6, 2)  # each (B, 1, D)
        y = self.mix(t.replace(x=moved(self.mix_norm(t.x), a, b)))
        t = t.carry(y, t.x + gate * y.x)
        y = self.feed(t.replace(x=moved(self.feed_norm(t.x), c, d)))
        return t.carry(y, t.x + last * y.x)


class Denoiser(nn.Module):
    """Noisy latents x (B, C, H, W), times (B,) and conditions (B, D) -> (B, C', H, W). labels: how many ids each column
    has, 0 for what is not known."""

    def __init__(
        self, channels: int, out: int, patch: int, width: int, depth: int, heads: int, labels: Sequence[int],
        start: float,
    ):  # fmt: skip
        super().__init__()
        self.width, self.patch = width, patch
        self.patch_embed = PatchTokens(width, patch, channels=channels)
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.ModuleList(nn.Embedding(count, width) for count in labels)
        self.stack = Stack(*(DiTBlock(width, heads, start) for _ in range(depth)), gives=("condition",))
        self.norm, self.modulation = Norm(width), Start(width, 2 * width, start)
        self.head = Start(width, patch * patch * out, start)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        t = self.patch_embed(x)
        c = self.time(time_waves(time).to(x.dtype)) + condition
        t = self.stack(t.replace(x=t.x + places(t.grid, self.width, x.device).to(x.dtype)).reading(condition=c))
        y = self.head(moved(self.norm(t.x), *self.modulation(F.silu(c))[:, None].chunk(2, 2)))
        y = y.unflatten(2, (self.patch**2, -1)).permute(0, 3, 2, 1).flatten(1, 2)  # (B, C' P P, N)
        return F.pixel_shuffle(y.unflatten(2, t.grid), self.patch)


def time_waves(time: Tensor) -> Tensor:
    """(B,) -> (B, 256): cosines, then sines, of angles that fall from the time to a ten thousandth of it."""
    rate = torch.exp(-math.log(1e4) * torch.arange(WAVES // 2, device=time.device, dtype=torch.float32) * 2 / WAVES)
    angle = wide(time)[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], 1)


def places(grid: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """(N, D): half of the numbers tell the column of each place, half the row, each as sines, then cosines."""
    rate = 1e4 ** -(torch.arange(width // 4, device=device, dtype=torch.float64) * 4 / width)
    row, column = (torch.arange(side, device=device)[:, None] * rate for side in grid)
    row, column = (torch.cat([a.sin(), a.cos()], 1) for a in (row, column))
    h, w = grid
    return torch.cat([column.expand(h, -1, -1), row[:, None].expand(-1, w, -1)], 2).flatten(0, 1)


class Words(nn.Module):
    """A text (B, N) -> (B, D): the mean of its tokens beside a vector that a row without one has alone."""

    def __init__(self, width: int, told: dict):
        super().__init__()
        self.read, self.none = KINDS["text"].tokens(width, **told), nn.Parameter(torch.empty(width))
        self.stack, self.norm = Stack(*pre_norm_blocks(width, 2, width // 16, 2 * width)), nn.LayerNorm(width)

    def reset(self) -> None:
        nn.init.normal_(self.none, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        t = self.stack(self.read(x, keep))
        return mean(t.replace(x=self.norm(t.x))) * present[:, None] + self.none


class DiT(nn.Module):
    """Noise, and what it is to become -> a picture, step by step (see `plait.parts.samplers`).

    image: the (H, W) of pictures. slots: the columns that a condition is made of, as `KINDS` reads them. codec: the
    model whose latents are denoised; None: the pictures themselves. variance: it says one of each number beside its
    noise. predicts: "noise", or the "velocity" of `samplers.flow`. start: the spread of what starts at zero.
    """

    fits = ("image", "slots")
    scheme = {nn.Embedding: lambda table: nn.init.normal_(table.weight, std=0.3)}

    def __init__(
        self, *, image=(256, 256), slots, codec=None, patch=2, width, depth, heads, variance=True, predicts="noise",
        start=0.0,
    ):  # fmt: skip
        super().__init__()
        told = {slot: {k: v for k, v in spec.items() if k != "kind"} for slot, spec in slots.items()}
        self.takes, self.predicts, self.codec = tuple(slots), predicts, codec
        self.blanks = {slot: KINDS[slots[slot]["kind"]].blank(**told[slot]) for slot in slots}
        channels, factor = (codec.channels, codec.factor) if codec is not None else (3, 1)
        if any(side % (factor * patch) for side in image):
            raise PlaitError(
                f"got pictures of {image[0]} x {image[1]}, expected multiples of {factor * patch}: choose another size"
            )
        self.sample = (channels, image[0] // factor, image[1] // factor)
        labels = slots["category"]["sizes"] if "category" in slots else ()
        self.denoiser = Denoiser(channels, channels * (1 + variance), patch, width, depth, heads, labels, start)
        self.words = nn.ModuleDict({s: Words(width, told[s]) for s in slots if slots[s]["kind"] == "text"})

    def condition(self, batch: dict) -> Tensor:
        """(B, D): the sum of what its columns say. A cell that is missing, or that no training row had, says what it
        learnt to say for nothing."""
        s = fill_absent(batch, self.blanks)
        said = [words(s.values[slot], s.keep.get(slot), s.present[slot]) for slot, words in self.words.items()]
        if len(self.denoiser.labels):
            ids, keep = s.values["category"], s.keep.get("category")
            ids = ids if keep is None else ids.masked_fill(~keep, 0)
            said += [table(ids[:, i]) for i, table in enumerate(self.denoiser.labels)]
        return torch.stack(said).sum(0)

    def denoise(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Noisy latents x (B, C, H, W) at times (B,), 0 to 1000 -> (B, C or 2 C, H, W)."""
        return self.denoiser(x, time, condition)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """{"condition": (B, D), "denoised": as `denoise`} of batch["noisy"] (B, C, H, W) at batch["time"] (B,)."""
        condition = self.condition(batch)
        return {"condition": condition, "denoised": self.denoise(batch["noisy"], batch["time"], condition)}


MODEL = DiT
TAKES = ("category", "text")
ROLES = ("diffuser",)
PARTS = ("codec",)
DEFAULT = "nano"
TOY = dict(category=dict(kind="category", sizes=(5, 5, 5)), text=dict(kind="text", vocab=64))
CLASSES = dict(slots=dict(category=dict(kind="category", sizes=(1001,))), codec="autoencoder_kl_sd_ft_mse")
S = CLASSES | dict(width=384, depth=12, heads=6)
B = CLASSES | dict(width=768, depth=12, heads=12)
L = CLASSES | dict(width=1024, depth=24, heads=16)
XL = CLASSES | dict(width=1152, depth=28, heads=16)
NANO = dict(image=(32, 32), slots=TOY, codec="autoencoder_kl_nano", variance=False, predicts="velocity")
SIZES = {
    "toy": dict(image=(16, 16), slots=TOY, patch=2, width=32, depth=2, heads=2, start=0.2),
    "nano": NANO | dict(patch=2, width=192, depth=6, heads=6),
    "s_2": S | dict(patch=2),
    "s_4": S | dict(patch=4),
    "s_8": S | dict(patch=8),
    "b_2": B | dict(patch=2),
    "b_4": B | dict(patch=4),
    "b_8": B | dict(patch=8),
    "l_2": L | dict(patch=2),
    "l_4": L | dict(patch=4),
    "l_8": L | dict(patch=8),
    "xl_2": XL | dict(patch=2),
    "xl_4": XL | dict(patch=4),
    "xl_8": XL | dict(patch=8),
    "xl_2_512": XL | dict(patch=2, image=(512, 512)),
}

META = dict(source="diffusers", licence="cc-by-nc-4.0", part="denoiser", file="transformer/diffusion_pytorch_model.bin")
WEIGHTS = {
    "s_2": dict(official="DiT-S/2"),
    "s_4": dict(official="DiT-S/4"),
    "s_8": dict(official="DiT-S/8"),
    "b_2": dict(official="DiT-B/2"),
    "b_4": dict(official="DiT-B/4"),
    "b_8": dict(official="DiT-B/8"),
    "l_2": dict(official="DiT-L/2"),
    "l_4": dict(official="DiT-L/4"),
    "l_8": dict(official="DiT-L/8"),
    "xl_4": dict(official="DiT-XL/4"),
    "xl_8": dict(official="DiT-XL/8"),
    "xl_2": META | dict(hub="facebook/DiT-XL-2-256", official="DiT-XL/2"),
    "xl_2_512": META | dict(hub="facebook/DiT-XL-2-512", official="DiT-XL/2 512"),
}


def rolled(public: Sequence[str], ours: str) -> Rule:
    """A table of labels whose last row says nothing, under all these names, to one that begins with it."""
    tied = Tied(public, ours)
    return replace(tied, to=lambda ts: [tied.to(ts)[0].roll(1, 0)], back=lambda ts: tied.back([ts[0].roll(-1, 0)]))


BLOCK, THEIRS, DEPTH = "stack.blocks.{i}", "transformer_blocks.{i}", 28  # diffusers has each layer embed times anew
EMBED = [f"transformer_blocks.{i}.norm1.emb" for i in range(DEPTH)]
OFFICIAL = [
    Rename("x_embedder.proj.{p}", "patch_embed.proj.{p}"),
    Rename("t_embedder.mlp.{i}.{p}", "time.{i}.{p}"),
    rolled(["y_embedder.embedding_table.weight"], "labels.0.weight"),
    Rename("blocks.{i}.attn.qkv.{p}", f"{BLOCK}.mix.qkv.{{p}}"),
    Rename("blocks.{i}.attn.proj.{p}", f"{BLOCK}.mix.out.{{p}}"),
    Rename("blocks.{i}.mlp.fc1.{p}", f"{BLOCK}.feed.up.{{p}}"),
    Rename("blocks.{i}.mlp.fc2.{p}", f"{BLOCK}.feed.down.{{p}}"),
    Rename("blocks.{i}.adaLN_modulation.1.{p}", f"{BLOCK}.modulation.{{p}}"),
    Rename("final_layer.adaLN_modulation.1.{p}", "modulation.{p}"),
    Rename("final_layer.linear.{p}", "head.{p}"),
    Drop("pos_embed"),
]
DIFFUSERS = [
    Rename("pos_embed.proj.{p}", "patch_embed.proj.{p}"),
    *(
        Tied([f"{e}.timestep_embedder.linear_{n}.{p}" for e in EMBED], f"time.{2 * n - 2}.{p}")
        for n in (1, 2)
        for p in ("weight", "bias")
    ),
    rolled([f"{e}.class_embedder.embedding_table.weight" for e in EMBED], "labels.0.weight"),
    Rename(f"{THEIRS}.norm1.linear.{{p}}", f"{BLOCK}.modulation.{{p}}"),
    Join([f"{THEIRS}.attn1.to_{n}.{{p}}" for n in "qkv"], f"{BLOCK}.mix.qkv.{{p}}"),
    Rename(f"{THEIRS}.attn1.to_out.0.{{p}}", f"{BLOCK}.mix.out.{{p}}"),
    Rename(f"{THEIRS}.ff.net.0.proj.{{p}}", f"{BLOCK}.feed.up.{{p}}"),
    Rename(f"{THEIRS}.ff.net.2.{{p}}", f"{BLOCK}.feed.down.{{p}}"),
    Rename("proj_out_1.{p}", "modulation.{p}"),
    Rename("proj_out_2.{p}", "head.{p}"),
]
# of a whole model nobody published the rest: it keeps our names
REST = [*(Rename(f"{n}.{{rest*}}", f"{n}.{{rest*}}") for n in ("denoiser.labels", "labels", "words", "codec"))]
RULES = {
    "official": [*OFFICIAL, *under(OFFICIAL, "denoiser.", "denoiser."), *REST],
    "diffusers": [*DIFFUSERS, *under(DIFFUSERS, "denoiser.", "denoiser."), *REST],
}
