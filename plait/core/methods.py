"""What methods there are, read from their files' text: ways to change a finished model, taken off again without a
trace.

`plait/methods/<room>/<name>.py` is the method `<name>`: its docstring names the paper, and its function `<name>(model,
...)` changes a model in place and returns the undo, or (annotated `-> nn.Module`) returns a model that wraps the given
one. The file may have `after_step(model)`, called after each step of training, `merge(model)`, which makes weights of
what the method put beside them and leaves a model without the change, and a literal `BY_HAND`, a sentence that
says why the method cannot train without the user's own code.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from plait.core.catalog import declared, title
from plait.core.literals import literals
from plait.errors import PlaitError, nearest

if TYPE_CHECKING:
    from torch import nn

    from plait.core.surgery import Undo

Change = tuple[str, dict[str, Any]]  # a method's name and its options

METHODS = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Method:
    """One method file's declarations."""

    name: str
    module: str
    summary: str
    options: dict[str, str]  # each option's default, as written
    kinds: dict[str, str]  # each option's annotation, as written
    wraps: bool
    by_hand: str  # why it cannot train without the user's own code, or ""

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
    if fault := _listed()[1].get(name):
        raise PlaitError(f"{name} cannot be read: {fault}")
    near = " or ".join(difflib.get_close_matches(name, methods(), 3, 0.5))
    raise PlaitError(
        f"no method is named {name!r}: {f'did you mean {near}?' if near else 'list_methods() names them all'}"
    )


def apply_method(model: nn.Module, name: str, **options) -> Undo | nn.Module:
    """Apply the method `name` to `model`, in place. Returns the undo; of a method that wraps, the wrapping model.

    Raises ValueError for an unknown method or option, and where the model has nothing that the method could change; it
    is then as it was.
    """
    info = method_info(name)
    if unknown := options.keys() - info.options.keys():
        raise PlaitError(
            f"{name} has no option {', '.join(sorted(unknown))}: its options are {', '.join(info.options) or 'none'}"
        )
    return getattr(importlib.import_module(info.module), name)(model, **options)


def apply_methods(model: nn.Module, changes: Iterable[Change]) -> nn.Module:
    """The model after `changes`, one after another: `model` itself, or what the last method that wraps put around it.

    Raises ValueError as `apply_method` does, naming the change; `model` may then be half changed.
    """
    for name, options in changes:
        try:
            done = apply_method(model, name, **options)
        except ValueError as error:
            raise PlaitError(f"method {written((name, options))}: {error}") from error
        model = cast("nn.Module", done) if method_info(name).wraps else model
    return model


def after_steps(changes: Iterable[Change]) -> list[Callable[[nn.Module], None]]:
    """What these methods do to the model after each step of training."""
    modules = [importlib.import_module(method_info(name).module) for name, _ in changes]
    return [module.after_step for module in modules if hasattr(module, "after_step")]


def merge_changes(model: nn.Module, changes: Iterable[Change]) -> list[Change]:
    """Make weights of what `changes` put beside them, in place, as far as their files say how. Returns the changes that
    are left: with them alone a model has the shapes of this one."""
    left = []
    for change in changes:
        module = importlib.import_module(method_info(change[0]).module)
        if hasattr(module, "merge"):
            module.merge(model)
        else:
            left.append(change)
    return left


def read_change(said: str | Change | list) -> Change:
    """A change from "NAME:option=value,option=value", or from a name and a dict of options.

    Values are numbers, true, false, none, words, and tuples in brackets; lists become tuples, as JSON has none. Raises
    PlaitError for a method or option that there is not, and for a value that is not of the option's kind.
    """
    if isinstance(said, str):
        name, _, text = said.partition(":")
        options = _options(said, text)
    else:
        name, options = said
    info, options = method_info(name), {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    for option, value in options.items():
        if option not in info.options:
            near = f"{nearest(option, info.options)} Its options are {info.usage}" if info.options else "It has none"
            raise PlaitError(f"{name} has no option {option!r}. {near}")
        if not _is(value, info.kinds[option]):
            raise PlaitError(f"{name}: {option} got {value!r}, expected {info.kinds[option]}")
    if missing := [k for k, default in info.options.items() if not default and k not in options]:
        raise PlaitError(f"{name} needs {', '.join(missing)}: give {name}:{missing[0]}=VALUE")
    return name, options


def written(change: Change) -> str:
    """A change as `read_change` reads it."""
    name, options = change
    return f"{name}:{','.join(f'{k}={v!r}' for k, v in options.items())}" if options else name


def _options(said: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        options = {k.arg: _value(k.value) for k in call.keywords if k.arg is not None}
        if len(options) < len(call.keywords):
            raise SyntaxError
        return options
    except (SyntaxError, ValueError) as error:
        raise PlaitError(
            f"got {said!r}, expected NAME:option=value,option=value, such as sinkformer:steps=3"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):  # a word without quotes
        return {"true": True, "false": False, "none": None}.get(node.id.lower(), node.id)
    return ast.literal_eval(node)


def _is(value: Any, kind: str) -> bool:
    """Whether `value` is of a kind as annotations write it; one that is not known here is left to the method."""
    if "|" in kind:
        return any(_is(value, part.strip()) for part in kind.split("|"))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind.split("[")[0]:
        case "int":
            return number and isinstance(value, int)
        case "float":
            return number
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "tuple":
            inside = kind.removeprefix("tuple[").removesuffix("]").split(",")
            return isinstance(value, tuple) and all(_is(v, inside[0]) for v in value if inside[0])
        case "None":
            return value is None
    return True


def methods() -> dict[str, Method]:
    """All methods by name, sorted."""
    return _listed()[0]


@cache
def _listed() -> tuple[dict[str, Method], dict[str, str]]:
    return declared(METHODS, _read)


def _read(path: Path) -> Method:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == path.stem), None)
    if function is None:
        raise PlaitError(f"{path} is no method file: it has no function {path.stem}")
    a = function.args
    positional = zip(a.args[1:], [None] * (len(a.args) - 1 - len(a.defaults)) + list(a.defaults))
    arguments = [*a.args[1:], *a.kwonlyargs]
    return Method(
        name=path.stem,
        module=f"plait.methods.{path.parent.name}.{path.stem}",
        summary=ast.get_docstring(tree) or "",
        options={arg.arg: ast.unparse(d) if d else "" for arg, d in [*positional, *zip(a.kwonlyargs, a.kw_defaults)]},
        kinds={arg.arg: ast.unparse(arg.annotation) if arg.annotation else "" for arg in arguments},
        by_hand=literals(tree).get("BY_HAND", ""),
        wraps=ast.unparse(function.returns) == "nn.Module" if function.returns else False,
    )
