"""What layers remember of tokens read before, so that the next ones are read alone: keys and values, a page a layer.

`Stack` opens the memory, hands every layer its page in `Tokens.memory`, and takes it back. A memory grows by
concatenation: pure, so that it exports with a dynamic length and a beam is a row gathered twice. `laid_out(length)`
makes one of fixed size instead, for graphs that are captured once: its buffers are written in place where no gradient
is asked for. On a CPU the growing one is the faster.
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

    keep: what may be attended to of the M remembered and the N new tokens, (B, M + N) or (B, N, M + N). start: (1,)
    where the new tokens are written, in a page that is laid out; None: it grows.
    """

    streams: dict[str, KeyValue]
    keep: Tensor | None = None
    start: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Page]:
        """All keys and values of the layer's own tokens with the new ones (B, H, N, E), and the page that has them."""
        if SELF in self.streams:
            old = self.streams[SELF]
            k, v = (_written(a, b, self.start) for a, b in zip(old, (k, v)))
        return k, v, self.holding(SELF, (k, v))

    def visible(self, n: int, causal: bool) -> Tensor | None:
        """What the N new tokens may attend to, as `keep`. Of a page that is laid out, a causal layer's tokens see what
        is written up to their own place; else the usual rule, that the last query sees the last key, is theirs."""
        if not causal or n == 1 or self.start is None or self.keep is None:
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

    def open(self, now: Tensor, allow: Tensor | None) -> tuple[Memory, Tensor]:
        """The memory with the new tokens' places in it, now (B, N) bool, and what each may attend to: (B, M + N), or
        (B, N, M + N) where `allow` ((B,) N, N) says which of the new ones may see each other; the old ones all may."""
        past = now[:, :0] if self.keep is None else self.keep
        keep = torch.cat([past, now], 1)
        memory, m = self._replace(keep=keep), past.shape[1]
        if allow is None:
            return memory, keep
        return memory, keep[:, None] & F.pad(allow if allow.dim() == 3 else allow[None], (m, 0), value=True)

    def without_last(self, n: int) -> Memory:
        """The memory without the last `n` tokens that were read, such as those that only asked."""
        assert self.keep is not None
        m = self.keep.shape[1] - n
        k_and_v = ([x[:, :, :m].contiguous() for x in page[SELF]] for page in self.pages)  # views would keep the rest
        pages = tuple({**page, SELF: (k, v)} for page, (k, v) in zip(self.pages, k_and_v, strict=True))
        return Memory(pages, self.keep[:, :m].contiguous())

    def laid_out(self, length: int) -> LaidOut:
        """The same memory in buffers of `length` places. Raises ValueError where it is empty or holds more."""
        if not self.pages or self.keep is None or self.keep.shape[1] > length:
            held = 0 if self.keep is None else self.keep.shape[1]
            raise PlaitError(f"got a memory of {held} tokens, expected 1 to {length}: read something first")
        more = length - self.keep.shape[1]

        def longer(name: str, pair: KeyValue) -> KeyValue:
            return pair if name != SELF else (F.pad(pair[0], (0, 0, 0, more)), F.pad(pair[1], (0, 0, 0, more)))

        pages = tuple({name: longer(name, pair) for name, pair in page.items()} for page in self.pages)
        start = torch.full((1,), self.keep.shape[1], dtype=torch.int64, device=self.keep.device)
        return LaidOut(pages, F.pad(self.keep, (0, more)), start)


class LaidOut(NamedTuple):
    """A `Memory` in buffers of M places, of which the first `start` (1,) are written; the same for all rows."""

    pages: tuple[dict[str, KeyValue], ...]
    keep: Tensor
    start: Tensor

    def open(self, now: Tensor, allow: Tensor | None) -> tuple[LaidOut, Tensor]:
        """As `Memory.open`, allow (N, N)."""
        n, places = now.shape[1], torch.arange(self.keep.shape[1], device=now.device)
        keep = _written(self.keep, now, self.start, 1)
        memory = self._replace(keep=keep, start=self.start + n)
        if allow is None:
            return memory, keep
        old = (places < self.start).expand(n, -1)  # (N, M)
        full = old.new_zeros(old.shape).index_copy(1, self.start + torch.arange(n, device=now.device), allow)
        return memory, keep[:, None] & (old | full)

    def without_last(self, n: int) -> LaidOut:
        """As `Memory.without_last`: what is written there is seen no more, and written over."""
        start = self.start - n
        return self._replace(
            start=start, keep=self.keep & (torch.arange(self.keep.shape[1], device=start.device) < start)
        )


def _written(old: Tensor, new: Tensor, start: Tensor | None, dim: int = 2) -> Tensor:
    """`old` followed by `new` along `dim`; with `start`, written from there on into `old`."""
    if start is None:
        return torch.cat([old, new], dim)
    places, new = start + torch.arange(new.shape[dim], device=old.device), new.to(old.dtype)
    return old.index_copy(dim, places, new) if torch.is_grad_enabled() else old.index_copy_(dim, places, new)
