"""`python -m tests.parity.mutation [PATTERN ...] [--record]`: whether parity notices a wrong number in a size's row.

Of every size with a case each constructor argument in turn, also those that only the class's signature gives, is given
another value that is legal, and the size's own parity check is run: it must refuse the weights, raise, or differ. What
nobody notices survives; exit 1 if anything does. `EXCUSED` says which arguments need not be noticed, and why. Values
that leave the names and shapes of the weights as they are go before others, as only they can slip through loading.
Sizes whose rows differ in nothing but what is excused count once. Parts that have no case of their own, such as the
backbone of a detector, are changed in the whole's.

--record also writes what was found to docs/measured/mutation/SYSTEM.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch

import plait
from plait.core import catalog
from plait.core.catalog import ModelInfo, build, model_class, model_info, system_module
from plait.errors import PlaitError
from tests.parity import modules
from tests.parity.__main__ import LIMIT

MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "mutation"
START = "where a parameter starts, which weights overwrite"
TEXTS = "held to the tokenizer's when weights are used (tests/runs/test_vocabulary.py); nothing is computed from it"
ASKED = "the published sizes whose words are hidden are asked with it"
PATCHES = "patches stand in the place of convolutions"
EXCUSED = {
    "*.dropout": "only training sees it",
    "*.drop_path": "only training sees it",
    "*.begin": TEXTS,
    "*.end": TEXTS,
    "agentic_transformer.places": "the first row is all that is read of the table",
    "agentic_transformer.tries": "nothing is computed from it: more tries are refused",
    "albef_toy.mask": ASKED,
    "albef_base_384_*.mask": TEXTS,
    "beit3_toy.mask": ASKED,
    "beit3_*_nlvr2.mask": TEXTS,
    "beit3_*_retrieval.mask": TEXTS,
    "beit3_*_vqav2.mask": TEXTS,
    "bridgetower_base.mask": ASKED,
    "bridgetower_large_itm_mlm_itc.mask": ASKED,
    "cct_cvt_*.convs": PATCHES,
    "cct_cvt_*.kernel": PATCHES,
    "cct_lite_*.convs": PATCHES,
    "cct_lite_*.kernel": PATCHES,
    "decoupled_softmax_dexml.scale": "only training sees it",
    "decoupled_softmax_dexml.top": "only training sees it",
    "*detr/resnet.num_classes": "a detector takes the classifier off",
    "crate_mae.num_classes": "who paints has no classifier",
    "deit3.scale": START,
    "dinov2.scale": START,
    "dit.start": START,
    "flatformer.cells": "voxels are made by a part of our own; their order is one in every grid that holds them",
    "flatformer.num_classes": "the classifier is ours, where the public code has a detector",
    "flatformer.points": "voxels are made by a part of our own",
    "gtr.scale": "only training sees it",
    "hiera.scale": START,
    "hiera_*_abswin_256.image": "one table serves pictures of any size: nothing is computed from it",
    "llava.frozen": "only training sees it",
    "mixencoder.slots": "which texts a table has",
    "mixture_of_mamba.depth": "the paper's; the public code has a layer, and no model",
    "mixture_of_mamba.patch": "what reads the modalities is ours",
    "mixture_of_mamba.slots": "what reads the modalities is ours",
    "mixture_of_transformers.depth": "the paper's; the public code has a layer, and no model",
    "mixture_of_transformers.patch": "what reads the modalities is ours",
    "mixture_of_transformers.slots": "what reads the modalities is ours",
    "llama.length": "nothing is computed from it: longer texts are said to be longer than what was trained for",
    "lxmert_?qa_uncased.mask": TEXTS,
    "me_bert.scale": "only training sees it",
    "meta_transformer.frozen": "only training sees it",
    "meta_transformer.slots": "the published files hold the encoder: what reads the modalities is ours",
    "poly_encoder.scale": "vectors are compared, and their scores are not: tests/systems/test_late_encoders.py",
    "sentence_encoder.scale": "only training sees it",
    "dsi.length": "nothing is computed from it: longer texts are refused",
    "t5.length": "nothing is computed from it: longer texts are refused",
    "tic.*": "the authors published a layer, and no net",
    "dual_cross_encoder.scale": "only training sees it",
    "dual_cross_encoder.slots": "which texts a table has",
    "endx_gam.align": "only training sees it",
    "endx_gam.scale": "only training sees it",
    "endx_gam.slots": "which texts a table has",
    "fie.longest": "where an answer may end, of which the published layout knows nothing",
    "fie.shared": "left out of the check: the published layout has none",
    "fie.slots": "which texts a table has",
    "uni_encoder.slots": "which texts a table has",
    "unixcoder.scale": "only training sees it",
    "univitar.scale": START,
    "vilt_b_32*.mask": TEXTS,
    "visual_bert_nlvr2.mask": TEXTS,
    "visual_bert_vcr.mask": TEXTS,
    "visual_bert_vqa.mask": TEXTS,
    "vision_rwkv.scale": START,  # that there is one is in the names of the weights
    "zipformer.labels": "the heads are ours",
    "zipformer.num_classes": "the heads are ours",
    "zipformer.rate": "what makes features of a sound is ours",
    "zipformer.skip": "only training sees it",
    "zorro.embed": "the heads are ours",
    "zorro.patch": "what reads the modalities is ours",
    "zorro.slots": "what reads the modalities is ours",
}


class Mutant(NamedTuple):
    """The size `name` with another value of an argument; spot: which of its numbers, where it has several."""

    name: str
    argument: str
    spot: str
    value: Any

    @property
    def told(self) -> str:
        return f"{self.argument}{self.spot}"


def excused(info: ModelInfo, argument: str, whole: str = "") -> bool:
    """Whether nobody need notice it, in all sizes or in this one; of a part, "whole/" comes before its name."""
    told = f"{info.system.name}.{argument}"
    said = (told, f"{whole}/{told}", f"{info.name}.{argument}")
    return any(fnmatch.fnmatch(n, pattern) for pattern in EXCUSED for n in said)


def arguments(info: ModelInfo) -> dict:
    """All arguments that a size is built with: its row's, those that it hands on to its parts, and its class's."""
    signature = inspect.signature(model_class(info)).parameters.values()
    return {p.name: p.default for p in signature if p.default is not p.empty} | info.arguments


def spots(value: object, known: list) -> dict[str, list]:
    """{place in `value`: other values of the whole, the nearest first}. known: what other sizes have there."""
    match value:
        case bool():
            return {"": [not value]}
        case int() | float() if value:
            step = [value * 10, value / 10] if isinstance(value, float) else [value * 2, value // 2]
            return {"": [v for v in step if v > 0]}
        case int() | float():
            found = [1, 2] if isinstance(value, int) else [0.1]
        case tuple() | list():
            places = range(len(value)) if len(value) <= 4 else (0, len(value) - 1)
            inner = ((i, spots(value[i], [])) for i in places)
            return {
                f"[{i}]{spot}": [type(value)((*value[:i], other, *value[i + 1 :])) for other in others]
                for i, found in inner
                for spot, others in found.items()
            }
        case dict():
            return {
                f".{key}{spot}": [value | {key: other} for other in others]
                for key, old in value.items()
                for spot, others in spots(old, []).items()
            }
        case _:
            found = []
    found += [v for v in known if v not in found and isinstance(v, type(value) if value is not None else object)]
    return {"": [v for v in found if v != value]}


@contextmanager
def changed(mutant: Mutant, forced: bool) -> Iterator[None]:
    """The row of a size is wrong. forced: also where whoever builds it gives this argument another value."""
    info, make = model_info(mutant.name), catalog.construct
    row = {info.size: info.arguments | {mutant.argument: mutant.value}}

    def construct(name: str, **given):
        return make(name, **given | ({mutant.argument: mutant.value} if name == mutant.name and forced else {}))

    with mock.patch.dict(info.system.sizes, row), mock.patch.object(catalog, "construct", construct):
        yield


def shapes(name: str, **given) -> dict:
    return {key: tuple(t.shape) for key, t in build(name, **given).state_dict().items()}


def with_cases() -> set[str]:
    return {name for module in modules() for name in module.CASES}


def rows(name: str) -> Iterator[str]:
    """The size and those of its parts that have no case of their own."""
    yield name
    for part in model_info(name).parts.values():
        if part not in with_cases():
            yield from rows(part)


def mutants(name: str, given: dict, forced: bool, only: tuple[str, ...] = ()) -> list[Mutant]:
    """One for each number that `name` and its parts are built with; given: what the check builds it with instead.
    only: of these arguments."""
    found, whole = [], shapes(name, **(given if forced else {}))
    for row in rows(name):
        info = model_info(row)
        signature = inspect.signature(model_class(info)).parameters
        for argument, value in (arguments(info) | (given if forced and row == name else {})).items():
            if only and argument not in only or excused(info, argument, model_info(name).system.name):
                continue
            known = [r[argument] for r in info.system.sizes.values() if argument in r]
            known += (
                [p.default for p in (signature[argument],) if p.default is not p.empty] if argument in signature else []
            )
            for spot, others in spots(value, known).items():
                legal = []
                for other in others:
                    mutant = Mutant(row, argument, spot, other)
                    try:
                        with changed(mutant, forced):
                            same = shapes(name, **(given if forced else {})) == whole
                    except Exception:  # no model has this value: what another one does proves nothing
                        continue
                    legal.append(mutant)
                    if same:
                        found.append(mutant)
                        break
                else:
                    found += legal[:1]
    return found


def module_of(name: str) -> ModuleType:
    """The module that has the case `name`."""
    return next(module for module in modules() if name in module.CASES)


def built_with(module: ModuleType, name: str) -> dict:
    """The arguments that the check of `name` builds it with, those of the last run where there are several. Raises
    AssertionError where the two do not agree."""
    make, given = catalog.construct, {}

    def construct(built: str, **arguments):
        nonlocal given
        given = arguments if built == name and arguments else given
        return make(built, **arguments)

    with mock.patch.object(catalog, "construct", construct):
        row = run(module, name)
    assert row.ok, row
    return given


def run(module: ModuleType, name: str):
    """The size's check, with as few layers as its module can do with."""
    torch.manual_seed(0)  # some references draw their weights from the global state
    with mock.patch.object(module, "LIMIT", 0, create=True):
        return module.parity(name)


def refused(name: str, mutant: Mutant, given: dict) -> bool:
    """Whether loading refuses the weights that `name` has; said without a number of them. What is built with heads that
    the published layout has not is for the check itself."""
    source = model_info(name).weights.get("source")
    if source is None or source not in getattr(system_module(model_info(name)), "RULES", {}):
        return False
    try:
        state = plait.save_weights(build(name, **given), source)
    except PlaitError:
        return False
    with changed(mutant, False):
        model = build(name, **given)
    try:
        plait.load_weights(model, state, source)
    except PlaitError:
        return True
    return False


def noticed(module: ModuleType, name: str, mutant: Mutant, given: dict, forced: bool) -> str:
    """How parity notices the mutant: "refused", "raises" or "differs"; "" where it does not."""
    recorded = Path(str(module.__file__)).with_suffix(".json").exists()  # its weights take whatever shape a model has
    reads = ".arguments" in inspect.getsource(module)  # what is wrong in the row may then be wrong in the reference
    if not (recorded or reads or forced) and refused(name, mutant, given):
        return "refused"
    with changed(mutant, forced):
        try:
            row = run(module, name)
        except Exception:
            return "raises"
    return "" if row.ok else "differs"


def check(module: ModuleType, name: str, only: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """{how it was noticed, or "survives": the arguments}. The toys that stand for sizes nobody publishes are changed in
    whatever the check builds. only: these arguments."""
    forced, found = model_info(name).size == "toy", {}
    given = built_with(module, name)
    for mutant in mutants(name, given, forced, only):
        how = noticed(module, name, mutant, given, forced)
        said = mutant.told if mutant.name == name else f"{mutant.name}: {mutant.told}"
        found.setdefault(how or "survives", []).append(said if how else f"{said} = {mutant.value}")
    return found


@cache
def distinct(system: str, names: tuple[str, ...]) -> list[str]:
    """Of sizes whose rows differ in nothing but what is excused the first."""
    first: dict[str, str] = {}
    for name in names:
        info = model_info(name)
        kept = {key: value for key, value in info.arguments.items() if not excused(info, key)}
        first.setdefault(json.dumps(kept, sort_keys=True), name)
    return list(first.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    alive, tried, found_modules = 0, 0, modules()
    gc.freeze()  # what was imported stays: nobody need look through it again
    for module in found_modules:
        names = tuple(name for name in module.CASES if any(fnmatch.fnmatch(name, p) for p in options.patterns))
        for name in distinct(module.SYSTEM, names):
            if 4 * model_info(name).parameters > LIMIT and not getattr(module, "CUTS", False):
                print(f"{name:42} left out: too large", flush=True)
                continue
            gc.collect()  # models hold themselves in cycles
            found = check(module, name)
            tried += sum(map(len, found.values()))
            alive += len(found.get("survives", ()))
            said = ", ".join(f"{len(what)} {how}" for how, what in found.items() if how != "survives")
            print(
                f"{name:42} {said}{'; SURVIVE ' + ', '.join(found['survives']) if 'survives' in found else ''}",
                flush=True,
            )
            if options.record:
                path = MEASURED / f"{module.SYSTEM}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                known = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps(dict(sorted({**known, name: found}.items())), indent=1) + "\n")
    print(
        f"{alive} of {tried} survive" if tried else f"no case in tests/parity matches {' or '.join(options.patterns)}"
    )
    return int(alive > 0 or not tried)


if __name__ == "__main__":
    sys.exit(main())
