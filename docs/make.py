"""Writes a page per system into docs/systems, one of all methods and one of speed, from what is declared and measured
(docs/measured).

    python docs/make.py [PATTERN]

Sizes are built without storage; multiply-adds are counted for one forward pass of one example at the size's
own picture size. Parity comes from `python -m tests.parity --record`, speed from `benchmarks/backbones.py --record`.
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import json
import re
import statistics
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

import plait
from plait.core.attend import with_backend
from plait.core.catalog import ModelInfo, System, construct, systems
from plait.core.methods import methods
from plait.tasks import tasks_of
from tests.parity.compare import told

HERE = Path(__file__).parent
PAGES, MEASURED = HERE / "systems", HERE / "measured"
WORDS, SECONDS, RATE = 77, 10, 16_000  # of the example that is counted


def example(info: ModelInfo) -> dict | torch.Tensor:
    """One row: a picture of the size's own resolution, 77 words, 10 s of sound at 16 kHz."""
    signature = inspect.signature(import_module(info.system.module).MODEL.__init__).parameters
    side = info.arguments.get(
        "image", signature["image"].default if "image" in signature else info.weights.get("image", (224, 224))
    )
    longest = info.arguments.get("length", signature["length"].default if "length" in signature else WORDS)
    words = min(WORDS, longest)
    made = {
        "image": torch.empty(1, 3, *side),
        "text": torch.zeros(1, words, dtype=torch.int64),
        "audio": torch.empty(1, RATE * SECONDS),
    }
    batch = {slot: made[kind] for slot, kind in info.slots.items()}
    return batch[info.takes[0]] if len(batch) == 1 else batch


def cost(info: ModelInfo) -> tuple[int, float | None]:
    """Parameters, and giga multiply-adds of a forward pass; None for a model whose inputs are the user's own columns,
    or that also reads what no table has."""
    with FakeTensorMode():
        model = with_backend(construct(info.name).eval().requires_grad_(False), "eager")
        count = sum(p.numel() for p in model.parameters())
        known = set(info.takes) <= {"image", "text", "audio"}
        if not known or set(getattr(model, "blanks", ())) > set(model.takes):
            return count, None
        # of fused kernels not all are counted
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example(info))
    return count, counter.get_total_flops() / 2e9


def page(system: System) -> str:
    infos = [plait.model_info(f"{system.name}_{size}") for size in system.sizes if size != "toy"]
    title, (_, _, rest) = system.title, system.summary.strip().partition("\n\n")
    link = re.search(r"arXiv:(\d{4}\.\d{4,5})", title)
    if link:
        title = title.replace(link[0], f"[{link[0]}](https://arxiv.org/abs/{link[1]})")
    parity, speed = measured("parity", system.name), measured("speed", system.name)
    lines = [f"# {system.name}", "", title, "", rest.strip(), ""]
    tasks = dict.fromkeys(task for info in infos for task in tasks_of(info))
    lines += [f"Takes {', '.join(system.takes)}. Roles: {', '.join(system.roles)}. Tasks: {', '.join(tasks)}."]
    for roles in dict.fromkeys(system.size_roles.values()):
        sizes = [f"`{info.name}`" for info in infos if info.roles == roles and info.size in system.size_roles]
        lines += [f"Of {', '.join(sizes)} only {', '.join(roles)}."]
    for takes in dict.fromkeys(system.size_takes.values()):
        sizes = [f"`{info.name}`" for info in infos if info.takes == takes and info.size in system.size_takes]
        lines += [f"{', '.join(sizes)} takes {', '.join(takes)}."]
    lines += [
        f"Code: [{system.module.replace('.', '/')}.py](../../{system.module.replace('.', '/')}.py).",
        "",
        "## Sizes",
        "",
    ]
    lines += [
        "| size | parameters | multiply-adds | checked against | relative error | weights |",
        "|---|--:|--:|---|--:|---|",
    ]
    for info in infos:
        count, giga = cost(info)
        row = parity.get(info.name)
        weights = info.weights.get("hub") or info.weights.get("url") or ""
        licence = f" ({info.weights['licence']})" if "licence" in info.weights and weights else ""
        peers = ", ".join(f"{k}: {v}" for k, v in info.references.items())
        found = told(row["error"], row.get("ran", "output")) if row else "not measured" if peers else ""
        known = (row["reference"] if row else peers, found)
        default = " (default)" if info.size == system.default else ""
        giga = "" if giga is None else f"{giga:.2f} G"
        lines.append(
            f"| `{info.name}`{default} | {count / 1e6:.2f} M | {giga} | {known[0]} | {known[1]} | {weights}{licence} |"
        )
    if tagged := [info for info in infos if info.tags]:
        some = f"{tagged[0].name}.{tagged[0].tags[0]}"
        lines += [
            "",
            "## Other weights",
            "",
            f'By a tag behind the name: `plait.create_model("{some}", pretrained=True)`.',
            "",
        ]
        lines += [f"- `{info.name}`: {', '.join(f'`{tag}`' for tag in info.tags)}" for info in tagged]
    if speed:
        lines += ["", "## Speed", "", "Time of the peer / time of plait: above 1, plait is faster.", ""]
        lines += ["| size | run | batch | precision | ratio |", "|---|---|--:|---|--:|"]
        lines += [f"| `{r['name']}` | {r['run']} | {r['batch']} | {r['precision']} | {r['ratio']:.2f} |" for r in speed]
    lines += ["", "## Use", "", f'    model = plait.create_model("{infos[0].name}")', ""]
    return "\n".join(lines)


def measured(kind: str, system: str) -> dict | list:
    path = MEASURED / kind / f"{system}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def index() -> str:
    rooms: dict[str, list[System]] = {}
    for system in systems().values():
        rooms.setdefault(system.module.split(".")[-2], []).append(system)
    lines = ["# Systems", "", "One page each, made by `python docs/make.py`."]
    for room, found in rooms.items():
        lines += ["", f"## {room}", "", "| system | paper | takes | sizes |", "|---|---|---|--:|"]
        lines += [f"| [{s.name}]({s.name}.md) | {s.title} | {', '.join(s.takes)} | {len(s.sizes) - 1} |" for s in found]
    return "\n".join(lines) + "\n"


def method_page() -> str:
    lines = [
        "# Methods",
        "",
        "Changes to any model: `undo = plait.apply_method(model, name, ...)`. Made by `python docs/make.py`.",
    ]
    for m in methods().values():
        path = f"{m.module.replace('.', '/')}.py"
        lines += ["", f"## {m.name}", "", m.summary.strip(), "", f"Options: {m.usage}. Code: [{path}](../{path})."]
    return "\n".join(lines) + "\n"


def speed_page() -> str:
    said = (
        "Time of the peer (timm or transformers) / time of plait, the same weights and input, in turns in one "
        "process, one CPU thread: "
        "above 1, plait is faster. Measured by `benchmarks/backbones.py --record`; made by `python docs/make.py`."
    )
    found = {
        (r["name"], r["precision"], r["run"], r["batch"]): r["ratio"]
        for name in systems()
        for r in measured("speed", name)
    }
    kinds = sorted({key[1:] for key in found}, key=lambda kind: (kind[0] != "fp32", *kind[1:]))
    heads = [f"{run}, batch {batch}, {precision}" for precision, run, batch in kinds]
    lines = ["# Speed", "", said, "", f"| model | {' | '.join(heads)} |", "|---" + "|--:" * len(kinds) + "|"]
    for name in dict.fromkeys(name for name, *_ in found):
        cells = [found.get((name, *kind)) for kind in kinds]
        lines.append(f"| `{name}` | " + " | ".join("" if c is None else f"{c:.2f}" for c in cells) + " |")
    means = [statistics.geometric_mean(v for key, v in found.items() if key[1:] == kind) for kind in kinds]
    return "\n".join([*lines, f"| geometric mean | {' | '.join(f'{m:.2f}' for m in means)} |"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    options = parser.parse_args()
    PAGES.mkdir(exist_ok=True)
    for system in systems().values():
        if fnmatch.fnmatch(system.name, options.pattern):
            print(system.name, flush=True)
            (PAGES / f"{system.name}.md").write_text(page(system))
    (PAGES / "README.md").write_text(index())
    (HERE / "methods.md").write_text(method_page())
    (HERE / "speed.md").write_text(speed_page())


if __name__ == "__main__":
    main()
