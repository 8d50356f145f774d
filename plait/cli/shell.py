"""From a command line to a command, and from what it gives back or raises to output and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import plait
from plait.cli import INTERRUPTED
from plait.cli.change import change
from plait.cli.check import check
from plait.cli.compare import compare
from plait.cli.demo import demo
from plait.cli.embed import embed
from plait.cli.evaluate import evaluate
from plait.cli.fit import fit
from plait.cli.methods import methods
from plait.cli.models import models
from plait.cli.new import new
from plait.cli.output import Answer, as_json, clean
from plait.cli.predict import predict
from plait.cli.report import report
from plait.cli.rocketqa import rocketqa
from plait.cli.search import search
from plait.cli.show import show
from plait.cli.use import use
from plait.cli.verify import verify
from plait.cli.weights import weights
from plait.core.files import refusal
from plait.errors import DataError, PlaitError, UsageError, nearest, panicked

DEFECT, USAGE, DATA, CLOSED_PIPE = 1, 2, 3, 141
OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)  # of errors that name no file
PACKAGE = Path(plait.__file__).parent


class Commands(TyperGroup):
    """Lists commands in the order of a day's work, and suggests the nearest for one that is not there."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]):
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0].replace("_", "-")) is None:
            raise UsageError(f"no command {args[0]!r}. {nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"plait {plait.__version__}")
        raise typer.Exit()


def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multimodal transformers: every system by name, your own table in, a working model out.

    A first run, on any table with a column to predict:

    $ plait fit houses.csv --target price
    """


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        cls=Commands,
        add_completion=False,  # it would write into the home folder
        rich_markup_mode=None,
        context_settings={
            "token_normalize_func": lambda name: name.replace("_", "-"),
            "help_option_names": ["--help", "-h"],
        },
    )
    app.callback()(start)
    for command in (
        check,
        fit,
        rocketqa,
        use,
        evaluate,
        compare,
        predict,
        report,
        embed,
        search,
        change,
        verify,
        models,
        methods,
        show,
        weights,
        new,
        demo,
    ):
        app.command()(command)
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command line. Nothing but KeyboardInterrupt during start-up gets out of here."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *_: f"plait: {clean(message)} ({category.__name__})\n"
    try:
        return _run(argv)
    finally:
        warnings.formatwarning = before


def _run(argv: Sequence[str]) -> int:
    argv = list(argv) or ["--help"]
    closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: what is printed is lost, the work is not
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
    wants_json = "--json" in argv and not {"--help", "-h"} & set(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a column's name must not end a run on a narrow code page
    try:
        try:
            with redirect_stdout(sys.stderr) if wants_json else nullcontext():
                answer = _invoke(argv)
        except BrokenPipeError:
            raise
        except BaseException as error:
            if isinstance(error, SystemExit | GeneratorExit):
                raise
            code, message = _explained(error)
            answer = Answer({"error": message, "code": code}, code, message)
        if wants_json:
            print(as_json(answer.data))
        sys.stdout.flush()
        if closed:
            print("plait: standard output is closed: what would stand there is lost", file=sys.stderr)
        if answer.complaint:
            print(f"plait: {clean(answer.complaint)}", file=sys.stderr)
        return answer.code
    except BrokenPipeError:  # whoever read our output has gone: end as any Unix tool does
        _to_nowhere()
        return CLOSED_PIPE
    except OSError as error:
        _to_nowhere()
        with suppress(OSError):
            print(f"plait: cannot write standard output: {refusal(error)}", file=sys.stderr)
        return DATA


def _to_nowhere() -> None:
    """Nothing that is still to be printed is tried again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _invoke(argv: list[str]) -> Answer:
    """Run a command. It returns an Answer, or nothing."""
    command = typer.main.get_command(application())
    try:
        with command.make_context("plait", argv) as context:
            return command.invoke(context) or Answer({})
    except typer.Exit as done:  # --help and --version
        return Answer({}, done.exit_code)


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and one line that says what is wrong."""
    if os.environ.get("PLAIT_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    if hasattr(error, "format_message"):  # the option parser's errors, whichever click typer came with
        return USAGE, clean(_usage(error))
    if isinstance(error, PlaitError):
        return DATA if isinstance(error, DataError) else USAGE, clean(error)
    if isinstance(error, OSError) and error.filename is not None:
        return DATA, clean(f"{error.filename}: {error.strerror or error}")
    if isinstance(error, OSError) and error.errno in OUTPUT:
        return DATA, f"cannot write standard output: {refusal(error)}"
    if panicked(error):
        return DATA, clean(f"a library gave up (a panic in Rust): {error}. Is a tokenizer.json or a cell damaged?")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _no_memory(error):
        return DATA, "out of memory: give a smaller --batch-size, --image-size or --system"
    where = next(
        (f for f in reversed(traceback.extract_tb(error.__traceback__)) if PACKAGE in Path(f.filename).parents), None
    )
    place = f" at plait/{Path(where.filename).relative_to(PACKAGE).as_posix()}:{where.lineno}" if where else ""
    return DEFECT, clean(
        f"this is a defect: {type(error).__name__}: {error}{place} (PLAIT_DEBUG=1 shows the traceback)"
    )


def _no_memory(error: BaseException) -> bool:
    """torch has no exception of its own for what it cannot have on the CPU."""
    told = str(error) if isinstance(error, RuntimeError) else ""
    return "can't allocate memory" in told or "not enough memory" in told


def _usage(error: Any) -> str:
    """The parser's message, with the nearest option for an unknown one and the way to the help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "plait"
    message = error.format_message().rstrip(".")
    name = getattr(error, "option_name", None)
    if name and hasattr(error, "possibilities") and context:
        known = [option for parameter in context.command.params for option in parameter.opts if option.startswith("--")]
        close = get_close_matches(
            name.replace("_", "-").replace("--", "", 1), [k.removeprefix("--") for k in known], 1, 0.5
        )
        message = f"{path} has no option {name}." + (f" Did you mean --{close[0]}?" if close else "")
        return f"{message} `{path} --help` lists them."
    return f"{message}. See `{path} --help`."
