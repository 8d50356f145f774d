"""Tracing is most of what these tests do, and makes so many small objects that the garbage collector, which then goes
through the whole heap again and again, takes 40% of the time: it waits for the end of each test."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True)
def traces_without_garbage_collection():
    gc.disable()
    torch._dynamo.reset()
    yield
    gc.enable()
