"""Whose words: published weights of a text tower are read with their own tokenizer, or not at all."""

from __future__ import annotations

from pathlib import Path

from plait.core.catalog import ModelInfo, model_info
from plait.core.fetch import hub_file
from plait.errors import UsageError
from plait.runs.assemble import argument

UNUSED = 0.01  # of a published table's rows no word may have: tables are rounded up to a multiple of 64 or so


def published_tokenizer(info: ModelInfo, pretrained: bool | str, *, offline: bool = False) -> Path | None:
    """The tokenizer.json of a size's weights: fetched from the hub with them, or the one beside their file.

    None where what is published has no words (a shared encoder alone), or nothing is published. Raises UsageError
    where it cannot be had. offline: from the cache alone.
    """
    row = info.weights
    if "tokenizer" not in row and ("part" in row or (pretrained is True and not row)):
        return None
    where = row.get("tokenizer", "")
    if pretrained is True and not where.startswith("https://"):
        hub, file = hub_path(where)
        try:
            revision = row.get("revision", "main") if hub == row.get("hub") else "main"
            return hub_file(hub, file, revision, offline=offline)
        except ValueError as error:
            reason = str(error).split(": without a network")[0]
            raise UsageError(
                f"the words of {info.name} are those of its own tokenizer: {reason}; bring that file here and give it "
                "with --tokenizer FILE"
            ) from error
    place = Path(str(pretrained))
    beside = (place if place.is_dir() else place.parent) / "tokenizer.json"
    if pretrained is not True and beside.is_file():
        return beside
    if where.startswith("https://"):
        file = f"a tokenizer.json made of {where}"
    elif where:
        hub, file = hub_path(where)
        file = f"{file} of https://huggingface.co/{hub}"
    else:
        file = "the tokenizer.json that they were trained with"
    raise UsageError(
        f"the weights of {info.name} know words by their own ids, and there is no {beside.name} beside them: "
        f"give {file} with --tokenizer FILE"
    )


def check_vocabulary(info: ModelInfo, words: dict, file: str | Path) -> None:
    """Raise UsageError unless the ids of a tokenizer are those that a size's published weights were trained on.

    words: what `TextKind.fit` learnt of it, or what a generator is told of its words. Compared are their number and the
    ids of beginning, end and mask, as far as the weights row or the model fix them.
    """
    row, wrong = info.weights, []
    models = (info, *map(model_info, reversed(info.parts.values())))
    vocab = next((found for model in models if (found := argument(model, "vocab")) is not None), None)
    if vocab is not None and not (1 - UNUSED) * vocab <= words["vocab"] <= vocab:
        wrong.append(f"{vocab:,} words, got {words['vocab']:,}")
    for name, role in (("begin", "cls"), ("end", "sep"), ("mask", "mask")):
        expected = row.get(name, argument(info, name))
        got = words.get(name, words.get(role))
        unended = role == "sep" and got is None and not row.get("closed", True)  # of a text that is read
        if expected is not None and got != expected and {name, role} & words.keys() and not unended:
            wrong.append(f"the {name} token {expected}, got {got}")
    if wrong:
        raise UsageError(
            f"{file} is not the tokenizer of {info.name}'s weights: expected {'; '.join(wrong)}. "
            f"Give {row.get('tokenizer', 'their own')} with --tokenizer FILE"
        )


def hub_path(where: str) -> tuple[str, str]:
    """ "owner/name/folder/file" -> ("owner/name", "folder/file")."""
    owner, name, file = where.split("/", 2)
    return f"{owner}/{name}", file
