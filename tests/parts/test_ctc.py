"""CTC: the loss against a sum over all alignments, greedy decoding, and prefix beam search against all spellings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from plait.parts.objectives.ctc import ctc_rows, greedy, needed_frames, prefix_beam


def collapsed(path) -> tuple:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def spellings(logp: torch.Tensor) -> dict[tuple, float]:
    """The probability of every label sequence, by adding up every path over (T, V)."""
    found: dict[tuple, float] = {}
    for path in itertools.product(range(logp.shape[1]), repeat=len(logp)):
        p = math.exp(sum(float(logp[t, c]) for t, c in enumerate(path)))
        found[collapsed(path)] = found.get(collapsed(path), 0.0) + p
    return found


def random_logits(rows: int, frames: int, labels: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, frames, labels, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_that_of_all_alignments():
    logits = random_logits(3, 6, 4)
    target = torch.tensor([[1, 1, 3], [2, -100, -100], [3, 1, 2]])
    lengths = torch.tensor([6, 4, 5])
    loss, fits = ctc_rows(logits, lengths, target)
    assert fits.all()
    for i in range(3):
        labels = tuple(target[i][target[i] >= 0].tolist())
        p = spellings(logits[i, : lengths[i]].log_softmax(1))[labels]
        assert float(loss[i]) == pytest.approx(-math.log(p) / len(labels), rel=1e-4)


def test_what_does_not_fit_has_no_loss_and_no_gradient():
    target = torch.tensor([[1, 1, 2], [1, 2, 3], [-100, -100, -100], [1, 4, 2]])
    assert needed_frames(target).tolist() == [4, 3, 0, 3]
    logits = random_logits(4, 3, 4).requires_grad_()
    # four frames needed, three, no label, a label too high
    loss, fits = ctc_rows(logits, torch.tensor([3, 3, 3, 3]), target)
    assert fits.tolist() == [False, True, False, False]
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert logits.grad[1].any() and not logits.grad[[0, 2, 3]].any()


def test_greedy_leaves_out_repeats_blanks_and_what_lies_beyond_the_end():
    paths = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 3, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
    logits = 5.0 * torch.nn.functional.one_hot(paths, 4)
    labels, logp = greedy(logits, torch.tensor([6, 4, 6]))
    assert labels.tolist() == [[1, 1, 2, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6]
    each = float(torch.tensor([5.0, 0, 0, 0]).log_softmax(0)[0])
    assert logp.tolist() == pytest.approx([6 * each, 4 * each, 6 * each], rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_likeliest_spelling(seed):
    logp = random_logits(1, 5, 3, seed)[0].log_softmax(1)
    found, score = prefix_beam(logp.numpy(), 64)
    truth = spellings(logp)
    best = max(truth, key=truth.get)
    assert tuple(found) == best and score == pytest.approx(math.log(truth[best]), rel=1e-5)


def test_the_likeliest_path_need_not_be_the_likeliest_spelling():
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4]])  # the blank path has 0.36, and "1" in one way or another 0.64
    assert greedy(p.log()[None], torch.tensor([2]))[0].tolist() == [[0, 0]]
    found, score = prefix_beam(p.log().numpy(), 4)
    assert found == [1] and math.exp(score) == pytest.approx(0.64, rel=1e-5)
    assert prefix_beam(torch.zeros(0, 3).numpy(), 4) == ([], 0.0)
