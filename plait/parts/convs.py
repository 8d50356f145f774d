"""Convolutions with their norms, the steps that hybrids of convolution and attention are made of. Maps are (B, C, H,
W)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import LayerScale
from plait.core.init import kaiming_normal
from plait.core.sizes import numbers
from plait.core.surgery import fold_after

Relu = partial(nn.ReLU, inplace=True)  # behind a norm, whose result nobody else reads


class ChannelsLast(nn.Module):
    """The same map (B, C, H, W), channels last in memory: convolutions keep it so, are faster then, and tokens are a
    view of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap knows no memory format


def beside(*maps: Tensor) -> Tensor:
    """Maps (B, C_i, H, W), their channels side by side and last in memory: (B, C_1 + C_2 + ..., H, W)."""
    return torch.cat([x.permute(0, 2, 3, 1) for x in maps], 3).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map, at every place on its own: (B, C, H, W) -> the same shape."""

    def reset(self) -> None:
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class Pointwise(nn.Conv2d):
    """A convolution that sees one place: (B, C, H, W) -> (B, C', H / stride, W / stride), rounded up.

    Where a CPU is to give gradients it is computed as the linear layer that it is, whose gradients take up to a quarter
    less time there; those of oneDNN write beyond their memory for three channels, channels last, with a stride of 2, on
    processors that have AVX2 alone. What an export keeps may be trained there, too: it takes its stride beforehand.
    """

    def __init__(self, channels: int, out: int, *, bias: bool = True, stride: int = 1):
        super().__init__(channels, out, 1, stride, bias=bias)

    def reset(self) -> None:
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            if stride != (1, 1) and torch.compiler.is_exporting():
                x, stride = F.avg_pool2d(x, 1, stride), (1, 1)  # a slice's strides would bind the sizes to each other
            return F.conv2d(x, self.weight, self.bias, stride)
        x = x[:, :, :: stride[0], :: stride[1]]
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without a bias, batch norm, activation: (B, C, H, W) -> (B, C', H / stride, W / stride), rounded up.

    kernel is odd; act makes the activation (`nn.GELU`), None for none; eps is the batch norm's.
    """

    def __init__(
        self, channels: int, out: int, kernel: int = 1, stride: int = 1,
        *, groups: int = 1, act: Callable[[], nn.Module] | None = None, eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        if kernel == groups == 1:
            self.conv: nn.Conv2d = Pointwise(channels, out, bias=False, stride=stride)
        else:
            self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=eps)
        self.act = None if act is None else act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)

    def fold(self) -> nn.Module:
        """The convolution with the norm in it, and the activation where there is one."""
        conv = fold_after(self.conv, self.norm)
        return conv if self.act is None else nn.Sequential(conv, self.act)


class FrozenNorm(nn.Module):
    """A batch norm whose statistics, scale and shift are given and never learnt: (B, C, H, W) -> the same shape."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))

    def reset(self) -> None:
        for t in (self.weight, self.running_var):
            nn.init.ones_(t)
        for t in (self.bias, self.running_mean):
            nn.init.zeros_(t)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_norms(model: nn.Module) -> None:
    """Every batch norm of maps in `model` becomes a `FrozenNorm`, under its own name."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, FrozenNorm(child.num_features, child.eps))


class Half(nn.Module):
    """Average of 2 x 2 places, of fewer at an odd edge: (B, C, H, W) -> (B, C, H / 2, W / 2), rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        for dim, side in enumerate(x.shape[2:], 2):
            if not numbers(side) or side % 2:  # an edge of its own is averaged with itself
                x = x.index_select(dim, torch.arange((side + 1) // 2 * 2, device=x.device).clamp(max=side - 1))
        return F.avg_pool2d(x, 2)


class Skip(nn.Module):
    """x + after(f(x)) on maps: the residual step of layers without tokens. `after` acts on the branch alone."""

    def __init__(self, f: nn.Module, after: nn.Module | None = None):
        super().__init__()
        self.f, self.after = f, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(x)
        return x + (y if self.after is None else self.after(y))


class MapScale(LayerScale):
    """A learned factor per channel of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole map says (arXiv:1709.01507): (B, C, H, W) -> the same shape."""

    def __init__(
        self, channels: int, hidden: int,
        *, act: Callable[[], nn.Module] = nn.ReLU, gate: Callable[[], nn.Module] = nn.Sigmoid,
    ):  # fmt: skip
        super().__init__()
        self.down, self.act = nn.Conv2d(channels, hidden, 1), act()
        self.up, self.gate = nn.Conv2d(hidden, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))
