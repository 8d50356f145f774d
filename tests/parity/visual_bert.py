"""VisualBERT against transformers, on ragged texts and ragged numbers of regions, with and without segments of the text
and words that regions are known to go with: all real tokens, and every head of the class whose file a size is.

The class for VQA has the pooler of its file and asks it nothing; it is taken off there, and in no count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "visual_bert"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
HEADS = {"vqa": "QuestionAnswering", "nlvr2": "VisualReasoning", "vcr": "MultipleChoice"}
LABELS = {"vqa": 3129, "nlvr2": 2, "vcr": 1}
REGIONS = {"vqa": 2048, "nlvr2": 1024, "vcr": 512}
CHOICES = 3


def peer(reference: str, **config) -> nn.Module:
    """The class whose checkpoint `reference` is, as its config.json has it, with random weights."""
    declare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()  # that a region goes with no word it says each time
    task, *stage = reference.removeprefix("uclanlp/visualbert-").split("-")
    made = {"visual_embedding_dim": REGIONS[task], "num_labels": LABELS[task], "special_visual_initialize": False}
    kind = "PreTraining" if stage else HEADS[task]
    config = transformers.VisualBertConfig(**{**made, **config})
    theirs = perturb(getattr(transformers, f"VisualBertFor{kind}")(config))
    if kind == "QuestionAnswering":
        theirs.visual_bert.pooler = None
    return theirs


def inputs(features: int, vocab: int, words: int, regions: int, rows: int) -> dict[str, Tensor]:
    """Ragged, of several segments; a region goes with no word, with one, or with two."""
    g = torch.Generator().manual_seed(1)
    lengths, counts = torch.arange(rows) % 3, torch.arange(rows) % 2
    near = torch.randint(-1, words // 2, (rows, regions, 2), generator=g)
    return {
        "ids": torch.randint(5, vocab, (rows, words), generator=g),
        "keep": torch.arange(words) < (words - 2 * lengths)[:, None],
        "kinds": (torch.arange(words) > words // 2).long().expand(rows, -1),
        "x": torch.randn(rows, regions, features, generator=g),
        "seen": torch.arange(regions) < (regions - 3 * counts)[:, None],
        "which": (torch.arange(regions) >= regions // 2).long().expand(rows, -1),
        "near": near,
    }


def read(ours: nn.Module, given: dict[str, Tensor], told: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """What ours makes of it: all tokens, and what its heads say. told: with segments and known words."""
    cut = given["x"].shape[1] // 2
    parts = {"series": slice(None)} if len(ours.eyes) == 1 else {"series_0": slice(cut), "series_1": slice(cut, None)}
    batch = {slot: given["x"][:, part] for slot, part in parts.items()} | {"text": given["ids"]}
    batch["keep"] = {slot: given["seen"][:, part] for slot, part in parts.items()} | {"text": given["keep"]}
    t, ids = ours.read(batch, *((given["kinds"], given["near"]) if told else ()))
    said = ours.heads(t, ids)
    if ours.word_head is not None:
        said["words"] = ours.words(t.x)
    return t.x, said


def expected(theirs: nn.Module, given: dict[str, Tensor], pair: bool, told: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of transformers."""
    asked = {
        "input_ids": given["ids"],
        "attention_mask": given["keep"].long(),
        "visual_embeds": given["x"],
        "visual_attention_mask": given["seen"].long(),
    }
    asked |= {"token_type_ids": given["kinds"]} if told else {}
    asked |= {"visual_token_type_ids": given["which"]} if pair else {}
    near = {"image_text_alignment": given["near"]} if told else {}
    inner = theirs.visual_bert(**asked, **near)
    if theirs.__class__.__name__.endswith("MultipleChoice"):
        asked = {name: x.unflatten(0, (-1, CHOICES)) for name, x in asked.items()}
    out = theirs(**asked, **near)
    found = {} if inner.pooler_output is None else {"fused": inner.pooler_output}
    if hasattr(out, "prediction_logits"):
        found |= {"words": out.prediction_logits, "match": out.seq_relationship_logits}
    else:
        found["answer"] = out.logits if out.logits.shape[0] == len(given["ids"]) else out.logits.reshape(-1, 1)
    return inner.last_hidden_state, found


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, words: int, regions: int) -> float:
    config, worst = theirs.config, 0.0
    given = inputs(config.visual_embedding_dim, config.vocab_size, words, regions, 2 * CHOICES)
    real = torch.cat([given["keep"], given["seen"]], 1)
    for told in (False, True):
        (x, said), (hidden, wanted) = read(ours, given, told), expected(theirs, given, len(ours.eyes) > 1, told)
        assert said.keys() >= wanted.keys()
        pairs = [(x[real], hidden[real])]
        pairs += [(said[k][real], v[real]) if k == "words" else (said[k], v) for k, v in wanted.items()]
        worst = max(worst, *(relative_error(a, b) for a, b in pairs))
    return worst


def parity(name: str) -> Row:
    theirs = peer(CASES[name])
    ours = plait.load_weights(
        plait.create_model(name).eval(), theirs.state_dict(), source=plait.model_info(name).weights["source"]
    )
    assert epsilons(ours) == epsilons(theirs)
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs), difference(ours, theirs, 14, 10))
