"""DistilBERT against transformers: the encoder and the masked-word head, on padded texts."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.roberta import texts
from tests.peers import declare_torchvision

SYSTEM = "distilbert"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
VOCABULARIES = {"multilingual-cased": 119547, "uncased": 30522, "cased": 28996}


def config(reference: str):
    """What the published config.json of `reference` says."""
    from transformers import DistilBertConfig

    vocab = next(size for part, size in VOCABULARIES.items() if part in reference)
    return DistilBertConfig(
        vocab_size=vocab, dim=768, n_layers=6, n_heads=12, hidden_dim=3072, max_position_embeddings=512, pad_token_id=0
    )


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import DistilBertForMaskedLM

    theirs = perturb(DistilBertForMaskedLM(config(CASES[name])))
    ours = build(name, mlm=True).to_empty(device="cpu").eval()
    plait.load_weights(ours, theirs.state_dict(), source="transformers_mlm")
    assert count(ours) == count(theirs) and epsilons(ours) == epsilons(theirs)
    ids, keep = texts(theirs.config.vocab_size, theirs.config.pad_token_id)
    t = ours.tokens(ids, keep)
    expected = theirs(input_ids=ids, attention_mask=keep.long(), output_hidden_states=True)
    errors = [relative_error(t.x[keep], expected.hidden_states[-1][keep])]
    errors += [relative_error(ours.words(t)[keep], expected.logits[keep])]
    bare = plait.model_info(name).parameters
    return Row(name, f"transformers {CASES[name]}", bare, count(theirs.distilbert), max(errors))
