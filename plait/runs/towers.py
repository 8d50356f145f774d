"""Published towers that read columns for plait's own system: frozen, each cell once, as a vector."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from plait.core.catalog import ModelInfo, build, model_class, model_info
from plait.core.files import write_whole
from plait.core.init import initialise_rest
from plait.core.weight_files import read_weights
from plait.core.weights import assign
from plait.data.rows import Cells, Reader
from plait.data.schema import Schema
from plait.errors import DataError, PlaitError, UsageError
from plait.methods.adaptation.lora import merge
from plait.parts.adapters import CONFIG as ADAPTER
from plait.parts.adapters import WEIGHTS, read_adapter
from plait.runs.assemble import CROP, BoundRecipe, reads
from plait.runs.declared import no_more_modules, of_file
from plait.runs.folder import CONFIG
from plait.runs.manifest import check
from plait.runs.settings import Settings
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from plait.tasks.base import Task
from plait.tasks.bind import HALF, Bound
from plait.train.parallel import to_device

# Small ones whose licence lets anybody use them; none of sounds is published at that size.
DEFAULTS = {"text": "sentence_encoder_minilm_l6", "image": "vit_small_patch16_224"}
ROLES = ("embedder", "backbone")  # of which features can be had without training
BATCH = 32
EVERY = 10.0  # seconds of reading that a kill may cost
HOME, CACHE, TOKENIZER = "towers", "features", "tokenizer.json"


@dataclass
class Tower:
    """A frozen system that reads cells of one kind. tokenizer: the file of its words; digest: of its weights as they
    were published; adapter: of what was learnt beside them, and is merged into them; device: where it runs."""

    kind: str
    recipe: BoundRecipe
    bound: Bound
    tokenizer: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    adapter: str = ""

    def __post_init__(self) -> None:
        self.bound.eval().requires_grad_(False)
        state = self.bound.state_dict()
        tensors = b"".join(blake2b(key.encode() + t.numpy().tobytes()).digest() for key, t in state.items())
        self.digest = blake2b(tensors, digest_size=16).hexdigest()

    @property
    def info(self) -> ModelInfo:
        return model_info(self.recipe.name)

    @property
    def width(self) -> int:
        """Of a cell's vector."""
        return self.bound.width

    @torch.inference_mode()
    def features(self, x: torch.Tensor, keep: torch.Tensor | None) -> np.ndarray:
        """(B, width) float32 of cells (B, ...) and their keep."""
        batch = {self.kind: x, "keep": {} if keep is None else {self.kind: keep}, "present": {}}
        found = self.bound.to(self.device).features(to_device(batch, self.device))
        return found.fused.float().cpu().numpy()

    def adapt(self, folder: Path) -> None:
        """Merge the adapters in `folder` into the weights."""
        read_adapter(cast(nn.Module, self.bound.system), folder)
        merge(cast(nn.Module, self.bound.system))
        self.bound.requires_grad_(False)
        self.adapter = adapter_of(folder)

    def to_json(self) -> dict:
        told = {"recipe": asdict(self.recipe), "digest": self.digest}
        return told | ({"adapter": self.adapter} if self.adapter else {})


def adapter_of(folder: Path) -> str:
    """The digest of the adapters in `folder`."""
    parts = [(folder / name).read_bytes() for name in (WEIGHTS, ADAPTER)]
    return blake2b(b"".join(parts), digest_size=16).hexdigest()


class Towers:
    """A tower for each of some kinds, which reads all columns of that kind. folder: of the run, where features of a
    table are kept, if anywhere."""

    def __init__(self, towers: dict[str, Tower], folder: Path | None = None):
        self.towers, self.folder = towers, folder

    def __bool__(self) -> bool:
        return bool(self.towers)

    def on(self, device: torch.device | str) -> Towers:
        """The same, run there."""
        for tower in self.towers.values():
            tower.device = torch.device(device)
        return self

    def take(self, schema: Schema) -> None:
        """Slots whose kind has a tower are vectors from now on; their columns stay what they are."""
        for slot in schema.slots:
            if slot.kind in self.towers:
                slot.kind = "vector"

    @property
    def tokenizer(self) -> Path | None:
        """The file of the words that texts are read in."""
        return self.towers["text"].tokenizer if "text" in self.towers else None

    def reads(self) -> dict[str, Any]:
        """How cells are read, as the rows of their weights say it."""
        found: dict[str, Any] = {}
        for kind, tower in self.towers.items():
            row = tower.info.weights
            found |= {n: row[n] for n in (("max_tokens", "prefixes", "closed") if kind == "text" else CROP) if n in row}
            if kind == "image":
                found["image"] = tower.recipe.arguments.get("image") or reads(tower.info).get("image", row.get("image"))
        return found

    def check(self, schema: Schema, max_tokens: int) -> None:
        """Say in the schema, when it is fitted, how long the vectors are, and that texts are read as far as the tower
        can. Raises UsageError where the words are not the tower's."""
        for name, tower in self.of(schema).items():
            params = schema.column(schema.slot(name).columns[0]).params
            params["width"] = tower.width
            if tower.tokenizer:
                params["max_tokens"] = max_tokens
                check_vocabulary(tower.info, params, tower.tokenizer)

    def readers(self, schema: Schema, *, keep: bool = False) -> dict[str, Reader]:
        """{slot: what makes vectors of its cells}, as `Rows` takes them. keep: in the folder, as they are made."""

        def reader(tower: Tower) -> Reader:
            return lambda cells, rows, step: self._read(tower, cells, rows, step, keep)

        return {name: reader(tower) for name, tower in self.of(schema).items()}

    def title(self, schema: Schema) -> str:
        """ "sentence_encoder_minilm_l6 (22.6 M parameters, apache-2.0) reads note, frozen"."""
        said = []
        for kind, tower in self.towers.items():
            columns = [c.name for c in schema.used("input") if c.kind == kind]
            count = sum(p.numel() for p in tower.bound.parameters()) / 1e6
            licence = tower.info.weights.get("licence", "licence unknown")
            said.append(
                f"{tower.recipe.title} ({count:.1f} M parameters, {licence}) reads {', '.join(columns)}, frozen"
            )
        return "; ".join(said)

    def to_json(self) -> dict:
        """Plain JSON, without weights."""
        return {kind: tower.to_json() for kind, tower in self.towers.items()}

    def save(self, folder: Path) -> None:
        """Write the weights into the run's folder, so that it needs nothing from elsewhere."""
        for kind, tower in self.towers.items():
            state = {key: t.cpu().contiguous() for key, t in tower.bound.state_dict().items()}
            write_whole(folder / HOME / f"{kind}.safetensors", lambda path: save_file(state, path))
            if tower.tokenizer:
                text = tower.tokenizer.read_bytes()
                write_whole(folder / HOME / TOKENIZER, lambda path: path.write_bytes(text))

    def copy(self, folder: Path) -> None:
        """The files that they lie in, into another run's folder: by a link where that can be."""
        assert self.folder is not None
        shutil.copytree(self.folder / HOME, folder / HOME, copy_function=_linked, dirs_exist_ok=True)

    def moved(self, folder: Path) -> None:
        """Their run's folder stands elsewhere now."""
        self.folder = folder
        for tower in self.towers.values():
            tower.tokenizer = tower.tokenizer and folder / HOME / TOKENIZER

    def of(self, schema: Schema) -> dict[str, Tower]:
        """{slot: the tower that reads its cells}."""
        kinds = {s.name: schema.column(s.columns[0]).kind for s in schema.slots if s.kind == "vector"}
        return {name: self.towers[kind] for name, kind in kinds.items() if kind in self.towers}

    def _read(
        self, tower: Tower, cells: Cells, rows: np.ndarray, step: Callable[[int], None], keep: bool
    ) -> np.ndarray:
        """(len(rows), width) float32. Cells that are the same to the tower are read once; texts of one length
        together, since padding costs time."""
        marks, sizes = [], []
        for start in range(0, len(rows), BATCH):
            x, real_of = cells(rows[start : start + BATCH])
            for i, row in enumerate(x):
                real = (row if real_of is None else row[real_of[i]]).numpy()
                marks.append(blake2b(real.tobytes(), digest_size=16).digest())
                sizes.append(real.size)
        told = json.dumps(tower.to_json(), sort_keys=True).encode()
        key = blake2b(told + b"".join(marks), digest_size=16).hexdigest()
        kept = self._kept(key, tower.width)
        if kept is not None and len(kept) == len(rows):
            return kept
        first = np.array(sorted({mark: i for i, mark in reversed(list(enumerate(marks)))}.values()), np.int64)
        first = first[np.argsort(np.array(sizes)[first], kind="stable")]
        read = self._begun(key, tower.width)  # of the first of these, in this order
        done = written = sum(map(len, read))
        step(done)
        begun = time.monotonic()
        for start in range(done, len(first), BATCH):
            some = first[start : start + BATCH]
            read.append(tower.features(*cells(rows[some])))
            done += len(some)
            step(len(some))
            if keep and time.monotonic() - begun >= EVERY and done < len(first):
                self._write(f"{key}-{written}", np.concatenate(read)[written:])
                written, begun = done, time.monotonic()
        vectors = np.concatenate(read) if read else np.zeros((0, tower.width), np.float32)
        place = {marks[i]: at for at, i in enumerate(first)}
        found = vectors[[place[mark] for mark in marks]]
        if keep and self.folder:
            self._write(key, found)
            for path in (self.folder / CACHE).glob(f"{key}-*.safetensors"):
                path.unlink()
        return found

    def _write(self, name: str, found: np.ndarray) -> None:
        if self.folder:
            tensors = {"features": torch.from_numpy(found), "mark": _mark(found)}
            write_whole(self.folder / CACHE / f"{name}.safetensors", lambda path: save_file(tensors, path))

    def _begun(self, key: str, width: int) -> list[np.ndarray]:
        """What was read before a kill: pieces, each named by where it begins."""
        found: list[np.ndarray] = []
        while (piece := self._kept(f"{key}-{sum(map(len, found))}", width)) is not None and len(piece):
            found.append(piece)
        return found

    def _kept(self, name: str, width: int) -> np.ndarray | None:
        path = self.folder and self.folder / CACHE / f"{name}.safetensors"
        if not path or not path.is_file():
            return None
        try:
            kept = load_file(path)
            found = kept["features"].numpy()
            whole = torch.equal(kept["mark"], _mark(found))
        except (OSError, SafetensorError, KeyError):  # damaged: it is made again
            return None
        return found if whole and found.ndim == 2 and found.shape[1] == width else None


def _mark(features: np.ndarray) -> torch.Tensor:
    """Of what features were when they were made."""
    return torch.tensor(list(blake2b(features.tobytes(), digest_size=16).digest()), dtype=torch.uint8)


def _linked(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)  # files of runs are replaced and never written into
    except OSError:
        shutil.copyfile(source, target)


def offered(settings: Settings, schema: Schema, task: type[Task]) -> dict[str, str]:
    """{kind: the tower that `--pretrained` would bring}, of a run of plait's own system without one."""
    able = _own(settings, task) and task.on_towers
    return {k: name for k, name in DEFAULTS.items() if able and any(s.kind == k for s in schema.slots)}


def _own(settings: Settings, task: type[Task]) -> bool:
    """Whether the model is plait's own."""
    return task.auto is None and model_info(settings.system).system.name == "auto"


def choose_towers(settings: Settings, schema: Schema, task: type[Task]) -> Towers:
    """Those that the settings ask for, with their weights. Raises UsageError for what cannot be, and where weights
    cannot be had."""
    asked = dict(settings.towers)
    if settings.pretrained is True:
        asked = offered(settings, schema, task) | asked
        if not asked and _own(settings, task):
            why = "no input column is text or image" if task.on_towers else f"the task is {task.choice}"
            raise UsageError(
                "--pretrained brings plait's own system towers that read text or image, to classify and regress, and "
                f"{why}: leave it out"
            )
    for kind, value in asked.items():
        told = f"--tower {kind}={value}: "
        if not _own(settings, task):
            name = task.auto or settings.system
            raise UsageError(f"{told}towers read for plait's own system, and the model is {name}: leave it out")
        if not task.on_towers:
            raise UsageError(f"{told}towers read for classify and regress, and the task is {task.choice}: leave it out")
        if kind not in DEFAULTS:
            raise UsageError(f"{told}expected {' or '.join(DEFAULTS)} for the kind")
        if not any(s.kind == kind for s in schema.slots):
            here = ", ".join(sorted({s.kind for s in schema.slots}))
            raise UsageError(f"{told}no input column is of that kind, there are {here}; --kind COLUMN={kind} makes one")
    return Towers({kind: _tower(kind, value, settings) for kind, value in asked.items()})


def _tower(kind: str, value: str, settings: Settings) -> Tower:
    name, _, place = value.partition(":")
    info, told = model_info(name), f"--tower {kind}={value}: "
    role = next((r for r in ROLES if r in info.roles), None)
    if info.takes != (kind,) or role is None:
        raise UsageError(
            f"{told}{info.name} is a {' and '.join(info.roles)} of {', '.join(info.takes)}, expected an "
            f"{' or a '.join(ROLES)} of {kind} alone, such as {DEFAULTS[kind]}"
        )
    if not place and settings.pretrained is not True:
        raise UsageError(
            f"{told}say where its files are, as {kind}={name}:FOLDER, or have them fetched with --pretrained"
        )
    arguments: dict[str, Any] = {"num_classes": 0} if role == "backbone" else {}
    if settings.image_size and "image" in model_class(info).fits:
        arguments["image"] = (settings.image_size, settings.image_size)
    mean, std = (tuple(info.weights.get(n, HALF)) for n in ("mean", "std"))
    recipe = BoundRecipe(info.name, arguments, role=role, mean=mean, std=std, slots={kind: {"kind": kind}})
    try:
        system = recipe.build(pretrained=place or True, mmap=False)
        words = None
        if kind == "text":
            words = Path(settings.tokenizer) if settings.tokenizer else published_tokenizer(info, place or True)
    except PlaitError as error:
        reason = str(error).split(": without a network")[0]
        way = "" if place else f"; with its published files here: --tower {kind}={name}:FOLDER"
        raise UsageError(f"{told}{reason}{way}") from error
    return Tower(kind, recipe, recipe.bind(system), words)


def load_towers(folder: Path, config: dict, *, adapted: bool = True, strict: bool = True) -> Towers:
    """Those of a run, from its folder. adapted: with the adapters that were trained for them. strict: raise DataError
    where their files are not what the run was trained on."""
    found = {}
    for kind, told in config.get("towers", {}).items():
        path = folder / HOME / f"{kind}.safetensors"
        with of_file(folder / CONFIG, f"towers.{kind}"), no_more_modules():
            recipe = BoundRecipe(**told["recipe"])
            system = build(recipe.name, **recipe.arguments)
            bound = recipe.bind(system)
        try:
            weights = read_weights(path)
            assign(bound, (([t], {key: t}) for key, t in weights.items()), release=weights.release)
        except ValueError as error:
            raise DataError(f"{path} is damaged or missing: {error}") from error
        initialise_rest(system)
        words = folder / HOME / TOKENIZER
        check(words)
        found[kind] = Tower(kind, recipe, bound, words if kind == "text" and words.is_file() else None)
        if strict and found[kind].digest != told["digest"]:
            raise DataError(f"{path} holds other weights than those that the run was trained on")
        if adapted and "adapter" in told:
            place = folder / HOME / f"{kind}_adapter"
            for name in (WEIGHTS, ADAPTER):
                check(place / name)
            try:
                found[kind].adapt(place)
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{place} is damaged or missing: {error}") from error
            if strict and found[kind].adapter != told["adapter"]:
                raise DataError(f"{place} holds other adapters than those that the run was trained with")
    return Towers(found, folder)
