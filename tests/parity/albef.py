"""ALBEF against the numbers that the official code gave (github.com/salesforce/ALBEF with transformers 4.8.1 and timm
0.4.9).

The official model cannot be installed beside ours, so it was run once, in the toy's size, with weights and inputs that
`weights` and `inputs` below make again from the names of its keys. albef.json holds those names and shapes, and what
came out: features, logits, losses of pre-training (alpha 0 and 0.4) and of retrieval fine-tuning, and the queues after
the step. Hard negatives were the most alike ones and the hidden words were chosen by hand, both written there. Of what
writes answers there are the logits of four of them, their loss, and which of seven were ranked first. The
names and shapes of the published sizes are there too, and what each gave in its own width, one layer of each kind deep.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from plait.core.catalog import build, model_info, systems
from plait.core.weights import State
from plait.parts.objectives import align_fuse
from plait.parts.objectives.momentum import Momentum, ema_update
from plait.systems.pairs import albef
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.recorded import learned

SYSTEM = "albef"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
EVERY = dict(image=11, text=11, fused=17, match=1, words=997, answer=997)  # of which numbers were kept
HIDDEN = torch.tensor([4, 2])  # which words of `asked` are
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def keys(size: str) -> dict[str, tuple[int, ...]]:
    """The official state dict's names and shapes; "*" in the file stands for the numbers of the layers."""
    shapes = {}
    for name, (shape, *layers) in NUMBERS[size]["keys"].items():
        for i in range(layers[0], layers[1] + 1) if layers else [0]:
            shapes[name.replace("*", str(i))] = tuple(shape)
    return shapes


def weights(size: str) -> State:
    """The official state dict as it was in the recorded run: noise seeded by each key's name, scaled by what the key
    is."""
    return {name: _noise(name, shape) for name, shape in keys(size).items()}


def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("position_ids") or name in ("queue_ptr", "idx_queue"):
        return torch.zeros(shape, dtype=torch.int64)
    if name == "temp":
        return torch.tensor(0.11)
    # what is tied is the same
    name = name.replace("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    name = name.replace("predictions.decoder.bias", "predictions.bias")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name in ("image_queue", "text_queue"):
        return F.normalize(x, dim=0)
    if "norm" in name.lower() and name.endswith("weight"):
        return 1 + 0.2 * x
    if x.dim() == 1:
        return 0.2 * x
    if ("embed" in name and x.dim() < 4) or "token" in name:
        return 0.5 * x
    return x / x[0].numel() ** 0.5


def inputs() -> dict:
    """Four pictures and texts of 12, 9, 7 and 12 tokens, [CLS] = 2 first and [SEP] = 3 last."""
    g = torch.Generator().manual_seed(11)
    image = torch.randn(4, 3, 32, 32, generator=g)
    ids = torch.randint(5, 64, (4, 12), generator=g)
    length = torch.tensor([12, 9, 7, 12])
    keep = torch.arange(12) < length[:, None]
    ids[:, 0] = 2
    ids[torch.arange(4), length - 1] = 3
    return {"image": image, "text": ids.masked_fill(~keep, 0), "keep": {"text": keep}}


def recorded(entry: dict) -> Tensor:
    return torch.tensor(entry["values"]).reshape(entry["shape"])


def official(size: str = "toy", source: str = "official") -> tuple[nn.Module, Momentum]:
    """Our toy with the recorded weights, and the training state with the recorded teacher and queues, eight of twelve
    places written."""
    state = weights(size)
    arguments = {} if source == "official" else {"guess": False}
    model = plait.load_weights(plait.create_model("albef_toy", answer_depth=0, **arguments).eval(), state, source)
    training = albef.make_state(model, 0)
    teacher = {
        k: state[k.replace(".", "_m.", 1)] if k.replace(".", "_m.", 1) in state else v
        for k, v in state.items()
        if "_m." not in k
    }
    plait.load_weights(training.teacher, teacher, source)
    ema_update(training.teacher, model, 0.995)  # the official forward begins with this; ours ends the step with it
    for slot, queue in training.queues.items():
        queue.features.copy_(state[f"{slot}_queue"].T)
        queue.head.fill_(8)
        queue.count.fill_(queue.size)
    return model, training


@torch.no_grad()
def comparisons() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs) for every recorded output of the model and of its objective."""
    yield from _outputs()
    for alpha in (0.0, 0.4):
        yield from _losses(*official(), f"pretrain_{alpha:g}", inputs())
    yield from _answers()
    model, training = official("toy_retrieval", "official_retrieval")
    for queue in training.queues.values():
        queue.ids.copy_(torch.tensor(NUMBERS["idx_queue"]))
    yield from _losses(model, training, "retrieval_0.4", inputs() | {"same": torch.tensor(NUMBERS["idx"])})


def _outputs() -> Iterator[tuple[str, Tensor, Tensor]]:
    (model, training), batch, theirs = official(), inputs(), {k: recorded(v) for k, v in NUMBERS["outputs"].items()}
    image, text = model.encode(batch)
    fused = model.cross(text, image)
    vectors, then = model.embed(batch), training.teacher.embed(batch)
    for mine, other, name in (("image", "text", "sim_i2t"), ("text", "image", "sim_t2i")):
        keys = torch.cat([then[other], training.queues[other].features])
        yield name, vectors[mine] @ keys.T * model.logit_scale.exp(), theirs[name]
    yield "image", vectors["image"], theirs["image"]
    yield "text", vectors["text"], theirs["text"]
    yield "image tokens", image.x[:, ::5], theirs["image_tokens"]
    yield "text token", text.x[:, 0], theirs["text_cls"]
    yield "fused", model.fuse(batch)["fused"], theirs["fused"]
    yield "another fused token", fused.x[:, 3], theirs["fused_token_3"]
    yield "match", model(batch)["match"], theirs["match"]
    yield "words", model.words(fused.x[:, 3]), theirs["words"]


def writer() -> nn.Module:
    """Our toy without heads of alignment, with the recorded weights of the one that writes answers."""
    model = plait.create_model("albef_toy", guess=False, embed_width=0, queue=0).eval()
    assert count(model) == NUMBERS["toy_vqa"]["parameters"]
    return plait.load_weights(model, weights("toy_vqa"), "official_retrieval")


def _answers() -> Iterator[tuple[str, Tensor, Tensor]]:
    """The official ranking counts the first word's probability twice; ours is that of the whole answer."""
    model, batch, theirs = writer(), inputs(), NUMBERS["writes"]
    answers, keep = torch.tensor(theirs["answers"]), torch.tensor(theirs["keep"]) > 0
    yield "asked", model.fuse(batch)["fused"], recorded(theirs["fused"])
    cache = model.prefill(batch)
    yield "answers", model.step(answers[:4], cache, keep[:4])[0][keep[:4]], recorded(theirs["logits"])[keep[:4]]
    first = model.step(answers[:4, :1], cache)[0][:, 0].log_softmax(-1)
    ranked = model.rank(batch, answers, keep, most=5)
    twice = (ranked.score + first.gather(1, answers[:, 1][ranked.answers])).softmax(1)
    probabilities, order = twice.sort(dim=1, descending=True)
    yield "ranked", ranked.answers.gather(1, order).float(), torch.tensor(theirs["ranked"]).float()
    yield "how likely", probabilities, torch.tensor(theirs["probabilities"])
    rows = torch.arange(4).repeat_interleave(torch.tensor(theirs["counts"]))
    asked = {slot: x[rows] for slot, x in batch.items() if slot != "keep"} | {
        "keep": {"text": batch["keep"]["text"][rows]}
    }
    logits = model.step(answers, model.prefill(asked), keep)[0][:, :-1]
    said = answers[:, 1:].masked_fill(~keep[:, 1:], -100)
    loss = F.cross_entropy(logits.flatten(0, 1), said.flatten(), reduction="sum") / 4
    yield "loss", torch.stack([loss, loss - loss]), torch.tensor([theirs["loss"], 0.0])


def _losses(model: nn.Module, training: Momentum, name: str, batch: dict) -> Iterator[tuple[str, Tensor, Tensor]]:
    theirs = NUMBERS["runs"][name]
    alpha, keep = theirs["alpha"], batch["keep"]["text"]
    training.step.fill_(round(alpha / 0.4 * training.ramp))
    image, text = model.encode(batch)
    before = training.teacher.encode(batch)[0]
    negatives = torch.tensor(theirs["negative_images"]), torch.tensor(theirs["negative_texts"])
    losses = {
        "align": albef.objective(model, batch, training, torch.Generator().manual_seed(0))["align"],
        "match": align_fuse.match_loss(model, image, text, *negatives, torch.ones(12, dtype=torch.bool)),
    }
    if "words" in theirs:
        hidden, labels = torch.tensor(NUMBERS["masked_ids"]), torch.tensor(NUMBERS["labels"])
        losses["words"] = align_fuse.words_loss(model, training.teacher, hidden, keep, labels, image, before, alpha)
        logits = model.words(model.cross(model.read(hidden, keep), image).x[labels >= 0])
        yield f"{name} words logits", logits, recorded(theirs["words_logits"])
    yield f"{name} losses", torch.stack(list(losses.values())), torch.tensor([theirs[k] for k in losses])
    albef.after_step(model, training)
    for slot, queue in training.queues.items():
        yield f"{name} {slot} queue", queue.features, recorded(theirs[f"{slot}_queue"])


def asked(side: int) -> dict:
    """Two pictures, and texts of twelve and nine words, one of which is hidden."""
    g = torch.Generator().manual_seed(side)
    image, ids = torch.randn(2, 3, side, side, generator=g), torch.randint(1000, 30000, (2, 12), generator=g)
    length = torch.tensor([12, 9])
    keep = torch.arange(12) < length[:, None]
    ids[:, 0], ids[torch.arange(2), length - 1], ids[torch.arange(2), HIDDEN] = 101, 102, 103
    return {"image": image, "text": ids.masked_fill(~keep, 0), "keep": {"text": keep}}


@torch.no_grad()
def published(name: str, facts: dict, keys: dict[str, tuple[int, ...]]) -> Row:
    """The worst of vectors, fusion, match and hidden words with one layer of each kind; infinite where the whole has
    other keys than the official model, its teacher and its queues left out."""
    whole, source = build(name), model_info(name).weights["source"]
    told = "4 of 30" if whole.writer is not None else "3 of 24"
    row = Row(name, f"official, recorded, {told} layers", count(whole), facts["parameters"], float("inf"), "layers")
    lost = ("_m.", "_queue", "queue_ptr", "position_ids")
    kept = {k: shape for k, shape in keys.items() if shape and not any(part in k for part in lost)}
    remembered = keys.get("image_queue", (0, 0))
    if learned(plait.save_weights(whole, source)) != kept or remembered != (whole.embed_width, whole.queue):
        return row
    writes = {"answer_depth": 1} if whole.writer is not None else {}
    ours = plait.create_model(name, image_depth=1, text_depth=1, fusion_depth=1, **writes).eval()
    state = {k: _noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, source).items()}
    plait.load_weights(ours, state, source)
    found, theirs = ours(asked(ours.blanks["image"][0][1])), facts["outputs"]
    assert scales(ours) == facts["norms"] and found.keys() - {"logit_scale"} == theirs.keys()
    errors = (relative_error(found[k].flatten()[:: EVERY[k]], torch.tensor(theirs[k])) for k in theirs)
    return row._replace(error=max(errors))


def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        layout = size if size in NUMBERS else "base_384" if "384" in size else "base"
        return published(name, NUMBERS["published"][size], keys(layout))
    error = max(relative_error(ours, theirs) for _, ours, theirs in comparisons())
    ours = count(plait.create_model(name, answer_depth=0))
    return Row(name, "official, recorded", ours, NUMBERS["toy"]["parameters"], error)
