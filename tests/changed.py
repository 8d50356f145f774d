"""What a change can reach: `python -m pytest --changed` runs that and nothing else (`make test-changed`).

Imports are read from the files' text, `plait.fit` being the use of the module where `fit` stands. What is imported by
name alone counts where a string names it: a system (by a size too), a method, a module. Suites that go through the
whole catalogue run the cases of the systems and methods that are reached.
"""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import plait
from plait.core.catalog import ModelInfo, System, systems
from plait.core.methods import Method, methods

ROOT = Path(__file__).parents[1]
ROOMS = ("plait", "tests", "benchmarks", "docs", "examples")
EVERYTHING = {"pyproject.toml", "constraints.txt", "Makefile", ".ci/run", "tests/conftest.py", "tests/changed.py"}
CATALOGUE = {"SYSTEMS", "systems", "methods", "modules"}  # what a suite goes through, called or subscripted by no name


class Reached(NamedTuple):
    """files: tests that run whole. suites: tests of which the cases of `names` run, and what is no system's case."""

    files: set[Path]
    suites: set[Path]
    names: set[str]

    def case(self, parameters: list) -> bool:
        """Whether the case of a suite with these parameters runs."""
        told = {name for value in parameters for name in subject(value)}
        return not told or bool(told & self.names)


def subject(value: object) -> set[str]:
    """Which system, method or file of the repository a parameter of a test stands for."""
    match value:
        case System() | Method():
            return {value.name}
        case ModelInfo():
            return {value.system.name}
        case ModuleType():
            return {getattr(value, "SYSTEM", value.__name__)}
        case Path() if value.is_relative_to(ROOT):
            return {value.relative_to(ROOT).as_posix()}
        case str() if value in names():
            return {names()[value]}
    return set()


@cache
def names() -> dict[str, str]:
    """Every name of a system, of a size and of a method -> the system or method."""
    sizes = {f"{s.name}_{size}": s.name for s in systems().values() for size in s.sizes}
    return {name: name for name in (*methods(), *systems())} | sizes


def changed(base: str) -> set[str]:
    """Files that differ from where this branch left `base`, the uncommitted and the new ones too."""
    (fork,) = git("merge-base", "HEAD", base)
    return {*git("diff", "--name-only", fork), *git("ls-files", "--others", "--exclude-standard")}


def git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)} failed, so what has changed is not known: {done.stderr.strip()}")
    return done.stdout.splitlines()


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Source(NamedTuple):
    """What is read of one file: the modules that it imports or runs, all its strings, whether it is a suite."""

    path: str
    uses: set[str]
    strings: set[str]
    suite: bool


def read(path: str, text: str) -> Source:
    nodes = list(ast.walk(ast.parse(text, path)))
    strings = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return Source(path, imports(nodes), strings, iterates(nodes))


def imports(nodes: list[ast.AST]) -> set[str]:
    """What a file imports, and the packages that hold it; names of things among them, which are no modules."""
    found = set()
    for node in nodes:
        match node:
            case ast.Import():
                found |= {a.name for a in node.names}
            case ast.ImportFrom(module=str(source)):
                found |= {f"{source}.{a.name}" for a in node.names}
            case ast.Attribute(value=ast.Name(id="plait"), attr=name):
                found.add(f"plait.{name}")
    found |= {plait._HOMES[m.removeprefix("plait.")] for m in found if m.removeprefix("plait.") in plait._HOMES}
    return found | {m.rsplit(".", n)[0] for m in found for n in range(1, m.count(".") + 1)}


def iterates(nodes: list[ast.AST]) -> bool:
    """Whether a file goes through the catalogue: names it other than to look one entry up."""
    looked_up = [n.value for n in nodes if isinstance(n, ast.Subscript)]
    one = {id(n) for v in looked_up for n in (v, getattr(v, "func", None))}
    return any(isinstance(n, ast.Name) and n.id in CATALOGUE and id(n) not in one for n in nodes)


@cache
def sources() -> dict[str, Source]:
    """Every module of the repository."""
    paths = [p.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    return {module(p): read(p, (ROOT / p).read_text(encoding="utf-8")) for p in paths}


def closure(start: set[str], users: dict[str, set[str]]) -> set[str]:
    found, new = set(start), list(start)
    while new:
        more = users[new.pop()] - found
        found |= more
        new += more
    return found


def reach(changes: set[str]) -> Reached:
    """What changes in these files, given relative to the repository, can break."""
    known = sources()
    tests = {m: ROOT / s.path for m, s in known.items() if Path(s.path).name.startswith("test_")}
    if changes & EVERYTHING:
        return Reached(set(tests.values()), set(), set())
    homes = {each.name: each.module for each in (*systems().values(), *methods().values())}
    importers, namers = defaultdict(set), defaultdict(set)
    for m, source in known.items():
        run = source.strings & known.keys() if m != "plait" else set()  # which names where its public names stand
        for used in (source.uses | run) - {m}:
            importers[used].add(m)
        for name in source.strings & names().keys():
            namers[homes[names()[name]]].add(m)

    reached = {module(c) for c in changes if c.endswith(".py")}
    for change in map(Path, changes):
        if change.name == "conftest.py":
            reached |= {m for m, path in tests.items() if path.is_relative_to(ROOT / change.parent)}
        elif change.suffix != ".py":  # a page, by its name or its folder's; numbers, by the module beside them
            told = {change.name, change.as_posix(), *(p.as_posix() for p in change.parents if p.name)}
            reached |= {m for m in tests if told & known[m].strings} | {module(change.with_suffix(".py").as_posix())}
    sure = reached = closure(reached, importers)
    for named in sure:
        for m in namers[named]:
            if m.startswith(("plait.core", "plait.tasks", "plait.cli")):  # names it to those who name m
                reached = reached | {t for t in tests if m.rsplit(".")[-1] in known[t].strings}
            else:
                reached = reached | closure({m}, importers)

    suites = {t for t in tests if known[t].suite or t.count(".") == 1}  # tests/test_*.py look at the whole house
    whole = {t for t in tests if t in (sure if t in suites else reached)}
    stems = {m.rsplit(".")[-1] for m in reached if m.startswith(("plait.systems", "plait.methods", "tests.parity"))}
    cases = stems & homes.keys()
    suites = {t for t in suites - whole if t.count(".") == 1 or cases}
    return Reached({tests[t] for t in whole}, {tests[t] for t in suites}, changes | cases)
