"""ScaledAdam (Zipformer, arXiv:2310.11230): each tensor moves by a share of its own size, and its size is learnt as
well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from plait.errors import PlaitError

FIRST = (10, 20, 40)  # steps at which the usual norm of the gradients is estimated early, twice as generously


class ScaledAdam(Optimizer):
    """Adam whose step is multiplied by the root mean square (rms) of the tensor it changes, so that the relative change
    is about `lr`.

    Every `period` steps the tensor also grows or shrinks as a whole, by Adam on the gradient of its scale with `scalar`
    times the rate.
    Tensors of one number take plain steps at that rate. Momentum is of the steps, not of the gradients.

    lr: 0.03 to 0.05 at first, much more than Adam's. clipping: gradients times their tensors' rms may have a norm of so
    many times its median over the last `window` steps; None: any. smallest, largest: bounds of a tensor's rms. bound:
    of single numbers.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.03,
        *,
        clipping: float | None = None,
        betas: tuple[float, float] = (0.9, 0.98),
        scalar: float = 0.1,
        window: int = 100,
        period: int = 4,
    ):
        if not lr > 0 or not scalar > 0 or period < 1 or window < 1:
            raise PlaitError(
                f"got lr={lr}, scalar={scalar}, period={period}, window={window}: expected positive numbers"
            )
        bounds = dict(eps=1e-8, smallest=1e-5, largest=3.0, bound=10.0)
        super().__init__(
            params, dict(lr=lr, clipping=clipping, betas=betas, scalar=scalar, window=window, period=period) | bounds
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every tensor with a gradient; the same tensors of a group must have one in every step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self._begin(p, group, p is params[0])
            limit = self._limit(params, group)
            for p in params:
                grad = p.grad if limit is None else torch.where(limit > 0, p.grad * limit, 0.0)
                state = self.state[p]
                state["delta"].lerp_(self._delta(p, grad.float(), state, group), 1 - group["betas"][0])
                p.add_(state["delta"])
                if p.numel() == 1:
                    p.clamp_(-group["bound"], group["bound"])
                state["step"] += 1
        return loss

    def _begin(self, p: Tensor, group: dict, first: bool) -> None:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.int64)  # on the CPU: reading it waits for no device
        state["square"] = torch.zeros_like(p, dtype=torch.float32)
        state["delta"] = torch.zeros_like(p, dtype=torch.float32)
        if p.numel() > 1:
            state["rms"] = p.float().square().mean().sqrt()
            state["scale_square"] = torch.zeros_like(state["rms"])
            state["scale_grads"] = state["rms"].new_zeros(group["period"])
        if first and group["clipping"] is not None:
            state["norms"], state["threshold"] = p.new_zeros(group["window"]), p.new_full((), torch.inf)

    def _delta(self, p: Tensor, grad: Tensor, state: dict, group: dict) -> Tensor:
        """What Adam without momentum would add to `p`, scaled by its rms, and in every `period`-th step its growth."""
        step, beta = int(state["step"]), group["betas"][1]
        lr = group["lr"] * (group["scalar"] if p.numel() == 1 else 1.0)
        square = state["square"].mul_(beta).addcmul_(grad, grad, value=1 - beta)
        correction = 1 - beta ** (step + 1)
        denominator = (square / correction if correction < 0.99 else square).sqrt() + group["eps"]
        delta = -lr * grad / denominator
        if p.numel() == 1:
            return delta
        rms, grads = state["rms"], state["scale_grads"]
        grads[step % group["period"]] = (p * grad).sum()
        grows = step % group["period"] == group["period"] - 1
        if grows:
            rms.copy_(p.float().square().mean().sqrt())
        delta *= rms.clamp(min=group["smallest"])
        if grows and step > 0:
            delta += p * self._growth(state, group, step)
        return delta

    @staticmethod
    def _growth(state: dict, group: dict, step: int) -> Tensor:
        """The share by which the tensor grows, at most a tenth and never beyond `largest`; one that is too small does
        not shrink."""
        beta, grads, rms = group["betas"][1] ** group["period"], state["scale_grads"], state["rms"]
        square = state["scale_square"].mul_(beta).add_(grads.square().mean(), alpha=1 - beta)
        correction = (1 - beta ** ((step + 1) // group["period"])) ** 0.5
        growth = -group["lr"] * group["scalar"] * correction * grads.sum() / (square.sqrt() + group["eps"])
        growth = growth.masked_fill(rms < group["smallest"], 0.0).clamp(-0.1, 0.1)
        return torch.minimum(growth, (group["largest"] - rms) / rms)

    def _limit(self, params: list[Tensor], group: dict) -> Tensor | None:
        """What the gradients are multiplied by, at most 1 and 0 where they are not finite; None where nothing is
        limited."""
        first = self.state[params[0]]
        if group["clipping"] is None or int(first["step"]) == 0:
            return None
        step, window = int(first["step"]), group["window"]
        sizes = [
            p.grad.float().square().sum() * (group["scalar"] if p.numel() == 1 else self.state[p]["rms"]) ** 2
            for p in params
            if p.grad is not None
        ]
        norm = torch.stack(sizes).sum().sqrt()
        first["norms"][step % window] = norm
        early = step in FIRST and step < window
        if early or step % window == 0:
            usual = first["norms"].sort()[0][-step if early else 0 :]
            median = usual[min(len(usual) - 1, len(usual) // 4 * 2)]
            if not bool(median.isfinite()):
                raise PlaitError(
                    "half of the last gradients are not finite: lower the learning rate, or train in float32"
                )
            first["threshold"].fill_(group["clipping"] * median * (2.0 if early else 1.0))
        return (first["threshold"] / (norm + 1e-20)).clamp(max=1.0).nan_to_num(0.0)
