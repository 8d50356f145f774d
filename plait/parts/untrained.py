"""What networks tell before they are trained, and a search and a growth of architectures by it (As-ViT,
arXiv:2202.11921).

A `read` is the function of pictures (B, C, H, W) -> features (B, D) that is measured: of a backbone,
`reader(model)`. Measures are taken at the usual initialisation and need no labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from plait.core.attend import with_backend
from plait.core.tokens import mean
from plait.errors import PlaitError
from plait.parts.towers.backbone import Backbone

Read = Callable[[Tensor], Tensor]
Choice = dict[str, object]
C = TypeVar("C")


def reader(model: Backbone) -> Read:
    """Pictures -> the mean (B, D) of the tokens before the last norm; on eager attention, which has derivatives of all
    kinds."""
    eager = cast(Backbone, with_backend(model, "eager"))
    return lambda x: mean(eager.tokens(x))


def without_norms(model: nn.Module) -> nn.Module:
    """A copy whose layer norms, which would bring every signal back to one size, are left out."""
    bare = copy.deepcopy(model)
    for parent in list(bare.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, nn.Identity())
    return bare


def circle(shape: Sequence[int], points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A unit circle through pictures of `shape` (C, H, W), in a plane drawn by chance: where `points` angles from 0 to
    2 pi lie, and the direction there, (points, C, H, W) each."""
    plane = torch.linalg.qr(torch.randn(math.prod(shape), 2, generator=generator))[0]
    angle = torch.linspace(0, 2 * math.pi, points)
    around = torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])
    at, along = ((plane @ part).mT.reshape(points, *shape) for part in around)
    return at, along


@torch.no_grad()
def length_distortion(read: Read, at: Tensor, along: Tensor) -> float:
    """How fast the features move, summed over points (P, C, H, W) of a curve with its directions: the more, the finer
    the network can tell pictures apart. Meant for a model `without_norms`, in evaluation."""
    return torch.func.jvp(read, (at,), (along,))[1].flatten(1).norm(dim=1).sum().item()


def ntk_condition(read: Read, weights: Iterable[Tensor], x: Tensor) -> float:
    """The largest eigenvalue over the smallest of the pictures' (B, C, H, W) tangent kernel, between gradients of their
    summed features: the less, the more evenly all of them can be learnt. Infinite where the kernel is singular."""
    weights = [w for w in weights if w.requires_grad]
    rows = [torch.autograd.grad(read(one[None]).sum(), weights, allow_unused=True) for one in x]
    # a weight that nothing reads has no gradient in any row
    flat = torch.stack([torch.cat([g.flatten() for g in row if g is not None]) for row in rows])
    values = torch.linalg.eigvalsh(flat @ flat.mT)
    return (values[-1] / values[0]).item() if values[0] > 0 else math.inf


def search(
    space: Mapping[str, Sequence[object]], measure: Callable[[Choice], Mapping[str, float]],
    *, steps: int = 500, rate: float = 0.08, memory: int = 20, momentum: float = 0.9, seed: int = 0,
) -> Choice:  # fmt: skip
    """The choice of one value for each name of `space` that a policy has learnt to draw (REINFORCE) after `steps`.

    measure: of a choice, several numbers, each the more the better and finite (a condition: its negative). The
    policy is rewarded for how each of them changed from the last choice to this, over its range in the last `memory`.
    """
    if not space or not all(space.values()):
        raise PlaitError("got nothing to choose from, expected one value or more for each name")
    generator = torch.Generator().manual_seed(seed)
    logits = [(1e-3 * torch.randn(len(values), generator=generator)).requires_grad_() for values in space.values()]
    optimizer, average, total = torch.optim.Adam(logits, lr=rate), 0.0, 0.0
    seen: list[Mapping[str, float]] = []
    for _ in range(steps):
        shares = [row.log_softmax(0) for row in logits]
        drawn = [int(torch.multinomial(row.exp().detach(), 1, generator=generator)) for row in shares]
        found = measure({name: values[i] for i, (name, values) in zip(drawn, space.items())})
        seen = [*seen, found][-memory:]
        reward = sum(changed([past[name] for past in seen]) for name in found)
        average, total = momentum * average + (1 - momentum) * reward, momentum * total + 1 - momentum
        chance = torch.stack([row[i] for i, row in zip(drawn, shares)]).sum()
        optimizer.zero_grad()
        (-chance * (reward - average / total)).backward()
        optimizer.step()
    return {name: values[int(row.argmax())] for row, (name, values) in zip(logits, space.items())}


def changed(past: Sequence[float]) -> float:
    """From the last but one number to the last, in shares of all numbers' range; 0 of one number."""
    return (past[-1] - past[-2]) / (max(past) - min(past) + 1e-6) if len(past) > 1 else 0.0


def best_ranked(choices: Sequence[C], measure: Callable[[C], Mapping[str, float]]) -> C:
    """The choice whose places, added over all measures (each the more the better), are the foremost; of several such,
    the best by the measure that differs most between choices."""
    found = [measure(choice) for choice in choices]
    names = list(found[0])
    columns = {name: [row[name] for row in found] for name in names}
    places = [sum(sum(v > row[name] for v in set(columns[name])) for name in names) for row in found]
    spread = {n: (max(c) - min(c)) / max(max(map(abs, c)), 1e-12) for n, c in columns.items()}
    widest = max(names, key=spread.__getitem__)
    return choices[min(range(len(choices)), key=lambda i: (places[i], -found[i][widest]))]


def grow(
    width: int, depths: tuple[int, ...], measure: Callable[[tuple[int, tuple[int, ...]]], Mapping[str, float]],
    fits: Callable[[int, tuple[int, ...]], bool], shares: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
) -> list[tuple[int, tuple[int, ...]]]:  # fmt: skip
    """Architectures (width, depths) of growing size, each made of the one before by a layer more in one stage and a
    width larger by one of `shares`, whichever `best_ranked` finds, while one `fits`."""
    family: list[tuple[int, tuple[int, ...]]] = []
    while True:
        deeper = [tuple(d + (i == s) for i, d in enumerate(depths)) for s in range(len(depths))]
        wider = sorted({max(width + 1, round(width * (1 + share))) for share in shares})
        choices = [(w, d) for d in deeper for w in wider if fits(w, d)]
        if not choices:
            return family
        width, depths = best_ranked(choices, measure)
        family.append((width, depths))
