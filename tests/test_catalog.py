"""The catalogue: what is listed, what is said of each size, and what happens to a name that is none of ours."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys

import pytest

import plait
from plait.core.catalog import SYSTEMS, ModelInfo, _complete, _read, sizes_called, systems, tagged
from plait.core.methods import METHODS
from plait.core.roles import ROLES
from plait.data.kinds import KINDS
from plait.errors import PlaitError
from plait.tasks import tasks_of

WORDS = {"tokenizer", "begin", "end", "closed", "max_tokens", "prefixes"}
PICTURES = {"image", "crop_pct", "crop_mode", "interpolation"}
LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "bsd-3-clause-clear", "cc-by-nc-4.0", "apple-ascl", "apple-amlr"}
LICENCES |= {"llama1", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"}
LICENCES |= {"qwen", "qwen-research", "tongyi-qianwen", "none stated"}
every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in systems().values()])


@every_system
def test_what_is_read_as_text_is_what_the_module_says(system):
    module = importlib.import_module(system.module)
    assert (module.TAKES, module.ROLES, module.DEFAULT) == (system.takes, system.roles, system.default)
    assert module.SIZES == system.sizes
    assert {size: _complete(row, system.takes) for size, row in module.WEIGHTS.items()} == system.weights
    tags = {key: tagged(module.WEIGHTS, key) | row for key, row in getattr(module, "TAGS", {}).items()}
    assert {key: _complete(row, system.takes) for key, row in tags.items()} == system.tags
    assert " ".join(module.__doc__.split("\n\n")[0].split()) == system.title


@every_system
def test_tables_are_a_line_a_row(system):
    (path,) = SYSTEMS.glob(f"*/{system.name}.py")
    lines = path.read_text().split("\n")
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
            "SIZES",
            "WEIGHTS",
            "SIZE_ROLES",
            "SIZE_TAKES",
            "TAGS",
        ):
            table = lines[node.lineno - 1 : node.end_lineno]
            assert len(table) == (len(node.value.keys) + 2 if node.value.keys else 1), node.targets[0].id
            assert max(map(len, table)) <= 120


@every_system
def test_a_system_is_declared_whole(system):
    assert {"toy", system.default} <= set(system.sizes) and system.default != "toy"
    assert set(system.weights) <= set(system.sizes)
    assert set(system.roles) <= set(ROLES) and tasks_of(plait.model_info(system.name))
    assert "New here:" in system.summary and re.search(r"\b20\d\d\. ?(arXiv:\d{4}\.\d{5}\.)?$", system.title), (
        system.title
    )


@every_system
def test_every_row_says_where_the_weights_lie_and_under_which_terms(system):
    rules = getattr(importlib.import_module(system.module), "RULES", {})
    for size in [*system.sizes, *system.tags]:
        info = plait.model_info(f"{system.name}_{size}")
        row = info.weights
        if not set((system.weights | system.tags).get(size, {})) - {"references"}:
            continue  # nobody publishes any
        assert not {"hub", "url"} <= set(row), info.name  # neither: the files are there, but behind a page for people
        assert row["licence"] in LICENCES and row["source"] in rules, info.name
        if "hub" in row:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", row["hub"]) and row["file"].endswith(
                (".safetensors", ".bin", ".index.json")
            ), info.name
        elif "url" in row:
            assert row["url"].startswith("https://"), info.name
        if "image" in info.takes:
            assert len(row["mean"]) == len(row["std"]) == 3, info.name
            assert all(0 <= m < 1 and 0 < s <= 1 for m, s in zip(row["mean"], row["std"])), info.name
        if "text" in info.takes and "part" not in row:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+/tokenizer.json|https://.+", row["tokenizer"]), info.name
            # one token between texts begins and ends them where a model has only ever gone on
            assert row["begin"] != row["end"] or info.roles == ("generator",), info.name
            assert set(row.get("prefixes", {})) <= {"text", "query", "passage"}, info.name
        assert set(row) <= {
            "hub",
            "revision",
            "sha256",
            "under",
            "rate",
            "pooling",
            "file",
            "folders",
            "url",
            "source",
            "licence",
            "mean",
            "std",
            "part",
            "classes",
            "task",
            *WORDS,
            *PICTURES,
        }, info.name
        assert set(info.references) <= {"timm", "transformers", "open_clip", "official", "github"}, info.name


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CENTER, SQUASH = (
    dict(crop_mode=mode, interpolation="bicubic", crop_pct=1.0, file="open_clip_model.safetensors", source="open_clip")
    for mode in ("center", "squash")
)


@pytest.mark.parametrize(
    "name, references, row",
    [
        (
            "deit_tiny_patch16_224",
            {"timm": "deit_tiny_patch16_224"},
            IMAGENET
            | dict(hub="timm/deit_tiny_patch16_224.fb_in1k", file="model.safetensors", source="timm")
            | dict(licence="apache-2.0", crop_pct=0.9, crop_mode="center", interpolation="bicubic"),
        ),
        (
            "maxvit_base_tf_224_in21k",
            {"timm": "maxvit_base_tf_224.in21k"},
            HALF
            | dict(hub="timm/maxvit_base_tf_224.in21k", file="model.safetensors", source="timm", image=(224, 224))
            | dict(licence="apache-2.0", crop_pct=0.95, crop_mode="center", interpolation="bicubic"),
        ),
        ("davit_huge", {"timm": "davit_huge"}, {}),
        (
            "bert_large_cased",
            {"transformers": "google-bert/bert-large-cased"},
            dict(hub="google-bert/bert-large-cased", file="model.safetensors", source="google", licence="apache-2.0")
            | dict(tokenizer="google-bert/bert-large-cased/tokenizer.json", begin=101, end=102),
        ),
        (
            "bert_l2_h128",
            {"transformers": "google/bert_uncased_L-2_H-128_A-2"},
            dict(hub="google/bert_uncased_L-2_H-128_A-2", file="pytorch_model.bin", source="google")
            | dict(tokenizer="google-bert/bert-base-uncased/tokenizer.json", begin=101, end=102, licence="apache-2.0"),
        ),
        (
            "clip_vit_l_14",
            {"open_clip": "ViT-L-14", "transformers": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"},
            HALF
            | CENTER
            | dict(hub="laion/CLIP-ViT-L-14-laion2B-s32B-b82K", licence="mit", begin=49406, end=49407)
            | dict(tokenizer="laion/CLIP-ViT-L-14-laion2B-s32B-b82K/tokenizer.json"),
        ),
        (
            "clip_vit_b_32_quickgelu",
            {"open_clip": "ViT-B-32-quickgelu", "transformers": "openai/clip-vit-base-patch32"},
            SEEN
            | CENTER
            | dict(hub="timm/vit_base_patch32_clip_224.openai", licence="mit", begin=49406, end=49407)
            | dict(tokenizer="timm/vit_base_patch32_clip_224.openai/tokenizer.json"),
        ),
        (
            "clip_vit_bigg_14_worldwide_378",
            {"open_clip": "ViT-bigG-14-worldwide-378"},
            SEEN
            | SQUASH
            | dict(hub="timm/vit_gigantic_patch14_clip_378.metaclip2_worldwide", licence="cc-by-nc-4.0", begin=0, end=2)
            | dict(tokenizer="timm/vit_gigantic_patch14_clip_378.metaclip2_worldwide/tokenizer.json"),
        ),
        (
            "git_base_vatex",
            {"transformers": "microsoft/git-base-vatex"},
            SEEN
            | dict(hub="microsoft/git-base-vatex", file="pytorch_model.bin", source="transformers", licence="mit")
            | dict(tokenizer="microsoft/git-base-vatex/tokenizer.json", begin=101, end=102),
        ),
        (
            "hornet_base_gf_img384",
            {"github": "raoyongming/HorNet hornet_base_gf_img384"},
            IMAGENET
            | dict(source="official", licence="mit", crop_pct=1.0, crop_mode="squash", interpolation="bicubic")
            | dict(image=(384, 384)),
        ),
        (
            "univitar_0.3b",
            {},
            IMAGENET
            | dict(hub="MM-MVR/UniViTAR-0.3B", file="pytorch_model.bin", source="official", licence="apache-2.0"),
        ),
    ],
)
def test_what_follows_from_a_row_is_not_spelt_and_is_there(name, references, row):
    info = plait.model_info(name)
    assert (info.references, info.weights) == (references, row)


def test_no_two_sizes_claim_one_file_or_one_peer():
    """But for a tower's and that of the pair it is published with: those are two systems."""
    rows = [plait.model_info(n) for n in plait.list_models()]
    found = [(i.system.name, i.weights) for i in rows if {"hub", "url"} & set(i.weights)]
    files = [(system, row.get("hub") or row["url"], row.get("file")) for system, row in found]
    peers = [pair for i in rows for pair in i.references.items()]
    assert len(files) == len(set(files)) and len(peers) == len(set(peers))


def test_other_weights_of_a_size_have_its_name_and_a_tag():
    usual, other = (plait.model_info(f"swin_tiny_patch4_window7_224{tag}") for tag in ("", ".ms_in22k"))
    assert other.tag == "ms_in22k" in usual.tags and (other.size, other.system) == (usual.size, usual.system)
    assert other.weights == usual.weights | {"hub": "timm/swin_tiny_patch4_window7_224.ms_in22k"}
    assert other.arguments == usual.arguments | {"num_classes": 21841} and "num_classes" not in usual.arguments
    assert other.references == {"timm": "swin_tiny_patch4_window7_224.ms_in22k"}
    assert plait.model_info("swin_tiny_patch4_window7_224.ms_in1k") == usual  # what the usual ones are called there
    assert other.parameters - usual.parameters == (21841 - 1000) * 769
    with pytest.raises(PlaitError, match=r"no weights named 'in1k': expected one of ms_in22k_ft_in1k, ms_in22k"):
        plait.model_info("swin_tiny_patch4_window7_224.in1k")
    with pytest.raises(PlaitError, match=r"no weights named 'in1k': leave that out"):
        plait.model_info("swin_nano.in1k")
    with pytest.raises(PlaitError, match=r"did you mean swin_tiny_patch4_window7_224\.ms_in22k\?"):
        plait.model_info("timm/swin_tiny_patch4_window7_224.ms_in22k")


def test_a_list_can_be_narrowed():
    names = plait.list_models()
    assert len(names) > 100 and len(names) == len(set(names))
    assert plait.list_models("crossvit_*_dagger*") == [n for n in names if n.startswith("crossvit_") and "dagger" in n]
    assert plait.list_models("no such thing") == []
    both = plait.list_models(takes={"image", "text"})
    assert {"clip_nano", "albef_nano", "auto_small"} <= set(both) and not {"vit_nano", "bert_nano"} & set(both)
    assert plait.list_models(takes="text") == plait.list_models(takes=["text"])
    assert all("retrieve" in tasks_of(plait.model_info(n)) for n in plait.list_models(task="retrieve"))
    assert "vit_nano" not in plait.list_models(task="match") and "vilt_nano" not in plait.list_models(task="retrieve")
    assert plait.list_models("vit_*", takes="image", task="classify") == plait.list_models("vit_*")


def test_toys_are_shown_on_request_alone():
    assert not [n for n in plait.list_models() if n.endswith("_toy")]
    assert len([n for n in plait.list_models(toys=True) if n.endswith("_toy")]) == len(systems())
    assert plait.model_info("vit_toy").size == "toy"


def test_every_listed_name_is_known_and_gives_its_own_facts():
    for name in plait.list_models(toys=True):
        info = plait.model_info(name)
        assert isinstance(info, ModelInfo) and info.name == name == f"{info.system.name}_{info.size}"
        takes = info.system.size_takes.get(info.size, info.system.takes)
        assert info.takes == takes and set(takes) <= set(KINDS) and "references" not in info.weights
    info = plait.model_info("vit_tiny_patch16_224")
    assert info.parameters == 5_717_416  # as timm counts them
    assert info.arguments == dict(width=192, depth=12, heads=3, patch=16) and info.references == {
        "timm": "vit_tiny_patch16_224"
    }
    assert tasks_of(info) == ("classify", "ordinal", "regress", "restore") and info.takes == ("image",)


def test_a_system_alone_means_its_default_size():
    for system in systems().values():
        assert plait.model_info(system.name).name == f"{system.name}_{system.default}"


def test_what_is_said_of_a_size_cannot_be_changed_by_its_reader():
    info = plait.model_info("vit_nano")
    info.arguments["width"] = 1
    assert plait.model_info("vit_nano").arguments["width"] == 192


@pytest.mark.parametrize(
    "name, ours",
    [
        ("crosvit_small", "crossvit_small"),
        ("bert_base_uncase", "bert_base_uncased"),
        ("vit_small_patch14_reg4_dinov2", "dinov2_small_patch14_reg4"),
        ("crossvit_15_dagger_240", "crossvit_15_dagger"),
        ("timm/vit_base_patch16_clip_224.openai", "vit_clip_base_patch16_224"),
        ("google-bert/bert-base-uncased", "bert_base_uncased"),
        ("bert-base-uncased", "bert_base_uncased"),
        ("ViT-B-32", "clip_vit_b_32"),
        ("vit-b-32", "clip_vit_b_32"),
        ("openai/clip-vit-base-patch16", "clip_vit_b_16_quickgelu"),
        ("dandelin/vilt-b32-mlm", "vilt_b_32"),
    ],
)
def test_an_unknown_name_leads_to_ours(name, ours):
    with pytest.raises(ValueError, match=rf"no model is named '{re.escape(name)}': did you mean {re.escape(ours)}\b"):
        plait.model_info(name)


@pytest.mark.parametrize("name", ["", "zzzz", "yolov8"])
def test_a_name_like_none_of_ours_leads_to_the_list(name):
    with pytest.raises(ValueError, match="plait models"):
        plait.model_info(name)


def test_a_file_that_declares_nothing_is_named():
    with pytest.raises(ValueError, match=r"tokens.py is no system file: it has no literal TAKES, ROLES"):
        _read(SYSTEMS.parent / "core" / "tokens.py")


@pytest.mark.parametrize("kind, folder", [("catalog", SYSTEMS), ("methods", METHODS)])
def test_two_files_of_one_name_raise(kind, folder, tmp_path, monkeypatch):
    """Else the later one would hide the other."""
    home = tmp_path / folder.name
    shutil.copytree(folder, home)
    module = importlib.import_module(f"plait.core.{kind}")
    monkeypatch.setattr(module, folder.name.upper(), home)
    list_all = getattr(module, folder.name)
    cached = module._listed
    cached.cache_clear()
    try:
        one = next(p for p in sorted(home.glob("*/*.py")) if p.name != "__init__.py")
        assert one.stem in list_all()
        two = next(p for p in sorted(home.iterdir()) if p.is_dir() and p != one.parent and p.name[0] != "_") / one.name
        shutil.copy(one, two)
        cached.cache_clear()
        with pytest.raises(PlaitError, match="have one name") as error:
            list_all()
        assert str(one) in str(error.value) and str(two) in str(error.value)
    finally:
        cached.cache_clear()


@pytest.mark.parametrize("kind, folder", [("catalog", SYSTEMS), ("methods", METHODS)])
@pytest.mark.parametrize(
    "text, fault", [('"""Half written.', "line 1"), ("x = 1", "broken.py is no (system|method) file")]
)
def test_a_broken_file_is_one_broken_name(kind, folder, text, fault, tmp_path, monkeypatch):
    home = tmp_path / folder.name
    shutil.copytree(folder, home)
    module = importlib.import_module(f"plait.core.{kind}")
    monkeypatch.setattr(module, folder.name.upper(), home)
    before = list(getattr(module, folder.name)())
    room = next(p for p in sorted(home.iterdir()) if p.is_dir() and p.name[0] != "_")
    (room / "broken.py").write_text(text)
    module._listed.cache_clear()
    try:
        assert list(getattr(module, folder.name)()) == before
        info = plait.model_info if kind == "catalog" else module.method_info
        with pytest.raises(PlaitError, match=fault) as error:
            info("broken")
        assert "broken cannot be read" in str(error.value) and "broken.py" in str(error.value)
    finally:
        module._listed.cache_clear()


def test_the_catalogue_needs_no_torch():
    code = """if True:
        import sys, plait
        assert plait.list_models() and plait.model_info("vit").arguments
        assert plait.model_info("clip").weights is not None
        heavy = {"torch", "numpy", "transformers"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, ours",
    [
        ("openai/clip-vit-base-patch32", ["clip_vit_b_32_quickgelu"]),
        ("clip_vit_base_patch32_openai", ["clip_vit_b_32_quickgelu"]),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ["clip_vit_b_32"]),
        ("ViT-B-32", ["clip_vit_b_32"]),
        ("microsoft/git-base-coco", ["git_base_coco"]),
        ("l2_h128", ["bert_l2_h128"]),
        ("", []),
        ("zzzz", []),
    ],
)
def test_what_others_call_a_size(name, ours):
    assert sizes_called(name) == ours
