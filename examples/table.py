"""A table with holes: checked, learnt, scored, and used for new rows. On the command line:

plait check wine.csv --target cultivar
plait fit wine.csv --target cultivar
plait predict runs/wine wine.csv -o answers.csv
"""

import sys
from pathlib import Path

from sklearn.datasets import load_wine

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
frame = load_wine(as_frame=True).frame
frame["cultivar"] = frame.pop("target").map({0: "red", 1: "white", 2: "rose"})
frame.loc[::7, "alcohol"] = None  # missing cells are normal

new, known = frame[::10].reset_index(drop=True), frame.drop(frame.index[::10]).reset_index(drop=True)
run = plait.fit(known, target="cultivar", epochs=20, folds=1, out=out / "wine")  # judged below, by rows of our own
print(*run.evaluate(new).scores[:2], sep="\n")

answers = plait.load(out / "wine").predict(new.drop(columns="cultivar"))  # the same run, later
print(answers.slice(0, 3).to_pandas())
