"""The likeliest of many names, found by beams that only follow names that exist."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.core.roles import Generator
from plait.errors import PlaitError
from plait.parts.generation import Trie, select, start


@torch.no_grad()
def recall(model: Generator, batch: dict, names: Trie, size: int) -> tuple[Tensor, Tensor]:
    """For every row the `size` names with the largest log-probability that as many beams find: tokens (B, K, N) int64,
    with the end and 0 after it, and these log-probabilities (B, K), the largest first; -inf where there are fewer.

    Where there are no more names than beams, that is what scoring each of them gives.
    """
    if size < 1:
        raise PlaitError(f"got {size} beams, expected at least 1")
    cache, token = start(model, batch, names.longest, names, None)
    rows, device = len(token), token.device
    first = torch.arange(rows, device=device)[:, None] * size  # (B, 1): where each row's beams begin
    apart = torch.arange(rows, device=device).repeat_interleave(size)
    cache, token, nodes = select(cache, apart), token.repeat_interleave(size, 0), [0] * rows * size
    live = torch.full((rows, size), -torch.inf, device=device)
    live[:, 0] = 0.0  # all beams are the same at first
    best = torch.full((rows, size), -torch.inf, device=device)
    texts = torch.zeros(rows, size, names.longest, dtype=torch.int64, device=device)
    found = torch.zeros_like(texts)
    for n in range(names.longest):
        logits, cache = model.step(token, cache)
        logs = names.mask(logits[:, -1].float().log_softmax(-1), nodes)
        sums = (live[..., None] + logs.unflatten(0, (rows, size))).flatten(1)  # (B, K V)
        top, at = sums.topk(min(2 * size, sums.shape[1]))
        parent, word = at // logs.shape[1], at % logs.shape[1]
        longer = texts.gather(1, parent[..., None].expand(-1, -1, names.longest))
        longer[..., n] = word
        ended = word == model.end
        # what has ended joins the best, and what has not goes on, if it may still become one of these
        both, which = torch.cat([best, top.masked_fill(~ended, -torch.inf)], 1).topk(size)
        found = torch.cat([found, longer], 1).gather(1, which[..., None].expand(-1, -1, names.longest))
        best = both
        live, on = top.masked_fill(ended | (top <= best[:, -1:]), -torch.inf).topk(size)
        if not live.isfinite().any():
            break
        texts = longer.gather(1, on[..., None].expand(-1, -1, names.longest))
        source, token = (first + parent.gather(1, on)).flatten(), word.gather(1, on).flatten()[:, None]
        cache = select(cache, source)
        alive = live.isfinite().flatten().tolist()
        after = names.follow([nodes[i] for i in source.tolist()], token[:, 0].tolist())
        nodes = [node if there else -1 for node, there in zip(after, alive, strict=True)]
    return found, best
