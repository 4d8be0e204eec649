"""What an archive costs: objects put and bytes sent in an hour, at 1, 100 and 10,000 commits a second.

Three primaries at once, each with an app that commits one row of 150 bytes (LZ4 halves it) at its pace, archiving into
folders with the default policy, for five and a half minutes: raw uploads and levels 1 and 2. Level 3 and the daily
snapshot come on top: two objects an hour at most, and at most the compressed database each. Counted are the files that
appear, and what the deletion leaves at the end; an hour is what was counted, stretched.
"""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

from bench.harness import Child, Run, make_database, say
from bench.measure import Measure

RATES = (1, 100, 10_000)
SECONDS, QUICK_SECONDS = 330, 75
LOOK_S = 2.0
ROW_KINDS = 999
FILE = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.ltx")


def look(archive: Path, seen: dict[Path, int]) -> None:
    """Note the files that are there, and their sizes."""
    for file in archive.glob("ltx/*/*.ltx"):
        if FILE.fullmatch(file.name) and file not in seen:
            try:
                seen[file] = file.stat().st_size
            except FileNotFoundError:
                continue


def start(run: Run, folder: Path, rate: int, seconds: int) -> tuple[Path, Child]:
    """A primary with an archive, and an app that is ready to write."""
    db, archive = folder / f"app{rate}.db", folder / f"archive{rate}"
    make_database(db)
    run.primary(db, archive)
    return archive, run.worker("paced", db, rate * seconds, rate, ROW_KINDS)


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    seconds = QUICK_SECONDS if run.quick else SECONDS
    seen: dict[int, dict[Path, int]] = {rate: {} for rate in RATES}
    with run.stage() as folder:
        apps = {rate: start(run, folder, rate, seconds) for rate in RATES}
        time.sleep(2.0)  # the first snapshot, of an empty database, is not of the hour
        for rate, (archive, _) in apps.items():
            look(archive, seen[rate])
        first = {rate: set(files) for rate, files in seen.items()}
        for _, app in apps.values():
            app.go()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(LOOK_S)
            for rate, (archive, _) in apps.items():
                look(archive, seen[rate])
        measures: list[Measure] = []
        for rate, (archive, app) in apps.items():
            app.json(120)
            with sqlite3.connect(folder / f"app{rate}.db") as db:
                rows = db.execute("SELECT count(*) FROM t").fetchone()[0]
            look(archive, seen[rate])
            new = {file: size for file, size in seen[rate].items() if file not in first[rate]}
            measures += of(rate, rows / seconds, new, archive, 3600 / seconds)
            say(f"{rate} commits/s: {len(new)} objects, {sum(new.values()) / 1e6:.1f} MB in {seconds} s")
    return measures


def of(rate: int, reached: float, new: dict[Path, int], archive: Path, stretch: float) -> list[Measure]:
    """One rate's rows."""
    raw = {file: size for file, size in new.items() if file.parent.name == "0"}
    stays = sum(1 for _ in archive.glob("ltx/*/*.ltx"))
    note = f"{reached:,.0f} commits/s reached"
    name = f"{rate:,} commits/s"
    return [
        Measure(f"{name}: objects put, raw", "an hour", [len(raw) * stretch], at_most=3600.0 * 1.02, note=note),
        Measure(f"{name}: objects put, all levels", "an hour", [len(new) * stretch]),
        Measure(f"{name}: sent, raw", "MB an hour", [sum(raw.values()) / 1e6 * stretch]),
        Measure(f"{name}: sent, all levels", "MB an hour", [sum(new.values()) / 1e6 * stretch]),
        Measure(f"{name}: objects there at the end", "", [float(stays)]),
    ]
