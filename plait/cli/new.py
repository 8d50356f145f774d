"""`plait new`: the pages of a new system, kind, task or method, to be filled in, in a clone of plait."""

from __future__ import annotations

import keyword
import os
import re
from enum import Enum
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple

import typer

from plait.cli.options import Json
from plait.cli.output import Answer
from plait.errors import UsageError, nearest

HERE = Path(__file__).parents[2]
ROLES = {"pairs": ("embedder", "fuser")}  # the pages of a room, where it has several
ROOMS = {"system": ("vision", "text", "pairs"), "method": ("attention", "norms", "vision")}


class What(str, Enum):
    system = "system"
    kind = "kind"
    task = "task"
    method = "method"


class Line(NamedTuple):
    """A line of a registry: `text` goes into `path` above the first line after `after` that is `before`."""

    path: str
    after: str
    before: str
    text: str


def new(
    what: Annotated[What, typer.Argument(help="What it is.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, in small letters: gated_vit.")],
    room: Annotated[
        str | None, typer.Option(help="Of a system: vision, text or pairs; of a method: its folder.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="Of a system in room pairs: embedder (a vector each) or fuser (read together).")
    ] = None,
    timm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What timm calls the system's default size: it is the truth.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Write the pages of a new system, kind, task or method, to fill in.

    What is written works and passes its tests as it is. For those who change plait: in a clone.

    $ plait new system gated_vit --room vision
    """
    pages, lines = plan(what.value, name, room, timm, role)
    written = write(HERE, pages, lines)
    for path in written:
        print(f"wrote     {path}")
    guide = "docs/adding_a_system.md" if what is What.system else "CONTRIBUTING.md"
    print(f"next: python -m pytest tests -k {name}, then fill it in as {guide} says")
    return Answer({"written": written})


def plan(
    what: str, name: str, room: str | None, timm: str | None, role: str | None = None
) -> tuple[dict[str, str], list[Line]]:
    """The text of each file that is to be written, by its path in the clone, and the lines of registries."""
    from datetime import date

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"NAME got {name!r}, expected small letters, digits and _, such as gated_vit")
    if name in taken(what):
        raise UsageError(f"there is a {what} {name!r} already: choose another name")
    if timm and what != "system":
        raise UsageError(f"--timm got {timm!r}, but only a system has a peer there")
    if room and what not in ROOMS:
        raise UsageError(f"--room got {room!r}, but only systems and methods stand in rooms")
    rooms = ROOMS.get(what, ("",))
    if room and room not in rooms:
        raise UsageError(f"--room got {room!r}, for which there is no page. {nearest(room, rooms)}")
    room, words = room or ("pairs" if role else rooms[0]), name.split("_")
    if role and (what != "system" or role not in ROLES.get(room, ())):
        raise UsageError(f"--role got {role!r}; systems in room pairs have one. {nearest(role, ROLES['pairs'])}")
    if timm and room != "vision":
        raise UsageError(f"--timm got {timm!r}, but room {room} has no pictures alone, which timm's models read")
    weights = f'\n    "nano": dict(references={{"timm": "{timm}"}}),\n' if timm else ""
    told = dict(name=name, words=" ".join(words), title=" ".join(words).capitalize(), year=str(date.today().year))
    told |= dict(Class="".join(w.capitalize() for w in words), weights=weights)

    def page(template: str) -> str:
        return Template((files("plait.cli") / "pages" / f"{template}.txt").read_text("utf-8")).substitute(told)

    pages, lines = {}, []
    match what:
        case "system":
            pages[f"plait/systems/{room}/{name}.py"] = page("system_fuser" if role == "fuser" else f"system_{room}")
            pages[f"tests/systems/test_{name}.py"] = page("system_test")
            if timm:
                pages[f"tests/parity/{name}.py"] = page("system_parity")
        case "method":
            pages[f"plait/methods/{room}/{name}.py"] = page("method")
            pages[f"tests/methods/test_{name}.py"] = page("method_test")
        case "task":
            pages[f"plait/tasks/{name}.py"], pages[f"tests/tasks/test_{name}.py"] = page("task"), page("task_test")
            lines = [Line("plait/tasks/__init__.py", "CHOICES = (", ")", f'    "{name}",\n')]
        case "kind":
            pages[f"plait/data/kinds/{name}.py"], pages[f"tests/data/test_{name}.py"] = page("kind"), page("kind_test")
            registry, kind = "plait/data/kinds/__init__.py", f"{told['Class']}Kind"
            stems = re.findall(r"from plait\.data\.kinds\.(\w+) import", (HERE / registry).read_text("utf-8"))
            later = [f"from plait.data.kinds.{stem}" for stem in stems if stem > name]
            lines = [
                Line(registry, "", [*later, "\nKINDS"][0], f"from plait.data.kinds.{name} import {kind}\n"),
                Line(registry, "KINDS: ", "}", f'    "{name}": {kind}(),\n'),
            ]
    return pages, lines


def taken(what: str) -> set[str]:
    """Names that a new one would hide."""
    if what == "kind":
        from plait.data.kinds import KINDS

        return {*KINDS, *(path.stem for path in (HERE / "plait" / "data" / "kinds").glob("*.py"))}
    if what == "task":
        return {path.stem for path in (HERE / "plait" / "tasks").glob("*.py")}
    from plait.core.catalog import list_models, systems
    from plait.core.methods import methods

    return set(methods()) if what == "method" else {*systems(), *list_models(toys=True)}


def write(root: Path, pages: dict[str, str], lines: list[Line]) -> list[str]:
    """Write all, or nothing where something is in the way. Returns the paths."""
    if not (root / "tests" / "contract").is_dir() or not (root / "pyproject.toml").is_file():
        raise UsageError(
            f"plait is installed in {root} without its tests, where nothing can be added: "
            "clone its repository and `pip install -e .` there"
        )
    if there := [path for path in pages if (root / path).exists()]:
        raise UsageError(
            f"{', '.join(there)} is there already, and nothing is overwritten: move it or choose another name"
        )
    targets = [*pages, *(line.path for line in lines)]
    if shut := [path for path in targets if not os.access((root / path).parent, os.W_OK)]:
        raise UsageError(f"{root / shut[0]} cannot be written: the clone belongs to somebody else")
    registries = {line.path: (root / line.path).read_text(encoding="utf-8") for line in lines}
    for line in lines:
        text = registries[line.path]
        at = text.index(line.before, text.index(line.after))
        registries[line.path] = text[:at] + line.text + text[at:]
    for path, text in {**pages, **registries}.items():
        (root / path).write_text(text, encoding="utf-8")
    return list(dict.fromkeys(targets))
