"""SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization.
Guo, Chen, Tang,
Wang, 2024. arXiv:2405.11582

New here: a model is trained with layer norms, which fade into batch norms with a shortcut (eta x) as training goes on;
at the end they are batch norms, which `fold_norms` puts into the linear layers behind them. And attention without
softmax: queries and keys through a ReLU, the products with values first, so that its cost is linear, and a depthwise
convolution of the values, which says what is near.

Differs: evaluation mixes the norms as training does, so that a half-trained model can be judged; padding is left out of
all statistics; the authors' additional positions on the keys, made for one number of tokens, are left out, and so are
steps of layer norm alone before the fading begins (the code's warm-up, which is none by default).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention
from plait.core.surgery import Undo, factors, swap_inside, together
from plait.core.tokens import Tokens, one_each_place
from plait.errors import PlaitError
from plait.methods.attention.nalaformer import plain_tokens
from plait.methods.norms.unified_norm import Affine, average, swap_norms


class RepBatchNorm(nn.Module):
    """Batch norm of tokens plus eta times them, eta learned: (..., C), keep (...) bool -> (..., C)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.1
        self.weight, self.bias, self.eta = (nn.Parameter(torch.empty(n)) for n in (width, width, 1))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))

    def reset(self) -> None:
        for ones in (self.weight, self.eta, self.running_var):
            nn.init.ones_(ones)
        for zeros in (self.bias, self.running_mean):
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if not self.training:
            scale, shift = factors(self)
            return torch.addcmul(shift, x, scale + self.eta)
        mean = average(x, keep)
        var = average((x - mean).square(), keep)
        with torch.no_grad():
            count = (x.new_ones(x.shape[:-1]) if keep is None else keep).sum()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        return (x - mean) * ((var + self.eps).rsqrt() * self.weight) + self.bias + self.eta * x

    def fold(self) -> Affine:
        scale, shift = factors(self)
        return Affine(scale + self.eta, shift)


class ProgressiveNorm(nn.Module):
    """g norm(x) + (1 - g) batch(x), g = 1 - step / steps, in the first step already less than one: (..., C), keep (...)
    -> (..., C)."""

    step: Tensor  # (1,) int64

    def __init__(self, norm: nn.LayerNorm, steps: int):
        super().__init__()
        self.norm, self.batch, self.steps = norm, RepBatchNorm(norm.normalized_shape[0]), steps
        self.register_buffer("step", torch.empty(1, dtype=torch.int64))

    def reset(self) -> None:
        self.step.fill_(1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        share = 1 - self.step / self.steps
        return share * self.norm(x) + (1 - share) * self.batch(x, keep)

    def fold(self) -> nn.Module:
        """The batch norm's scale, once the layer norm has faded; raises ValueError before."""
        if self.step < self.steps:
            raise PlaitError(
                f"got a norm in step {self.step[0]} of {self.steps}, expected the last: `advance` the model to it"
            )
        return self.batch  # folded already, as all children are


def advance(model: nn.Module, steps: int = 1) -> None:
    """After an optimizer's step: let all layer norms of `model` fade by as many steps, at most to the end of their
    schedule."""
    for module in model.modules():
        if isinstance(module, ProgressiveNorm):
            module.step.add_(steps).clamp_(max=module.steps)


after_step = advance  # `plait fit` calls it by this name


class SimpleLinearAttend(Attend):
    """Simplified linear attention of heads of `width`, at a cost of N.

    One depthwise convolution of kernel x kernel over the grid is shared by all heads; special tokens have none.
    """

    on_grid = True

    backends = ("sdpa",)  # there is one way to compute it

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.near = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)

    def forward(
        self,
        t: Tokens,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        to: Tokens | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
    ) -> Tokens:
        plain_tokens(t, to, bias, scale)
        one_each_place(t)
        q, k = q.relu(), k.relu()
        if t.keep is not None:
            k, v = (x.masked_fill(~t.keep[:, None, :, None], 0.0) for x in (k, v))
        if t.weight is not None:
            k = k * t.weight[:, None, :, None]
        y = q @ (k.mT @ v) / (q @ k.sum(2, keepdim=True).mT + 1e-6)
        places = v[:, :, t.prefix :].mT.flatten(0, 1).unflatten(2, t.grid)  # (B H, E, h, w)
        near = self.near(places).flatten(2).mT.unflatten(0, v.shape[:2])
        return t.replace(x=y + nn.functional.pad(near, (0, 0, t.prefix, 0)))


def slab(model: nn.Module, steps: int = 60000, kernel: int | None = 5) -> Undo:
    """The layer norms of `model` fade into batch norms, and its self-attentions become linear.

    steps: of the schedule; call `advance(model)` after each of the optimizer's. At its end `fold_norms` takes the norms
    away.
    kernel: odd side of the linear attention's convolution; None leaves the attentions as they are.
    Raises ValueError for a model without layer norms, and, unless kernel is None, for one that reads anything but
    pictures, attends causally or has no attention that is made of `Attention`.
    """
    if steps < 1 or (kernel is not None and kernel % 2 == 0):
        raise PlaitError(f"got steps {steps}, kernel {kernel}: expected one step or more, and an odd kernel or None")

    def norms() -> Undo:
        return swap_norms(model, lambda norm: ProgressiveNorm(norm, steps))

    if kernel is None:
        return norms()
    if tuple(getattr(model, "takes", ())) != ("image",):
        raise PlaitError(f"{type(model).__name__} reads more than pictures: change its norms alone with kernel=None")

    def attentions() -> Undo:
        def make(a: Attention) -> Attend:
            return SimpleLinearAttend(a.out.in_features // a.heads, kernel)

        return swap_inside(model, make, "change its norms alone with kernel=None")

    return together([attentions, norms])
