"""Which of a list of answers does a question about a picture have?"""

from __future__ import annotations

from torch import nn


def answer_head(width: int, answers: int) -> nn.Sequential:
    """The head of ViLT (arXiv:2102.03334) and after it of others: fused features (B, D) -> logits (B, K)."""
    wide = 2 * width
    return nn.Sequential(nn.Linear(width, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, answers))
