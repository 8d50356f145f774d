"""FNet: the fast transform is the matrices of the transform, and padding does not speak."""

from __future__ import annotations

import cmath

import pytest
import torch

import plait
from plait.systems.text.fnet import real_transform


@pytest.mark.parametrize("count", [1, 2, 7, 12])
@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_the_fast_transform_equals_explicit_matrices(count, width):
    x = torch.randn(2, count, width, dtype=torch.float64)

    def matrix(n: int) -> torch.Tensor:
        return torch.tensor(
            [[cmath.exp(-2j * cmath.pi * j * k / n) for k in range(n)] for j in range(n)], dtype=torch.complex128
        )

    explicit = (matrix(count) @ x.to(torch.complex128) @ matrix(width)).real
    torch.testing.assert_close(real_transform(x), explicit)


@torch.no_grad()
def test_a_padded_text_reads_as_if_it_stood_alone():
    model, ids = plait.create_model("fnet_toy").eval(), torch.randint(5, 64, (2, 16))
    keep = torch.arange(16) < torch.tensor([16, 9])[:, None]
    together = model.tokens(ids, keep).x
    torch.testing.assert_close(together[:1], model.tokens(ids[:1]).x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1:, :9], model.tokens(ids[1:, :9]).x, rtol=1e-5, atol=1e-5)


def test_base_is_as_large_as_published():
    assert round(plait.model_info("fnet_base").parameters / 1e6, 2) == 82.86
