"""Parts of a system that is made of others, each begun with the weights of a run or of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.core.catalog import ModelInfo, model_info
from plait.core.create import Source
from plait.core.weight_files import Weights, read_weights
from plait.errors import UsageError
from plait.runs.assemble import BoundRecipe, argument
from plait.runs.declared import read_config
from plait.runs.folder import CONFIG, MODEL, SCHEMA, read_json
from plait.runs.manifest import check
from plait.runs.vocabulary import published_tokenizer

SYSTEM = "bound.system."  # where a run's weights have those of its system


@dataclass
class Parts:
    """What the parts bring along. sources: {part: weights}, as `create_model` takes them. arguments: of the whole, such
    as a part that a run says otherwise. image (H, W), mean and std: how a tower was shown pictures. tokenizer: a file,
    or the text of one, of a part that knows words."""

    sources: dict[str, Source] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    image: list[int] | None = None
    scale: dict[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    words: str | None = None


def read_parts(info: ModelInfo, chosen: dict[str, str]) -> Parts:
    """What `chosen`, {part: run folder, file or URL}, brings to a system. Raises UsageError for a part that the system
    does not have, and for a run that is not finished or whose model is no such part."""
    found = Parts()
    for part, where in chosen.items():
        if part not in info.parts:
            made = f"it is made of {', '.join(info.parts)}" if info.parts else "it is not made of others"
            raise UsageError(f"--part {part}={where}: {info.name} has no such part, {made}")
        if (Path(where) / CONFIG).is_file():
            _of_run(info, part, Path(where), found)
        else:
            name = info.parts[part]
            found.sources[part] = where
            if argument(model_info(name), "vocab") is not None:
                found.tokenizer = published_tokenizer(model_info(name), where)
    return found


def _of_run(info: ModelInfo, part: str, folder: Path, found: Parts) -> None:
    told = f"--part {part}={folder}: "
    if not (folder / MODEL).is_file():
        raise UsageError(f"{told}it holds no finished model; to go on with it: plait fit --resume {folder}")
    made = BoundRecipe(**read_config(folder)["recipe"])
    if made.changes:
        raise UsageError(
            f"{told}its model is {made.title}: give a run without methods, or plait change --merge it first"
        )
    ours, theirs = model_info(info.parts[part]), model_info(made.name)
    if not set(ours.roles) & set(theirs.roles) or not set(theirs.takes) & set(ours.takes):
        raise UsageError(
            f"{told}its model is {made.name} ({', '.join(theirs.roles)} of {', '.join(theirs.takes)}), expected "
            f"something like {ours.name} ({', '.join(ours.roles)} of {', '.join(ours.takes)})"
        )
    check(folder / MODEL)
    weights = read_weights(folder / MODEL)
    found.sources[part] = Weights({k.removeprefix(SYSTEM): v for k, v in weights.items() if k.startswith(SYSTEM)})
    found.arguments[part] = made.name
    found.image = list(made.arguments["image"]) if "image" in made.arguments else found.image
    if "image" in theirs.takes:
        found.scale = {"mean": made.mean, "std": made.std}
    schema = read_json(folder / SCHEMA)
    texts = [c["params"]["tokenizer"] for c in schema["columns"] if "tokenizer" in (c["params"] or {})]
    if texts and "text" in theirs.takes:
        found.words = texts[0]
