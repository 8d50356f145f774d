"""Layers whose weights exist once per kind of token (arXiv:2208.10442, 2411.04996): a token goes through those of its
own, and one attention is among all. What it costs is what it costs in a layer with one set of weights."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, Layer
from plait.core.tokens import Tokens, apart, by_kind, together
from plait.errors import PlaitError


class Expert(nn.Module):
    """One kind's half of a layer: what its tokens ask of all, and what they make of the answer.

    mix: projects before the attention and after it; norm, after: on this branch, as in `Pre`; feed: the step that
    follows, with its residual.
    """

    def __init__(
        self, mix: Attention, feed: nn.Module, *, norm: nn.Module | None = None, after: nn.Module | None = None
    ):
        super().__init__()
        self.norm, self.mix, self.after = norm or nn.Identity(), mix, after or nn.Identity()
        self.mix.register_module("attend", None)  # all experts' projections meet in one
        self.feed = feed

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, H, N, E)."""
        return self.mix.project(t.replace(x=self.norm(t.x)))

    def merge(self, t: Tokens, x: Tensor) -> Tokens:
        """The tokens after this layer, given what attention gathered for them, (B, H, N, E)."""
        return self.feed(t.replace(x=t.x + self.after(self.mix.merge(t.replace(x=x)).x)))


class Multiway(Layer):
    """Tokens (B, N, D), whose `kinds` say which expert each is for -> the same: each through its own, one attention
    among all. Experts of kinds that are not there are not asked. causal: a token sees those before it and itself,
    unless the context says who may attend to whom."""

    def __init__(self, experts: dict[str, Expert], *, causal: bool = False):
        super().__init__()
        self.experts, self.attend = nn.ModuleDict(experts), Attend(causal=causal)

    def forward(self, t: Tokens) -> Tokens:
        streams, kinds = by_kind(t), t.kinds or ()
        if unknown := [kind for kind in streams if kind not in self.experts]:
            known = ", ".join(self.experts)
            raise PlaitError(f"got tokens of kind {', '.join(unknown)}, expected {known}: give it an expert")
        experts = {kind: cast(Expert, self.experts[kind]) for kind in streams}
        asked = {kind: experts[kind].project(s) for kind, s in streams.items()}
        q, k, v = (together({kind: a[i] for kind, a in asked.items()}, kinds, 2) for i in range(3))
        y = self.attend(t, q, k, v)
        found = apart(y.x, kinds, 2)
        after = {kind: experts[kind].merge(s, found[kind]) for kind, s in streams.items()}
        x = together({kind: s.x for kind, s in after.items()}, kinds)
        return t.carry(y, x).with_losses(*after.values())
