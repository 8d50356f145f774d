"""TokenFormer against the numbers of the official code (github.com/Haiyang-W/TokenFormer, megatron/model).

Its model was built from its own configs; flash attention was torch's, on the CPU. Names, shapes and number of
parameters are those of the whole model, logits those of its width with two layers and 512 words.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import build
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import digest
from tests.parity.recorded import noise, values

SYSTEM, CUTS = "tokenformer", True
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "official" for size in NUMBERS}
WORDS, ASKED = 24, [0, 1, 19, 39]  # of whose logits numbers were kept, and after which words


@torch.no_grad()
def parity(name: str) -> Row:
    facts = NUMBERS[name.removeprefix(f"{SYSTEM}_")]
    whole = build(name)
    same = digest(plait.save_weights(whole, "official")) == facts["digest"] and whole.length == facts["length"]
    assert epsilons(whole) == dict(facts["norms"])  # in the layers it cancels out: scores are brought to a length
    ours = plait.create_model(name, depth=2, vocab=512).eval()
    state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
    plait.load_weights(ours, state, "official")
    ids = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    want = values(facts["logits"])
    errors = [relative_error(ours(ids)[:, ASKED, :WORDS], want)]
    cache = ours.prefill({"text": ids[:, :39]})
    got, _ = ours.step(ids[:, 39:], cache)
    errors.append(relative_error(got[:, 0, :WORDS], want[:, 3]))
    told = f"official, recorded, 2 of {len(whole.stack.blocks)} layers, 512 words"
    return Row(name, told, count(whole), facts["parameters"], max(errors) if same else float("inf"), "layers")
