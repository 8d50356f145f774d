"""The selective scan: all its forms against the plain recurrence in double precision, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.parts.mixers import scan
from plait.parts.mixers.scan import chunked, selective_scan, step

FORMS = {"walk": selective_scan, "chunked": chunked}


def oracle(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one token after another."""
    y = []
    for n in range(x.shape[1]):
        state = torch.exp(dt[:, n, None] * a) * state + dt[:, n, None] * b[:, n, :, None] * x[:, n, None]
        y.append((c[:, n, :, None] * state).sum(1))
    return torch.stack(y, 1), state


def inputs(count: int, rows: int = 2, width: int = 12, size: int = 5, fast: float = 1.0) -> list[Tensor]:
    """x, dt, a, b, c and a state; `fast` scales the step sizes."""
    g = torch.Generator().manual_seed(count)
    x, b, c = (torch.randn(rows, count, k, generator=g) for k in (width, size, size))
    dt = fast * torch.rand(rows, count, width, generator=g)
    a = -torch.arange(1.0, size + 1)[:, None] * (0.5 + torch.rand(size, width, generator=g))
    return [x, dt, a, b, c, torch.randn(rows, size, width, generator=g)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 300])
# hardly a decay, an ordinary one, and one that underflows at every token
@pytest.mark.parametrize("fast", [1e-3, 0.1, 30.0])
def test_forward_and_backward_are_those_of_the_definition(form, count, fast, monkeypatch):
    monkeypatch.setattr(scan, "CACHED", 2 * 12 * 5 * 7)  # several pieces, the last of them shorter
    given = inputs(count, fast=fast)
    mine = [t.clone().requires_grad_() for t in given]
    truth = [t.double().requires_grad_() for t in given]
    ours, theirs = FORMS[form](*mine), oracle(*truth)
    g = torch.Generator().manual_seed(0)
    for out in (ours, theirs):
        g.manual_seed(0)
        sum((o * torch.randn(o.shape, generator=g)).sum() for o in out).backward()
    for a, b in zip(ours, theirs):
        close(a, b)
    for a, b in zip(mine, truth):
        scale = b.grad.abs().max().clamp(min=1)
        close(a.grad / scale, b.grad / scale)


@pytest.mark.parametrize("form", FORMS)
def test_parallel_equals_step(form):
    x, dt, a, b, c, state = inputs(70)
    y, last = FORMS[form](x, dt, a, b, c, state)
    for n in range(70):
        now, state = step(x[:, n], dt[:, n], a, b[:, n], c[:, n], state)
        close(y[:, n], now)
    close(last, state)


def test_a_long_sequence_keeps_its_precision():
    given = inputs(5000, rows=1, width=3, size=2, fast=0.01)
    truth = oracle(*(t.double() for t in given))
    for form in FORMS.values():
        for a, b in zip(form(*given), truth):
            close(a / truth[0].std(), b / truth[0].std())


@pytest.mark.parametrize("form", FORMS)
def test_pieces_and_padding_change_nothing(form):
    x, dt, a, b, c, state = inputs(50)
    whole, last = FORMS[form](x, dt, a, b, c, state)
    first, middle = FORMS[form](x[:, :23], dt[:, :23], a, b[:, :23], c[:, :23], state)
    second, end = FORMS[form](x[:, 23:], dt[:, 23:], a, b[:, 23:], c[:, 23:], middle)
    close(torch.cat([first, second], 1), whole)
    close(end, last)
    idle = dt.clone()
    idle[:, 10:30] = 0
    _, skipped = FORMS[form](x, idle, a, b, c, state)
    rest = [torch.cat([t[:, :10], t[:, 30:]], 1) for t in (x, dt, b, c)]
    _, without = FORMS[form](rest[0], rest[1], a, rest[2], rest[3], state)
    close(skipped, without)


def test_exports_with_a_dynamic_length():
    class Scan(torch.nn.Module):
        def forward(self, x, dt, a, b, c, state):
            return selective_scan(x, dt, a, b, c, state)

    given, length = inputs(40), torch.export.Dim("length", min=2, max=5000)
    along = {1: length}
    program = torch.export.export(
        Scan(), tuple(given), dynamic_shapes=(along, along, None, along, along, None)
    ).module()
    for count in (3, 40, 600):
        other = inputs(count)
        for a, b in zip(program(*other), oracle(*other)):
            close(a, b)


def test_half_precision_goes_in_and_out_and_the_state_stays_whole():
    x, dt, a, b, c, _ = inputs(20)
    y, state = selective_scan(x.bfloat16(), dt.bfloat16(), a, b.bfloat16(), c.bfloat16())
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    close(
        y,
        selective_scan(x.bfloat16().float(), dt.bfloat16().float(), a, b.bfloat16().float(), c.bfloat16().float())[
            0
        ].bfloat16(),
    )


def test_what_does_not_fit_is_said():
    x, dt, a, b, c, _ = inputs(20)
    with pytest.raises(ValueError, match=r"expected \(B, N, D\)"):
        selective_scan(x, dt[:, :3], a, b, c)
