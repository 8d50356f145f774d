"""Diffusion: how pictures are drowned in noise step by step, what is known of the way back, and two ways to walk it.

Sources: DDPM (arXiv:2006.11239), its learned variance and cosine schedule (arXiv:2102.09672), DDIM (arXiv:2010.02502).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from plait.errors import PlaitError

Predict = Callable[[Tensor, Tensor], Tensor]  # x (B, C, ...) and time (B,) -> what a model says, (B, C or 2 C, ...)
Draw = Callable[[], Tensor]  # noise of the samples' shape


def linear(steps: int = 1000) -> Tensor:
    """(T,) float64: the share of noise that each step adds, growing linearly."""
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine(steps: int = 1000) -> Tensor:
    """(T,) float64: such that what is left of the picture falls like a squared cosine."""
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    left = ((place + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - left[1:] / left[:-1]).clamp(max=0.999)


def spaced(steps: int, count: int) -> list[int]:
    """`count` of the steps 0 to `steps` - 1, evenly, the first and the last among them. Raises ValueError for more than
    there are."""
    if not 1 <= count <= steps:
        raise PlaitError(f"got {count} steps to sample in, expected 1 to {steps}, as many as were trained")
    stride = (steps - 1) / (count - 1) if count > 1 else 1
    return [round(i * stride) for i in range(count)]


class Diffusion:
    """A chain of T steps, each adding noise to samples x (B, ...) that begin clean; t (B,) int64 counts steps from 0.

    betas (T,) float64: the variance that each step adds. times (T,): what the model is told of each step.
    """

    def __init__(self, betas: Tensor, times: Tensor | None = None):
        self.betas = betas.double()
        self.times = torch.arange(len(betas)) if times is None else times
        self.left = (1 - self.betas).cumprod(0)  # of the picture's variance, after each step
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.left[:-1]])
        variance = self.betas * (1 - self.before) / (1 - self.left)
        # the first step back ends at the picture itself: its variance of 0 has no logarithm
        self.least = torch.cat([variance[1:2], variance[1:]]).log() if len(betas) > 1 else self.betas.log()

    def __len__(self) -> int:
        return len(self.betas)

    def respaced(self, count: int) -> Diffusion:
        """The chain of `count` of its steps, which lead as far."""
        chosen = torch.tensor(spaced(len(self), count))
        left = self.left[chosen]
        return Diffusion(1 - left / torch.cat([left.new_ones(1), left[:-1]]), self.times[chosen])

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Clean samples x as they are after step t."""
        left = self.left
        return at(left.sqrt(), t, x) * x + at((1 - left).sqrt(), t, x) * noise

    def clean(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What x after step t would be without its noise."""
        left = self.left
        return at((1 / left).sqrt(), t, x) * x - at((1 / left - 1).sqrt(), t, x) * noise

    def noise(self, x: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """The noise that makes x of `clean`."""
        left = self.left
        return (at((1 / left).sqrt(), t, x) * x - clean) / at((1 / left - 1).sqrt(), t, x)

    def back(self, x: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """The mean of x one step before, given x after step t and the clean sample."""
        one = self.betas * self.before.sqrt() / (1 - self.left)
        two = (1 - self.before) * (1 - self.betas).sqrt() / (1 - self.left)
        return at(one, t, x) * clean + at(two, t, x) * x

    def log_variance(self, t: Tensor, between: Tensor) -> Tensor:
        """Of a step back: `between` (B, ...) says where it lies from the least possible (-1) to the most (1)."""
        share = (between + 1) / 2
        return share * at(self.betas.log(), t, between) + (1 - share) * at(self.least, t, between)

    def split(self, said: Tensor, x: Tensor, t: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What a model says of x, its noise and perhaps a variance beside it, as the clean sample (within `clip` of 0),
        the mean of a step back and its log variance."""
        noise, *more = said.split(x.shape[1], 1)
        clean = self.clean(x, t, noise)
        clean = clean if clip is None else clean.clamp(-clip, clip)
        most = torch.cat([self.least[:1].exp(), self.betas[1:]]).log()  # without a learned one, the larger
        log = self.log_variance(t, more[0]) if more else at(most, t, x).expand_as(x)
        return clean, self.back(x, t, clean), log

    def losses(self, said: Tensor, x: Tensor, t: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of what a model says of `x`, which is `clean` with `noise` after step t: (B,) the squared error of the noise
        and, where it says a variance, (B,) the variational bound in bits, which teaches the variance alone."""
        own, *more = said.split(x.shape[1], 1)
        error = (own - noise).square().flatten(1).mean(1)
        if not more:
            return error, None
        _, mean, log = self.split(torch.cat([own.detach(), *more], 1), x, t)
        true, least = self.back(x, t, clean), at(self.least, t, x)
        apart = 0.5 * (log - least - 1 + (least - log).exp() + (true - mean).square() * (-log).exp())
        bound = torch.where(beside(t == 0, x), discrete(clean, mean, 0.5 * log), apart)
        return error, bound.flatten(1).mean(1) / math.log(2)


def at(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """values (T,) at the steps t (B,), as (B, 1, ...) beside x."""
    return beside(values.to(t.device)[t].float(), x)


def beside(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), as many dimensions as x has."""
    return values.view(-1, *[1] * (x.dim() - 1))


def discrete(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of what a Gaussian gives the 1/127.5 wide step of [-1, 1] that x lies in; the ends hold all beyond."""
    inverse, half = (-log_scale).exp(), 1 / 255
    above, below = (cdf(inverse * (x - mean + s)) for s in (half, -half))
    inner = (above - below).clamp(min=1e-12).log()
    low, high = above.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    return -torch.where(x < -0.999, low, torch.where(x > 0.999, high, inner))


def cdf(x: Tensor) -> Tensor:
    """Of the standard normal, by the tanh that the published bounds were trained with."""
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def ddpm(predict: Predict, x: Tensor, chain: Diffusion, draw: Draw, *, clip: float | None = None) -> Tensor:
    """Samples (B, C, ...) from noise x of that shape, step by step back, each with fresh noise."""
    for step in reversed(range(len(chain))):
        t = torch.full(x.shape[:1], step, device=x.device)
        _, mean, log = chain.split(predict(x, chain.times.to(x.device)[t]), x, t, clip)
        x = mean if step == 0 else mean + (0.5 * log).exp() * draw()
    return x


def ddim(
    predict: Predict, x: Tensor, chain: Diffusion, draw: Draw | None = None, *, eta: float = 0.0,
    clip: float | None = None,
) -> Tensor:  # fmt: skip
    """Samples from noise x, by steps that add none: `eta` 0 is a function of x, 1 as much noise as `ddpm`."""
    if eta and draw is None:
        raise PlaitError(f"got eta {eta} and nothing to draw from, expected draw= where noise is added")
    for step in reversed(range(len(chain))):
        t = torch.full(x.shape[:1], step, device=x.device)
        clean, _, _ = chain.split(predict(x, chain.times.to(x.device)[t]), x, t, clip)
        noise, left, before = chain.noise(x, t, clean), at(chain.left, t, x), at(chain.before, t, x)
        spread = eta * ((1 - before) / (1 - left)).sqrt() * (1 - left / before).sqrt()
        x = clean * before.sqrt() + (1 - before - spread**2).sqrt() * noise
        if draw is not None and eta and step:
            x = x + spread * draw()
    return x
