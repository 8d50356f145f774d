"""EcoFormer: Energy-Saving Attention with Linear Complexity. Liu, Pan, He, Cai and Zhuang, 2022. arXiv:2209.09004

New here: queries and keys become codes of a few bits, by hash functions that learn from the attention map which pairs
belong together. The product of two codes of +-1 is their number of bits less twice their Hamming distance, so that with
a constant no weight is below one; the sums are those of linear attention, and where the codes meet values there is
nothing to multiply, only to add.

The hash functions are no parameters: they start by chance, and are fitted, in the model as it is, to what it reads:

    with fitting(model):
        model(x)

Gradients pass a code as they would the identity, where it was not far from its other side.

Differs: queries and keys keep their own projections under one hash function, where the paper shares one projection; the
kernel's width is fixed when fitted, and does not follow each input; the constant multiplies the sum of all values (the
public code adds each token's own).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention
from plait.core.surgery import Undo, swap_inside
from plait.core.tokens import Tokens, real
from plait.errors import PlaitError
from plait.methods.attention.nalaformer import LinearAttend

PAIRS = 10  # the most and the least alike keys of a query from which the hash functions learn
RATE, STEPS = 0.05, 100  # of their descent, for each bit
MULTIPLY, ADD = 3.7, 0.9  # picojoules, float32 in 45 nm (Horowitz, ISSCC 2014)

BY_HAND = "its codes are chance until `fitting(model)` has fitted them to what the model reads"


class KernelHash(nn.Module):
    """Vectors (B, H, N, E) -> codes (B, H, N, bits) of +-1: signs of learned sums of what they share with `anchors` of
    their like."""

    anchors: Tensor  # (H, anchors, E)
    sigma: Tensor  # (H, 1, 1)
    mean: Tensor  # (H, 1, anchors)
    weight: Tensor  # (H, anchors, bits)

    def __init__(self, heads: int, width: int, bits: int, anchors: int):
        super().__init__()
        self.register_buffer("anchors", torch.empty(heads, anchors, width))
        self.register_buffer("sigma", torch.empty(heads, 1, 1))
        self.register_buffer("mean", torch.empty(heads, 1, anchors))
        self.register_buffer("weight", torch.empty(heads, anchors, bits))

    def reset(self) -> None:
        """As of directions at random, whose squared distances are 2 on the average."""
        self.anchors.copy_(F.normalize(torch.randn_like(self.anchors), dim=-1))
        nn.init.constant_(self.sigma, 2.0)
        nn.init.constant_(self.mean, 0.607)
        nn.init.normal_(self.weight)

    def kernel(self, x: Tensor) -> Tensor:
        """exp(-distance^2 / 2 sigma) of the directions of x to each anchor: (B, H, N, anchors)."""
        return torch.exp((F.normalize(x, dim=-1) @ self.anchors.to(x.dtype).mT - 1) / self.sigma.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.kernel(x) - self.mean.to(x.dtype)) @ self.weight.to(x.dtype)
        near = y.clamp(-1, 1)
        return near + (signs(y) - near).detach()

    @torch.no_grad()
    def fit(self, q: Tensor, k: Tensor, keep: Tensor, generator: torch.Generator) -> None:
        """Learn from queries and keys (B, H, N, E), of which `keep` (B, N) are real: each bit mends what those before
        it left wrong."""
        real = F.normalize(torch.cat([q, k], 2).transpose(1, 2)[torch.cat([keep, keep], 1)], dim=-1)  # (M, H, E)
        chosen = torch.randint(len(real), (self.anchors.shape[1],), generator=generator)
        self.anchors.copy_(real[chosen].transpose(0, 1))
        self.sigma.copy_((2 - 2 * real.transpose(0, 1) @ self.anchors.mT).mean((1, 2), keepdim=True).clamp(min=1e-6))
        self.mean.copy_(self.kernel(real.transpose(0, 1)).mean(1, keepdim=True))
        ours, theirs = self.kernel(q) - self.mean, self.kernel(k) - self.mean  # (B, H, N, anchors)
        wrong = self.weight.shape[2] * alike(q, k, keep)  # (B, H, N, N)
        for bit in range(self.weight.shape[2]):
            old = self.weight[:, :, bit : bit + 1]
            new = descend(old, ours, theirs, wrong)
            better = _agreement(ours @ new, theirs @ new, wrong, signs) > _agreement(
                ours @ old, theirs @ old, wrong, signs
            )
            best = torch.where(better[:, None, None], new, old)
            self.weight[:, :, bit : bit + 1] = best
            said, heard = (signs(x @ best) * keep[:, None, :, None] for x in (ours, theirs))
            wrong = wrong - said @ heard.mT


def signs(y: Tensor) -> Tensor:
    return torch.where(y >= 0, 1.0, -1.0)


def alike(q: Tensor, k: Tensor, keep: Tensor) -> Tensor:
    """(B, H, N, N): 1 for each query's `PAIRS` largest scores, -1 for the smallest, 0 between and for padding."""
    scores, real = q @ k.mT, keep[:, None, None, :]
    count = min(PAIRS, (keep.shape[1] + 1) // 2)
    most = scores.masked_fill(~real, -torch.inf).topk(count).indices
    least = (-scores).masked_fill(~real, -torch.inf).topk(count).indices
    pairs = torch.zeros_like(scores).scatter(-1, least, -1.0).scatter(-1, most, 1.0)
    return pairs * (real & real.mT)


def descend(start: Tensor, ours: Tensor, theirs: Tensor, wrong: Tensor) -> Tensor:
    """A bit's weights (H, anchors, 1) that agree better with `wrong`, the signs being smooth meanwhile."""
    with torch.enable_grad():
        a = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([a], RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (-_agreement(ours @ a, theirs @ a, wrong, lambda y: torch.tanh(y / 2))).sum().backward()
            optimizer.step()
    return a.detach()


def _agreement(a: Tensor, b: Tensor, wrong: Tensor, sign) -> Tensor:
    """(H,): how well the codes (B, H, N, 1) of queries and keys agree with what is wanted of the pairs."""
    return (sign(a) * (wrong @ sign(b))).mean((0, 2, 3))


class HashedAttend(LinearAttend):
    """Linear attention of codes, of `heads` heads of `width`."""

    def __init__(self, old: Attend, heads: int, width: int, bits: int, anchors: int):
        super().__init__(old)
        self.hash = KernelHash(heads, width, bits, anchors)

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, N, E) each -> (B, H, N, bits + 1), whose products are the codes' product + bits + 1: at least one."""
        q, k = (F.pad(x, (0, 1), value=(x.shape[3] + 1) ** 0.5) for x in (self.hash(q), self.hash(k)))
        return q, k

    def fit(self, t: Tokens, q: Tensor, k: Tensor, generator: torch.Generator) -> None:
        """Fit the hash functions to what the tokens would attend to."""
        self.hash.fit(q.detach().float(), k.detach().float(), real(t), generator)


@contextmanager
def fitting(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Each forward pass inside fits all hash functions, one layer after another, to its input. Mind the memory: all
    pairs are made."""
    found = [m for m in model.modules() if isinstance(m, HashedAttend)]
    if not found:
        raise PlaitError(f"{type(model).__name__} has no hash functions: apply the method ecoformer first")
    generator = torch.Generator().manual_seed(seed)
    hooks = [m.register_forward_pre_hook(lambda seam, inputs: seam.fit(*inputs[:3], generator)) for m in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def energy(tokens: int, width: int, heads: int, bits: int = 16, anchors: int = 25) -> tuple[float, float]:
    """Picojoules of one softmax attention and of one hashed one, the projections, which both have, left out."""
    n, d = tokens, width
    softmax = 2 * n * n * d * (MULTIPLY + ADD) + heads * n * n * MULTIPLY
    # of queries and keys
    hashing = 2 * n * anchors * (d + heads * bits) * (MULTIPLY + ADD) + 2 * n * heads * anchors * MULTIPLY
    # codes only choose what is added and what taken away
    summing = 2 * n * d * (bits + 1) * ADD + 2 * n * heads * bits * ADD
    return softmax, hashing + summing + n * d * MULTIPLY


def ecoformer(model: nn.Module, bits: int = 16, anchors: int = 25) -> Undo:
    """Every self-attention of `model` works on codes, with the weights that it has; `fitting` learns the codes, then
    train on.

    bits: of each code. anchors: vectors to which a hash function compares.
    Raises ValueError for numbers below one, and for a model without self-attention or with a causal one.
    """
    if bits < 1 or anchors < 1:
        raise PlaitError(f"bits and anchors: got {bits} and {anchors}, expected at least one of each")

    def make(a: Attention) -> Attend:
        return HashedAttend(a.attend, a.heads, a.out.in_features // a.heads, bits, anchors)

    return swap_inside(model, make, "and the sums of codes run over all tokens")
