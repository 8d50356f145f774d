"""What systems there are, read from their files' text: nothing is imported, so listing 300 systems needs no torch.

A system file declares, in plain literals: TAKES (modalities; one twice, where two columns of it are read), ROLES (what
tasks bind to), DEFAULT (the size that is meant when none is named), SIZES (rows of constructor arguments), WEIGHTS (per
size: who else has this variant, where its weights lie) and perhaps SIZE_ROLES and SIZE_TAKES (of sizes that differ) and
TAGS ("size.tag": what other weights of that size say otherwise).
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import gc
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from plait.core.literals import literals
from plait.errors import PlaitError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
SYSTEMS = Path(__file__).parent.parent / "systems"
PEERS = (
    "open_clip",
    "timm",
    "transformers",
    "official",
    "github",
)  # who else may have a variant: keys of a weights row
# what a weights row says of pictures, texts and sounds
CROP = ("crop_pct", "crop_mode", "interpolation")
READING = {"mean", "std", "image", *CROP, "rate", "tokenizer", "begin", "end", "closed", "max_tokens", "prefixes"}
CLASSES = "num_classes"  # what of a row of other weights is a constructor's argument
FILES = {"timm": "model.safetensors", "open_clip": "open_clip_model.safetensors"}  # of a hub's repository, by layout


@dataclass(frozen=True)
class System:
    """One system file's declarations."""

    name: str
    module: str
    summary: str
    takes: tuple[str, ...]
    roles: tuple[str, ...]
    size_roles: dict[str, tuple[str, ...]]  # of sizes whose roles are others
    size_takes: dict[str, tuple[str, ...]]  # of sizes that read others
    # constructor arguments whose values are names of other models, and which others are handed on to each of these
    parts: dict[str, tuple[str, ...]]
    default: str
    sizes: dict[str, dict]
    weights: dict[str, dict] = field(repr=False)
    tags: dict[str, dict] = field(repr=False)  # "size.tag": as the rows of `weights`
    paper: bool = False  # whether it says how its paper begins from nothing

    @property
    def title(self) -> str:
        return title(self.summary)


@dataclass(frozen=True)
class ModelInfo:
    """One size of one system: what `plait show` prints. tag: which of its published weights; "": the usual ones."""

    name: str
    size: str
    system: System
    tag: str = ""

    @property
    def takes(self) -> tuple[str, ...]:
        """The modalities that it reads; one that stands there twice is read from two columns."""
        return self.system.size_takes.get(self.size, self.system.takes)

    @property
    def slots(self) -> dict[str, str]:
        """{slot: modality} of what it reads, where that does not follow from a table: "image", or "image_0" and
        "image_1" where it reads two."""
        return slots_of(self.takes)

    @property
    def roles(self) -> tuple[str, ...]:
        """What it can be asked for, see `plait.core.roles`."""
        return self.system.size_roles.get(self.size, self.system.roles)

    @property
    def parts(self) -> dict[str, str]:
        """The models that this one is made of: {argument: name}."""
        return {part: name for part in self.system.parts if (name := self.arguments.get(part)) is not None}

    @property
    def arguments(self) -> dict:
        """The constructor arguments of this size; the number of classes is that of its weights."""
        return self.system.sizes[self.size] | {k: v for k, v in self._row.items() if k == CLASSES}

    @property
    def tags(self) -> tuple[str, ...]:
        """The other published weights of this size: "vit_base_patch16_224.dino" is a name as any other."""
        split = (key.rpartition(".") for key in self.system.tags)
        return tuple(tag for size, _, tag in split if size == self.size)

    @property
    def _row(self) -> dict:
        rows, key = (self.system.tags, f"{self.size}.{self.tag}") if self.tag else (self.system.weights, self.size)
        return rows.get(key, {})

    @property
    def weights(self) -> dict:
        """What using published weights needs; empty where nobody publishes any.

        Where they lie: hub, revision and file, or url; folders beside the file, each with another one, whose keys begin
        with the folder's name; sha256: of that file. source: their layout; part: the submodule that is published;
        under: the key of a pickle that holds several. licence. Of pictures mean and std; as in timm crop_pct, crop_mode
        ("center", "squash", or "floor": a middle that is rounded as by transformers) and interpolation, where they are
        known; image (H, W), where the model itself takes any size; classes: False where the head tells none, but
        projects. Of texts tokenizer ("owner/name/file" on the hub, or a URL), begin and end (ids), closed: False where
        no end is put after a text that is read, max_tokens (how many of a text it was used with), and prefixes, what
        was put before a text: {"query": before one that asks, "passage": before one that answers, "text": before any
        other}. Of sounds rate (Hz). pooling, where it is not the
        model's own. task: "answer", where what it writes of a picture are answers to questions.
        A model that is made of others reads pictures and texts as they do, where its own row says nothing else; one
        that has pictures of its own size crops none of them by another's rule.
        """
        theirs = READING - {*CROP} if "image" in self._row else READING
        parts = (model_info(name).weights.items() for name in self.parts.values())
        read = {key: value for row in parts for key, value in row if key in theirs}
        return read | {k: v for k, v in self._row.items() if k not in ("references", CLASSES)}

    @property
    def references(self) -> dict[str, str]:
        """{"timm": its name there}: who can check this variant."""
        return dict(self._row.get("references", {}))

    @property
    def parameters(self) -> int:
        """The number of parameters, counted on a model without storage (imports torch)."""
        return sum(p.numel() for p in build(self.name).parameters())


def slots_of(takes: Iterable[str]) -> dict[str, str]:
    """{slot: modality}: a slot is called as its modality; several of one are numbered."""
    kinds = list(takes)
    several = [f"{kind}_{kinds[:i].count(kind)}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]
    return dict(zip(several, kinds))


def list_models(
    pattern: str = "*", *, takes: Iterable[str] | None = None, roles: Iterable[str] | None = None, toys: bool = False
) -> list[str]:
    """Names of all sizes of all systems that match `pattern` (shell wildcards), read every modality in `takes` and have
    one of `roles`."""
    wanted = {takes} if isinstance(takes, str) else set(takes or ())
    return [
        f"{s.name}_{size}"
        for s in systems().values()
        for size in s.sizes
        if (toys or size != "toy")
        and wanted <= set(s.size_takes.get(size, s.takes))
        and fnmatch.fnmatch(f"{s.name}_{size}", pattern)
        if roles is None or set(roles) & set(ModelInfo(f"{s.name}_{size}", size, s).roles)
    ]


def model_info(name: str) -> ModelInfo:
    """The declarations of `name`: a system ("crossvit", meaning its default size), a size of one ("crossvit_small"), or
    other weights of a size ("swin_tiny_patch4_window7_224.ms_in22k").

    Raises ValueError for an unknown name, with the nearest known ones and, for a peer's name, ours.
    """
    known = systems()
    if name in known:
        return ModelInfo(f"{name}_{known[name].default}", known[name].default, known[name])
    for system in known.values():
        if not name.startswith(f"{system.name}_"):
            continue
        size = name.removeprefix(f"{system.name}_")
        if size in system.sizes:
            return ModelInfo(name, size, system)
        size, _, tag = size.rpartition(".")
        if f"{size}.{tag}" in system.tags:
            return ModelInfo(name, size, system, tag)
        if system.weights.get(size, {}).get("hub", "").endswith(f".{tag}"):  # that of its usual weights
            return ModelInfo(f"{system.name}_{size}", size, system)
    for broken, fault in _listed()[1].items():
        if name == broken or name.startswith(f"{broken}_"):
            raise PlaitError(f"{name} cannot be read: {fault}")
    everything = list_models(toys=True)
    size, _, tag = name.rpartition(".")
    if size in everything:
        others = model_info(size).tags
        raise PlaitError(
            f"{size} has no weights named {tag!r}: "
            + (f"expected one of {', '.join(others)}, or none for the usual ones" if others else "leave that out")
        )
    rows = {f"{s.name}_{k}": w["references"].values() for s in known.values() for k, w in (s.weights | s.tags).items()}
    alike = [ours for ours, peers in rows.items() if name.rsplit("/", 1)[-1] in peers]
    bare = [ours for ours, peers in rows.items() if _bare(name) in map(_bare, peers) and ours in everything]
    sizes = [n for n in everything if n.endswith(f"_{name}")]
    close = difflib.get_close_matches(name, [*known, *everything], 3, 0.5)
    near = alike or bare or sizes_called(name) or sizes[:3] or close
    hint = f"did you mean {' or '.join(near)}?" if near else "`plait models` lists them all."
    raise PlaitError(f"no model is named {name!r}: {hint}")


def sizes_called(name: str) -> list[str]:
    """The sizes that others call so, in the same words, whatever stands between them: a peer, or the hub; failing
    these, those whose size alone has the name."""
    rows = [(f"{s.name}_{size}", size, row) for s in systems().values() for size, row in (s.weights | s.tags).items()]
    elsewhere = [(ours, {*row.get("references", {}).values(), row.get("hub", "")} - {""}) for ours, _, row in rows]
    return (
        [ours for ours, names in elsewhere if _words(name) in map(_words, names)]
        or [ours for ours, names in elsewhere if _bare(name) in map(_bare, names)]
        or [ours for ours, size, _ in rows if size == name]
    )


def _words(name: str) -> list[str]:
    return sorted(re.findall(r"[a-z0-9]+", name.lower()))


def _bare(name: str) -> str:
    """A peer's name without its publisher, its tag and its capitals: "timm/vit_tiny_patch16_224.augreg" is
    "vit_tiny_patch16_224"."""
    return name.lower().rsplit("/", 1)[-1].split(".")[0]


def build(name: str, **arguments) -> nn.Module:
    """The model of `name` on the meta device: shapes without storage. `arguments` override those of its size."""
    import torch

    with torch.device("meta"):
        return construct(name, **arguments)


def construct(name: str, *, in_chans: int | None = None, **arguments) -> nn.Module:
    """The model of `name`, its weights not yet filled. in_chans: channels of the pictures that it reads, instead of
    three.

    Other models that it is made of are built by their names, with those arguments that are theirs, and handed to its
    class, which keeps each under the argument's name. What a model was built of, name and arguments, is its `origin`.
    """
    info = model_info(name)
    chosen = {**info.arguments, **arguments}
    theirs = handed_on(info, chosen)
    made = {part: construct(chosen[part], **own) for part, own in theirs.items()}
    left = {key: value for key, value in chosen.items() if not any(key in own for own in theirs.values())}
    model = model_class(info)(**left | made)
    if in_chans is not None:
        from plait.core.channels import see

        if {"codec", "masked"} & set(info.roles) and in_chans != 3:
            raise PlaitError(f"in_chans={in_chans}: {name} also makes pictures, which have three channels")
        see(model, in_chans)
    model.origin = (info.name, chosen if in_chans is None else chosen | {"in_chans": in_chans})
    return model


def handed_on(info: ModelInfo, chosen: dict) -> dict[str, dict]:
    """{part: the arguments among `chosen` that go on to it}, of each part that is named by a model's name. One that the
    part's class does not have, such as the picture's size where any is read, stops there."""
    named = {part: name for part in info.system.parts if isinstance(name := chosen.get(part), str)}
    return {
        part: {
            key: chosen[key]
            for key in info.system.parts[part]
            if key in chosen and key in inspect.signature(model_class(model_info(name))).parameters
        }
        for part, name in named.items()
    }


def model_class(info: ModelInfo) -> Any:
    """The class of the system's models (imports torch)."""
    return system_module(info).MODEL


def system_module(info: ModelInfo) -> ModuleType:
    """The system's file, imported."""
    return importlib.import_module(info.system.module)


def systems() -> dict[str, System]:
    """All systems by name, sorted."""
    return _listed()[0]


@cache
def _listed() -> tuple[dict[str, System], dict[str, str]]:
    return declared(SYSTEMS, _read)


def declared(room: Path, read: Callable[[Path], T]) -> tuple[dict[str, T], dict[str, str]]:
    """{name: what `read` finds in the file}, and {name: what is wrong with it} of files that it cannot read: one that
    is half written takes no other down."""
    found, faults = {}, {}
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is many objects, none of them garbage: to look for some takes as long as to parse
    try:
        for path in papers(room):
            try:
                found[path.stem] = read(path)
            except SyntaxError as error:
                faults[path.stem] = f"{path}, line {error.lineno}: {error.msg}"
            except PlaitError as error:
                faults[path.stem] = str(error)
    finally:
        if collecting:
            gc.enable()
    return found, faults


def papers(room: Path) -> list[Path]:
    """The files of `room`'s folders, one for each paper, by name. Raises PlaitError where two have one name."""
    found = sorted((p for p in room.glob("*/*.py") if not p.stem.startswith("_")), key=lambda p: (p.stem, p))
    for one, two in zip(found, found[1:]):
        if one.stem == two.stem:
            raise PlaitError(f"{one} and {two} have one name, which is what a paper is called by: rename one of them")
    return found


def title(summary: str) -> str:
    """The first paragraph of a file's docstring, the paper: title, authors, year, arXiv id."""
    return " ".join(summary.split("\n\n")[0].split())


def _read(path: Path) -> System:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = literals(tree)
    needed = ("TAKES", "ROLES", "DEFAULT", "SIZES", "WEIGHTS")
    if missing := [n for n in needed if n not in names]:
        raise PlaitError(f"{path} is no system file: it has no literal {', '.join(missing)}")
    parts = names.get("PARTS", ())
    return System(
        name=path.stem,
        module=f"plait.systems.{path.parent.name}.{path.stem}",
        summary=ast.get_docstring(tree) or "",
        takes=names["TAKES"],
        roles=names["ROLES"],
        size_roles=names.get("SIZE_ROLES", {}),
        size_takes=names.get("SIZE_TAKES", {}),
        parts=dict(parts) if isinstance(parts, dict) else dict.fromkeys(parts, ()),
        default=names["DEFAULT"],
        sizes=names["SIZES"],
        weights={size: _complete(row, names["TAKES"]) for size, row in names["WEIGHTS"].items()},
        tags={
            key: _complete(tagged(names["WEIGHTS"], key) | row, names["TAKES"])
            for key, row in names.get("TAGS", {}).items()
        },
        paper=any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "PAPER" for n in tree.body),
    )


def _complete(row: dict, takes: tuple[str, ...]) -> dict:
    """A weights row with what follows from it.

    A key named after a peer is a reference; True: by the hub's own name. A repository of timm's holds timm's layout,
    under the name before the dot. Each layout has its usual file. The tokenizer of text weights lies beside them.
    Pictures are cropped in the middle, as the peer rounds it, and resized bicubically.
    """
    row = dict(row)
    hub = row.get("hub", "")
    if hub.startswith("timm/") and "source" not in row:
        row = {"source": "timm", "timm": hub.removeprefix("timm/").split(".")[0]} | row
    if hub:
        row = {"file": FILES.get(row["source"], "pytorch_model.bin")} | row
        if "text" in takes and "part" not in row:
            row = {"tokenizer": f"{hub}/tokenizer.json"} | row
    if "crop_pct" in row:
        middle = "floor" if row.get("source", "").startswith("transformers") else "center"
        row = {"crop_mode": middle, "interpolation": "bicubic"} | row
    peers = {peer: row.pop(peer) for peer in PEERS if peer in row}
    return row | {"references": {peer: hub if name is True else name for peer, name in peers.items()}}


def tagged(weights: dict[str, dict], key: str) -> dict:
    """What the row of "size.tag" has of its size's: all but the name of timm's weights."""
    size, _, tag = key.rpartition(".")
    if (row := weights.get(size)) is None:
        raise PlaitError(
            f"TAGS has {key!r}, and WEIGHTS has no row {size!r}: other weights are told by their difference"
        )
    hub, theirs = row.get("hub", ""), row.get("timm", "")
    if hub.startswith("timm/"):
        hub, theirs = f"{hub.split('.')[0]}.{tag}", theirs or hub.removeprefix("timm/")
    return row | {"hub": hub, "timm": f"{theirs.split('.')[0]}.{tag}"}
