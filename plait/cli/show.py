"""`plait show`: one model (its paper, what it reads, its sizes and its published weights), one method, or one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.options import Json
from plait.cli.output import Answer, clean


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A model of `plait models`, a system (its default size), a method, or a run."
        ),
    ],
    json: Json = False,
) -> Answer:
    """Show one model or method, and its paper; or what a run reads and does.

    Of a model: what is new in it, what it reads, its sizes, parameters and published weights.

    $ plait show crossvit_small

    $ plait show runs/clip
    """
    if (Path(name) / "config.json").is_file():
        return _run(name, json)
    from plait.core.catalog import model_info
    from plait.core.methods import methods
    from plait.tasks import tasks_of

    if name in methods():
        return _method(methods()[name], json)
    info = model_info(name)
    system = info.system
    data: dict[str, Any] = {
        "name": info.name,
        "system": system.name,
        "size": info.size,
        "summary": system.summary,
        "takes": info.takes,
        "roles": info.roles,
        "tasks": tasks_of(info),
        "sizes": [s for s in system.sizes if s != "toy"],
        "default": system.default,
        "arguments": info.arguments,
        "parts": info.parts,
        "parameters": info.parameters,
        "references": info.references,
        "weights": info.weights,
        "tags": info.tags,
        "module": system.module,
    }
    if json:
        return Answer(data)
    print(system.summary.strip() + "\n")
    others = [f"{system.name}_{info.size}.{tag}" for tag in info.tags if tag != info.tag]
    sizes = ", ".join(f"{s} (default)" if s == system.default else s for s in data["sizes"])
    for label, text in (
        ("model", info.name),
        ("takes", ", ".join(info.takes)),
        ("roles", ", ".join(info.roles)),
        ("tasks", ", ".join(tasks_of(info))),
        ("sizes", sizes),
        (
            "arguments",
            ", ".join(f"{k}={v!r}" for k, v in info.arguments.items()) or "none beside the class's own defaults",
        ),
        *([("made of", ", ".join(info.parts.values()))] if info.parts else []),
        ("parameters", f"{data['parameters']:,}"),
        (
            "elsewhere",
            ", ".join(f"{peer}: {theirs}" for peer, theirs in info.references.items()) or "no peer publishes this size",
        ),
        ("weights", _weights(info.weights)),
        *_shown(info),
        *([("others", ", ".join(others))] if others else []),
        ("file", system.module.replace(".", "/") + ".py"),
        ("try", f'plait.create_model("{info.name}")'),
    ):
        print(f"{label:<11} {text}")
    return Answer(data)


def _run(folder: str, json: bool) -> Answer:
    from plait.runs.declared import read_config
    from plait.runs.saved import load
    from plait.runs.telling import usable

    run, config = load(folder), read_config(folder)
    recipe, used = config["recipe"], run.used
    model = f"{recipe['name']} ({recipe['role']})" + "".join(f" + {method}" for method, _ in recipe["changes"])
    where = (
        f"as published: {used['weights']}, licence {used['licence']}"
        if used
        else f"trained on {config['source'] or 'a table in memory'}"
    )
    inputs = []
    for column in run.schema.used("input"):
        learnt = [f"{k} {v}" for k, v in column.params.items() if isinstance(v, int | list | dict) and len(str(v)) < 90]
        inputs.append(f"{column.name}: {', '.join([column.kind, *learnt])}")
    data = {"run": folder, "model": recipe["name"], "task": run.task.name, "weights": where, "inputs": inputs}
    data |= {"does": run.task.describe(), "next": usable(run)}
    if not json:
        told = [
            ("run", folder),
            ("model", model),
            ("weights", where),
            ("task", f"{run.task.name}, {run.task.describe()}"),
        ]
        for label, text in told + [("reads", line) for line in inputs] + [("try", line) for line in usable(run)]:
            print(f"{label:<11} {clean(text)}")
    return Answer(data)


def _method(method, json: bool) -> Answer:
    data = {
        "name": method.name,
        "summary": method.summary,
        "options": method.options,
        "wraps": method.wraps,
        "by_hand": method.by_hand,
        "module": method.module,
    }
    if not json:
        result = "model" if method.wraps else "undo"
        print(method.summary.strip() + "\n")
        for label, text in (
            ("method", method.name),
            ("options", method.usage),
            ("file", method.module.replace(".", "/") + ".py"),
            ("training", f"plait fit ... --method {method.name}" if not method.by_hand else method.by_hand),
            ("try", f'{result} = plait.apply_method(model, "{method.name}")'),
        ):
            print(f"{label:<11} {text}")
    return Answer(data)


def _weights(row: dict) -> str:
    if "hub" not in row and "url" not in row:
        return (
            f"published without an address to fetch, licence {row['licence']}: load a file"
            if "licence" in row
            else "none published"
        )
    where = f"{row['hub']}, {row['file']}" if "hub" in row else row["url"]
    return f"{where}, licence {row['licence']}" + (f", revision {row['revision']}" if "revision" in row else "")


def _shown(info) -> list[tuple[str, str]]:
    """How what is read was brought before the published weights, as far as it is known."""
    from plait.runs.assemble import reads

    row, fixed, found = info.weights, reads(info), []
    if not row:
        return []
    if "image" in info.takes and (size := fixed.get("image") or row.get("image")):
        scale = f"; mean {_numbers(row['mean'])}, std {_numbers(row['std'])}" if "mean" in row else ""
        found.append(("pictures", f"{size[0]} x {size[1]}: {_crop(row, size)}{scale}"))
    if "text" in info.takes and "tokenizer" in row:
        most = f", at most {fixed['length']} tokens" if fixed.get("length") else ""
        ends = f"begins with {row['begin']}, ends with {row['end']}"
        found.append(("texts", f"{row['tokenizer']}: {ends}{most}; padded with 0, which is never read"))
    if "rate" in row:
        found.append(("sounds", f"one channel, {row['rate']:,} samples a second"))
    if "pooling" in row:
        found.append(("pooling", row["pooling"]))
    return found


def _crop(row: dict, size: tuple[int, int]) -> str:
    if "crop_pct" not in row:
        return "how they were cropped is not known; whole, on gray"
    high, wide = (int(side / row["crop_pct"]) for side in size)
    how = row["interpolation"]
    if row["crop_mode"] == "squash":
        return f"resized to {high} x {wide} whatever their shape, {how}" + ", the middle" * (
            (high, wide) != tuple(size)
        )
    side = f"the shorter side to {high}" if high == wide else f"to cover {high} x {wide}"
    down = " (rounded down)" * (row["crop_mode"] == "floor")
    return f"resized, {side}, {how}; of that the middle{down}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:g}" for v in values)
