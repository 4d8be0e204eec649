"""What only a deposed node had is kept aside, whole and readable, before it is overwritten."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.e2e_oracle import Served, entries, replay, served
from support.writers import checkpointed, sql

from walcast import ltx, wire
from walcast.archive import list_files, plan_restore
from walcast.archive.contents import contents_of
from walcast.checksum import PageChecksums
from walcast.discarded import Circumstances, list_discarded, rebuild, trees_of
from walcast.discarded import folder as folder_module
from walcast.errors import ConfigError, Corrupt, DiskFull, Unavailable
from walcast.position import Position, format_txid
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast.store.directory import DirectoryStore
from walcast_follower.apply import overwritten_pages as keeping_module
from walcast_follower.apply.applier import Applier, ChecksumMismatch
from walcast_follower.apply.overwritten_pages import Keeping
from walcast_follower.apply.position_journal import Journal
from walcast_follower.bootstrap.page_copy import from_primary
from walcast_primary.database import Database
from walcast_primary.publish.base_copy import copy_pages
from walcast_primary.recovery.divergent_log import ForkNotInLog, discard
from walcast_primary.transaction_log.transaction_log import Known, TransactionLog

PAGE_SIZE = 4096
TERM = 3
SCHEMA = """
    PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; BEGIN;
    CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, owner TEXT NOT NULL);
    CREATE INDEX accounts_by_balance ON accounts (balance);
    CREATE TABLE "odd 'name" (k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID;
    CREATE TABLE quiet (id INTEGER PRIMARY KEY, body BLOB);
    CREATE TABLE doomed (id INTEGER PRIMARY KEY, body BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
        INSERT INTO accounts SELECT i, i * 10, 'owner ' || i FROM n;
    INSERT INTO "odd 'name" SELECT owner, randomblob(50) FROM accounts;
    INSERT INTO quiet SELECT id, randomblob(300) FROM accounts;
    INSERT INTO doomed SELECT id, randomblob(900) FROM accounts;
    COMMIT; PRAGMA wal_checkpoint(TRUNCATE);
"""
# What only the old primary committed: one statement each.
ALONE = (
    "UPDATE accounts SET balance = balance + 1 WHERE id = 7",
    "UPDATE accounts SET owner = 'nobody' WHERE id = 8",
    """INSERT INTO "odd 'name" VALUES ('only here', randomblob(9000))""",
    "DROP TABLE doomed",
    "VACUUM",
    "CREATE TABLE late AS SELECT id FROM accounts",
)
WHY = "its tenure was over and 10.0.0.2:7420 leads"


class Crash(BaseException):
    """The process ends here."""


def create(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(SCHEMA)
    db.close()
    return path


def because(database: Path) -> Circumstances:
    return Circumstances(database, WHY, new_primary="10.0.0.2:7420", new_term=TERM + 1, archive="s3://bucket/app")


@dataclass
class Deposed:
    """A primary that has stopped: its log, the file at the fork and the one at its end."""

    path: Path
    log: TransactionLog
    fork: Position
    end: Position
    at_fork: bytes
    at_end: bytes

    @property
    def why(self) -> Circumstances:
        return because(self.path)

    def discard(self) -> Any:
        return discard(self.log, self.fork, self.why)

    def folders(self) -> list[str]:
        root = state_dir(self.path) / "discarded"
        return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Deposed:
    """Made once: nothing here is changed by a test but the `discarded` folder."""
    path = create(tmp_path_factory.mktemp("deposed") / "app.db")
    with served(path) as app, sql(path) as one:
        app.database.log.term = TERM
        one("UPDATE accounts SET balance = 0 WHERE id = 1")
        fork = app.position
        at_fork = replay(app.base, app.database.log, app.base_position)
        for statement in ALONE:
            one(statement)
            _ = app.position  # an entry each
        end = app.position
        app.stop()
    return Deposed(path, app.database.log, fork, end, at_fork, checkpointed(path))


@pytest.fixture
def deposed(shared: Deposed) -> Iterator[Deposed]:
    yield shared
    shutil.rmtree(state_dir(shared.path) / "discarded", ignore_errors=True)


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return facts


def names(touched: list[dict[str, Any]]) -> set[str]:
    return {tree["name"] for tree in touched}


# Transactions


def test_every_transaction_after_the_fork_is_kept_as_the_log_has_it(deposed: Deposed) -> None:
    kept = deposed.discard()
    assert kept.path == state_dir(deposed.path) / "discarded" / (
        f"{format_txid(deposed.fork.txid + 1)}-{format_txid(deposed.end.txid)}-term{TERM}"
    )
    expected = {
        ltx.format_filename(entry.min_txid, entry.max_txid): entry.read()
        for entry in entries(deposed.log, deposed.fork)
    }
    assert len(expected) == len(ALONE)
    assert {file.name: file.read_bytes() for file in kept.path.glob("*.ltx")} == expected
    assert (kept.min_txid, kept.max_txid, kept.term) == (deposed.fork.txid + 1, deposed.end.txid, TERM)
    assert (kept.files, kept.bytes) == (len(expected), sum(map(len, expected.values())))
    assert list_discarded(deposed.path) == [kept]


def test_the_kept_files_over_the_database_at_the_fork_are_the_database_of_the_deposed(
    deposed: Deposed, tmp_path: Path
) -> None:
    """By the very command that summary.txt gives."""
    kept = deposed.discard()
    (tmp_path / "base.db").write_bytes(deposed.at_fork)
    lines = (kept.path / "summary.txt").read_text().splitlines()
    (command,) = (line.strip() for line in lines if line.endswith("base.db old.db") and "sqldiff" not in line)
    done = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert str(deposed.end) in done.stdout
    assert (tmp_path / "old.db").read_bytes() == deposed.at_end
    differences = [shlex.split(line)[-1] for line in lines if line.strip().startswith("sqlite3 old.db")]
    found = [row for query in differences for row in rows_of(tmp_path, query)]
    assert (8, 80, "nobody") in found
    assert any("only here" in row for row in found)


def rows_of(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What a command of summary.txt prints; nothing for the table that is not in both."""
    attach, select = query.split("; ")
    db = sqlite3.connect(folder / "old.db")
    db.execute(attach.replace("base.db", str(folder / "base.db")))
    both = "late" not in select
    rows = db.execute(select).fetchall() if both else []
    db.close()
    return rows


def test_the_kept_files_pass_as_files_of_an_archive(deposed: Deposed, tmp_path: Path) -> None:
    kept = deposed.discard()
    level = tmp_path / "ltx" / "0"
    level.mkdir(parents=True)
    for file in kept.path.glob("*.ltx"):
        ltx.decode_file(file.read_bytes())
        shutil.copy(file, level)
    store = DirectoryStore(tmp_path)
    assert plan_restore(list_files(store), after_txid=deposed.fork.txid)[-1].max_txid == deposed.end.txid
    contents = contents_of(store)
    assert [(found.level, found.files, found.holes) for found in contents.levels] == [(0, len(ALONE), ())]


def test_the_summary_names_the_tables_and_indexes_that_were_touched(deposed: Deposed) -> None:
    kept = deposed.discard()
    facts = facts_of(kept.path)
    first, second, third, *_ = facts["first_files"]
    assert facts["tables_note"] is None
    assert first["tables"]
    assert facts["files"] == len(ALONE)
    assert (facts["base"], facts["end"], facts["term"]) == (str(deposed.fork), str(deposed.end), TERM)
    assert facts["why"] == WHY
    assert first["pages"] == len(first["page_numbers"]["first"]) > 0
    assert second["min_txid"] == format_txid(deposed.fork.txid + 2)
    text = (kept.path / "summary.txt").read_text()
    for said in (WHY, "10.0.0.2:7420, term 4", str(deposed.fork), "index accounts_by_balance", "of accounts", "late"):
        assert said in text, said
    assert f"walcast restore s3://bucket/app -o base.db --txid {format_txid(deposed.fork.txid)}" in text
    assert str(third["pages"]) in text


def test_pages_are_counted_for_the_table_that_has_them(tmp_path: Path) -> None:
    """Without a VACUUM in between, which gives pages to others."""
    path = create(tmp_path / "app.db")
    with served(path) as app, sql(path) as one:
        fork = app.position
        for statement in ALONE[:3]:
            one(statement)
            _ = app.position
        app.stop()
    kept = discard(app.database.log, fork, because(path))
    assert kept is not None
    facts = facts_of(kept.path)
    touched = [names(file["tables"]) for file in facts["first_files"]]
    assert touched[0] == {"accounts", "accounts_by_balance"}
    assert touched[1] == {"accounts"}
    assert touched[2] == {"odd 'name", "sqlite_schema"}, "page 1 has the size of the database, and the table grew"
    by_name = {tree["name"]: tree for tree in facts["tables"]}
    assert set(by_name) == {"accounts", "accounts_by_balance", "odd 'name", "sqlite_schema"}
    assert by_name["accounts_by_balance"]["kind"] == "index"
    assert by_name["accounts_by_balance"]["table"] == "accounts"
    assert sum(tree["pages"] for tree in facts["tables"]) == facts["distinct_pages"]


def test_nothing_after_the_fork_is_nothing_kept(deposed: Deposed) -> None:
    assert discard(deposed.log, deposed.end, deposed.why) is None
    assert deposed.folders() == []
    assert list_discarded(deposed.path) == []


@pytest.mark.parametrize(
    ("txid", "checksum", "known"),
    [(0, 0, Known.DIVERGED), (1, 1, Known.DIVERGED), (1 << 40, 1, Known.DIVERGED)],
)
def test_a_fork_that_is_not_in_the_log_is_refused(deposed: Deposed, txid: int, checksum: int, known: Known) -> None:
    fork = Position(deposed.fork.txid - 1 + txid if txid else 0, checksum)
    with pytest.raises(ForkNotInLog) as raised:
        discard(deposed.log, fork, deposed.why)
    assert (raised.value.fork, raised.value.known) == (fork, known)
    assert deposed.folders() == []


def test_an_entry_that_rotted_is_not_kept_as_if_it_were_whole(
    deposed: Deposed, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = list(entries(deposed.log, deposed.fork))[2]
    pread = os.pread

    def rotten(fd: int, count: int, offset: int) -> bytes:
        data = bytearray(pread(fd, count, offset))
        at = victim.offset + ltx.HEADER_SIZE + 40 - offset
        if fd == victim.segment.fd and 0 <= at < len(data):
            data[at] ^= 1
        return bytes(data)

    monkeypatch.setattr(os, "pread", rotten)
    with pytest.raises(Corrupt):
        deposed.discard()
    assert deposed.folders() == []


def crash_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], bool]:
    """End the process before its disk operation number `step`: what would tidy up does not run any more either."""
    done = 0

    def counted(real: Callable[..., Any], alive: bool) -> Callable[..., Any]:
        def one(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if alive:
                if done >= step:
                    raise Crash
                done += 1
            elif done >= step:
                return None
            return real(*arguments, **options)

        return one

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (folder_module, "create_file")):
        patch.setattr(owner, name, counted(getattr(owner, name), True))
    patch.setattr(shutil, "rmtree", counted(shutil.rmtree, False))
    return lambda: done >= step


def test_a_crash_at_any_step_leaves_nothing_half_and_the_repeat_keeps_it_once(deposed: Deposed) -> None:
    for step in range(100):
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, step)
            try:
                deposed.discard()
                crashed = False
            except Crash:
                crashed = True
        there = list_discarded(deposed.path)
        assert len(there) <= 1
        assert all(found.is_whole and found.why == WHY for found in there)
        kept = deposed.discard()
        assert list_discarded(deposed.path) == [kept]
        assert deposed.folders() == [kept.path.name]
        assert len(list(kept.path.iterdir())) == len(ALONE) + 2
        if there:
            assert there == [kept], "written twice"
        if not crashed:
            break
        shutil.rmtree(state_dir(deposed.path) / "discarded")
    assert step >= 2 + 2 * (len(ALONE) + 2) + 4


def test_a_full_disk_is_said_and_leaves_nothing_behind(deposed: Deposed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as caught:
        deposed.discard()
    assert caught.value.path == state_dir(deposed.path) / "discarded"
    assert deposed.folders() == []


def test_of_more_than_a_node_can_have_lost_nothing_is_kept_nor_overwritten(
    deposed: Deposed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile primary can have its follower leave its history again and again."""
    monkeypatch.setattr(folder_module, "KEPT_MOST", 3)
    root = state_dir(deposed.path) / "discarded"
    for txid in range(3):
        (root / f"{format_txid(2 + txid)}-{format_txid(2 + txid)}-term1").mkdir(parents=True)
    with pytest.raises(Unavailable, match="looked at"):
        deposed.discard()
    assert len(deposed.folders()) == 3


def test_what_lost_a_file_or_is_another_state_is_kept_beside(deposed: Deposed) -> None:
    kept = deposed.discard()
    next(iter(kept.path.glob("*.ltx"))).unlink()
    again = deposed.discard()
    assert again.path.name == f"{kept.path.name}.2"
    assert deposed.discard() == again
    assert [found.is_whole for found in list_discarded(deposed.path)] == [False, True]


def test_a_folder_without_a_readable_summary_is_still_listed(deposed: Deposed) -> None:
    kept = deposed.discard()
    (kept.path / "summary.json").write_text("{")
    (found,) = list_discarded(deposed.path)
    assert (found.min_txid, found.max_txid, found.term, found.why) == (kept.min_txid, kept.max_txid, TERM, "")


def test_a_long_list_is_cut_in_its_middle(deposed: Deposed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walcast.discarded.summary.FILES_SHOWN", 2)
    monkeypatch.setattr("walcast.discarded.summary.PAGES_SHOWN", 1)
    kept = deposed.discard()
    facts = facts_of(kept.path)
    assert [file["min_txid"] for file in facts["first_files"] + facts["last_files"]] == [
        format_txid(deposed.fork.txid + n) for n in (1, 2, len(ALONE) - 1, len(ALONE))
    ]
    assert facts["files_left_out"] == len(ALONE) - 4
    assert facts["page_numbers"]["left_out"] == facts["distinct_pages"] - 2
    assert f"… {len(ALONE) - 4:,} more …" in (kept.path / "summary.txt").read_text()


def test_tables_that_cannot_be_told_are_said_not_to_be_known(tmp_path: Path) -> None:
    path = create(tmp_path / "app.db")
    assert trees_of(path, timeout_s=-1.0).note.startswith("only in part")
    assert trees_of(path, stop=lambda: True).note
    assert "cannot be opened" in trees_of(tmp_path / "none.db").note
    whole = trees_of(path)
    assert not whole.note
    data = bytearray(path.read_bytes())
    data[100:110] = b"\xff" * 10  # the root of the schema
    (tmp_path / "bad.db").write_bytes(data)
    assert trees_of(tmp_path / "bad.db").note


def test_a_database_is_not_rebuilt_over_another_state_unless_told_to(deposed: Deposed, tmp_path: Path) -> None:
    kept = deposed.discard()
    base = tmp_path / "base.db"
    base.write_bytes(deposed.at_end)
    out = tmp_path / "out.db"
    with pytest.raises(ConfigError, match=r"see summary\.txt"):
        rebuild(kept.path, base, out)
    assert [path.name for path in tmp_path.iterdir()] == ["base.db"]
    rebuild(kept.path, base, out, anyway=True)
    assert out.exists()
    with pytest.raises(ConfigError, match="exists"):
        rebuild(kept.path, base, out)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "walcast.discarded", str(tmp_path), "base.db", "out.db"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path}: no LTX files; give a folder of APP.db-walcast/discarded/\n",
    )


# The pages that a copy takes away


class DirectCopy:
    """A copy over no network; `before_end` is called when the pages have been sent."""

    def __init__(self, database: Database, theirs: bytes, before_end: Callable[[], object]) -> None:
        self.replies = copy_pages(database, theirs)
        self.start = pb.CopyStart()
        self._before_end = before_end
        self._reads = 0

    async def read(self) -> pb.CopyReply:
        self._reads += 1
        if self._reads == 2:
            self._before_end()
        return await anext(self.replies)


class DirectStream:
    def __init__(self, log: TransactionLog, start: Position) -> None:
        self.welcome = pb.Welcome(term=log.term, position=wire.position_message(log.position, log.term))
        self._entries = entries(log, start)

    async def read(self) -> pb.PrimaryMessage:
        data = next(self._entries).read()
        return pb.PrimaryMessage(chunk=pb.Chunk(data=data, ends=[len(data)]))


class DirectClient:
    """The new primary, a real one, in this process."""

    primary = wire.Address("10.0.0.2", 7420)

    def __init__(self, app: Served, before_end: Callable[[], object] = lambda: None) -> None:
        self._app = app
        self.before_end = before_end

    @asynccontextmanager
    async def copy(
        self, page_size: int, sums: Any, *, term: int = 0, last_mismatched: bool = False, rounds: bool = False
    ) -> AsyncIterator[DirectCopy]:
        copy = DirectCopy(self._app.database, sums.astype("<u8").tobytes(), self.before_end)
        copy.start = (await anext(copy.replies)).start
        yield copy
        await copy.replies.aclose()

    @asynccontextmanager
    async def stream(self, position: Position, term: int, *, observer: bool = False) -> AsyncIterator[DirectStream]:
        yield DirectStream(self._app.database.log, position)


@dataclass
class Pair:
    """Two histories of one database: `client` is the new primary's, `applier` a replica of the old one's."""

    app: Served
    client: DirectClient
    path: Path
    state: Path
    applier: Applier
    old: bytes

    def copy(self) -> None:
        asyncio.run(
            from_primary(
                self.client,  # type: ignore[arg-type]
                self.path,
                self.state,
                self.applier,
                keeping=because(self.path),
            )
        )

    def now(self) -> bytes:
        """What is in the replica."""
        assert self.applier.checkpoint().complete
        self.applier.close()
        return self.path.read_bytes()


OLD_HISTORY = """
    UPDATE accounts SET owner = 'of the old history' WHERE id IN (5, 300);
    INSERT INTO quiet SELECT NULL, zeroblob(3000) FROM accounts LIMIT 300;
    PRAGMA wal_checkpoint(TRUNCATE);
"""
NEW_HISTORY = (
    "UPDATE accounts SET owner = 'of the new history' WHERE id IN (5, 100)",
    "UPDATE doomed SET body = zeroblob(900) WHERE id = 400",
)
# One page comes by the stream alone, behind pages with higher numbers, and one a second time.
WHILE_COPIED = """
    BEGIN;
    UPDATE quiet SET body = zeroblob(300) WHERE id = 50;
    UPDATE accounts SET owner = 'newer' WHERE id = 5;
    COMMIT;"""
OLD_TXID = 77


@pytest.fixture(params=[OLD_TXID, 0], ids=["at a known position", "at an unknown one"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """The old one is longer; the new one goes on while it is copied, in a page that is in both till then."""
    path = create(tmp_path / "old" / "app.db")
    (tmp_path / "new").mkdir()
    shutil.copyfile(path, tmp_path / "new" / "app.db")
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(OLD_HISTORY)
    db.close()
    old = path.read_bytes()
    state = state_dir(path)
    journal = Journal(state)
    if request.param:
        checksum = PageChecksums.scan(PAGE_SIZE, iter([(1, old)])).database
        journal.append(TERM, Position(request.param, checksum), 0)
    journal.close()
    with served(tmp_path / "new" / "app.db") as app, sql(app.path) as one:
        app.database.log.term = TERM + 1
        for statement in NEW_HISTORY:
            one(statement)
        client = DirectClient(app, lambda: one(WHILE_COPIED))
        applier = Applier.open(path, state)
        assert applier.position.txid == request.param
        yield Pair(app, client, path, state, applier, old)
        applier.close()


def test_the_pages_that_a_copy_takes_away_are_kept_as_they_were(pair: Pair, tmp_path: Path) -> None:
    known = pair.applier.position
    pair.copy()
    (kept,) = list_discarded(pair.path)
    (file,) = kept.path.glob("*.ltx")
    header, pages, trailer = ltx.decode_file(file.read_bytes())
    new_position = pair.applier.position
    new = pair.now()
    assert new_position == pair.app.position
    old_pages, new_pages = len(pair.old) // PAGE_SIZE, len(new) // PAGE_SIZE
    assert new_pages < old_pages

    def at(data: bytes, pgno: int) -> bytes:
        return data[(pgno - 1) * PAGE_SIZE : pgno * PAGE_SIZE]

    lost = {pgno for pgno in range(1, old_pages + 1) if at(pair.old, pgno) != at(new, pgno)}
    assert lost == {page.pgno for page in pages}
    assert len(lost) < old_pages - 100, "only those"
    assert all(page.data == at(pair.old, page.pgno) for page in pages)
    assert header.commit_pages == old_pages
    assert header.pre_checksum == new_position.checksum
    assert trailer.post_checksum == PageChecksums.scan(PAGE_SIZE, iter([(1, pair.old)])).database
    assert header.min_txid == header.max_txid == (known.txid or new_position.txid)
    assert kept.term == (TERM if known else 0)
    (tmp_path / "base.db").write_bytes(new)
    rebuild(kept.path, tmp_path / "base.db", tmp_path / "old.db")
    assert (tmp_path / "old.db").read_bytes() == pair.old
    facts = facts_of(kept.path)
    assert names(facts["tables"]) >= {"accounts", "quiet", "doomed"}, "as they were"
    text = (kept.path / "summary.txt").read_text()
    assert str(new_position) in text
    assert known.txid or "its TXID is not known" in text


def test_a_copy_that_is_repeated_keeps_the_old_state_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, held = pair.applier.commit, []

    def crash(*arguments: Any) -> None:
        held.extend(list_discarded(pair.path))
        raise Crash

    monkeypatch.setattr(pair.applier, "commit", crash)
    with pytest.raises(Crash):
        pair.copy()
    assert len(held) == 1, "before the commit"
    assert held[0].is_whole
    monkeypatch.setattr(pair.applier, "commit", commit)
    pair.copy()
    assert list_discarded(pair.path) == held
    assert pair.applier.position == pair.app.position
    assert pair.now() != pair.old


@pytest.mark.parametrize("at", ["spool", "folder"])
def test_what_cannot_be_kept_is_not_overwritten(pair: Pair, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def full(*arguments: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((keeping_module, "_temporary") if at == "spool" else (folder_module, "_durably")), full)
    with pytest.raises(Unavailable, match="No space left"):
        pair.copy()
    assert list_discarded(pair.path) == []
    assert not list(pair.state.glob("discarded/*"))
    assert pair.applier.checksums.database == PageChecksums.scan(PAGE_SIZE, iter([(1, pair.old)])).database
    monkeypatch.undo()
    pair.copy()  # the applier is as good as before
    assert len(list_discarded(pair.path)) == 1


def test_a_copy_that_is_refused_leaves_no_folder(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Keeping.commit

    def of_another_state(keeping: Keeping, term: int, position: Position, *rest: int) -> None:
        commit(keeping, term, Position(position.txid, position.checksum ^ 1), *rest)

    monkeypatch.setattr(Keeping, "commit", of_another_state)
    with pytest.raises(ChecksumMismatch):
        pair.copy()
    assert list_discarded(pair.path) == []
