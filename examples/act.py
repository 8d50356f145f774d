"""A policy from what others did and got, a trajectory a row; it is asked for a return. On the command line:

plait fit treasures.parquet --task act
plait predict runs/treasures begun.parquet -o next.csv
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq

import plait
from plait.data.worlds import trajectories

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
table = trajectories(out, "treasures", episodes=200)  # the columns states, actions and rewards: lists, a step an item

run = plait.fit(table, task="act", system="decision_transformer_toy", epochs=12, lr=3e-3, out=out / "treasures")
for score in run.assessments["test"].scores:  # of the world that the column `world` names, and of the table
    print(score)
begun = {name: [cell[:3] for cell in pq.read_table(table)[name].to_pylist()[:4]] for name in ("states", "rewards")}
print(run.predict(begun).to_pandas())  # what to do after the third state, to earn the most
