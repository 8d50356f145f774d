"""High-Resolution Image Synthesis with Latent Diffusion Models. Rombach et al., 2022. arXiv:2112.10752.

New here: pictures are not drawn pixel by pixel. A convolutional autoencoder, trained once, turns them into small maps
of a few channels (latents), drawn from a Gaussian that is held near the normal one only lightly; what makes pictures
makes latents, at a fraction of the work, and the decoder paints what is too fine to be planned. This is that
autoencoder; `dit` is one of those who generate its latents.

Differs: the loss of the published sizes has a perceptual and an adversarial part, which training here leaves out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention
from plait.core.init import torch_default
from plait.core.tokens import Tokens
from plait.core.weights import Join, Rename, Rule, under


class Norm(nn.GroupNorm):
    def __init__(self, channels: int, groups: int):
        super().__init__(groups, channels, eps=1e-6)

    def reset(self) -> None:
        self.reset_parameters()


class Residual(nn.Module):
    """Two convolutions of activated norms beside a path that only changes the channels: (B, C, H, W) -> (B, C', H,
    W)."""

    def __init__(self, channels: int, out: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = Norm(channels, groups), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = Norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Look(nn.Module):
    """Attention of one head among all places: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm, self.f = Norm(channels, groups), Attention(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        t = Tokens(self.norm(x).flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3]))
        return x + self.f(t).x.transpose(1, 2).unflatten(2, x.shape[2:])


class Halve(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """`depth` residual steps, then what changes the number of places: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, channels: int, out: int, depth: int, groups: int, between: nn.Module):
        super().__init__()
        self.steps = nn.Sequential(*(Residual(out if i else channels, out, groups) for i in range(depth)))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self.steps(x))


class Half(nn.Module):
    """Maps (B, C, H, W) -> (B, C', H', W'): a stage for each of `widths`, which `between` parts, and a look around
    between two steps more: after them or, of a decoder, `first`."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], depth: int, out: int, groups: int, between: type[nn.Module],
        *, first: bool,
    ):  # fmt: skip
        super().__init__()
        middle, last = widths[0 if first else -1], len(widths) - 1
        self.first, self.read = first, nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(before, width, depth, groups, between(width) if s < last else nn.Identity())
            for s, (before, width) in enumerate(zip((widths[0], *widths), widths))
        )
        steps = (Residual(middle, middle, groups), Look(middle, groups), Residual(middle, middle, groups))
        self.middle = nn.Sequential(*steps)
        self.norm, self.out = Norm(widths[-1], groups), nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for part in (self.middle, *self.stages) if self.first else (*self.stages, self.middle):
            x = part(x)
        return self.out(F.silu(self.norm(x)))


class AutoencoderKL(nn.Module):
    """Pictures (B, 3, H, W) -> latents (B, C, H / f, W / f) and back; f is 2 for each of `widths` but the last.

    channels: C. depth: residual steps of each width. scale: what brings latents to a spread of about one, by which the
    published ones are multiplied before anything is made of them.
    """

    takes = ("image",)
    fits = ()
    scheme = {nn.Conv2d: torch_default}

    def __init__(self, *, widths=(128, 256, 512, 512), depth=2, channels=4, groups=32, scale=0.18215):
        super().__init__()
        self.channels, self.factor, self.scale = channels, 2 ** (len(widths) - 1), scale
        self.encoder = Half(3, widths, depth, 2 * channels, groups, Halve, first=False)
        self.to_latent = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.from_latent = nn.Conv2d(channels, channels, 1)
        self.decoder = Half(channels, widths[::-1], depth + 1, 3, groups, Double, first=True)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the mean and the log variance of the latents, each (B, C, H / f, W / f)."""
        mean, log = self.to_latent(self.encoder(x)).chunk(2, 1)
        return mean, log.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, f h, f w)."""
        return self.decoder(self.from_latent(z))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pictures and what is left of them, (B, 3, H, W). keep: not used; a picture has no padding."""
        return self.decode(self.encode(x)[0])


MODEL = AutoencoderKL
TAKES = ("image",)
ROLES = ("codec",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(8, 16), depth=1, channels=4, groups=4, scale=1.0),
    "nano": dict(widths=(16, 32, 32), depth=1, channels=4, groups=8, scale=1.0),
    "sd_ft_mse": dict(),
    "sd_ft_ema": dict(),
}

SEEN = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image=(256, 256), source="diffusers", licence="mit")
STABILITY = SEEN | dict(file="diffusion_pytorch_model.safetensors")
WEIGHTS = {
    "sd_ft_mse": STABILITY | dict(hub="stabilityai/sd-vae-ft-mse"),
    "sd_ft_ema": STABILITY | dict(hub="stabilityai/sd-vae-ft-ema"),
}


def residual(theirs: str, ours: str) -> list[Rule]:
    same = [Rename(f"{theirs}.{n}.{{p}}", f"{ours}.{n}.{{p}}") for n in ("norm1", "conv1", "norm2", "conv2")]
    return [*same, Rename(f"{theirs}.conv_shortcut.{{p}}", f"{ours}.skip.{{p}}")]


def half(blocks: str, between: str) -> list[Rule]:
    """diffusers' Encoder or Decoder; the published files call the attention's parts by older names."""
    look, ours = "mid_block.attentions.0", "middle.1"
    return [
        Rename("conv_in.{p}", "read.{p}"),
        *residual(f"{blocks}.{{s}}.resnets.{{i}}", "stages.{s}.steps.{i}"),
        Rename(f"{blocks}.{{s}}.{between}.0.conv.{{p}}", "stages.{s}.between.conv.{p}"),
        *residual("mid_block.resnets.0", "middle.0"),
        *residual("mid_block.resnets.1", "middle.2"),
        Rename(f"{look}.group_norm.{{p}}", f"{ours}.norm.{{p}}"),
        Join([f"{look}.{n}.{{p}}" for n in ("query", "key", "value")], f"{ours}.f.qkv.{{p}}"),
        Join([f"{look}.{n}.{{p}}" for n in ("to_q", "to_k", "to_v")], f"{ours}.f.qkv.{{p}}"),
        Rename(f"{look}.proj_attn.{{p}}", f"{ours}.f.out.{{p}}"),
        Rename(f"{look}.to_out.0.{{p}}", f"{ours}.f.out.{{p}}"),
        Rename("conv_norm_out.{p}", "norm.{p}"),
        Rename("conv_out.{p}", "out.{p}"),
    ]


RULES = {
    "diffusers": [
        *under(half("down_blocks", "downsamplers"), "encoder.", "encoder."),
        *under(half("up_blocks", "upsamplers"), "decoder.", "decoder."),
        Rename("quant_conv.{p}", "to_latent.{p}"),
        Rename("post_quant_conv.{p}", "from_latent.{p}"),
    ]
}
