"""RoBERTa and XLM-R against transformers: the encoder and the masked-word head, on padded texts."""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "roberta", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 4e8  # parameters of a model that is compared whole


def config(reference: str, depth: int | None = None):
    """What the published config.json of `reference` says, with `depth` layers if given."""
    from transformers import RobertaConfig, XLMRobertaConfig

    large, xlm = reference.endswith("large"), "xlm" in reference
    width, whole, heads = (1024, 24, 16) if large else (768, 6 if "distil" in reference else 12, 12)
    return (XLMRobertaConfig if xlm else RobertaConfig)(
        vocab_size=250002 if xlm else 50265,
        hidden_size=width,
        num_hidden_layers=depth or whole,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )


def texts(vocab: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (3, 40) of three lengths, padded by `pad`, which stands nowhere else, and keep (3, 40)."""
    ids = torch.randint(pad + 1, vocab, (3, 40), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(40) < torch.tensor([40, 25, 7])[:, None]
    return torch.where(keep, ids, pad), keep


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    import transformers

    reference = CASES[name]
    made = config(reference)
    kind = "XLMRoberta" if "xlm" in reference else "Roberta"
    bare, whole = (getattr(transformers, f"{kind}{what}") for what in ("Model", "ForMaskedLM"))
    parameters = plait.model_info(name).parameters, count_whole(partial(bare, made, add_pooling_layer=False))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    depth = made.num_hidden_layers if parameters[0] < LIMIT else 2
    theirs = perturb(whole(config(reference, depth)))
    ours = build(name, depth=depth, mlm=True).to_empty(device="cpu").eval()
    plait.load_weights(ours, theirs.state_dict(), source="transformers_mlm")
    assert count(ours) == count(theirs) and epsilons(ours) == epsilons(theirs)
    ids, keep = texts(made.vocab_size, made.pad_token_id)
    t, inputs = ours.tokens(ids, keep), dict(input_ids=ids, attention_mask=keep.long())
    expected = theirs(**inputs, output_hidden_states=True)
    errors = [relative_error(t.x[keep], expected.hidden_states[-1][keep])]
    errors += [relative_error(ours.words(t)[keep], expected.logits[keep])]
    told = "" if depth == made.num_hidden_layers else f", {depth} of {made.num_hidden_layers} layers"
    return Row(name, f"transformers {reference}{told}", *parameters, max(errors), "layers" if told else "output")
