"""A language model of 6.7 G parameters as its shards lie on a disk, all or a part of it: zeros, which take no room.

python -m tests.core.decoder FOLDER --part 1 --file BF16      # loads it as bfloat16, prints bytes as JSON
"""

from __future__ import annotations

import argparse
import json
import math
import resource
from pathlib import Path

import torch
from torch import nn

from plait.core.init import initialise_rest
from plait.core.weight_files import DTYPES, read_weights
from plait.core.weights import Join, Rename, assign, converted

WIDTH, HIDDEN, LAYERS, VOCAB, SHARDS = 4096, 11008, 32, 32000, 3
RULES = [
    Join([f"model.layers.{{i}}.self_attn.{x}_proj.weight" for x in "qkv"], "layers.{i}.qkv.weight"),
    Rename("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.out.weight"),
    Rename("model.layers.{i}.mlp.{x}_proj.weight", "layers.{i}.{x}.weight"),
    Rename("model.layers.{i}.{x}_layernorm.weight", "layers.{i}.{x}.weight"),
    Rename("model.embed_tokens.weight", "words.weight"),
    Rename("model.norm.weight", "norm.weight"),
    Rename("lm_head.weight", "head.weight"),
]


def layer() -> nn.Module:
    linear = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN)}
    made = {name: nn.Linear(*sizes, bias=False) for name, sizes in (linear | {"down": (HIDDEN, WIDTH)}).items()}
    return nn.ModuleDict(made | {name: nn.RMSNorm(WIDTH) for name in ("input", "post_attention")})


def decoder(part: float) -> nn.Module:
    """The share `part` of its layers and of its vocabulary, on meta."""
    vocab = int(part * VOCAB)
    with torch.device("meta"):
        layers = nn.ModuleList([layer() for _ in range(round(part * LAYERS))])
        parts = {"words": nn.Embedding(vocab, WIDTH), "norm": nn.RMSNorm(WIDTH)}
        return nn.ModuleDict({"layers": layers, **parts, "head": nn.Linear(WIDTH, vocab, bias=False)})


def write(folder: Path, part: float, kind: str) -> tuple[Path, int]:
    """The index of the model's shards, of which neighbouring tensors lie in different ones, and the bytes of all."""
    shapes = {}
    for key, tensor in converted_back(decoder(part)).items():
        shapes[key] = list(tensor.shape)
    told, size = {}, 0
    for shard in range(SHARDS):
        name, header, end = f"model-{shard}.safetensors", {}, 0
        for key in list(shapes)[shard::SHARDS]:
            begin, end = end, end + math.prod(shapes[key]) * DTYPES[kind].itemsize
            header[key], told[key] = {"dtype": kind, "shape": shapes[key], "data_offsets": [begin, end]}, name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        size += 8 + len(text) + end
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": told}))
    return index, size


def converted_back(model: nn.Module) -> dict:
    return {k: v for _, made in converted(model.state_dict(), RULES, reverse=True) for k, v in made.items()}


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=float, default=0.1)
    parser.add_argument("--file", default="BF16")
    parser.add_argument("--copy", action="store_true")
    parser.add_argument("--use", action="store_true", help="read every number too")
    given = parser.parse_args()
    index, size = write(given.folder, given.part, given.file)
    model, before = decoder(given.part), peak()
    weights = read_weights(index)
    groups = converted(weights, RULES)
    assign(model, groups, release=weights.release, dtype=torch.bfloat16, share=not given.copy)
    initialise_rest(model)
    after = peak()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not any(p.is_meta for p in model.parameters())
    if given.use:
        assert not any(p.any() for p in model.parameters())
    count = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": count, "file": size, "before": before, "peak": after, "used": peak()}))


if __name__ == "__main__":
    main()
