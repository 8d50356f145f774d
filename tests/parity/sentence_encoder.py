"""Sentence encoders against transformers' models under sentence-transformers' own pooling, layer and norm, on padded
texts in a batch and alone.

What each published repository says (config.json, 1_Pooling, 2_Dense, modules.json) stands in a table of its own here.
"""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import systems
from tests.parity import distilbert, mpnet, roberta
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "sentence_encoder", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 1.5e8  # parameters of a model that is compared whole
FEW = 1000  # words of one that is not
BERTS = {  # width, layers, heads, words
    "all-MiniLM-L6": (384, 6, 12, 30522), "all-MiniLM-L12": (384, 12, 12, 30522),
    "multilingual-MiniLM-L12": (384, 12, 12, 250037), "multilingual-e5-small": (384, 12, 12, 250037),
    "small": (384, 12, 12, 30522), "base": (768, 12, 12, 30522), "large": (1024, 24, 16, 30522),
    "LaBSE": (768, 12, 12, 501153),
}  # fmt: skip
LIKE = {  # other towers, by what their own checks call them
    "paraphrase-multilingual-mpnet-base": "xlm-roberta-base", "multilingual-e5-base": "xlm-roberta-base",
    "multilingual-e5-large": "xlm-roberta-large", "bge-m3": "xlm-roberta-large",
    "all-distilroberta": "distilroberta-base", "all-roberta-large": "roberta-large",
}  # fmt: skip
POOLED = {"bge": "cls", "LaBSE": "cls", "mistral": "lasttoken"}  # the others by their mean
DENSE = {"LaBSE": 768, "distiluse": 512}


def tower(reference: str):
    """The class of transformers and the config of the encoder; one without a pooler, which nothing is read of."""
    import transformers

    bare = dict(add_pooling_layer=False)
    if "e5-mistral" in reference:
        return transformers.MistralModel, transformers.MistralConfig(rms_norm_eps=1e-5), {}
    if "distiluse" in reference:
        return transformers.DistilBertModel, distilbert.config("multilingual-cased"), {}
    if "all-mpnet" in reference:
        return transformers.MPNetModel, mpnet.config(), bare
    if like := next((name for part, name in LIKE.items() if part in reference), None):
        made = roberta.config(like)
        if "m3" in reference:
            made.max_position_embeddings = 8194
        return (transformers.XLMRobertaModel if "xlm" in like else transformers.RobertaModel), made, bare
    width, depth, heads, vocab = next(shape for part, shape in BERTS.items() if part in reference)
    made = transformers.BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width,
    )  # fmt: skip
    return transformers.BertModel, made, bare


def behind(reference: str, width: int) -> list[torch.nn.Module]:
    """sentence-transformers' modules behind the encoder."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    pooled = next((how for part, how in POOLED.items() if part in reference), "mean")
    dense = next((n for part, n in DENSE.items() if part in reference), None)
    return [Pooling(width, pooling_mode=pooled), *([Dense(width, dense)] if dense else []), Normalize()]


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    info, reference = plait.model_info(name), CASES[name]
    kind, made, how = tower(reference)
    last = behind(reference, made.hidden_size)
    counted = count_whole(partial(kind, made, **how)) + sum(map(count, last))
    if info.parameters != counted:
        return Row(name, f"transformers {reference}", info.parameters, counted, float("inf"))
    layers, cut = made.num_hidden_layers, {}
    if info.parameters > LIMIT:
        cut = dict(vocab=FEW, depth=1 if made.hidden_size > 1024 else 2)
        made.vocab_size, made.num_hidden_layers = cut["vocab"], cut["depth"]
    theirs, last = perturb(kind(made, **how)), [perturb(module) for module in last]
    ours = plait.create_model(name, **cut).eval()
    dense = {f"2_Dense.{key}": t for module in last[1:-1] for key, t in module.state_dict().items()}
    plait.load_weights(ours, theirs.state_dict() | dense, source=info.weights["source"])
    assert count(ours) == count(theirs) + sum(map(count, last)) and epsilons(ours) == epsilons(theirs)
    ids, keep = roberta.texts(made.vocab_size, made.pad_token_id or 0)
    x = {"token_embeddings": theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state}
    x["attention_mask"] = keep.long()
    for module in last:
        x = module(x)
    want, got = x["sentence_embedding"], ours.embed({"text": ids, "keep": {"text": keep}})["text"]
    alone = torch.cat([ours(row[None, :n]) for row, n in zip(ids, keep.sum(1))])
    told = f", {made.num_hidden_layers} of {layers} layers, {FEW} words" if cut else ""
    error = max(relative_error(got, want), relative_error(alone, want))
    return Row(name, f"transformers {reference}{told}", info.parameters, counted, error, "layers" if cut else "output")
