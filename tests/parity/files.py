"""What transformers writes into a file: the published layout, which the names inside its models have left."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def published(model) -> dict[str, Tensor]:
    """The state dict of a transformers model under the keys of its files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")
