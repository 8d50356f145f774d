"""What layers remember of tokens read before, so that the next ones are read alone: keys and values, a page a layer.

`Stack` opens the memory, hands every layer its page in `Tokens.memory`, and takes it back. A memory grows by
concatenation: pure, so that it exports with a dynamic length and a beam is a row gathered twice. `laid_out(length)`
makes one that is written in place, where no gradient is asked for, into buffers with room for more: nothing is copied
and only what is written is attended to. `fixed(length)` is the same with shapes that never change, for graphs that are
captured once: it attends to its empty end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.errors import PlaitError

KeyValue = tuple[Tensor, Tensor]  # (B, H, M, E) each
SELF = "self"


class Page(NamedTuple):
    """What one layer remembers: {"self": of its own tokens, the name of a stream: of that}.

    keep: what may be attended to of the M remembered and the N new tokens, (B, M + N) or (B, N, M + N); None: all.
    start: where the new tokens are written, of a page that is laid out, (1,) of one that is fixed; None: it grows.
    """

    streams: dict[str, KeyValue]
    keep: Tensor | None = None
    start: Tensor | int | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Page]:
        """All keys and values of the layer's own tokens with the new ones (B, H, N, E), and the page that has them."""
        if SELF not in self.streams:
            return k, v, self.holding(SELF, (k, v))
        (old_k, old_v), end = self.streams[SELF], None
        k, v = _written(old_k, k, self.start), _written(old_v, v, self.start)
        if self.start is not None and not isinstance(self.start, Tensor):
            assert self.keep is not None
            end = self.keep.shape[-1]
        return k[:, :, :end], v[:, :, :end], self.holding(SELF, (k, v))

    def visible(self, n: int, causal: bool) -> Tensor | None:
        """What the N new tokens may attend to, as `keep`. Of a page that is fixed, a causal layer's tokens see what is
        written up to their own place; else the usual rule, that the last query sees the last key, is theirs."""
        if not causal or n == 1 or not isinstance(self.start, Tensor) or self.keep is None:
            return self.keep
        places = torch.arange(self.keep.shape[-1], device=self.keep.device)
        past = places <= self.start + torch.arange(n, device=self.keep.device)[:, None]  # (N, M)
        return past & (self.keep if self.keep.dim() == 3 else self.keep[:, None])

    def holding(self, name: str, pair: KeyValue) -> Page:
        """A page that also remembers `pair` under `name`."""
        return self._replace(streams={**self.streams, name: pair})


class Memory(NamedTuple):
    """The pages of a stack of layers, and which of the M remembered tokens are real, (B, M). The empty one is
    `Memory()`; all tensors of others have the rows first."""

    pages: tuple[dict[str, KeyValue], ...] = ()
    keep: Tensor | None = None

    @property
    def start(self) -> None:
        """It grows: new tokens are written nowhere."""
        return None

    def open(self, now: Tensor, allow: Tensor | None) -> tuple[Memory, Tensor]:
        """The memory with the new tokens' places in it, now (B, N) bool, and what each may attend to: (B, M + N), or
        (B, N, M + N) where `allow` says more: ((B,) N, N) which of the new ones may see each other, the old ones all
        may; or ((B,) N, M + N) of the old ones too."""
        past = now[:, :0] if self.keep is None else self.keep
        keep = torch.cat([past, now], 1)
        return self._replace(keep=keep), _allowed(keep, past.shape[1], allow)

    def without_last(self, n: int) -> Memory:
        """The memory without the last `n` tokens that were read, such as those that only asked."""
        assert self.keep is not None
        m = self.keep.shape[1] - n
        k_and_v = ([x[:, :, :m].contiguous() for x in page[SELF]] for page in self.pages)  # views would keep the rest
        pages = tuple({**page, SELF: (k, v)} for page, (k, v) in zip(self.pages, k_and_v, strict=True))
        return Memory(pages, self.keep[:, :m].contiguous())

    def laid_out(self, length: int) -> LaidOut:
        """The same memory in buffers of `length` places. Raises ValueError where it is empty or holds more."""
        pages, keep = self._roomy(length)
        return LaidOut(pages, keep)

    def fixed(self, length: int) -> Fixed:
        """The same in buffers of `length` places, all of which are attended to or masked. Raises as `laid_out`."""
        pages, keep = self._roomy(length)
        start = torch.full((1,), keep.shape[1], dtype=torch.int64, device=keep.device)
        return Fixed(pages, F.pad(keep, (0, length - keep.shape[1])), start)

    def _roomy(self, length: int) -> tuple[tuple[dict[str, KeyValue], ...], Tensor]:
        if not self.pages or self.keep is None or self.keep.shape[1] > length:
            held = 0 if self.keep is None else self.keep.shape[1]
            raise PlaitError(f"got a memory of {held} tokens, expected 1 to {length}: read something first")
        more = length - self.keep.shape[1]

        def longer(name: str, pair: KeyValue) -> KeyValue:
            return pair if name != SELF else (F.pad(pair[0], (0, 0, 0, more)), F.pad(pair[1], (0, 0, 0, more)))

        return tuple({name: longer(name, pair) for name, pair in page.items()} for page in self.pages), self.keep


class LaidOut(NamedTuple):
    """A `Memory` in buffers with room for more. How much of them is written is the length of `keep`, (B, M)."""

    pages: tuple[dict[str, KeyValue], ...]
    keep: Tensor

    @property
    def start(self) -> int:
        """Where the next tokens are written."""
        return self.keep.shape[1]

    def open(self, now: Tensor, allow: Tensor | None) -> tuple[LaidOut, Tensor]:
        """As `Memory.open`. Raises ValueError where there is no room left."""
        keep, room = torch.cat([self.keep, now], 1), self.pages[0][SELF][0].shape[2]
        if keep.shape[1] > room:
            raise PlaitError(f"got {keep.shape[1]} tokens for a memory with room for {room}: lay it out longer")
        return self._replace(keep=keep), _allowed(keep, self.keep.shape[1], allow)

    def without_last(self, n: int) -> LaidOut:
        """As `Memory.without_last`: what is written there is seen no more, and written over."""
        return self._replace(keep=self.keep[:, : self.keep.shape[1] - n])


class Fixed(NamedTuple):
    """A `Memory` in buffers of M places, of which the first `start` (1,) are written; the same for all rows."""

    pages: tuple[dict[str, KeyValue], ...]
    keep: Tensor
    start: Tensor

    def open(self, now: Tensor, allow: Tensor | None) -> tuple[Fixed, Tensor]:
        """As `Memory.open`, allow (N, N)."""
        n, places = now.shape[1], torch.arange(self.keep.shape[1], device=now.device)
        keep = _written(self.keep, now, self.start, 1)
        memory = self._replace(keep=keep, start=self.start + n)
        if allow is None:
            return memory, keep
        if allow.shape != (n, n):
            raise PlaitError(f"got {tuple(allow.shape)} of who may see whom, expected {(n, n)}: use one that grows")
        old = (places < self.start).expand(n, -1)  # (N, M)
        full = old.new_zeros(old.shape).index_copy(1, self.start + torch.arange(n, device=now.device), allow)
        return memory, keep[:, None] & (old | full)

    def without_last(self, n: int) -> Fixed:
        """As `Memory.without_last`: what is written there is seen no more, and written over."""
        start = self.start - n
        return self._replace(
            start=start, keep=self.keep & (torch.arange(self.keep.shape[1], device=start.device) < start)
        )


AnyMemory = Memory | LaidOut | Fixed


def _allowed(keep: Tensor, m: int, allow: Tensor | None) -> Tensor:
    """`keep` (B, M + N) joined with `allow`, as `Memory.open` has it."""
    if allow is None:
        return keep
    allow = allow if allow.dim() == 3 else allow[None]
    whole = allow.shape[2] == keep.shape[1]
    return keep[:, None] & (allow if whole else F.pad(allow, (m, 0), value=True))


def _written(old: Tensor, new: Tensor, start: Tensor | int | None, dim: int = 2) -> Tensor:
    """`old` followed by `new` along `dim`; with `start`, written from there on into `old`."""
    if start is None:
        return torch.cat([old, new], dim)
    n, new = new.shape[dim], new.to(old.dtype)
    if not isinstance(start, Tensor):
        if torch.is_grad_enabled():
            return torch.cat(
                [old.narrow(dim, 0, start), new, old.narrow(dim, start + n, old.shape[dim] - start - n)], dim
            )
        old.narrow(dim, start, n).copy_(new)
        return old
    places = start + torch.arange(n, device=old.device)
    return old.index_copy(dim, places, new) if torch.is_grad_enabled() else old.index_copy_(dim, places, new)
