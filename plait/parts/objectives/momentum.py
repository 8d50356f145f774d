"""A slowly moving teacher and queues of what it saw (MoCo, arXiv:1911.05722; momentum distillation, ALBEF,
arXiv:2107.07651).

The teacher and its queues are state of the training, not of the model: `Momentum` holds them, the objective reads them,
and what it leaves there is taken in after the optimizer's step.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

NEVER = torch.finfo(torch.float32).min  # the score of what may not be chosen: finite, so that no NaN comes of it


class Queue(nn.Module):
    """The last `size` vectors (size, W) that were pushed, with the ids of the rows that they came from; -1 where a row
    has no id."""

    features: Tensor
    ids: Tensor
    head: Tensor  # (1,) where the next vector goes
    count: Tensor  # (1,) how many places are filled

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("head", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def filled(self) -> Tensor:
        """(size,) bool: which places hold a vector."""
        return torch.arange(self.size, device=self.features.device) < self.count

    @torch.no_grad()
    def push(self, features: Tensor, ids: Tensor | None = None) -> None:
        """Take in (B, W) vectors, the oldest ones make room; B need not divide the size, and of more than `size` the
        last ones stay."""
        if self.size == 0:
            return
        features = features[-self.size :]
        ids = features.new_full((features.shape[0],), -1, dtype=torch.int64) if ids is None else ids[-self.size :]
        places = (self.head + torch.arange(features.shape[0], device=self.head.device)) % self.size
        self.features[places] = features.to(self.features.dtype)
        self.ids[places] = ids
        self.head.copy_((self.head + features.shape[0]) % self.size)
        self.count.copy_((self.count + features.shape[0]).clamp(max=self.size))


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter; buffers are copied."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast.to(slow.dtype), 1.0 - momentum)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)


class Momentum(nn.Module):
    """The training state of a system that learns from its own past: a teacher and one queue per slot, both part of the
    checkpoint.

    The teacher starts as a copy of `model`, takes no gradient and stays in evaluation mode (its targets carry no
    dropout). Under several processes each keeps a queue of its own rows, so that nothing waits for anybody.
    """

    step: Tensor  # (1,) int64

    def __init__(self, model: nn.Module, slots: tuple[str, ...], *, size: int, width: int, momentum: float, ramp: int):
        super().__init__()
        self.momentum, self.ramp = momentum, ramp
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher.zero_grad(set_to_none=True)
        self.queues = nn.ModuleDict({slot: Queue(size, width) for slot in slots})
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))
        self.pending: list[tuple[dict[str, Tensor], Tensor, Tensor | None]] = []
        self.to(next(model.parameters()).device)
        self.train()

    def train(self, mode: bool = True) -> Momentum:
        super().train(mode)
        self.teacher.eval()
        return self

    def warmth(self) -> Tensor:
        """(1,) from 0 to 1 over the first `ramp` steps: how far the teacher may be trusted."""
        return (self.step / self.ramp).clamp(max=1.0)

    def observe(self, features: dict[str, Tensor], real: Tensor, ids: Tensor | None) -> None:
        """Keep the teacher's vectors {slot: (B, W)} of a batch until `advance`; real (B,) bool says which rows are
        worth a place."""
        self.pending.append(({slot: x.detach() for slot, x in features.items()}, real, ids))

    @torch.no_grad()
    def advance(self, model: nn.Module) -> None:
        """After the optimizer's step: queue what the step's batches left, let the teacher follow `model`."""
        for features, real, ids in self.pending:
            for slot, x in features.items():
                cast(Queue, self.queues[slot]).push(x[real], None if ids is None else ids[real])
        self.pending.clear()
        ema_update(self.teacher, model, self.momentum)
        self.step += 1


def alike(group: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """(B, B) bool: which rows of a batch belong together; each to itself, and those with the same number in `group`
    (B,) if given."""
    itself = torch.eye(rows, dtype=torch.bool, device=device)
    return itself if group is None else itself | (group[:, None] == group[None, :])


def queue_contrast(
    vectors: dict[str, Tensor],
    then: dict[str, Tensor],
    queues: nn.ModuleDict,
    real: Tensor,
    group: Tensor | None,
    temperature: Tensor,
    alpha: Tensor | float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrast of two slots, both ways, against the teacher's vectors of this batch and of the queues.

    Without queues (size 0) the batch's own vectors take the teacher's place, so that both sides learn at once: this is
    InfoNCE, with the teacher's beliefs in the targets. It is right for features that start from nothing, which change
    faster than a queue forgets.

    vectors, then: {slot: (B, E)} unit vectors of the model and of its teacher. real (B,) bool: which rows are pairs.
    group: see `alike`; a queued vector with a row's number is its positive too. temperature (1,). alpha: the teacher's
    share of the targets.
    Returns the mean loss, and for each slot the scores (B, B) of its vectors with the other slot's of the batch.
    """
    rows, losses, scores = real.shape[0], [], {}
    itself, same = alike(None, rows, real.device), alike(group, rows, real.device)
    first, second = vectors
    with torch.autocast(real.device.type, enabled=False):  # among tens of thousands of candidates bfloat16 cannot tell
        for mine, other in ((first, second), (second, first)):
            queue = cast(Queue, queues[other])
            past = torch.cat([then[other], queue.features])  # (B + Q, E)
            score = vectors[mine] @ (past if queue.size else vectors[other]).mT / temperature
            believed = then[mine] @ past.mT / temperature.detach()
            known = (
                same.new_zeros(rows, queue.size) if group is None else (group[:, None] == queue.ids) & (queue.ids >= 0)
            )
            allowed = torch.cat([real | itself, queue.filled().expand(rows, -1)], 1)
            losses.append(mean_where(soft_contrast(score, believed, torch.cat([same, known], 1), allowed, alpha), real))
            scores[mine] = score[:, :rows].detach()
    return (losses[0] + losses[1]) / 2, scores


def soft_contrast(scores: Tensor, teacher: Tensor, same: Tensor, allowed: Tensor, alpha: Tensor | float) -> Tensor:
    """(B,) cross-entropy of each row's scores against targets that mix what is known with what the teacher believes.

    scores, teacher: (B, M) similarities over temperature, of the model and of its teacher. same: (B, M) bool, which
    candidates are known to belong to the row (at least one of them allowed). allowed: (B, M) bool, which candidates
    count at all. alpha: the teacher's share.
    """
    truth = (same & allowed).float()
    truth = truth / truth.sum(1, keepdim=True)
    with torch.no_grad():
        targets = alpha * teacher.float().masked_fill(~allowed, NEVER).softmax(1) + (1 - alpha) * truth
    return -(targets * scores.float().masked_fill(~allowed, NEVER).log_softmax(1).masked_fill(~allowed, 0.0)).sum(1)


def mean_where(losses: Tensor, counts: Tensor) -> Tensor:
    """The mean of `losses` (B,) where `counts` (B,) is True; 0, with its gradient, where nothing counts."""
    return losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
