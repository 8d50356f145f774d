"""VisualBERT against transformers, on ragged texts and ragged numbers of regions, with and without segments of the text
and words that regions are known to go with: all real tokens, and every head of the class whose file a size is.

The class for VQA has the pooler of its file and asks it nothing; it is taken off there, and in no count.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "visual_bert", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
HEADS = {"vqa": "QuestionAnswering", "nlvr2": "VisualReasoning", "vcr": "MultipleChoice"}
LABELS = {"vqa": 3129, "nlvr2": 2, "vcr": 1}
REGIONS = {"vqa": 2048, "nlvr2": 1024, "vcr": 512}
CHOICES, HIDDEN = 3, 2
LIMIT = 1e9  # parameters of a model that is compared whole


def raw(reference: str, **config) -> nn.Module:
    """The class whose checkpoint `reference` is, as its config.json has it."""
    declare_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()  # that a region goes with no word it says each time
    task, *stage = reference.removeprefix("uclanlp/visualbert-").split("-")
    made = {"visual_embedding_dim": REGIONS[task], "num_labels": LABELS[task]}
    kind = "PreTraining" if stage else HEADS[task]
    theirs = getattr(transformers, f"VisualBertFor{kind}")(transformers.VisualBertConfig(**{**made, **config}))
    if kind == "QuestionAnswering":
        theirs.visual_bert.pooler = None
    return theirs


@torch.no_grad()
def peer(reference: str, **config) -> nn.Module:
    """The same with random weights, those of regions unlike those of words, whose copies they start as."""
    theirs = raw(reference, **config)
    embeddings, g = theirs.visual_bert.embeddings, torch.Generator().manual_seed(2)
    for table in (embeddings.visual_token_type_embeddings, embeddings.visual_position_embeddings):
        table.weight.copy_(0.1 * torch.randn(table.weight.shape, generator=g))
    return perturb(theirs)


def inputs(features: int, vocab: int, words: int, regions: int, rows: int, mask: int) -> dict[str, Tensor]:
    """Ragged, of several segments, the word at `HIDDEN` hidden; a region goes with no word, with one, or with two."""
    g = torch.Generator().manual_seed(1)
    lengths, counts = torch.arange(rows) % 3, torch.arange(rows) % 2
    near = torch.randint(-1, words // 2, (rows, regions, 2), generator=g)
    ids = torch.randint(5, vocab, (rows, words), generator=g)
    ids[:, HIDDEN] = mask
    return {
        "ids": ids,
        "keep": torch.arange(words) < (words - 2 * lengths)[:, None],
        "kinds": (torch.arange(words) > words // 2).long().expand(rows, -1),
        "x": torch.randn(rows, regions, features, generator=g),
        "seen": torch.arange(regions) < (regions - 3 * counts)[:, None],
        "which": (torch.arange(regions) >= regions // 2).long().expand(rows, -1),
        "near": near,
    }


def read(ours: nn.Module, given: dict[str, Tensor], pair: bool, told: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """What ours makes of it: all tokens, and what its heads say. told: with segments and known words."""
    cut = given["x"].shape[1] // 2
    parts = {"series": slice(None)} if not pair else {"series_0": slice(cut), "series_1": slice(cut, None)}
    batch = {slot: given["x"][:, part] for slot, part in parts.items()} | {"text": given["ids"]}
    batch["keep"] = {slot: given["seen"][:, part] for slot, part in parts.items()} | {"text": given["keep"]}
    t, ids = ours.read(batch, *((given["kinds"], given["near"]) if told else ()))
    said = ours.heads(t, ids)
    if ours.word_head is not None:
        said |= {"hidden": said["words"], "words": ours.words(t.x)}
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
        words = out.prediction_logits
        found |= {"words": words, "hidden": words[:, HIDDEN], "match": out.seq_relationship_logits}
    else:
        found["answer"] = out.logits if out.logits.shape[0] == len(given["ids"]) else out.logits.reshape(-1, 1)
    return inner.last_hidden_state, found


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, words: int, regions: int, pair: bool, mask: int = 103) -> float:
    config, worst = theirs.config, 0.0
    given = inputs(config.visual_embedding_dim, config.vocab_size, words, regions, 2 * CHOICES, mask)
    real = torch.cat([given["keep"], given["seen"]], 1)
    for told in (False, True):
        (x, said), (hidden, wanted) = read(ours, given, pair, told), expected(theirs, given, pair, told)
        assert said.keys() >= wanted.keys()
        pairs = [(x[real], hidden[real])]
        pairs += [(said[k][real], v[real]) if k == "words" else (said[k], v) for k, v in wanted.items()]
        worst = max(worst, *(relative_error(a, b) for a, b in pairs))
    return worst


@torch.no_grad()
def parity(name: str) -> Row:
    reference = CASES[name]
    counts = plait.model_info(name).parameters, count_whole(partial(raw, reference, special_visual_initialize=False))
    if counts[0] != counts[1]:
        return Row(name, f"transformers {reference}", *counts, float("inf"))
    depth, said, ran = (2, ", 2 of 12 layers", "layers") if counts[1] > LIMIT else (12, "", "output")
    theirs, ours = peer(reference, num_hidden_layers=depth), plait.create_model(name, depth=depth).eval()
    plait.load_weights(ours, theirs.state_dict(), source=plait.model_info(name).weights["source"])
    assert epsilons(ours) == epsilons(theirs) and count(ours) == count(theirs)
    error = difference(ours, theirs, 14, 10, pair=reference.endswith(("nlvr2", "nlvr2-pre")))
    return Row(name, f"transformers {reference}{said}", *counts, error, ran)
