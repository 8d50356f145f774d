"""What simple models see of pictures, hear of sounds and read of series: some hundred numbers each, that nobody has to
train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 12  # of the small pictures
DIRECTIONS = 9
BANDS, SECTIONS = 24, 8  # of a sound: from low to high, and from its beginning to its end
WINDOW = 0.032  # seconds


def pictures(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, F): small grey ones, their colours, and how steep they are in nine directions by
    region (histograms of oriented gradients, Dalal and Triggs 2005)."""
    grey = x.float().mean(1, keepdim=True)
    small = F.adaptive_avg_pool2d(grey, SIDE).flatten(1)
    colour = F.adaptive_avg_pool2d(x.float() - grey, 4).flatten(1)
    g = F.adaptive_avg_pool2d(grey, 48) if min(x.shape[-2:]) > 48 else grey
    dx, dy = g[..., 1:-1, 2:] - g[..., 1:-1, :-2], g[..., 2:, 1:-1] - g[..., :-2, 1:-1]
    size, angle = (dx.square() + dy.square()).sqrt(), torch.atan2(dy, dx).remainder(torch.pi) * (DIRECTIONS / torch.pi)
    low = angle.floor()
    share = angle - low
    bins = [
        size * ((1 - share) * (low.remainder(DIRECTIONS) == k) + share * ((low + 1).remainder(DIRECTIONS) == k))
        for k in range(DIRECTIONS)
    ]
    cells = F.adaptive_avg_pool2d(torch.cat(bins, 1), 6)  # (B, 9, 6, 6)
    norm = F.avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1).sqrt()
    return torch.cat([small, colour, (cells / (norm + 1e-2)).flatten(1)], 1)


def sounds(x: Tensor, keep: Tensor, rate: int) -> Tensor:
    """(B, S) and keep (B, S) -> (B, F): how loud each of some bands is in each section of what is there, in logarithms,
    and how much that changes."""
    frame = 2 ** round(torch.log2(torch.tensor(WINDOW * rate)).item())
    padded = F.pad(x.float() * keep, (0, max(frame - x.shape[1], 0)))
    power = torch.stft(padded, frame, frame // 2, window=torch.hann_window(frame, device=x.device), center=False,
                       return_complex=True).abs().square()  # fmt: skip
    edges = torch.logspace(0, 1, BANDS + 1, base=frame / 2 + 1).round().long().clamp(max=frame // 2 + 1)
    bands = [power[:, a : max(b, a + 1)].mean(1) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist())]
    loud = torch.log(torch.stack(bands, 1) + 1e-6)  # (B, BANDS, T)
    frames = ((keep.sum(1) - frame) // (frame // 2) + 1).clamp(1, loud.shape[2])
    sums = F.pad(loud.double().cumsum(2), (1, 0))
    ends = (torch.linspace(0, 1, SECTIONS + 1, device=x.device)[None] * frames[:, None]).round().long()
    ends[:, 1:] = torch.maximum(ends[:, 1:], ends[:, :-1] + 1).clamp(max=loud.shape[2])
    starts = torch.minimum(ends[:, :-1], ends[:, 1:] - 1)
    spread = lambda at: at[:, None, :].expand(-1, BANDS, -1)  # noqa: E731
    mean = (sums.gather(2, spread(ends[:, 1:])) - sums.gather(2, spread(starts))) / (ends[:, 1:] - starts)[:, None]
    level = mean.mean((1, 2), keepdim=True)
    return torch.cat([(mean - level).flatten(1), level.flatten(1), mean.std(2)], 1).float()


def series(x: Tensor, keep: Tensor) -> Tensor:
    """(B, T, C) and keep (B, T) -> (B, 6 C): mean, spread, least, most, and both ends."""
    k = keep[..., None]
    count = k.sum(1).clamp(min=1)
    mean = (x * k).sum(1) / count
    std = (((x - mean[:, None]) * k).square().sum(1) / count).sqrt()
    low, high = x.masked_fill(~k, torch.inf).amin(1), x.masked_fill(~k, -torch.inf).amax(1)
    first = keep.int().argmax(1)
    last = keep.shape[1] - 1 - keep.flip(1).int().argmax(1)
    rows = torch.arange(len(x), device=x.device)
    found = torch.cat([mean, std, low, high, x[rows, first], x[rows, last]], 1)
    return torch.where(keep.any(1)[:, None], found, 0.0)
