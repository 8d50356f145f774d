"""`plait verify`: whether the files of a run are as they were written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from plait.cli.options import Json, RunFolder
from plait.cli.output import Answer, lines


def verify(run: RunFolder, json: Json = False) -> Answer:
    """Check that the files of a run are as they were written: right, changed, missing, or unknown.

    Files are compared with the run's manifest, checkpoints with their seals; runs that lie in it count too. The exit
    code is 0 where none is changed or missing, and 3 otherwise.

    $ plait verify runs/pets
    """
    from plait.cli.shell import DATA
    from plait.runs.manifest import verify as look

    found = look(Path(run))
    counts = Counter(one.state for one in found)
    if not json:
        lines(("state", "file", ""), [(one.state, one.file, one.why) for one in found])
    data = {"run": run, "files": [one._asdict() for one in found], "counts": dict(counts)}
    wrong = [one.file for one in found if one.state in ("changed", "missing")]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Answer(data, DATA, f"{run}: {', '.join(wrong[:3])}{more} not as written: bring back a copy, or fit anew")
    return Answer(data)
