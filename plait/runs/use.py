"""A published model as a run: the usual folder, of weights that nothing here was trained on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from plait import __version__
from plait.core.catalog import ModelInfo, list_models, model_info, sizes_called
from plait.core.fetch import weights_file
from plait.core.files import refuse_unwritable
from plait.data.kinds import KINDS
from plait.data.kinds.base import FitOptions, Place
from plait.data.schema import Column, Schema
from plait.errors import PlaitError, UsageError
from plait.runs.assemble import BoundRecipe, argument, cropped, reads, recipe
from plait.runs.console import Console
from plait.runs.declared import FORMAT
from plait.runs.folder import CONFIG, write_json
from plait.runs.run import Run
from plait.runs.saved import load, save_run
from plait.runs.settings import Settings
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from plait.tasks.answer import AnswerQuestion
from plait.tasks.base import Task
from plait.tasks.caption import Caption
from plait.tasks.published import ClassifyPublished, Embed, label_column
from plait.tasks.retrieve import Retrieve
from plait.tasks.transcribe import TranscribeInWords

CAPTION = 50  # the most words of one, with its ends
NOTHING = pa.chunked_array([], pa.string())  # what a kind learns from


def use(
    name: str,
    *,
    weights: str | Path | None = None,
    folder: str | Path | None = None,
    kinds: dict[str, str] | None = None,
    classes: str | Path | Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    offline: bool = False,
    console: Console | None = None,
) -> Run:
    """The published model `name` as a run in `folder`, by default runs/NAME, which embeds and searches, names classes
    by texts, tells the classes that it was trained for, captions, answers or transcribes, as far as it can.

    name: a size, or what its publisher or a peer calls it ("openai/clip-vit-base-patch32").
    weights: a file, or a folder, with them in the published layout and its tokenizer.json beside it. By default they
        are fetched, each file once; offline: from the cache alone.
    kinds: {column: kind} of the columns that are read. By default a column may have any name, where a table has one of
        its kind.
    classes: the names of a classifier's classes in its own order, or a file with one a line; else those that a
        config.json beside the weights says, or numbers from 0.
    tokenizer: a tokenizer.json that lies elsewhere.
    console: where lines go; by default standard error.

    Raises UsageError where there is no such model, none of this is what it does, or its files cannot be had.
    """
    console, info = console or Console(), published(name)
    task, takes = work_of(info)
    out = Path(folder) if folder is not None else Path("runs") / info.name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists: give another --out")
    refuse_unwritable(out.parent)
    licence, count = info.weights.get("licence", "unknown"), info.parameters
    console.say("model", f"{info.name}: {info.system.title}")
    console.say("", f"{count / 1e6:.1f} M parameters, reads {' and '.join(takes)}, licence {licence}")
    place = given_weights(info, weights) if weights is not None else fetched(info, offline, console)
    words = None
    if "text" in takes or issubclass(task, Caption):
        beside = True if weights is None else str(place)
        words = Path(tokenizer) if tokenizer is not None else published_tokenizer(info, beside, offline=offline)
    schema = schema_of(info, task, takes, kinds or {}, words)
    if task is ClassifyPublished:
        names = class_names(info, classes, place)
        schema.columns.append(label_column(names))
        if names[0] == 0:
            console.say("classes", f"numbers from 0 to {len(names) - 1:,}; --classes FILE gives them names")
    elif classes is not None:
        raise UsageError(f"{info.name} has no classes of its own: name them to plait predict, with --classes")
    if "image" in takes and "crop_pct" not in info.weights:
        console.say("careful", "nobody says how its pictures were cropped: they are read whole, with gray around")
    made = recipe(info, schema, task, pretrained=True)
    if task is ClassifyPublished:  # the head is its own
        made = replace(made, arguments={k: v for k, v in made.arguments.items() if k != "num_classes"})
    done = task.from_json({}, schema) if issubclass(task, Caption) else task.learn(schema)
    if words is not None:
        read = [schema.shape(s.name) for s in schema.slots if s.kind == "text"]
        for shape in [done.needs["words"]] if "words" in done.needs else read:
            check_vocabulary(info, shape, words)
    model = done.model(made.bind(made.build(pretrained=place)))
    where = address(info) if weights is None else str(place.resolve() if isinstance(place, Path) else place)
    told = {"name": info.name, "weights": where, "licence": licence}
    part = out.absolute().with_name(f".plait-{os.getpid()}-{out.name}.new")
    try:
        write_json(part / CONFIG, config(made, done, told))
        save_run(part, schema, done, model, "fp32")
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load(out)


def published(name: str) -> ModelInfo:
    """The size of that name, or the only one that others call so."""
    try:
        return model_info(name)
    except PlaitError:
        if not (found := sizes_called(name)):
            raise
    if len(found) > 1:
        raise UsageError(f"{name!r} is the name of several: give one of {', '.join(found)}")
    return model_info(found[0])


def work_of(info: ModelInfo) -> tuple[type[Task], tuple[str, ...]]:
    """What a size does without training, and what it reads for that. Raises UsageError where it is none of this."""
    if "part" in info.weights:
        raise UsageError(f"what is published of {info.name} is a part of it, which does nothing without training")
    if "embedder" in info.roles:
        return (Retrieve if len(info.takes) == 2 else Embed), info.takes
    if "backbone" in info.roles:
        tells = argument(info, "num_classes") and info.weights.get("classes", True)
        return (ClassifyPublished if tells else Embed), info.takes
    if "generator" in info.roles and info.weights.get("task") == AnswerQuestion.choice:
        return AnswerQuestion, ("image", "text")
    if "generator" in info.roles and not info.parts:  # those that are made of others want to be talked to
        for kind, task in (("image", Caption), ("audio", TranscribeInWords)):
            if kind in info.takes:
                return task, (kind,)
    raise UsageError(
        f"plait use is for models that embed, tell classes, caption, answer or transcribe: {info.name} is a "
        f"{' and '.join(info.roles)} of {', '.join(info.takes)}. To train from its weights: plait fit TABLE --system "
        f"{info.name} --pretrained"
    )


def address(info: ModelInfo) -> str:
    """Where a size is published."""
    row = info.weights
    return f"https://huggingface.co/{row['hub']}/{row['file']}" if "hub" in row else row["url"]


def given_weights(info: ModelInfo, weights: str | Path) -> str | Path:
    """The file in a folder that is called as it was published; else what was given, which may be a URL."""
    if str(weights).startswith(("http://", "https://")):
        return str(weights)
    place = Path(weights).expanduser()
    named = place / info.weights.get("file", "")
    return named if place.is_dir() and named.is_file() else place


def fetched(info: ModelInfo, offline: bool, console: Console) -> Path:
    """The published weights, on this machine. Raises UsageError where they cannot be had."""
    if not {"hub", "url"} & info.weights.keys():
        able = [n for n in list_models(f"{info.system.name}_*") if {"hub", "url"} & model_info(n).weights.keys()]
        others = f" Published are {', '.join(able[:8])}{' and others' * (len(able) > 8)}." if able else ""
        raise UsageError(f"{info.name} is published nowhere that plait knows: give a file with --weights.{others}")
    console.say("weights", address(info))
    try:
        with console.progress("fetching") as progress:
            return weights_file(info.weights, offline=offline, progress=progress)
    except PlaitError as error:
        reason = str(error).split(": without a network")[0]
        raise UsageError(f"{reason}; bring that file here another way and give it with --weights FILE") from error


def schema_of(
    info: ModelInfo, task: type[Task], takes: Sequence[str], kinds: dict[str, str], words: Path | None
) -> Schema:
    """The columns that a size reads and, if it writes one, that, as its weights row says how."""
    names = {kind: column for column, kind in kinds.items()}
    if len(names) < len(kinds) or not names.keys() <= set(takes):
        said = ", ".join(f"{column}={kind}" for column, kind in kinds.items())
        raise UsageError(f"--kind {said}: {info.name} reads one column each of {' and '.join(takes)}")
    row, fixed = info.weights, reads(info)
    size, parts = fixed.get("image") or row.get("image"), map(model_info, info.parts.values())
    if "image" in takes and size is None:
        raise UsageError(f"{info.name} reads pictures of any size, and nobody says which: use it from Python")
    length = row.get("max_tokens") or fixed.get("length")
    length = length or next((n for p in parts if (n := argument(p, "length"))), None)
    asks = issubclass(task, AnswerQuestion)  # leaves room for what answers
    options = FitOptions(
        Place(),
        image_size=None if size is None else list(size),
        crop=cropped(row),
        max_tokens=length - CAPTION if asks and length else length,
        tokenizer_file=str(words) if words else None,
        rate=fixed.get("rate"),
        closed=row.get("closed", True),
    )
    columns = [
        Column(names.get(kind, kind), kind, "as published", "input", KINDS[kind].fit(NOTHING, options))
        for kind in takes
    ]
    if before := row.get("prefixes"):  # of a text that is found, and of one that asks
        (texts,) = (column for column in columns if column.kind == "text")
        found, asks = (before.get(name, before.get("text", "")) for name in ("passage", "query"))
        texts.params |= {"prefix": found, "query": asks}
    if issubclass(task, Caption):
        name = "answer" if asks else "caption" if takes[0] == "image" else "text"
        options.max_tokens = length if name == "text" else min(CAPTION, length or CAPTION)
        columns.append(Column(name, "text", "written", "target", KINDS["text"].fit_target(NOTHING, options)))
    schema = Schema(columns)
    return schema.rename_slots({slot.name: slot.kind for slot in schema.slots})


def class_names(info: ModelInfo, given: str | Path | Sequence[str] | None, place: str | Path) -> list:
    """The names of a classifier's classes: as given, as a config.json beside its weights has them, or numbers."""
    count = argument(info, "num_classes")
    if given is None:
        return labels_beside(Path(place), count) or list(range(count))
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise UsageError(f"--classes {given}: no such file; it has a line for each of the {count:,} classes")
        given = Path(given).read_text(encoding="utf-8").strip().splitlines()
    names = [str(name).strip() for name in given]
    if len(names) != count or len(set(names)) < count or "" in names:
        twice = sorted({n for n in names if names.count(n) > 1})
        odd = f", {twice[0]!r} more than once" if twice else ", one of them empty" if "" in names else ""
        raise UsageError(f"{info.name} tells {count:,} classes, got {len(names):,} names{odd}: give each its own")
    return names


def labels_beside(place: Path, count: int) -> list[str]:
    """The `count` different names that a config.json beside the weights gives classes, as transformers (id2label) or
    timm (label_names) writes it; none where it does not."""
    beside = (place if place.is_dir() else place.parent) / "config.json"
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        found = said.get("label_names") or [said["id2label"][str(i)] for i in range(count)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    names = [str(name) for name in found]
    told = not all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return names if told and len(names) == len(set(names)) == count else []


def config(made: BoundRecipe, task: Task, used: dict[str, Any]) -> dict:
    """What the run folder remembers: all that a trained run's does, as far as there is any."""
    return {
        "format": FORMAT,
        "plait": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "used": used,
        "settings": Settings(system=made.name, pretrained=used["weights"]).to_json(),
        "recipe": asdict(made),
        "task": task.to_json(),
        "plan": {"precision": "fp32"},
    }


def fetch(name: str, *, offline: bool = False, console: Console) -> list[Path]:
    """The files of a published size, on this machine: its weights and, where it knows words, its tokenizer. Raises
    UsageError where they cannot be had; offline: where they are not here."""
    info = published(name)
    licence = info.weights.get("licence", "unknown")
    console.say("model", f"{info.name}: {info.parameters / 1e6:.1f} M parameters, licence {licence}")
    files = [fetched(info, offline, console)]
    words = published_tokenizer(info, True, offline=offline) if "text" in info.takes else None
    return files + ([words] if words is not None else [])
