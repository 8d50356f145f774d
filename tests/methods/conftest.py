"""Tests of methods draw their inputs from torch's own generator: the same ones in every run."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
