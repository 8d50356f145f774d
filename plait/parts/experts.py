"""A mixture of experts: many feed-forward steps of which each token passes a few, in buffers of one size.

G groups of S tokens, which compete for places; E experts, K chosen by a token, C places in each expert's buffer.
Sources: V-MoE (arXiv:2106.05974), Sparsely-Gated Mixture-of-Experts (arXiv:1701.06538).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.block import Make
from plait.core.precision import wide
from plait.core.sizes import least
from plait.core.tokens import Tokens, real, refuse
from plait.errors import PlaitError


class Experts(nn.Module):
    """E feed-forward steps side by side: (E, N, D) -> (E, N, D), each of its own tokens."""

    def __init__(self, count: int, width: int, hidden: int, act: Make = nn.GELU):
        super().__init__()
        self.up, self.up_bias = (
            nn.Parameter(torch.empty(count, width, hidden)),
            nn.Parameter(torch.empty(count, hidden)),
        )
        self.act = act()
        self.down, self.down_bias = (
            nn.Parameter(torch.empty(count, hidden, width)),
            nn.Parameter(torch.empty(count, width)),
        )

    def reset(self) -> None:
        for weight, bias in ((self.up, self.up_bias), (self.down, self.down_bias)):
            for expert in weight:
                nn.init.xavier_uniform_(expert)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(torch.bmm(x, self.up) + self.up_bias[:, None])
        return torch.bmm(x, self.down) + self.down_bias[:, None]


class Router(nn.Module):
    """Tokens (G, S, D) -> gates (G, S, E) float32, which sum to one; in training with a little noise, and with the
    losses "importance" and "load" that keep all experts busy (`share` of each is added to what is trained)."""

    def __init__(self, width: int, experts: int, chosen: int, share: float):
        super().__init__()
        self.chosen, self.share = chosen, share
        self.score = nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor, there: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(x.device.type, enabled=False):  # near choices must not hang on rounding
            scores = wide(self.score(wide(x).to(self.score.weight.dtype)))
        if not self.training:
            return scores.softmax(-1), {}
        spread = 1 / scores.shape[-1]
        noisy = scores + spread * torch.randn_like(scores)
        losses = {"importance": uneven(scores.softmax(-1), there), "load": self.load(scores, noisy, spread, there)}
        return noisy.softmax(-1), {name: self.share * loss for name, loss in losses.items()}

    def load(self, scores: Tensor, noisy: Tensor, spread: float, there: Tensor) -> Tensor:
        """How unevenly experts would be chosen if the noise were drawn anew."""
        least = noisy.topk(self.chosen, -1).values[..., -1:]  # what it takes to be chosen
        return uneven(torch.special.ndtr((scores - least) / spread), there)


def uneven(x: Tensor, there: Tensor) -> Tensor:
    """The squared variation over the experts of what they get, x (G, S, E) of the tokens that are there; the groups'
    mean."""
    total = (x * there[..., None]).sum(1)  # (G, E)
    return (total.var(-1, correction=0) / total.mean(-1).clamp(min=1e-9).square()).mean()


def room(tokens: int, experts: int, chosen: int, factor: float) -> int:
    """C: the places of each expert for a group of so many tokens, `factor` times its even share, rounded up."""
    share = round(1000 * factor)  # in whole numbers, so that sizes may be symbols
    return least(-(-tokens * chosen * share // (1000 * experts)), tokens)


def places(gates: Tensor, there: Tensor, chosen: int, capacity: int, *, first: bool) -> tuple[Tensor, Tensor]:
    """Each token's chosen experts and their weights: slot (G, S, K), of E * C, or E * C where there is no room; weight
    (G, S, K).

    A token's first choice goes before everybody's second. first: among one choice, tokens of which the router is surer
    (batch priority); else those that stand first. Tokens that are not `there` (G, S) take no place.
    """
    weight, expert = gates.topk(chosen, -1)
    experts = gates.shape[-1]
    rank = weight[..., 0].masked_fill(~there, -1.0) if first else there.to(weight.dtype)
    order = rank.argsort(dim=1, descending=True, stable=True)  # (G, S): who goes first
    turn = expert.gather(1, order[..., None].expand_as(expert)).transpose(1, 2).flatten(1)  # (G, K * S)
    mine = turn[..., None] == torch.arange(experts, device=gates.device)  # (G, K * S, E)
    mine = mine & there.gather(1, order).repeat(1, chosen)[..., None]
    at = (mine.cumsum(1) - 1).gather(2, turn[..., None])[..., 0]
    fits = mine.any(2) & (at < capacity)
    slot = torch.where(fits, turn * capacity + at, experts * capacity)  # in turn
    slot = slot.unflatten(1, (chosen, -1)).transpose(1, 2)  # (G, S, K)
    back = order.argsort(dim=1)
    return slot.gather(1, back[..., None].expand_as(slot)), weight


class MixtureOfExperts(nn.Module):
    """In place of a feed-forward step: Tokens (B, N, D) -> Tokens (B, N, D), each token through `chosen` of `experts`
    and summed by their gates; of one for which there is no room nothing is left but the residual.

    In training all tokens of a batch compete for the places, `capacity` times an even share; else those of each row
    for `spare` times. normalise: the gates of the chosen sum to one. share: of the losses, as in `Router`.
    """

    refuses = ("weight", "lengths", "memory")

    def __init__(
        self, width: int, hidden: int, *, experts: int, chosen: int, capacity: float = 1.05, spare: float = 4.0,
        first: bool = True, normalise: bool = False, share: float = 0.005, act: Make = nn.GELU,
    ):  # fmt: skip
        super().__init__()
        if not 1 <= chosen <= experts:
            raise PlaitError(f"got {chosen} chosen of {experts} experts, expected 1 to {experts}")
        self.capacity, self.spare, self.first, self.normalise = capacity, spare, first, normalise
        self.router, self.experts = Router(width, experts, chosen, share), Experts(experts, width, hidden, act)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, *self.refuses, why="each token takes one place of an expert's, beside all of its row")
        x, there = t.x, real(t)
        if self.training:
            x, there = x.flatten(0, 1)[None], there.flatten()[None]
        gates, losses = self.router(x, there)
        y = self.pass_on(x, there, gates, self.capacity if self.training else self.spare)
        t = t.replace(x=y.view_as(t.x))
        for name, loss in losses.items():
            t = t.add_loss(name, loss)
        return t

    def pass_on(self, x: Tensor, there: Tensor, gates: Tensor, factor: float) -> Tensor:
        """x (G, S, D) through its experts, weighed by gates (G, S, E): (G, S, D)."""
        (groups, count, _), experts, chosen = x.shape, gates.shape[-1], self.router.chosen
        capacity = room(count, experts, chosen, factor)
        slot, weight = places(gates, there, chosen, capacity, first=self.first)
        if self.normalise:
            weight = weight / weight.sum(-1, keepdim=True)
        token = torch.arange(count, device=x.device)[:, None].expand(-1, chosen).flatten()
        empty = torch.full((groups, experts * capacity + 1), count, device=x.device)
        source = empty.scatter(1, slot.flatten(1), token.expand(groups, -1))[:, :-1]  # (G, E * C): whose place it is
        x = nn.functional.pad(x, (0, 0, 0, 1))  # an empty place holds zeros
        x = x.gather(1, source[..., None].expand(-1, -1, x.shape[2]))
        x = x.unflatten(1, (experts, -1)).transpose(0, 1).flatten(1, 2)  # (E, G * C, D)
        y = self.experts(x).unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 2)
        y = nn.functional.pad(y, (0, 0, 0, 1))  # and where there was no room comes nothing back
        y = y.gather(1, slot.flatten(1)[..., None].expand(-1, -1, y.shape[2])).unflatten(1, (count, chosen))
        return (y * weight[..., None].to(y.dtype)).sum(2)
