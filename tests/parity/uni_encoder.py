"""Uni-Encoder against the numbers that the official code gave (github.com/dll-wu/Uni-Encoder on transformers' BERT):
scores of three answers to each of two talks, all of other lengths, under each of its three masks.

It reads packed rows, where ours pads each text: that makes no difference. uni_encoder.json holds, for each published
size whole, its number of parameters, the digest of its names and shapes without the heads of pre-training, and scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import build
from plait.systems.text.uni_encoder import arrow, diagonal, square
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.official import digest
from tests.parity.recorded import noise

SYSTEM = "uni_encoder"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "official" for size in NUMBERS}
MASKS = {"arrow": arrow, "diag": diagonal, "square": square}


def example(vocab: int) -> list[torch.Tensor]:
    """talk (2, 20), keep, answers (2, 3, 12), keeps."""
    g, padded = torch.Generator().manual_seed(3), torch.nn.utils.rnn.pad_sequence
    rows = [[torch.randint(5, vocab, (n,), generator=g) for n in row] for row in ([20, 9, 4, 7], [11, 3, 12, 5])]
    talk = padded([row[0] for row in rows], True)
    answers = padded([a for row in rows for a in row[1:]], True).unflatten(0, (2, 3))
    return [talk, talk > 0, answers, answers > 0]


@torch.no_grad()
def parity(name: str) -> Row:
    facts = NUMBERS[name.removeprefix(f"{SYSTEM}_")]
    model, told = build(name), "official, recorded"
    public = plait.save_weights(model, "official")
    if digest(public) != facts["digest"] or scales(model) != facts["norms"]:
        return Row(name, told, count(model), facts["parameters"], float("inf"), "keys")
    state = {k: noise(k, tuple(v.shape)) for k, v in public.items()}
    ours = plait.load_weights(plait.create_model(name).eval(), state, "official")
    given = example(state["bert.bert.embeddings.word_embeddings.weight"].shape[0])
    errors = []
    for mask, want in facts["runs"].items():
        got = ours.score(ours.read(*given, sees=MASKS[mask]))[..., 0]
        errors.append(relative_error(got, torch.tensor(want)))
    return Row(name, told, count(model), facts["parameters"], max(errors), "output")
