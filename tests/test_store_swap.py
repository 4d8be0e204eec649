"""Two who write over one version of an object never both succeed: in a directory, whoever is stopped where; in S3."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.s3 import S3Server, counted, moto_s3
from support.s3_answers import HANG_UP, Answer, Request, answering, captured, friendly, s3_error

from walcast.errors import Unavailable
from walcast.store import ForeignObject, ObjectChanged, S3Spec, UnsettledObject, Versioned, directory_swap, open_store
from walcast.store.directory import DirectoryStore
from walcast.store.directory_swap import VersionFolder
from walcast.store.s3 import S3Store
from walcast.store.s3_retry import Bounds

QUICK = Bounds(connect_s=1, read_s=1, attempts=4, backoff_s=0.02, retry_after_s=0.2)

# A directory, one step at a time


class Turns:
    """Threads of which one runs at a time, from one step to the next."""

    def __init__(self) -> None:
        self._may_run: dict[int, threading.Semaphore] = {}
        self._stopped = threading.Semaphore(0)

    def step(self) -> None:
        """Called before each of its steps by whoever takes turns; anybody else just goes on."""
        mine = self._may_run.get(threading.get_ident())
        if mine is not None:
            self._stopped.release()
            assert mine.acquire(timeout=60)

    def start(self, work: Callable[[], None]) -> Callable[[], bool]:
        """Stopped before its first step. What is returned lets it do one step, and says whether there are more."""

        def run() -> None:
            self._may_run[threading.get_ident()] = threading.Semaphore(0)
            self.step()
            try:
                work()
            finally:
                del self._may_run[threading.get_ident()]
                self._stopped.release()

        thread = threading.Thread(target=run)
        thread.start()
        assert self._stopped.acquire(timeout=60)
        may_run = self._may_run[thread.ident or 0]

        def go_on() -> bool:
            if may_run not in self._may_run.values():
                return False
            may_run.release()
            assert self._stopped.acquire(timeout=60)
            if may_run in self._may_run.values():
                return True
            thread.join()
            return False

        return go_on


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch, seed: int) -> Turns:
    """Every call that reads or changes the directory is a step, and a listing is one of no single moment: what is
    there all the time is in it, what comes or goes meanwhile may be."""
    made = Turns()
    chance = random.Random(seed)

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **named: Any) -> Any:
            made.step()
            return call(*args, **named)

        return stepped

    numbers = VersionFolder._numbers

    def blurred(folder: VersionFolder) -> list[int]:
        made.step()
        before = set(numbers(folder))
        made.step()
        after = set(numbers(folder))
        return sorted((before & after) | {number for number in before ^ after if chance.random() < 0.5})

    for name in ("hardlink_to", "read_bytes", "unlink", "exists", "rename", "mkdir"):
        monkeypatch.setattr(Path, name, stepping(getattr(Path, name)))
    monkeypatch.setattr(VersionFolder, "_numbers", blurred)
    monkeypatch.setattr(directory_swap, "fsync_directory", stepping(lambda _: None))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return made


class Family:
    """Whoever swaps writes down which version is to be replaced: then no two may descend from the same one."""

    def __init__(self, store: DirectoryStore) -> None:
        self.store = store
        self.parent_of: dict[str, str] = {}
        self.won = 0

    def swap(self, parent: str | None, nonce: str) -> None:
        try:
            version = self.store.swap("lease", f"{parent} {nonce}".encode(), parent)
        except ObjectChanged:
            return
        self.won += 1
        self.parent_of[version] = str(parent)

    def read(self) -> str | None:
        found = self.store.read("lease")
        if found is None:
            return None
        parent = found.data.decode().split()[0]
        assert self.parent_of.setdefault(found.version, parent) == parent
        return found.version

    def check(self) -> None:
        children: dict[str, str] = {}
        for child, parent in self.parent_of.items():
            assert children.setdefault(parent, child) == child, f"two swaps of {parent} succeeded"


def interleave(folder: Path, turns: Turns, chance: random.Random) -> Family:
    """Three who swap, in an order by chance: some are stopped for long while the others go on."""
    family = Family(DirectoryStore(folder))

    def work(name: int) -> None:
        for turn in range(6):
            family.swap(family.read(), f"{name}.{turn}")

    running = {turns.start(partial(work, name)) for name in range(3)}
    while running:
        for go_on in chance.sample(sorted(running, key=id), len(running)):
            # A few steps, or a few swaps, which have some 15 each.
            for _ in range(chance.choice((1, 2, 3, 8, 20, 60))):
                if not go_on():
                    running.discard(go_on)
                    break
    family.read()
    family.check()
    return family


@pytest.mark.parametrize("rounds", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_in_no_order_of_their_steps_two_swaps_of_one_version_succeed(
    tmp_path: Path, turns: Turns, seed: int, rounds: int
) -> None:
    chance = random.Random(seed)
    won = sum(interleave(tmp_path / str(number), turns, chance).won for number in range(rounds))
    assert won >= 3 * rounds


@pytest.mark.parametrize("blind", [False, True])
def test_who_is_stopped_at_any_step_neither_blocks_nor_harms_the_others(
    tmp_path: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    """Nor does what another such writer left. `blind`: while it is stopped the others change all that it is listing."""
    numbers = VersionFolder._numbers
    for others in (0, 1, 2, 3, 6):
        for steps in range(1, 40):
            folder = tmp_path / f"{others}-{steps}"
            family = Family(DirectoryStore(folder))
            family.swap(None, "first")
            family.swap(family.read(), "second")
            second = family.read()
            go_on = turns.start(partial(family.swap, second, "stopped"))
            ended = not all(go_on() for _ in range(steps))
            won = family.won
            for number in range(others):
                family.swap(family.read(), f"other {number}")
            assert family.won == won + others
            if others >= 3:
                leave(folder / "lease", 2, b"by another one, too late")
            with monkeypatch.context() as during:
                during.setattr(VersionFolder, "_numbers", (lambda _: []) if blind else numbers)
                while go_on():
                    pass
            family.swap(family.read(), "last")
            family.check()
            assert len(list((folder / "lease").iterdir())) == 2
            if ended:
                break
        assert ended


def leave(folder: Path, number: int, data: bytes) -> None:
    """What a writer leaves that was stopped until its number had been used and removed."""
    (folder / f"{number:016x}").write_bytes(b"feedfeedfeedfeed deaddeaddeaddead\n" + data)


def test_what_came_too_late_is_not_read_even_where_the_listing_shows_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    version = store.swap("lease", b"0", None)
    for number in range(1, 6):
        version = store.swap("lease", b"%d" % number, version)
    for number in (2, 3):  # one that seems to have the one before it
        leave(tmp_path / "lease", number, b"too late")
    listings = iter([[f"{number:016x}" for number in numbers] for numbers in ([2], [3], [2, 3])])
    names = VersionFolder._names
    monkeypatch.setattr(VersionFolder, "_names", lambda folder: next(listings, None) or names(folder))
    assert store.read("lease") == Versioned(b"5", version)
    assert next(listings, None) is None


def test_versions_are_removed_from_the_oldest_on_and_none_behind_one_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    unlink = Path.unlink
    removed: list[str] = []

    def failing(stays: str, path: Path, missing_ok: bool = False) -> None:
        if path.name == stays:
            raise OSError(errno.EIO, "no")
        if not path.name.endswith(".tmp"):
            removed.append(path.name[-1])
        unlink(path, missing_ok)

    version = store.swap("lease", b"", None)
    monkeypatch.setattr(Path, "unlink", lambda *args, **named: failing(f"{1:016x}", *args, **named))
    for number in range(5):
        version = store.swap("lease", b"%d" % number, version)
    assert removed == []
    monkeypatch.setattr(Path, "unlink", lambda *args, **named: failing(f"{4:016x}", *args, **named))
    store.swap("lease", b"", version)
    assert removed == ["1", "2", "3"]


COUNT = """
import sys
from walcast.store import ObjectChanged, open_store
store, name, until = open_store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
out = open(sys.argv[4], "w")
while True:
    now = store.read("counter")
    value = int(now.data.split()[0]) if now else 0
    if value >= until:
        break
    try:
        store.swap("counter", f"{value + 1} {name}".encode(), now.version if now else None)
        print(value + 1, file=out, flush=True)
    except ObjectChanged:
        pass
"""


@pytest.mark.parametrize("until", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_processes_that_are_stopped_now_and_then_count_every_number_once(tmp_path: Path, seed: int, until: int) -> None:
    chance = random.Random(seed)
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    outs = [tmp_path / f"out{name}" for name in range(4)]
    counting = [subprocess.Popen([*command, f"p{name}", str(until), str(out)]) for name, out in enumerate(outs)]
    try:
        ends = time.monotonic() + 120
        while any(process.poll() is None for process in counting):
            assert time.monotonic() < ends
            stopped = chance.choice(counting)
            # Not waited for yet, so its number is still its own.
            if stopped.poll() is None:
                stopped.send_signal(signal.SIGSTOP)
            with_others = threading.Event()
            with_others.wait(chance.uniform(0, 0.02))
            stopped.send_signal(signal.SIGCONT)
    finally:
        for process in counting:
            process.kill()
            process.wait(10)
    assert {process.returncode for process in counting} == {0}
    numbers = [int(line) for out in outs for line in out.read_text().split()]
    assert len(numbers) == len(set(numbers))
    # Who was overtaken right after its link is not told that it counted for a moment.
    assert until / 2 <= len(numbers) <= until
    store = open_store(str(tmp_path))
    last = store.read("counter")
    assert last is not None
    store.swap("counter", b"last", last.version)
    assert len([path for path in (tmp_path / "counter").iterdir() if path.suffix != ".tmp"]) == 2


# A directory that is not as it should be


def test_a_directory_without_hard_links_says_that_it_honours_no_swaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    assert not DirectoryStore(tmp_path).honours_swaps()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_is_a_change_and_may_be_made_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    version = store.swap("lease", b"one", None)
    (tmp_path / "lease" / f"{1:016x}").unlink()
    with pytest.raises(ObjectChanged):
        store.swap("lease", b"two", version)
    assert store.read("lease") is None
    (tmp_path / "lease").rmdir()
    with pytest.raises(ObjectChanged):
        store.swap("lease", b"two", version)
    again = store.swap("lease", b"one", None)
    assert again != version
    assert store.read("lease") == Versioned(b"one", again)


def test_what_is_no_version_or_without_the_one_before_it_is_said(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    version = store.swap("lease", b"one", None)
    store.swap("lease", b"two", version)
    (tmp_path / "lease" / f"{1:016x}").unlink()
    with pytest.raises(UnsettledObject):
        store.read("lease")
    (tmp_path / "lease" / f"{3:016x}").write_bytes(b"{}")
    with pytest.raises(ForeignObject):
        store.read("lease")


def test_a_folder_without_a_version_is_no_object_and_not_taken_for_a_free_place(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "README").write_bytes(b"mine")
    store = DirectoryStore(tmp_path)
    with pytest.raises(ObjectChanged):
        store.swap("lease", b"one", None)
    with pytest.raises(ForeignObject):
        store.read("lease")


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    version = store.swap("lease", b"one", None)
    left = [tmp_path / "lease/.0002.aa.tmp", tmp_path / ".lease.bb.tmp/0001"]
    left[1].parent.mkdir()
    for path in left:
        path.touch()
    version = store.swap("lease", b"two", version)
    store.tidy()
    assert all(path.exists() for path in left)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_500)
    store.swap("lease", b"three", version)
    store.tidy()
    assert not any(path.exists() for path in left)
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


# S3


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


def test_a_swap_whose_answer_was_lost_is_our_own(moto: S3Server) -> None:
    with counted(moto) as server, S3Store(server.spec("lost"), QUICK) as store:
        lose = partial(server.traffic.outage, "lose", "PUT", times=1)
        with lose():
            first = store.swap("lease", b"one", None)
        assert store.read("lease") == Versioned(b"one", first)
        with lose():
            second = store.swap("lease", b"two", first)
        assert store.read("lease") == Versioned(b"two", second)
        for wrong in (None, first):
            with lose(), pytest.raises(ObjectChanged):
                store.swap("lease", b"three", wrong)
        assert store.read("lease") == Versioned(b"two", second)
        assert server.traffic.refused == {"PUT": 4}


def test_an_object_that_is_gone_was_changed(moto: S3Server) -> None:
    with open_store(moto.spec("gone")) as store:
        version = store.swap("lease", b"one", None)
        store.delete(["lease"])
        with pytest.raises(ObjectChanged):
            store.swap("lease", b"two", version)
        assert store.read("lease") is None


def test_a_swap_honours_the_settings_for_encryption_but_not_those_for_what_is_stored_long() -> None:
    spec = S3Spec("archive", "db", region="eu-west-1", storage_class="GLACIER")
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    for more, header, value in (
        ({"sse": "AES256"}, "x-amz-server-side-encryption", "AES256"),
        ({"sse_kms_key_id": "k"}, "x-amz-server-side-encryption-aws-kms-key-id", "k"),
        ({"sse_customer_key": key}, "x-amz-server-side-encryption-customer-key", key),
    ):
        with captured(replace(spec, **more)) as (store, requests):  # type: ignore[arg-type]
            store.swap("lease", b"one", None)
            store.swap("lease", b"two", '"etag"')
            store.read("lease")
        headers = [{name.lower(): value for name, value in request.headers.items()} for request in requests]
        assert [request.method for request in requests] == ["PUT", "PUT", "GET"]
        assert [(found.get("if-none-match"), found.get("if-match")) for found in headers] == [
            ("*", None),
            (None, '"etag"'),
            (None, None),
        ]
        assert all("x-amz-storage-class" not in found for found in headers)
        assert [found.get(header) for found in headers[:2]] == [value, value]
        assert headers[2].get(header) == (value if "customer" in header else None)


def test_on_a_custom_endpoint_a_swap_is_sent_as_it_is_and_at_once() -> None:
    with served(friendly) as (store, requests):
        store.swap("lease", b"one", '"etag"')
    assert requests[0].body == b"one"
    assert not {"expect", "x-amz-trailer", "content-encoding", "x-amz-sdk-checksum-algorithm"} & set(
        requests[0].headers
    )


@contextmanager
def served(answer: Callable[[Request], Answer], bounds: Bounds = QUICK) -> Iterator[tuple[S3Store, list[Request]]]:
    with answering(answer) as (endpoint, requests), S3Store(S3Server(endpoint).spec(), bounds) as store:
        yield store, requests


def test_a_conflict_with_another_request_is_repeated_and_then_left_open() -> None:
    conflict = s3_error(409, "ConditionalRequestConflict")
    answers = [conflict, conflict]
    with served(lambda request: answers.pop() if answers else friendly(request)) as (store, requests):
        store.swap("lease", b"one", '"etag"')
    assert [request.headers["if-match"] for request in requests] == ['"etag"'] * 3
    with served(lambda _: conflict) as (store, requests), pytest.raises(Unavailable) as caught:
        store.swap("lease", b"one", '"etag"')
    assert type(caught.value) is Unavailable
    assert len(requests) == 4


@pytest.mark.parametrize("failure", [HANG_UP, s3_error(503, "SlowDown")])
def test_a_swap_that_may_have_been_written_is_no_change(failure: Answer) -> None:
    with served(lambda _: failure) as (store, _), pytest.raises(Unavailable) as caught:
        store.swap("lease", b"one", None)
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize("reading", [HANG_UP, s3_error(503, "SlowDown"), Answer(200, b"cut", {"Content-Length": "8"})])
def test_a_swap_is_left_open_where_the_object_that_stands_in_its_way_cannot_be_read(reading: Answer) -> None:
    """It may be the one that an attempt without an answer wrote."""
    puts = [s3_error(412, "PreconditionFailed"), HANG_UP]
    quick = replace(QUICK, read_s=0.2)
    with served(lambda request: puts.pop() if request.method == "PUT" else reading, quick) as (store, requests):
        with pytest.raises(Unavailable) as caught:
            store.swap("lease", b"two", '"one"')
        assert type(caught.value) is Unavailable
    assert [request.method for request in requests[:3]] == ["PUT", "PUT", "GET"]


def test_what_is_too_big_for_a_lease_is_not_read_to_its_end() -> None:
    big = Answer(200, bytes(1 << 20), {"ETag": '"big"'})
    with served(lambda _: big) as (store, _), pytest.raises(ForeignObject):
        store.read("lease")
    cut = Answer(200, b"half", {"ETag": '"cut"', "Content-Length": "8"})
    with served(lambda _: cut, replace(QUICK, read_s=0.2)) as (store, _), pytest.raises(Unavailable):
        store.read("lease")


class Server:
    """One that keeps objects, and honours these of the two preconditions on a PUT; `right` is what it does."""

    def __init__(self, *honours: str, unknown: Answer | None = None, etags: str = '"{}"') -> None:
        self.honours = honours
        self.unknown = unknown
        self.etags = etags
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.count = 0

    def __call__(self, request: Request) -> Answer:
        there = self.objects.get(request.url)
        if request.method == "DELETE":
            self.objects.pop(request.url, None)
            return Answer(204)
        if request.method == "GET":
            return Answer(200, there[0], {"ETag": there[1]}) if there else s3_error(404, "NoSuchKey")
        for header, fails in (
            ("if-none-match", there is not None),
            ("if-match", there is None or there[1] != request.headers.get("if-match")),
        ):
            if header in request.headers and header not in self.honours and self.unknown:
                return self.unknown
            if header in request.headers and header in self.honours and fails:
                return s3_error(412, "PreconditionFailed")
        self.count += 1
        etag = self.etags.format(self.count)
        self.objects[request.url] = (request.body, etag)
        return Answer(200, b"", {"ETag": etag})


def test_only_a_server_that_honours_both_preconditions_honours_swaps() -> None:
    both = ("if-match", "if-none-match")
    unknown = s3_error(501, "NotImplemented")
    for server, honours in (
        (Server(*both), True),
        (Server(), False),
        (Server("if-none-match"), False),
        (Server("if-match"), False),
        (Server(unknown=unknown), False),
        (Server("if-none-match", unknown=unknown), False),
        (Server(*both, etags='"same"'), False),
    ):
        with served(server) as (store, requests):
            assert store.honours_swaps() == honours
            assert server.objects == {}
            asked = len(requests)
            assert store.honours_swaps() == honours
            assert len(requests) == asked


def test_a_probe_for_swaps_that_got_no_answer_is_made_again(moto: S3Server) -> None:
    with counted(moto) as server, S3Store(server.spec("again"), replace(QUICK, attempts=1)) as store:
        with server.traffic.outage("503"), pytest.raises(Unavailable):
            store.honours_swaps()
        assert store.honours_swaps()
        assert list(store.list()) == []
    with counted(moto) as server, S3Store(server.spec("again"), QUICK) as store:
        with server.traffic.outage("lose", "PUT", times=3):
            assert store.honours_swaps()
        assert list(store.list()) == []


def test_a_store_may_be_opened_with_less_patience(moto: S3Server) -> None:
    with counted(moto) as server, open_store(server.spec("quick"), Bounds(read_s=0.2, attempts=1)) as store:
        begun = time.monotonic()
        with server.traffic.outage("hang"), pytest.raises(Unavailable):
            store.swap("lease", b"one", None)
        assert time.monotonic() - begun < 2
        assert server.traffic.requests == {"PUT": 1}
