"""`walcast restore` as it is typed: what it prints, its exit codes, its progress."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from support.archives import History
from support.run_command import run

from walcast.archive import ltx_key
from walcast.store import open_store
from walcast_node.commands.progress import Lines, Progress, progress_of
from walcast_node.commands.restore import restore_command


@pytest.fixture
def history(tmp_path: Path) -> History:
    """TXIDs 1 to 8, one a second: a snapshot at 4, single files after it."""
    made = History(open_store(str(tmp_path / "archive")))
    made.commit(8)
    made.put(9, 1, 4)
    for txid in range(5, 9):
        made.put(0, txid, txid)
    return made


def test_the_newest_state_a_time_and_a_txid(history: History, tmp_path: Path) -> None:
    url, out = history.store.url, tmp_path / "deep" / "app.db"
    done = run(restore_command, url, "-o", out)
    assert done.exit_code == 0
    assert done.stderr == ""
    said = f"restored {out} to {8:016x}/{history.checksum(8):016x}, 1970-01-01T00:00:08Z, from"
    assert done.stdout.startswith(said.partition(", from")[0])
    assert " from 5 files, " in done.stdout
    assert out.read_bytes() == history.states[8]
    for flags, txid in [
        (("--timestamp", "1970-01-01T00:00:06Z"), 6),
        (("--timestamp", "1970-01-01T02:00:06.999+02:00"), 6),
        (("--timestamp", "1970-01-01 00:00:05.999"), 5),
        (("--txid", f"{7:016x}"), 7),
        (("--txid", f"{7:016x}/{history.checksum(7):016x}"), 7),
    ]:
        assert run(restore_command, url, "-o", out, "--force", *flags).exit_code == 0
        assert out.read_bytes() == history.states[txid]


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["--timestamp", "yesterday"], 1, "'yesterday' is no time: write it like 2026-01-31T12:00:00Z"),
        (["--timestamp", "1970-01-01T00:00:03Z"], 1, "does not reach back to 1970-01-01T00:00:03Z"),
        (["--txid", "7"], 1, "'7' is no TXID: write its 16 hex digits"),
        (["--txid", f"{3:016x}"], 1, f"the oldest restorable is {4:016x}"),
        (["--txid", f"{9:016x}"], 1, f"the last one before it that it can restore is {8:016x}"),
        (["--txid", f"{5:016x}", "--timestamp", "2026-01-31"], 2, "not both"),
        (["--parallelism", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_is_one_line(
    history: History, tmp_path: Path, flags: list[str], code: int, complaint: str
) -> None:
    done = run(restore_command, history.store.url, "-o", tmp_path / "app.db", *flags)
    assert done.exit_code == code
    assert complaint in done.stderr
    assert not (tmp_path / "app.db").exists()
    if code == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert run(restore_command, history.store.url).exit_code == 2


def test_a_start_script_goes_on_when_there_is_nothing_to_do(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    flags = ("--if-db-not-exists", "--if-replica-exists")
    done = run(restore_command, tmp_path / "empty", "-o", out, *flags)
    assert (done.exit_code, done.stdout) == (0, "nothing done: the archive is empty\n")
    assert not out.exists()
    assert run(restore_command, tmp_path / "empty", "-o", out).exit_code == 1
    assert run(restore_command, history.store.url, "-o", out, *flags).exit_code == 0
    out.write_bytes(b"the app's")
    done = run(restore_command, history.store.url, "-o", out, *flags)
    assert (done.exit_code, done.stdout) == (0, "nothing done: the database exists\n")
    assert out.read_bytes() == b"the app's"
    # Files without a snapshot are no empty archive: an app must not begin anew over them.
    history.store.delete([ltx_key(history.store, 9, 1, 4)])
    out.unlink()
    done = run(restore_command, history.store.url, "-o", out, *flags)
    assert done.exit_code == 1
    assert "4 LTX files, but no snapshot" in done.stderr


def test_a_dry_run_shows_the_plan_and_the_time_as_understood(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    done = run(restore_command, history.store.url, "-o", out, "--dry-run", "--timestamp", "1970-01-01T02:00:06.5+02:00")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["level", "from", "TXID", "to", "TXID", "time", "bytes"]
    sizes = [len(history.store.get(ltx_key(history.store, *part))) for part in ((9, 1, 4), (0, 5, 5), (0, 6, 6))]
    assert [line.split() for line in lines[1:4]] == [
        ["9", f"{1:016x}", f"{4:016x}", "1970-01-01T00:00:04Z", f"{sizes[0]:,}"],
        ["0", f"{5:016x}", f"{5:016x}", "1970-01-01T00:00:05Z", f"{sizes[1]:,}"],
        ["0", f"{6:016x}", f"{6:016x}", "1970-01-01T00:00:06Z", f"{sizes[2]:,}"],
    ]
    assert lines[4] == "as of 1970-01-01T00:00:06.500Z:"
    assert lines[5].startswith(
        f"would restore {out} to {6:016x}/{history.checksum(6):016x}, 1970-01-01T00:00:06Z, a database of "
    )
    assert lines[5].endswith(" from 3 files, " + (f"{sum(sizes)} bytes" if sum(sizes) < 1024 else "1.0 KiB"))
    assert not out.exists()
    out.write_bytes(b"mine")
    done = run(restore_command, history.store.url, "-o", out, "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith(f"but {out} exists")


def test_facts_come_as_json_and_nothing_beside_them(history: History, tmp_path: Path) -> None:
    out = tmp_path / "app.db"
    planned = json.loads(run(restore_command, history.store.url, "-o", out, "--dry-run", "--json").stdout)
    assert (planned["dry_run"], planned["txid"], planned["time"]) == (True, f"{8:016x}", "1970-01-01T00:00:08Z")
    assert [file["max_txid"] for file in planned["files"]] == [f"{txid:016x}" for txid in (4, 5, 6, 7, 8)]
    assert planned["files"][1]["time"] == "1970-01-01T00:00:05Z"
    done = run(restore_command, history.store.url, "-o", out, "--json")
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts["position"] == planned["position"] == f"{8:016x}/{history.checksum(8):016x}"
    assert facts["bytes"] == planned["bytes"] == sum(file["bytes"] for file in facts["files"])
    assert (facts["pages"] * facts["page_size"], facts["went_around"]) == (len(history.states[8]), [])
    facts = json.loads(run(restore_command, history.store.url, "-o", out, "--json", "--if-db-not-exists").stdout)
    assert (facts["skipped"], facts["dry_run"], facts["position"]) == ("the database exists", False, None)


def test_what_was_gone_around_is_said(history: History, tmp_path: Path) -> None:
    key = history.put(1, 5, 7)
    history.store.put(key, b"nothing", timestamp_ms=0)
    done = run(restore_command, history.store.url, "-o", tmp_path / "app.db")
    assert done.exit_code == 0
    assert f"(around {key})" in done.stdout
    assert "going around a file of the archive" in done.stderr


def test_plain_progress_is_silent_for_five_seconds_then_a_line_in_five_and_one_at_the_end() -> None:
    now = 100.0
    out = io.StringIO()
    lines = Lines("restoring", out, lambda: now)
    for second in range(0, 13):
        now = 100.0 + second
        lines(second << 20, 12 << 20)
        lines(second << 20, 12 << 20)
    assert out.getvalue().splitlines() == [
        "restoring: 41%, 5 of 12 MiB, 1 MiB/s",
        "restoring: 83%, 10 of 12 MiB, 1 MiB/s",
        "restoring: 100%, 12 of 12 MiB, 1 MiB/s",
    ]
    short = io.StringIO()
    lines = Lines("restoring", short, lambda: now)
    lines(12, 12)
    assert short.getvalue() == ""


def test_a_bar_goes_away_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with progress_of("restoring", quiet=True) as nothing:
        assert nothing is None
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress_of("restoring") as bar:
        assert isinstance(bar, Progress)
        bar(1, 2)
        assert bar._bar is not None
    assert bar._bar is None
