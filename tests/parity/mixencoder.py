"""MixEncoder against the numbers that the official code gave (github.com/ysngki/MixEncoder, its CLSMatchParallelEncoder
around transformers' BERT, with as many layers that meet as a size has): scores of four texts for each of two questions.

mixencoder.json holds, for each size whole, its number of parameters, the digest of its names and shapes without the
pooler, and the scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import build
from plait.systems.text.mixencoder import COPY
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.official import digest
from tests.parity.recorded import noise

SYSTEM = "mixencoder"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "official" for size in NUMBERS}


@torch.no_grad()
def parity(name: str) -> Row:
    facts = NUMBERS[name.removeprefix(f"{SYSTEM}_")]
    model, told = build(name), "official, recorded"
    public = plait.save_weights(model, "official")
    if digest(public) != facts["digest"] or scales(model) != facts["norms"]:
        return Row(name, told, count(model), facts["parameters"], float("inf"), "keys")
    state = {k: noise(f"bert_model.embeddings.word_{k}" if k == COPY else k, tuple(v.shape)) for k, v in public.items()}
    ours = plait.load_weights(plait.create_model(name).eval(), state, "official")
    g, padded = torch.Generator().manual_seed(3), torch.nn.utils.rnn.pad_sequence
    asks, texts = (
        padded([torch.randint(5, 30522, (n,), generator=g) for n in row], True) for row in ((20, 11), (14, 7, 25, 9))
    )
    got = ours.scores(asks, asks > 0, ours.store(texts, texts > 0).expand(2, -1, -1, -1))
    error = relative_error(got, torch.tensor(facts["scores"]))
    return Row(name, told, count(model), facts["parameters"], error, "output")
