"""What looking at a table costs beside reading its file: `plait check` of rows x 30 columns of seven sorts.

    python benchmarks/reading.py [--rows 1000000] [--columns 30] [--as csv] [--keep FOLDER]

Each measurement is a process of its own. Seconds are of the whole command, which begins with imports; memory is its
largest resident set (`ru_maxrss`) above that of a process with the same imports. Beside it: pyarrow alone reading the
file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

WORDS = np.array("red green blue small big round square old new fast slow cat dog tree house river".split())
RUNS = {
    "imports": "import plait.data.check, plait.tasks.registry, plait.cli.shell, pyarrow.csv, pyarrow.parquet",
    "pyarrow": "import pyarrow.csv, pyarrow.parquet\n"
    "pyarrow.csv.read_csv({0!r}) if {0!r}.endswith('csv') else pyarrow.parquet.read_table({0!r})",
    "check": "import plait.cli; assert plait.cli.main(['check', {0!r}, '--target', 'column_2', '--quiet']) == 0",
}


def column(sort: int, n: int, rng: np.random.Generator) -> pa.Array:
    """Whole numbers, decimals, categories, dates, short texts, booleans, and decimals of which a tenth is missing."""
    whole = rng.integers(0, 100_000, n)
    if sort == 2:
        return pa.array(WORDS).take(pa.array(rng.integers(0, 5, n)))
    if sort == 3:
        days = rng.integers(0, 8000, n).astype("datetime64[D]")
        return pa.array(days).cast(pa.string())
    if sort == 4:
        parts = [pa.array(WORDS).take(pa.array(rng.integers(0, len(WORDS), n))) for _ in range(4)]
        return pa.compute.binary_join_element_wise(*parts, pa.array(whole).cast(pa.string()), " ")
    if sort == 5:
        return pa.array(whole % 2 == 0)
    values = rng.standard_normal(n).round(4) + 0.0  # no -0.0, which is no plain number
    return pa.array(whole) if sort == 0 else pa.array(values, mask=(whole < 10_000) & (sort == 6))


def write(path: Path, rows: int, columns: int) -> None:
    """A table in blocks of rows, so that it may be larger than the memory."""
    rng, block, out = np.random.default_rng(0), 250_000, None
    for start in range(0, rows, block):
        n = min(block, rows - start)
        data = pa.table({f"column_{i}": column(i % 7, n, rng) for i in range(columns)})
        if out is None:
            out = (pa.csv.CSVWriter if path.suffix == ".csv" else pa.parquet.ParquetWriter)(str(path), data.schema)
        out.write_table(data)
    out.close()


def measure(what: str, path: Path) -> tuple[float, float, float]:
    """Seconds, those of all cores, and MiB of the largest resident set, of a process with its imports."""
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", RUNS[what].format(str(path))])
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, f"{what} ended with {status}"
    return time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rows", type=int, default=1_000_000)
    ask.add_argument("--columns", type=int, default=30)
    ask.add_argument("--as", dest="form", choices=("csv", "parquet"), default="csv")
    ask.add_argument("--keep", type=Path, help="a folder for the table, which is used again")
    ask.add_argument("--only", choices=list(RUNS)[1:], action="append")
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as scrap:
        path = (given.keep or Path(scrap)) / f"{given.rows}x{given.columns}.{given.form}"
        if not path.exists():
            write(path, given.rows, given.columns)
        size = path.stat().st_size / 2**20
        first, _, bare = measure("imports", path)
        print(f"{path.name}: {size:,.0f} MiB; imports alone take {first:.1f} s and hold {bare:,.0f} MiB")
        for what in given.only or list(RUNS)[1:]:
            seconds, cores, memory = measure(what, path)
            memory -= bare
            spent = f"{seconds:8.1f} s ({cores:.1f} s of cores)"
            print(f"{what:8} {spent} {memory:8,.0f} MiB, {memory / size:.1f} of the file")


if __name__ == "__main__":
    main()
