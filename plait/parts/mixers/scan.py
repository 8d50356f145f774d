"""The selective scan of Mamba (arXiv:2312.00752): a recurrence whose steps, inputs and outputs each token chooses.

For every channel d and state s:  h_n = exp(dt_n[d] A[s, d]) h_(n-1) + dt_n[d] B_n[s] x_n[d]  and  y_n[d] = sum over s
of C_n[s] h_n[s, d].

Three forms of it, equal to rounding. `step` is one token. `Walk` goes through time a few tokens at a time with states
that never leave the cache, and its backward pass makes them again instead of keeping them: the fastest and smallest on
a CPU. `chunked` takes the same place of all chunks at once and carries the states between chunks by doubling: few and
large operations, without a loop over the length, for accelerators, for rows of vmap, and where the length is not known:
compiled and exported models. Nothing divides by a decay, so that none can underflow.
A token with dt = 0 leaves the state as it was: that is how padding is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.core.precision import wide
from plait.core.sizes import readable
from plait.errors import PlaitError

CHUNK = 16  # tokens of a chunk
ROUNDS = 16  # of doubling from chunk to chunk: 2 ** 16 chunks at most
# numbers in the states of the tokens that `Walk` takes together: half a megabyte (measured: 2**16 to 2**18 do as well)
CACHED = 2**17


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (B, N, D) in the dtype of x, and the state after the last token (B, S, D) in float32.

    x (B, N, D) inputs; dt (B, N, D) step sizes, not negative, 0 for tokens that are not real; a (S, D) rates, negative;
    b and c (B, N, S); state (B, S, D) before the first token, None: zeros. All is computed in float32, for up to a
    million tokens: scan more in pieces, handing the state on. Raises ValueError for shapes that do not fit.
    """
    rows, count, width = x.shape
    size = a.shape[0]
    if dt.shape != x.shape or a.shape[1] != width or b.shape != (rows, count, size) or c.shape != b.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, dt, a, b, c))
        raise PlaitError(
            f"got x, dt, a, b, c of shapes {shapes}, expected (B, N, D), (B, N, D), (S, D), (B, N, S), (B, N, S)"
        )
    dtype, walks = x.dtype, x.device.type == "cpu" and all(readable(t) for t in (x, dt, a, b, c))
    x, dt, a, b, c = (wide(t) for t in (x, dt, a, b, c))
    state = x.new_zeros(rows, size, width) if state is None else wide(state)
    y, state = (Walk.apply if walks else chunked)(x, dt, a, b, c, state)
    return y.to(dtype), state


def step(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: x and dt (B, D), a (S, D), b and c (B, S), state (B, S, D) -> y (B, D), the new state."""
    state = torch.exp(dt[:, None] * a) * state + b[..., None] * (dt * x)[:, None]
    return (c[:, None] @ state)[:, 0], state


def chunked(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As `selective_scan`, float32: all chunks at once, place by place."""
    count = x.shape[1]
    chunks = count // CHUNK + 2  # at least two whatever the length: an export need not tell one from several
    place = CHUNK * torch.arange(chunks, device=x.device)[:, None] + torch.arange(CHUNK, device=x.device)
    x, dt, b, c = (t[:, place.clamp(max=count - 1)] for t in (x, dt, b, c))  # (B, M, L, ...)
    dt = dt.masked_fill(place[..., None] >= count, 0.0)
    dx = dt * x

    def through(h: Tensor) -> list[Tensor]:
        """The states (B, M, S, D) after each place of all chunks, h being those before the first."""
        states = []
        for i in range(CHUNK):
            h = torch.exp(dt[:, :, i, None] * a) * h + b[:, :, i, :, None] * dx[:, :, i, None]
            states.append(h)
        return states

    total = torch.exp(dt.sum(2)[:, :, None] * a)  # (B, M, S, D) what is left of a state after each chunk
    before = _carried(total, through(torch.zeros_like(total))[-1], state)
    states = through(before[:, :-1])
    y = torch.stack([(c[:, :, i, None] @ h)[:, :, 0] for i, h in enumerate(states)], 2)  # (B, M, L, D)
    # a slice would ask whether it is whole
    return y.flatten(1, 2)[:, torch.arange(count, device=x.device)], before[:, -1]


def _carried(left: Tensor, sums: Tensor, state: Tensor) -> Tensor:
    """(B, M + 1, S, D): the states before each of M chunks, and after the last.

    left: what a chunk leaves of the state before it; sums: what it adds. Both (B, M, S, D). The given state counts as a
    chunk that leaves
    nothing, so that a run that reaches it is complete, and reaching further changes nothing: no round needs a mask.
    """
    left, sums = torch.cat([torch.zeros_like(state)[:, None], left], 1), torch.cat([state[:, None], sums], 1)
    place = torch.arange(left.shape[1], device=left.device)
    for doubling in range(ROUNDS):  # a fixed number, since the number of chunks may not be known
        earlier = (place - 2**doubling).clamp(min=0)
        sums = sums + left * sums[:, earlier]
        left = left * left[:, earlier]
    return sums


class Walk(torch.autograd.Function):
    """As `chunked`, a few tokens at a time; keeps the inputs and the states between pieces, and makes the others again
    going back."""

    @staticmethod
    def forward(ctx, x, dt, a, b, c, state):
        dx, y, h, kept = dt * x, torch.empty_like(x), state, []
        keeping, pieces = any(ctx.needs_input_grad), _pieces(x, a)
        space = _space(x, a, pieces, 2)
        for i, j in pieces:
            if keeping:
                kept.append(h)
            _, states = _through(dx[:, i:j], dt[:, i:j], a, b[:, i:j], h, space)
            torch.matmul(c[:, i:j, None], states, out=y[:, i:j, None])
            h = states[:, -1].clone()
        ctx.save_for_backward(x, dt, a, b, c, *kept)
        return y, h.clone() if h is state else h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy, gh):
        x, dt, a, b, c, *kept = ctx.saved_tensors
        dx, pieces = dt * x, _pieces(x, a)
        gdx, gdt, ga, gb, gc = (torch.empty_like(t) for t in (x, dt, a, b, c))
        ga.zero_()
        *space, more, products = _space(x, a, pieces, 4)
        for (i, j), before in zip(reversed(pieces), reversed(kept), strict=True):
            decay, states = _through(dx[:, i:j], dt[:, i:j], a, b[:, i:j], before, space)
            torch.matmul(states, gy[:, i:j, :, None], out=gc[:, i:j, :, None])
            g = torch.mul(c[:, i:j, :, None], gy[:, i:j, None], out=more[:, : j - i])  # (B, T, S, D), of the states
            g[:, -1] += gh
            later = g[:, -1]
            for one, left in zip(reversed(g[:, :-1].unbind(1)), reversed(decay[:, 1:].unbind(1)), strict=True):
                later = one.addcmul_(later, left)
            torch.matmul(b[:, i:j, None], g, out=gdx[:, i:j, None])
            torch.matmul(g, dx[:, i:j, :, None], out=gb[:, i:j, :, None])
            g *= decay
            gh = g[:, 0].clone()
            g[:, 0] *= before
            g[:, 1:] *= states[:, :-1]  # (B, T, S, D), of the exponents dt * a
            torch.sum(torch.mul(g, a, out=products[:, : j - i]), 2, out=gdt[:, i:j])
            ga += g.mul_(dt[:, i:j, None]).sum((0, 1))
        gdt.addcmul_(gdx, x)
        return gdx * dt, gdt, ga, gb, gc, gh


def _pieces(x: Tensor, a: Tensor) -> list[tuple[int, int]]:
    size = max(4, CACHED // (x.shape[0] * a.numel()))
    return [(i, min(i + size, x.shape[1])) for i in range(0, x.shape[1], size)]


def _space(x: Tensor, a: Tensor, pieces: list[tuple[int, int]], count: int) -> Tensor:
    """Room for `count` tensors of states of a piece, used for every piece: memory asked for anew would be cleared
    anew."""
    return x.new_empty(count, x.shape[0], pieces[0][1], *a.shape)


def _through(
    dx: Tensor, dt: Tensor, a: Tensor, b: Tensor, h: Tensor, space: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The decays exp(dt a) and the states after each of T tokens, (B, T, S, D) both, written to `space`."""
    decay, states = (room[:, : dx.shape[1]] for room in space)
    torch.mul(dt[:, :, None], a, out=decay).exp_()
    torch.mul(b[..., None], dx[:, :, None], out=states)
    for left, added in zip(decay.unbind(1), states.unbind(1), strict=True):
        h = added.addcmul_(left, h)
    return decay, states
