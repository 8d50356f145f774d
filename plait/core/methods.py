"""What methods there are, read from their files' text: ways to change a finished model, taken off again without a
trace.

`plait/methods/<room>/<name>.py` is the method `<name>`: its docstring names the paper, and its function `<name>(model,
...)` changes a model in place and returns the undo, or (annotated `-> nn.Module`) returns a model that wraps the given
one.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from plait.core.catalog import papers, title

if TYPE_CHECKING:
    from torch import nn

    from plait.core.surgery import Undo

METHODS = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Method:
    """One method file's declarations."""

    name: str
    module: str
    summary: str
    options: dict[str, str]  # each option's default, as written
    wraps: bool

    @property
    def title(self) -> str:
        return title(self.summary)

    @property
    def usage(self) -> str:
        """Its options as one would write them: "steps=3, scale"; what has no default stands alone."""
        return ", ".join(f"{name}={default}" if default else name for name, default in self.options.items()) or "none"


def list_methods(pattern: str = "*") -> list[str]:
    """Names of all methods that match `pattern` (shell wildcards)."""
    return [name for name in methods() if fnmatch.fnmatch(name, pattern)]


def method_info(name: str) -> Method:
    """The declarations of the method `name`. Raises ValueError for an unknown name, with the nearest known ones."""
    if name in methods():
        return methods()[name]
    near = " or ".join(difflib.get_close_matches(name, methods(), 3, 0.5))
    raise ValueError(
        f"no method is named {name!r}: {f'did you mean {near}?' if near else 'list_methods() names them all'}"
    )


def apply_method(model: nn.Module, name: str, **options) -> Undo | nn.Module:
    """Apply the method `name` to `model`, in place. Returns the undo; of a method that wraps, the wrapping model.

    Raises ValueError for an unknown method or option, and where the model has nothing that the method could change; it
    is then as it was.
    """
    info = method_info(name)
    if unknown := options.keys() - info.options.keys():
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}: its options are {', '.join(info.options) or 'none'}"
        )
    return getattr(importlib.import_module(info.module), name)(model, **options)


@cache
def methods() -> dict[str, Method]:
    """All methods by name, sorted."""
    return {path.stem: _read(path) for path in papers(METHODS)}


def _read(path: Path) -> Method:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == path.stem), None)
    if function is None:
        raise ValueError(f"{path} is no method file: it has no function {path.stem}")
    a = function.args
    positional = zip(a.args[1:], [None] * (len(a.args) - 1 - len(a.defaults)) + list(a.defaults))
    return Method(
        name=path.stem,
        module=f"plait.methods.{path.parent.name}.{path.stem}",
        summary=ast.get_docstring(tree) or "",
        options={arg.arg: ast.unparse(d) if d else "" for arg, d in [*positional, *zip(a.kwonlyargs, a.kw_defaults)]},
        wraps=ast.unparse(function.returns) == "nn.Module" if function.returns else False,
    )
