"""`walcast.Replica`: read-only connections, what the status file says, waiting for a token."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import walcast
import walcast.errors
import walcast.statuswatch
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter
from walcast.terms import FOLLOWER, Standing, TermStart, first_txid, write_standing

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20.0

# A process that applies: it answers every line on its standard input with a status, and says when it began to write.
WRITER = """
import sys, time
from pathlib import Path
from walcast.position import Position
from walcast.statusfile import State, Status, StatusWriter
from walcast.terms import FOLLOWER, Standing, TermStart, first_txid, write_standing

writer = StatusWriter(Path(sys.argv[1]))
for line in sys.stdin:
    delay_s, txid = line.split()
    time.sleep(float(delay_s))
    now = time.time_ns()
    began = time.monotonic_ns()
    writer.write(Status(State.STREAMING, 1, Position(int(txid), 1 << 63), written_ns=now, level_ns=now))
    print(began, flush=True)
"""


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (1)")
        db.commit()


def streaming(txid: int, *, term: int = 1, primary_txid: int = 0, lag_us: int = 0) -> Status:
    now = time.time_ns()
    position = walcast.Position(txid, 1 << 63)
    return Status(State.STREAMING, term, position, primary_txid or txid, lag_us, level_ns=now, written_ns=now)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    make_database(path)
    return path


@pytest.fixture
def replica(path: Path) -> walcast.Replica:
    return walcast.Replica(path)


@pytest.fixture
def writer(path: Path) -> Iterator[StatusWriter]:
    with closing(StateDir(path)) as state, closing(StatusWriter(state.path)) as writer:
        yield writer


@pytest.fixture(params=["inotify", "polling"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "polling":
        monkeypatch.setattr(walcast.statuswatch, "_open_inotify", lambda: None)


# Imports


def test_a_replica_needs_nothing_heavy(path: Path, writer: StatusWriter) -> None:
    writer.write(streaming(7))
    code = """
import sys, walcast
assert not {"sqlite3", "walcast.replica", "walcast.primary"} & set(sys.modules), "import walcast is to be lazy"
replica = walcast.Replica(sys.argv[1])
with replica.connect() as db:
    print(db.execute("SELECT x FROM t").fetchone())
replica.wait_for("1-7", timeout=0)
try:
    replica.wait_for(walcast.Token("1-8"), timeout=0.01)
except walcast.StaleReplica:
    print(replica.position(), replica.lag().txids, walcast.__version__)
walcast.Primary("127.0.0.1:1")
heavy = {"grpc", "google", "numpy", "apsw", "boto3", "botocore", "uvloop", "lz4", "fastcrc", "click", "rich", "yaml"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "(1,)"
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_every_public_name_is_there() -> None:
    assert {name for name in walcast.__all__ if getattr(walcast, name) is None} == set()
    assert set(walcast.__all__) <= set(dir(walcast))
    assert issubclass(walcast.StaleReplica, walcast.errors.StaleReplica)
    with pytest.raises(AttributeError, match="Replicant"):
        walcast.Replicant  # noqa: B018


# Connections


@pytest.mark.parametrize(
    "name",
    ["app.db", "what?.db", "a#b.db", "100%.db", "%3f.db", "a b&mode=rw.db", "naïve-日本.db", b"not-utf8-\xff.db"],
)
def test_any_file_name_can_be_connected_to(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    make_database(path)
    with closing(walcast.Replica(path).connect()) as db:
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
    assert {file.name for file in tmp_path.iterdir()} <= {path.name, f"{path.name}-wal", f"{path.name}-shm"}


@pytest.mark.parametrize("sql", ["INSERT INTO t VALUES (2)", "DROP TABLE t", "CREATE TEMP TABLE u (x)", "VACUUM"])
def test_a_connection_cannot_write(replica: walcast.Replica, sql: str) -> None:
    with closing(replica.connect()) as db:
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
            db.execute(sql)
        db.execute("PRAGMA query_only = OFF")
        if "TEMP" not in sql:
            with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
                db.execute(sql)


WRITES = {
    "execute": lambda db: db.execute("INSERT INTO t VALUES (?)", [2]),
    "executemany": lambda db: db.executemany("INSERT INTO t VALUES (?)", [[2], [3]]),
    "executescript": lambda db: db.executescript("SELECT 1; DELETE FROM t; SELECT 2"),
    "returning": lambda db: db.execute("INSERT INTO t VALUES (2) RETURNING x").fetchall(),
    "a pragma": lambda db: db.execute("PRAGMA user_version = 7"),
    "a cursor": lambda db: db.cursor().execute("INSERT INTO t VALUES (2)"),
    "a cursor's executemany": lambda db: db.cursor().executemany("INSERT INTO t VALUES (?)", [[2]]),
    "a cursor's executescript": lambda db: db.cursor().executescript("INSERT INTO t VALUES (2)"),
    "a cursor that read": lambda db: db.execute("SELECT x FROM t").execute("INSERT INTO t VALUES (2)"),
    "a transaction": lambda db: (db.execute("BEGIN"), db.execute("UPDATE t SET x = 1")),
    "a blob": lambda db: db.blobopen("t", "x", 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_refused_write_says_where_to_write(
    replica: walcast.Replica, writer: StatusWriter, write: Callable[[sqlite3.Connection], object]
) -> None:
    writer.write(replace(streaming(7), primary="10.0.0.1:7420", app_url="http://10.0.0.1:8000"))
    with closing(replica.connect()) as db, pytest.raises(walcast.ReadOnlyReplica) as caught:
        write(db)
    error = caught.value
    assert str(error) == (
        f"attempt to write a readonly database: {replica.path} is a replica; "
        "write at the primary, which is at 10.0.0.1:7420, or through the app at http://10.0.0.1:8000"
    )
    assert (error.primary, error.app_url, error.here) == ("10.0.0.1:7420", "http://10.0.0.1:8000", False)
    assert (error.sqlite_errorcode, error.sqlite_errorname) == (sqlite3.SQLITE_READONLY, "SQLITE_READONLY")
    assert isinstance(error, sqlite3.OperationalError)
    assert isinstance(error, walcast.WalcastError)


def test_a_refused_write_on_the_primary_says_how_to_write_there(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(replace(streaming(7), state=State.PRIMARY, primary="10.0.0.1:7420"))
    with (
        closing(replica.connect()) as db,
        pytest.raises(walcast.ReadOnlyReplica, match=r"open it with sqlite3") as caught,
    ):
        db.execute("INSERT INTO t VALUES (2)")
    assert caught.value.here


def test_a_refused_write_where_no_walcast_runs_says_what_was_known(replica: walcast.Replica, path: Path) -> None:
    with closing(replica.connect()) as db:
        with pytest.raises(walcast.ReadOnlyReplica, match="is a replica; write to the database of the primary"):
            db.execute("INSERT INTO t VALUES (2)")
        with closing(StateDir(path)) as state, closing(StatusWriter(state.path)) as writer:
            writer.write(replace(streaming(7), primary="10.0.0.1:7420"))
        with pytest.raises(walcast.ReadOnlyReplica, match=r"for reading; write at .* was last at 10\.0\.0\.1:7420"):
            db.execute("INSERT INTO t VALUES (2)")


def test_what_is_no_write_fails_as_sqlite3_has_it(replica: walcast.Replica) -> None:
    with closing(replica.connect()) as db:
        for wrong in ("SELECT y FROM t", "SELEC 1"):
            with pytest.raises(sqlite3.OperationalError) as caught:
                db.execute(wrong)
            assert type(caught.value) is sqlite3.OperationalError
            assert caught.value.__cause__ is None
        with pytest.raises(sqlite3.ProgrammingError):
            db.execute("SELECT ?", [])
        with pytest.raises(TypeError):
            db.execute()


def test_cursors_are_as_sqlite3_has_them(replica: walcast.Replica) -> None:
    class Cursor(sqlite3.Cursor):
        pass

    with closing(replica.connect()) as db:
        db.row_factory = sqlite3.Row
        assert db.execute("SELECT x AS a FROM t").fetchone()["a"] == 1
        assert [row["x"] for row in db.cursor().execute("SELECT x FROM t")] == [1]
        assert db.cursor(Cursor).connection is db
        assert type(db.cursor(factory=Cursor)) is Cursor
        cursor = db.cursor()
        assert cursor.execute("SELECT 1") is cursor
        assert not hasattr(cursor, "__dict__")


def test_a_refused_write_does_not_pin_the_snapshot(replica: walcast.Replica, path: Path) -> None:
    with closing(replica.connect()) as db, closing(sqlite3.connect(path)) as app:
        with pytest.raises(sqlite3.OperationalError):
            db.execute("INSERT INTO t VALUES (9)")
        assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
        app.execute("INSERT INTO t VALUES (2)")
        app.commit()
        assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_reading_works_while_another_process_is_the_writer(replica: walcast.Replica, path: Path) -> None:
    with closing(sqlite3.connect(path)) as follower:
        follower.execute("BEGIN IMMEDIATE")
        follower.execute("INSERT INTO t VALUES (2)")
        with closing(replica.connect()) as db:
            assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
            follower.commit()
            assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_reading_works_without_wal_and_shm(replica: walcast.Replica, path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with closing(replica.connect()) as db:
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_a_reader_leaves_the_wal_to_the_follower(replica: walcast.Replica, path: Path) -> None:
    """As the last one to close, it neither checkpoints nor deletes."""
    code = (
        f"import os, sqlite3; d = sqlite3.connect({str(path)!r}); d.execute('INSERT INTO t VALUES (2)'); d.commit(); "
    )
    subprocess.run([sys.executable, "-c", code + "os._exit(0)"], check=True, timeout=30)
    before = Path(f"{path}-wal").read_bytes()
    assert before
    with closing(replica.connect()) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert Path(f"{path}-wal").read_bytes() == before


def test_with_means_what_it_means_in_sqlite3(replica: walcast.Replica) -> None:
    with replica.connect() as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM t").fetchall()
    assert not db.in_transaction
    assert db.execute("SELECT x FROM t").fetchone() == (1,)
    db.close()


def test_sqlite3s_own_arguments_are_passed_on(replica: walcast.Replica) -> None:
    class Connection(sqlite3.Connection):
        pass

    with closing(replica.connect(timeout=1, factory=Connection, check_same_thread=False)) as db:
        assert type(db) is Connection
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database") as caught:
            db.execute("INSERT INTO t VALUES (2)")
        assert not isinstance(caught.value, walcast.WalcastError)
    with pytest.raises(TypeError):
        replica.connect(uri=False)


def test_no_database_yet_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(walcast.Unavailable, match=r"app\.db: no such file"):
        walcast.Replica(tmp_path / "app.db").connect()
    with pytest.raises(walcast.Unavailable, match="is not a file"):
        walcast.Replica(tmp_path).connect()
    assert list(tmp_path.iterdir()) == []


# Status


def test_what_the_follower_says_is_what_the_replica_says(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(streaming(12, term=3, lag_us=1500))
    assert replica.position() == walcast.Position(12, 1 << 63)
    assert replica.term() == 3
    assert replica.state() == "streaming"
    assert replica.lag() == walcast.Lag(txids=0, ms=1.5)


def test_lag_counts_from_when_the_replica_was_level(replica: walcast.Replica, writer: StatusWriter) -> None:
    status = replace(streaming(10, primary_txid=15), level_ns=time.time_ns() - 250_000_000)
    writer.write(status)
    lag = replica.lag()
    assert lag.txids == 5
    assert 250 <= lag.ms < 250 + PATIENCE_S * 1000
    writer.write(replace(status, state=State.BOOTSTRAPPING, level_ns=0))
    assert replica.lag().ms == math.inf


def test_a_link_to_the_database_leads_to_its_status(path: Path, writer: StatusWriter, tmp_path: Path) -> None:
    writer.write(streaming(7))
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    replica = walcast.Replica(link)
    assert replica.position().txid == 7
    replica.wait_for("1-7", timeout=0)
    with closing(replica.connect()) as db:
        assert db.execute("SELECT x FROM t").fetchone() == (1,)


def test_a_primary_does_not_lag(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(replace(streaming(10), state=State.PRIMARY, level_ns=time.time_ns() - 900_000_000))
    assert replica.lag() == walcast.Lag(txids=0, ms=0.0)


def test_lag_does_not_count_what_lies_between_two_terms(
    replica: walcast.Replica, writer: StatusWriter, path: Path
) -> None:
    folder = path.with_name("app.db-walcast")
    ended, behind = walcast.Position(1000, 1 << 63), 40
    history = []
    for term in (2, 3):
        first = first_txid(ended.txid)
        history.append(TermStart(term, ended, first))
        ended = walcast.Position(first + 5, 1 << 63)
    writer.write(streaming(1000 - behind, term=1, primary_txid=ended.txid))
    assert replica.lag().txids > 1 << 20  # nobody said why
    write_standing(folder, Standing(FOLLOWER, 3, history=tuple(history)))
    # What was left of term 1, and in each of two terms the transactions after its first TXID, which is none.
    assert replica.lag().txids == behind + 5 + 5
    writer.write(streaming(history[0].first_txid + 2, term=2, primary_txid=ended.txid))
    assert replica.lag().txids == 3 + 5
    (folder / "role").write_text("not what it was")
    assert replica.lag().txids > 1 << 20


def test_a_follower_that_was_killed_is_stopped_at_once(path: Path, replica: walcast.Replica) -> None:
    with closing(StateDir(path)) as state, closing(StatusWriter(state.path)) as writer:
        writer.write(streaming(10))
        assert replica.state() == "streaming"
    assert replica.state() == "stopped"


def test_a_follower_that_died_is_stopped(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(replace(streaming(10), written_ns=time.time_ns() - 60_000_000_000))
    assert replica.state() == "stopped"


def test_no_follower_yet_is_unavailable(replica: walcast.Replica) -> None:
    for ask in (replica.position, replica.term, replica.state, replica.lag):
        with pytest.raises(walcast.Unavailable, match="no walcast process has run here"):
            ask()


# Waiting


@pytest.mark.parametrize(
    ("token", "applied"),
    [
        ("2-9", True),
        ("2-a", True),
        ("2-b", False),
        ("1-ff", True),
        ("3-1", False),
        (walcast.Token.of(2, 10), True),
        (walcast.Position(10, 1 << 63), True),
        (walcast.Position(9, 5), True),
        (walcast.Position(10, 5), False),
        (walcast.Position(11, 1 << 63), False),
        ("000000000000000a/8000000000000000", True),
        ("000000000000000b/8000000000000000", False),
    ],
)
def test_a_token_is_applied_by_term_then_txid(
    replica: walcast.Replica, writer: StatusWriter, token: str | walcast.Position, applied: bool
) -> None:
    writer.write(streaming(10, term=2))
    if applied:
        replica.wait_for(token, timeout=0)
    else:
        with pytest.raises(walcast.StaleReplica):
            replica.wait_for(token, timeout=0)


@pytest.mark.usefixtures("watched")
def test_a_wait_ends_on_time_and_says_why(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(replace(streaming(10), state=State.DIVERGED))
    began = time.monotonic()
    with pytest.raises(walcast.StaleReplica, match="its follower is diverged") as caught:
        replica.wait_for("1-b", timeout=0.15)
    assert 0.15 <= time.monotonic() - began < 1.0
    error = caught.value
    assert isinstance(error, walcast.Unavailable)
    assert (error.token, error.position.txid, error.term) == ("1-b", 10, 1)
    assert (error.state, error.timeout) == ("diverged", 0.15)


@pytest.mark.usefixtures("watched")
def test_a_wait_ends_within_milliseconds_of_the_apply(
    replica: walcast.Replica, writer: StatusWriter, path: Path
) -> None:
    writer.write(streaming(1))
    command = [sys.executable, "-c", WRITER, str(path.with_name("app.db-walcast"))]
    late_ms = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        for txid in range(2, 42):
            print(0.005, txid, file=process.stdin, flush=True)
            replica.wait_for(walcast.Token.of(1, txid), timeout=PATIENCE_S)
            ended = time.monotonic_ns()
            late_ms.append((ended - int(process.stdout.readline())) / 1e6)
        process.stdin.close()
    print(f"late by {sorted(late_ms)} ms")
    # Half of them: the machine may be busy with other things. Polling looks every 5 ms.
    assert sorted(late_ms)[len(late_ms) // 2] < 7


@pytest.mark.usefixtures("watched")
def test_many_threads_wait_at_once(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(streaming(0))
    ended: list[int] = []
    late: list[int] = []

    def wait(txid: int) -> None:
        try:
            replica.wait_for(walcast.Token.of(1, txid), timeout=PATIENCE_S if txid <= 20 else 0.3)
            ended.append(txid)
        except walcast.StaleReplica:
            late.append(txid)

    threads = [threading.Thread(target=wait, args=(txid,)) for txid in range(1, 25)]
    for thread in threads:
        thread.start()
    for txid in range(1, 21):
        writer.write(streaming(txid))
        deadline = time.monotonic() + PATIENCE_S
        while txid not in ended and time.monotonic() < deadline:
            time.sleep(0.0005)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert ended == list(range(1, 21))
    assert sorted(late) == [21, 22, 23, 24]


def test_a_wait_outlives_the_file_it_watches(replica: walcast.Replica, path: Path) -> None:
    """A follower that starts for the first time, or again with a new folder, is seen."""
    folder = path.with_name("app.db-walcast")
    ended = threading.Event()

    def wait() -> None:
        for txid in (1, 2):
            replica.wait_for(walcast.Token.of(1, txid), timeout=PATIENCE_S)
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    for txid in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with closing(StatusWriter(folder)) as writer:
            writer.write(streaming(txid))
        assert ended.wait(PATIENCE_S)
        ended.clear()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_replica_works_after_a_fork(path: Path, writer: StatusWriter) -> None:
    """Parent and child wait at the same time, with a watch that the parent opened before."""
    writer.write(streaming(1))
    code = """
import os, sys, walcast
replica = walcast.Replica(sys.argv[1])
try:
    replica.wait_for("1-2", timeout=0.01)
except walcast.StaleReplica:
    pid = os.fork()
    os.write(1, b"waiting\\n")
    replica.wait_for("1-2", timeout=20)
    os.write(1, b"%d\\n" % replica.connect().execute("SELECT x FROM t").fetchone())
    if pid:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["waiting\n"] * 2
        writer.write(streaming(2))
        assert process.stdout.read() == "1\n" * 2
        assert process.wait(PATIENCE_S) == 0


def test_no_follower_is_a_stale_replica_when_the_time_is_over(replica: walcast.Replica) -> None:
    with pytest.raises(walcast.StaleReplica, match="no walcast process has run here") as caught:
        replica.wait_for("1-1", timeout=0.02)
    assert caught.value.state == "missing"


# Tokens


def test_tokens_order_by_term_then_txid() -> None:
    texts = ["1-9", "1-a", "1-10", "2-0", "a-1", "10-0"]
    assert sorted(walcast.Token(text) for text in reversed(texts)) == texts
    assert walcast.Token("1-9") < walcast.Token("1-10") <= "1-10"
    assert walcast.Token("2-0") > "1-ff" >= walcast.Token("1-ff")
    assert max(map(walcast.Token, texts)).term == 16


def test_a_token_is_its_text() -> None:
    token = walcast.Token.of(3, 0x1F4A)
    assert (token, token.term, token.txid) == ("3-1f4a", 3, 0x1F4A)
    assert walcast.Token(str(token)) == token
    assert hash(token) == hash("3-1f4a")
    assert pickle.loads(pickle.dumps(token)).txid == token.txid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-",
        "-1",
        "1-G",
        "1-A",
        "01-1",
        "1-01",
        "1-1 ",
        "1-1\n",
        "1_0-1",
        "1-" + "f" * 17,
        "f" * 9 + "-1",
        "x" * 99,
    ],
)
def test_what_is_no_token_is_refused(replica: walcast.Replica, text: str) -> None:
    with pytest.raises(ValueError, match="not a token"):
        replica.wait_for(text)
