"""`plait use` and `plait weights` as they are typed: what is said, what is refused, what is left behind; and a hub of
our own, asked by the hub's own client."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import plait
from plait.cli import main
from plait.errors import UsageError
from plait.runs import use as using
from tests import published
from tests.pocket import ENDS, VOCAB, pocket

CLIP = dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, vocab=VOCAB, length=16, text_width=32, text_depth=2)
CLIP |= dict(text_heads=2, embed=16)
BERT = dict(vocab=VOCAB, length=24, width=32, depth=2, heads=2)


def said(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return code, out.getvalue(), err.getvalue()


def write(name: str, folder: Path, source: str, tokenizer) -> None:
    """Random weights of a size and its tokenizer, as they are published."""
    folder.mkdir(parents=True)
    state = plait.save_weights(plait.create_model(name, seed=5), source)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    tokenizer(VOCAB).save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with published files of a CLIP and a BERT, photos and notes."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos" / "red").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(home / "photos" / "red" / f"{i}.png")
    (home / "notes.csv").write_text("day,note\n1,the red cat\n2,a dog on the mat\n3,\n")
    (home / "two.csv").write_text("title,body\nred cat mat,the dog is blue\na dog here,the cat is small\n")
    with (
        pocket("clip", "vit_b_32", CLIP, **ENDS["clip"], file="model.safetensors") as clip,
        pocket("bert", "l2_h128", BERT) as bert,
    ):
        write(clip, home / "clip", "open_clip", published.clip)
        write(bert, home / "bert", "google", published.bert)
        before = Path.cwd()
        os.chdir(home)
        yield home
        os.chdir(before)


@pytest.fixture(scope="module")
def clip(home) -> str:
    code, out, err = said("use", "clip_pocket", "--weights", "clip", "-o", "runs/clip")
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert lines[0][0] == "model" and lines[0][1].startswith("clip_pocket: CLIP: Learning Transferable")
    assert lines[1][-1].endswith("M parameters, reads image and text, licence mit".split(maxsplit=2)[-1])
    assert [words for label, words in lines if label == "next"] == [
        "plait embed runs/clip photos/ -o vectors.parquet",
        "plait search runs/clip photos/ --text TEXT",
        "plait predict runs/clip photos/ --classes NAME,NAME -o answers.csv",
    ]
    return "runs/clip"


def test_a_run_embeds_searches_and_names(clip, home):
    written = {"config.json", "schema.json", "model.safetensors", "manifest.json"}
    assert {p.name for p in Path(clip).iterdir()} == written
    assert not [p for p in Path("runs").iterdir() if p.name.startswith(".")]
    code, out, _ = said("embed", clip, "photos/", "-o", "vectors.parquet")
    assert code == 0 and out == "saved     vectors.parquet: 4 rows, vector of 16\n"
    for where in ("photos/", "vectors.parquet", "photos/red/2.png"):
        code, out, err = said("search", clip, where, "--text", "a red door", "-k", "2", "--json")
        assert code == 0 and len(json.loads(out)["hits"]) == (1 if where.endswith("png") else 2), err
    code, out, _ = said("search", clip, "photos/", "--image", "photos/red/1.png", "--show", "hits.png")
    assert code == 0 and out.split("\n")[1].split()[-1] == "red/1.png" and Path("hits.png").is_file()
    Path("names.txt").write_text("cat\n\ndog\n")
    tables = []
    for names in ("cat, dog", "names.txt"):
        words = ("--classes", names, "--template", "a {}", "--template", "the {}", "-o", "answers.parquet")
        assert said("predict", clip, "photos/", *words)[0] == 0
        tables.append(pq.read_table("answers.parquet"))
    assert tables[0].equals(tables[1])
    assert tables[0].column_names == ["row", "label", "probability", "p(cat)", "p(dog)", "unread"]
    Path("labels.csv").write_text(
        "image,label\n" + "".join(f"photos/red/{i}.png,{'cat' * (i % 2) or 'dog'}\n" for i in range(4))
    )
    code, out, _ = said("evaluate", clip, "labels.csv", "--classes", "cat,dog", "--json")
    found = json.loads(out)
    scores = {s["name"]: s["value"] for s in found["scores"]}
    assert code == 0 and scores["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert {s["name"]: s["value"] for s in found["baseline"]} == {"accuracy": 0.5, "log loss": pytest.approx(np.log(2))}


def test_any_column_of_the_kind_is_read_and_none_is_guessed_among_several(home):
    assert said("use", "bert_pocket", "--weights", "bert", "-o", "runs/words")[0] == 0
    code, out, _ = said("embed", "runs/words", "notes.csv", "-o", "notes.parquet")
    made = pq.read_table("notes.parquet")
    assert (
        code == 0
        and made["vector"].null_count == 1
        and made["text"].to_pylist()[:2] == ["the red cat", "a dog on the mat"]
    )
    code, _, err = said("embed", "runs/words", "two.csv", "-o", "two.parquet")
    assert (
        code == 2 and "several columns that might be meant: title, body for 'text'" in err and "--kind NAME=KIND" in err
    )
    assert said("use", "bert_pocket", "--weights", "bert", "-o", "runs/bodies", "--kind", "body=text")[0] == 0
    assert said("embed", "runs/bodies", "two.csv", "-o", "two.parquet")[0] == 0
    again = plait.load("runs/words").embed({"text": ["the dog is blue", "the cat is small"]})
    assert pq.read_table("two.parquet")["vector"].equals(again["vector"])
    code, _, err = said("embed", "runs/words", "photos/", "-o", "two.parquet")
    assert code == 3 and "none of the input columns 'text'" in err
    code, _, err = said("use", "bert_pocket", "--weights", "bert", "-o", "runs/x", "--kind", "photo=image")
    assert code == 2 and "--kind photo=image: bert_pocket reads one column each of text" in err


@pytest.mark.parametrize(
    "words, why",
    [
        (
            ("predict", "runs/clip", "photos/", "-o", "a.csv"),
            "no column 'text': this run tells how alike two columns are",
        ),
        (("predict", "runs/clip", "photos/", "--classes", "cat", "-o", "a.csv"), "got 'cat', expected two or more"),
        (
            ("predict", "runs/clip", "photos/", "--classes", "cat,dog", "--template", "a cat", "-o", "a.csv"),
            "has no {}",
        ),
        (("predict", "runs/clip", "photos/", "--template", "a {}", "-o", "a.csv"), "--template is for --classes"),
        (("predict", "runs/clip", "photos/", "--classes", f"cat,{'dog ' * 40}", "-o", "a.csv"), "too long"),
        (("predict", "runs/words", "notes.csv", "-o", "a.csv"), "cannot predict: this run gives vectors"),
        (("predict", "runs/words", "notes.csv", "--classes", "a,b", "-o", "a.csv"), "does not compare texts"),
        (("evaluate", "runs/words", "notes.csv"), "cannot evaluate: this run gives vectors and answers nothing"),
        (
            ("fit", "--resume", "runs/clip"),
            "as it was published: to train on from its weights, plait fit TABLE --system",
        ),
        (
            ("use", "clip_pocket", "--weights", "clip", "-o", "runs/clip"),
            "runs/clip already exists: give another --out",
        ),
        (
            ("use", "clip_nano", "-o", "runs/y"),
            "clip_nano is published nowhere that plait knows.*Published are clip_vit_b_32,",
        ),
        (
            ("use", "llava_1.5_7b", "-o", "runs/y"),
            "embed, tell classes, caption, answer or transcribe: llava_1.5_7b is a generator of image, text",
        ),
        (("use", "dit_xl_2", "-o", "runs/y"), "is a part of it, which does nothing without training"),
        (
            ("use", "vilt_b_32", "-o", "runs/y"),
            "vilt_b_32 is a fuser of image, text. To train from its weights: plait fit",
        ),
        (("use", "clip_vit_b_33", "-o", "runs/y"), "did you mean clip_vit_b_32"),
        (("use", "timm/vit_base_patch16_clip_224.openai", "-o", "runs/y"), "clip_vit_b_16_quickgelu, vit_clip_base"),
        (
            ("use", "clip_pocket", "--weights", "nowhere", "-o", "runs/y"),
            "no weights file at nowhere|no tokenizer.json beside",
        ),
        (("use", "clip_pocket", "--weights", "bert", "-o", "runs/y"), "not the tokenizer of clip_pocket's weights"),
        (
            ("use", "clip_pocket", "--weights", "clip", "--classes", "names.txt", "-o", "runs/y"),
            "no classes of its own",
        ),
        (("weights", "fetch"), "expected nothing, fetch NAME or remove NAME"),
        (("weights", "--offline"), "nothing else uses the network"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_what_has_no_sense_is_refused_in_a_sentence(clip, words, why):
    if "runs/words" in words and not Path("runs/words").exists():
        assert said("use", "bert_pocket", "--weights", "bert", "-o", "runs/words")[0] == 0
    code, _, err = said(*words)
    assert code == 2 and err.startswith("plait: ") and err.count("\n") == 1, err
    assert re.search(why, err), err
    assert not Path("a.csv").exists() and not Path("runs/y").exists()


def test_a_run_is_shown_and_changed(clip):
    code, out, _ = said("show", clip)
    told = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("try"))
    assert (
        code == 0
        and told["model"] == "clip_pocket (embedder)"
        and told["weights"].endswith("clip/model.safetensors, licence mit")
    )
    assert "reads       image: image, size [32, 32], crop {'crop_pct': 1.0" in out and "max_tokens 16" in out
    assert said("change", clip, "--method", "int8", "-o", "runs/small")[0] == 0
    before, after = (np.asarray(plait.load(r).embed("photos")["vector"].to_pylist()) for r in (clip, "runs/small"))
    assert 0 < np.abs(before - after).max() < 0.05


def test_what_is_interrupted_leaves_nothing(home, monkeypatch):
    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    save = using.save_run
    monkeypatch.setattr(using, "save_run", save_and_stop)
    before = sorted(p.name for p in Path("runs").iterdir())
    code, _, err = said("use", "clip_pocket", "--weights", "clip", "-o", "runs/stopped")
    assert (code, err) == (130, "plait: interrupted\n") and sorted(p.name for p in Path("runs").iterdir()) == before


def test_python_gives_the_same_run(clip, home, tmp_path):
    run = plait.use("clip_pocket", weights="clip/model.safetensors", folder=tmp_path / "run")
    assert isinstance(run, plait.Run) and run.embed("photos").equals(plait.load(clip).embed("photos"))
    frames = pa.table({"photo": [Path(f"photos/red/{i}.png").read_bytes() for i in range(4)], "n": range(4)})
    assert run.embed(frames)["vector"].equals(run.embed("photos")["vector"])
    pairs = frames.append_column("said", pa.array(["the red cat", "a dog on the mat", "the blue square", "in a mat"]))
    found = run.evaluate(pairs.select(["photo", "said"]))
    assert {s.n for s in found.scores} == {4} and "text to image, recall@1" in [s.name for s in found.scores]
    assert len(run.predict(pairs)["similarity"]) == 4
    with pytest.raises(UsageError, match="expected a list of names"):
        run.named("cat")
    assert run.used["licence"] == "mit" and plait.load(run.folder).used == run.used


@pytest.fixture
def hub(tmp_path):
    """(address, requests): a server of the files under `tmp_path / "hub"`, as the hub's client asks for them."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, whole: bool) -> None:
            repo, _, file = self.path.lstrip("/").partition("/resolve/main/")
            path = tmp_path / "hub" / repo / file
            if file:  # the client asks other things too
                asked.append((self.command, f"{repo}/{file}"))
            self.send_response(200 if path.is_file() else 404)
            content = path.read_bytes() if path.is_file() else b""
            commit = hashlib.sha1(repo.encode()).hexdigest()  # the client tells repositories apart by their commits
            for name, value in (("X-Repo-Commit", commit), ("ETag", f'"{len(content)}"')):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if whole else b"")

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    http.server_close()


TYPED = """
import sys, json
from plait.cli import main
from tests.pocket import pocket
with pocket("bert", "l2_h128", json.loads(sys.argv[1])):
    for line in sys.stdin.read().splitlines():
        print("$", line, flush=True)
        print("=", main(line.split()), flush=True)
"""


def typed(lines: str, cwd: Path, **environment: str) -> list[str]:
    """What each line prints, in a process of its own: the hub's client reads its settings when it is imported."""
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HOME": str(cwd / "cache"),
        "HF_HUB_OFFLINE": "0",
        **environment,
    }
    environment |= {"TORCH_HOME": str(cwd / "cache"), "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", TYPED, json.dumps(BERT)]
    done = subprocess.run(
        words, input=lines, cwd=cwd, env=os.environ | environment, stdout=-1, stderr=-2, text=True, timeout=120
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout.split("$ ")[1:]


def test_what_is_fetched_lies_in_the_cache_until_it_is_removed(home, hub, tmp_path):
    address, asked = hub
    weights = tmp_path / "hub" / "google" / "bert_uncased_L-2_H-128_A-2" / "pytorch_model.bin"
    words = tmp_path / "hub" / "google-bert" / "bert-base-uncased" / "tokenizer.json"
    weights.parent.mkdir(parents=True), words.parent.mkdir(parents=True)
    torch.save(load_file(home / "bert" / "model.safetensors"), weights)
    shutil.copy(home / "bert" / "tokenizer.json", words)
    shutil.copy(home / "notes.csv", tmp_path)
    lines = ["weights", "use bert_pocket --offline -o a", "weights fetch bert_pocket", "weights --json"]
    lines += ["weights fetch bert_pocket --offline", "use bert_pocket --offline -o b", "embed b notes.csv -o v.parquet"]
    lines += ["use google/bert_uncased_L-2_H-128_A-2 -o c"]
    told = typed("\n".join(lines), tmp_path, HF_ENDPOINT=address)
    assert told[0].endswith("in all    0 bytes in 0 places\n= 0\n")
    assert "pytorch_model.bin (offline); bring that file here" in told[1] and told[1].endswith("= 2\n")
    assert told[2].count("\nhere ") == 2 and "licence apache-2.0" in told[2] and told[2].endswith("= 0\n")
    found = json.loads(told[3].splitlines()[-2])["weights"]
    assert [h["where"] for h in found][0] == "google/bert_uncased_L-2_H-128_A-2" and len(found) == 2
    assert {"bert_pocket", "bert_l2_h128"} <= set(found[0]["names"]) and found[0]["licence"] == "apache-2.0"
    assert found[0]["bytes"] == weights.stat().st_size and found[1]["bytes"] == words.stat().st_size
    assert all(part.endswith("= 0\n") for part in told[4:7]) and "\nsaved     v.parquet: 3 rows" in told[6]
    assert "is the name of several: give one of bert_l2_h128, bert_pocket\n" in told[7]
    fetched = [path for command, path in asked if command == "GET"]
    assert fetched == [
        "google/bert_uncased_L-2_H-128_A-2/pytorch_model.bin",
        "google-bert/bert-base-uncased/tokenizer.json",
    ]
    begun, gone = time.monotonic(), "http://127.0.0.1:9"  # a port that nobody listens at
    lines = ["use bert_pocket -o c", "weights remove bert_pocket", "weights", "use bert_pocket -o d"]
    told = typed("\n".join(lines), tmp_path, HF_ENDPOINT=gone)
    assert time.monotonic() - begun < 20 and told[0].endswith("= 0\n")  # what is here needs no network
    assert "\nremoved " in told[1] and "(also bert_l2_h128)" in told[1]
    assert "google-bert/bert-base-uncased\n" in told[2] and "1 place\n" in told[2]  # whose words others read too
    assert told[3].count("\nplait: ") == 1 and "(Connection refused); bring that file here another way" in told[3]
    assert not (tmp_path / "a").exists() and not (tmp_path / "d").exists()
    assert plait.load(tmp_path / "c").used["licence"] == "apache-2.0"
