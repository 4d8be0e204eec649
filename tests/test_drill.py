"""A drill finds out whether the promises are kept, says it the same way everywhere, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from support import warm
from support.leftovers import processes_in
from support.nodes import ENVIRONMENT, Node, poll

from walcast import ltx
from walcast.errors import ConfigError
from walcast.store.directory import DirectoryStore
from walcast_node.cli import main
from walcast_node.config.configuration import load_config
from walcast_node.rehearsal.drill import drill, running, sql
from walcast_node.rehearsal.drill.checks import rows_in
from walcast_node.rehearsal.drill.facts import Attached, Cut, Mark, Result, Span, Step
from walcast_node.rehearsal.drill.ledger import Ledger, Writable, overlaps
from walcast_node.rehearsal.drill.page import page
from walcast_node.rehearsal.drill.picture import timeline
from walcast_node.rehearsal.drill.proxy import Proxies
from walcast_node.rehearsal.drill.stage import Settings
from walcast_node.rehearsal.drill.words import report, verdict

PATIENCE_S = 60.0
SVG = "{http://www.w3.org/2000/svg}"
COMMAND = [sys.executable, "-m", "walcast_node.cli", "drill"]
# A machine that is busy with other tests is slower than what is promised to people.
PATIENT = ["--lease-time", "1.5", "--max-pause", "2000", "--slack", "8", "--rate", "80"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Temporary folders go to one where the test sees what is left of them."""
    (tmp_path / "temporary").mkdir()
    return ENVIRONMENT | {"TMPDIR": str(tmp_path / "temporary")}


# The drill


def test_a_drill_finds_every_promise_kept_and_leaves_nothing_behind(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    html = tmp_path / "report.html"
    began_s = time.monotonic()
    done = warm.run([*COMMAND, *PATIENT, "--json", "--html", str(html)], env=environment, timeout=PATIENCE_S * 2)
    print(done.stderr)
    facts = json.loads(done.stdout)
    assert done.returncode == 0, [promise for promise in facts["promises"] if not promise["kept"]]
    assert facts["passed"]
    assert facts["failure"] is None
    assert facts["not_done"] == []
    assert facts["promises_broken"] == 0
    assert [step["key"] for step in facts["steps"]] == ["switchover", "kill", "partition", "stop", "power"]
    assert {promise["key"] for promise in facts["promises"]} >= {
        "switchover.lost",
        "partition.fenced",
        "stop.silent",
        "readers.whole",
        "archive.restores",
        "power.acknowledged",
        "power.forward",
        "power.kept",
        *(f"{step}.{what}" for step in ("kill", "partition", "stop") for what in ("acknowledged", "kept", "rejoin")),
    }
    steps = {step["key"]: step for step in facts["steps"]}
    power = steps.pop("power")
    assert any("confirmed rows were not in the database" in note and note[0] != "0" for note in power["notes"])
    assert [steps[key]["term"] for key in steps] == [2, 3, 4, 5]
    assert steps["switchover"]["lost"] == 0
    # The app went on at a node that was cut off, and at one that stood still: rows that no other node had.
    for key in ("partition", "stop"):
        assert steps[key]["lost"] > 10
        assert steps[key]["kept_rows"] == steps[key]["lost"]
        assert steps[key]["kept_in"]
    assert facts["lost"] == sum(step["lost"] for step in facts["steps"])
    assert 0 < steps["partition"]["fenced_ms"] < steps["partition"]["first_write_ms"]
    for step in steps.values():
        assert {one["node"] for one in step["attached"]} == {"a", "b", "c"} - {step["new"]}
    assert facts["acknowledged"] > 100
    assert facts["committed"] >= facts["acknowledged"] + facts["lost"]
    assert facts["reader_checks"] > 100
    assert {span["role"] for span in facts["spans"]} >= {"primary", "follower", "fenced", "dead", "stopped"}
    assert "PASSED" in done.stderr
    ET.fromstring(html.read_text().partition("\n")[2])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert processes_in(tmp_path) == []
    print(f"{time.monotonic() - began_s:.1f} s")


def test_an_interrupt_ends_every_process(tmp_path: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert poll(lambda: len(processes_in(tmp_path)) >= 2, PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert processes_in(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


PLANTED = {
    "no fence": """
import walcast_node.failover.role_changes as changes
import walcast_primary.tenure as tenure
changes.fence = lambda member: None
tenure.Tenure.holds = property(lambda self: True)
""",
    "no tenure": """
import walcast_primary.tenure as tenure
tenure.Tenure.holds = property(lambda self: True)
""",
    "nothing kept": """
import walcast_node.failover.role_changes as changes
changes.keep_discarded = lambda member, fork: True
""",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "broken"),
    [
        ("no fence", "partition.fenced"),
        ("no tenure", "stop.silent"),
        ("nothing kept", "partition.kept"),
    ],
)
def test_a_planted_bug_is_found(planted: str, broken: str, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANTED[planted])
    path = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        [*COMMAND, *PATIENT, "--json"],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 3,
        check=False,
    )
    print(done.stderr)
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert broken in {promise["key"] for promise in facts["promises"] if promise["kept"] is False}
    assert processes_in(tmp_path) == []


def test_a_store_that_ignores_preconditions_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DirectoryStore, "honours_swaps", lambda self: False)
    done = CliRunner().invoke(main, ["drill", "--directory", str(tmp_path / "set")])
    assert done.exit_code == 1
    assert "ignores preconditions" in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "set").exists() or list((tmp_path / "set").iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        drill.run_drill(Settings(), tmp_path, None, keep=False, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# A set that runs


@pytest.fixture
def set_of_two(tmp_path: Path) -> Iterator[Path]:
    """A primary and a follower with a lease; the configuration file of the primary."""
    sql.create(tmp_path / "a" / "app.db", 40_000)
    with closing(sql.connect(tmp_path / "a" / "app.db")) as db:
        sql.write(db, 1, "a")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "b").mkdir()
    config = tmp_path / "walcast.yml"
    config.write_text(
        f"listen: {listen}\nauto-failover: true\nlease-time: 20s\nid: node-a\n"
        f"dbs:\n- path: {tmp_path}/a/app.db\n  archive: {tmp_path}/archive\n"
    )
    flags = ["--json", "--log-format", "json"]
    follow = ["follower", str(tmp_path / "b" / "app.db"), "--primary", listen, "--archive", str(tmp_path / "archive")]
    first = Node(["primary", "--config", str(config), *flags], tmp_path, "primary").start()
    second = Node([*follow, "--auto-failover", "--id", "node-b", *flags], tmp_path, "follower")
    try:
        first.ready()
        second.start().ready()
        yield config
    finally:
        first.end()
        second.end()


def test_a_running_set_hands_over_and_back_only_when_confirmed(set_of_two: Path) -> None:
    asked = CliRunner().invoke(main, ["drill", "--config", str(set_of_two)])
    assert asked.exit_code == 2
    assert "nothing was done; give --confirm" in asked.output
    target = running.target_of(load_config(set_of_two), None)
    result = running.drill_running(target, running.Limits(5_000.0), print)
    assert result.passed, [promise for promise in result.promises if not promise.kept]
    assert [(step.old, step.new, step.term) for step in result.steps] == [
        ("node-a", "node-b", 2),
        ("node-b", "node-a", 3),
    ]
    assert {promise.key for promise in result.promises} >= {"there.lost", "there.equal", "there.level", "back.lost"}
    assert len(result.not_done) == 2


def test_a_set_that_is_not_there_is_a_broken_promise(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config = tmp_path / "walcast.yml"
        config.write_text(f"listen: 127.0.0.1:{nobody.getsockname()[1]}\ndbs: [{{path: {tmp_path}/app.db}}]\n")
        done = CliRunner().invoke(main, ["drill", "--config", str(config), "--confirm"])
    assert done.exit_code == 1
    assert "FAILED" in done.output


def test_a_file_with_several_databases_needs_a_name(tmp_path: Path) -> None:
    config = tmp_path / "walcast.yml"
    config.write_text("listen: 0.0.0.0:7420\ndbs: [{path: /x/a.db}, {path: /x/b.db}]\n")
    with pytest.raises(ConfigError, match="--name of one database; there is: a, b"):
        running.target_of(load_config(config), None)
    assert str(running.target_of(load_config(config), "b").address) == "127.0.0.1:7420"


# The report


def made_up() -> Result:
    """A drill that found one promise broken."""
    step = Step(
        "kill",
        "kill -9 of the primary",
        'it <dies> & "goes" \']]>',
        1.0,
        ended_s=7.5,
        old="a",
        new="b",
        term=2,
        fault_s=2.0,
        detect_ms=1500.0,
        promote_ms=3000.4,
        first_write_ms=3012.0,
        pause_ms=3020.0,
        lost=7,
        kept_rows=6,
        kept_in=["a/app.db-walcast/discarded/<x>"],
        attached=[Attached("c", 812.0)],
        notes=["[bold]no markup[/bold]"],
    )
    result = Result(version="1", started="now", lease_s=3.0, rate=200.0, archive="s3://b/<p>?a=1&b=2", nodes=["a", "b"])
    result.seconds, result.steps = 8.0, [step]
    result.spans = [
        Span("a", "primary", 0.0, 2.0),
        Span("a", "dead", 2.0, 8.0),
        Span("b", "follower", 0.0, 5.0),
        Span("b", "primary", 5.0, 8.0),
        Span("nobody", "primary", 0.0, 1.0),
        Span("b", "a role of a later version", 7.0, 7.0),
    ]
    result.cuts, result.marks = [Cut("a", 2.0, 3.0)], [Mark(2.0, "a", "kill -9"), Mark(5.0, "b", "first <write>")]
    result.rates, result.pauses, result.rests = [20] * 20 + [0] * 30 + [20] * 30, [(2.0, 5.0)], [(6.0, 7.0)]
    result.committed, result.acknowledged, result.lost = 1000, 990, 7
    result.promise("kill.equal", "kill", "all copies are equal", True, "all at x")
    result.promise("kill.kept", "kill", "lost rows are <kept>", False, "6 of 7 found")
    result.promise("archive.restores", "", "it restores", None, "")
    return result


def text_of(result: Result, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(report(result))
    return captured.get()


def test_a_broken_promise_is_said_everywhere_and_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    result = made_up()
    assert not result.passed
    assert [promise.key for promise in result.broken] == ["kill.kept", "archive.restores"]
    assert verdict(result).startswith("FAILED after 8.0 s: 2 of 3 promises broken")
    assert "BROKEN kill -9 of the primary: lost rows are <kept>: 6 of 7 found" in text_of(result)
    assert '<li class="bad"><i>✗</i><b>lost rows are &lt;kept&gt;</b><span>6 of 7 found</span></li>' in page(result)
    monkeypatch.setattr(drill, "run_drill", lambda *args, **kwargs: result)
    done = CliRunner().invoke(main, ["drill", "--json"])
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert (facts["passed"], facts["promises_kept"], facts["promises_broken"]) == (False, 1, 2)
    assert facts["steps"][0]["attached"] == [{"node": "c", "after_ms": 812.0, "copied_pages": 0, "bytes": 0}]


def test_a_drill_that_kept_all_exits_with_0_and_one_without_promises_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    result = made_up()
    result.promises = result.promises[:1]
    monkeypatch.setattr(drill, "run_drill", lambda *args, **kwargs: result)
    assert CliRunner().invoke(main, ["drill"]).exit_code == 0
    result.failure = "c ended by itself | its last words"
    assert CliRunner().invoke(main, ["drill"]).exit_code == 1
    assert "its last words" in text_of(result)
    assert not Result().passed


def test_the_table_has_a_row_a_step() -> None:
    text = text_of(made_up())
    (row,) = [line for line in text.splitlines() if "a → b" in line]
    for cell in ("kill -9", "1.50 s", "3.00 s", "3.01 s", "3.02 s", "7, 6 kept", "c 812 ms"):
        assert cell in row
    assert "[bold]no markup[/bold]" in text
    assert "discarded/<x>" in text


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    text = page(made_up())
    root = ET.fromstring(text.partition("\n")[2])
    assert root.tag == "html"
    assert not list(root.iter("script"))
    assert not [one for one in root.iter() for name in one.attrib if name in ("src", "href")]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "s3://b/<p>?a=1&b=2" in "".join(root.itertext())
    assert "prefers-color-scheme: dark" in text


def test_the_timeline_has_a_lane_a_node_and_shows_what_was_done() -> None:
    root = ET.fromstring(timeline(made_up()))
    width = float(root.attrib["viewBox"].split()[2])
    roles = [one for one in root.iter(f"{SVG}rect") if one.attrib.get("class", "").startswith("role ")]
    assert [one.attrib["class"] for one in roles] == [
        "role primary",
        "role dead",
        "role follower",
        "role primary",
        "role starting",
    ]
    assert len({one.attrib["y"] for one in roles}) == 2
    for one in roles:
        assert 0 <= float(one.attrib["x"]) <= width
        assert 0 < float(one.attrib["width"]) <= width
    words = [one.text for one in root.iter(f"{SVG}text")]
    assert {"a", "b", "kill -9", "3.00 s", "200/s", "8 s"} <= set(words)
    assert "2.00 s, a: kill -9" in [one.text for one in root.iter(f"{SVG}title")]
    assert len([one for one in root.iter() if one.attrib.get("class") == "pause"]) == 1


def test_a_drill_that_never_began_has_a_report() -> None:
    empty = Result(failure="no room", nodes=[])
    empty.promise("drill.ended", "", "every step came to its end", False, "no room")
    ET.fromstring(page(empty).partition("\n")[2])
    ET.fromstring(timeline(empty))
    assert "no room" in text_of(empty)


# The ledger


def ledger(*rows: tuple[int, str, float]) -> Ledger:
    made = Ledger()
    for number, node, at_s in rows:
        made.commit(number, node, at_s, at_s + 0.001)
    return made


def test_a_barrier_acknowledges_what_was_committed_before_it_in_the_same_reign() -> None:
    made = ledger((1, "a", 1.0), (2, "a", 2.0))
    asked = made.ask()
    assert asked is not None
    made.commit(3, "a", 3.0, 3.1)
    assert made.acknowledged() == set()
    made.acknowledge(asked)
    assert made.acknowledged() == {1, 2}
    made.commit(4, "b", 4.0, 4.1)
    made.commit(5, "a", 5.0, 5.1)
    again = made.ask()
    assert again is not None
    made.acknowledge(again)
    assert made.acknowledged() == {1, 2, 5}  # not 3, of a reign that ended, nor 4, of another node
    assert [row.number for row in made.lost({1, 2, 5})] == [3, 4]


def test_the_pause_is_between_the_last_commit_and_the_first_elsewhere() -> None:
    made = ledger((1, "a", 1.0), (2, "a", 2.0), (3, "b", 5.0), (4, "b", 5.5))
    first = made.first_after(1.5, ["b", "c"])
    assert first is not None
    assert first.number == 3
    before = made.last_before(first)
    assert before is not None
    assert before.number == 2
    assert made.first_after(5.6, ["b"]) is None
    assert made.pauses(1.0) == [(1.001, 2.001), (2.001, 5.001)]
    assert made.rates(0.0, 6.0, 1.0) == [0, 1, 1, 0, 0, 2, 0]


def test_two_nodes_that_can_be_written_to_at_once_are_found() -> None:
    good = [Writable(1.0, "a"), Writable(2.0, "a"), Writable(3.0, "b"), Writable(4.0, "b")]
    assert overlaps(good, "a", "b", 0.0) == []
    late = Writable(3.5, "a")
    assert overlaps([*good, late], "a", "b", 0.0) == [late]
    assert overlaps([*good, late], "a", "b", 3.6) == []
    third = Writable(0.5, "c")
    assert overlaps([*good, third], "a", "b", 0.0) == [third]
    assert overlaps(good[:2], "a", "a", 0.0) == []


# What the drill stands on


def test_a_half_transaction_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    sql.create(path, 0)
    with closing(sql.connect(path)) as db:
        for number in (1, 2, 5):
            db.execute("begin")
            sql.write(db, number, "a")
            db.execute("commit")
        assert sql.look(db) == sql.Seen(3, 5)
        assert sql.numbers(path) == {1, 2, 5}
    before = sql.digest(path)
    for number, broken in enumerate(
        (
            "update accounts set balance = balance + 1 where id = 3",
            "delete from entries where n = 5",
            "delete from entries where n = 2",
            "update sums set total = total + 1",
        )
    ):
        copy = tmp_path / f"{number}.db"
        shutil.copyfile(path, copy)
        with closing(sql.connect(copy)) as db:
            db.execute(broken)
            assert sql.look(db).wrong, broken
        assert sql.digest(copy) != before


def test_rows_are_found_in_the_pages_of_a_kept_folder(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    sql.create(path, 0)
    with closing(sql.connect(path)) as db:
        for number in (1, 2, 77):
            db.execute("begin")
            sql.write(db, number, "a")
            db.execute("commit")
    data = path.read_bytes()
    size = int.from_bytes(data[16:18], "big")
    pages = len(data) // size
    kept = bytearray()
    header = ltx.Header(
        page_size=size, commit_pages=pages, min_txid=1, max_txid=9, timestamp_ms=0, flags=ltx.FLAG_NO_CHECKSUM
    )
    encoder = ltx.Encoder(header, kept.extend)
    for pgno in range(1, pages + 1):
        encoder.add(pgno, data[(pgno - 1) * size : pgno * size])
    encoder.finish()
    assert rows_in(tmp_path) == set()
    (tmp_path / ltx.format_filename(1, 9)).write_bytes(kept)
    assert rows_in(tmp_path) == {1, 2, 77}


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(one,), daemon=True).start()

    def _echo(self, one: socket.socket) -> None:
        with one:
            while data := one.recv(1000):
                one.sendall(data)


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    made = Proxies({"a": "id-of-a", "b": "id-of-b"})
    made.start()
    echo = Echo()
    made.targets = {"a": echo.port, "b": echo.port}
    yield made
    made.close()
    echo.socket.close()


def answer(one: socket.socket, sent: bytes, timeout_s: float = PATIENCE_S) -> bytes:
    one.settimeout(timeout_s)
    one.sendall(sent)
    try:
        return one.recv(1000)
    except TimeoutError:
        return b""


def test_a_cut_holds_both_directions_and_keeps_connections_open(proxies: Proxies) -> None:
    with (
        socket.create_connection(("127.0.0.1", proxies.ports["a"])) as to_a,
        socket.create_connection(("127.0.0.1", proxies.ports["b"])) as a_to_b,
        socket.create_connection(("127.0.0.1", proxies.ports["b"])) as to_b,
    ):
        assert answer(to_a, b"1") == b"1"
        assert answer(a_to_b, b"hello of id-of-a") == b"hello of id-of-a"
        assert answer(to_b, b"3") == b"3"
        assert proxies.passed_bytes(source="a", target="b") == 2 * len(b"hello of id-of-a")
        proxies.cut("a")
        assert answer(to_a, b"4", 0.1) == b""
        assert answer(a_to_b, b"5", 0.1) == b""
        assert answer(to_b, b"6") == b"6"
        with socket.create_connection(("127.0.0.1", proxies.ports["a"])) as late:
            assert answer(late, b"7", 0.1) == b""
            proxies.heal("a")
            for one, held in ((to_a, b"4"), (a_to_b, b"5"), (late, b"7")):
                one.settimeout(PATIENCE_S)
                assert one.recv(1000) == held


def test_the_way_to_an_archive_is_cut_with_its_node(proxies: Proxies) -> None:
    target = proxies.targets["a"]
    with socket.create_connection(("127.0.0.1", proxies.http_ports["a"])) as tunnel:
        said = answer(tunnel, f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 200")
        assert answer(tunnel, b"through") == b"through"
        proxies.cut("a")
        assert answer(tunnel, b"held", 0.1) == b""
        proxies.heal("a")
        tunnel.settimeout(PATIENCE_S)
        assert tunnel.recv(1000) == b"held"
    with socket.create_connection(("127.0.0.1", proxies.http_ports["b"])) as plain:
        head = f"GET http://127.0.0.1:{target}/key HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert answer(plain, head) == head


def test_settings_are_what_the_command_says() -> None:
    given: list[Any] = []

    def run(settings: Settings, *args: Any, **kwargs: Any) -> Result:
        given.append((settings, *args, kwargs["keep"]))
        return replace(made_up())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drill, "run_drill", run)
        CliRunner().invoke(main, ["drill", "--lease-time", "7", "--rate", "50", "--max-pause", "90", "--slack", "1"])
        CliRunner().invoke(main, ["drill", "--directory", "/x", "--archive", "/y"])
    assert given[0] == (Settings(lease_s=7.0, rate=50.0, max_pause_ms=90.0, slack_s=1.0), None, None, False)
    assert given[1][0] == Settings()
    assert (given[1][1], given[1][2].path, given[1][3]) == (Path("/x"), Path("/y"), True)
    assert os.fspath(given[1][1]) == "/x"
