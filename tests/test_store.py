"""Every archive store keeps the promises of `walcast/store/base.py`: a directory, rclone's S3 server and moto's."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.s3 import S3Server, moto_s3, rclone_s3

from walcast.errors import ConfigError, Unavailable
from walcast.store import (
    DirectorySpec,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    S3Spec,
    Store,
    Versioned,
    open_store,
)
from walcast.store.s3 import S3Store, _rfc3339
from walcast.store.s3_retry import Bounds

NOON_MS = 1_750_000_000_123


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(params=["directory", "rclone", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield from opened_store(request, tmp_path)


@pytest.fixture(params=["directory", "moto"])
def swapping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One that honours swaps; rclone's server writes whatever it is asked to."""
    yield from opened_store(request, tmp_path)


def opened_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        with open_store(DirectorySpec(tmp_path / "archive")) as opened:
            yield opened
        return
    server: S3Server = request.getfixturevalue(request.param)
    prefix = f"{abs(hash(request.node.nodeid)):x}"
    with open_store(server.spec(prefix)) as opened:
        yield opened


def test_an_object_comes_back_as_it_was_put(store: Store) -> None:
    store.put("ltx/0/a", b"hello", timestamp_ms=NOON_MS)
    assert store.get("ltx/0/a") == b"hello"
    assert b"".join(store.chunks("ltx/0/a")) == b"hello"


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"", timestamp_ms=NOON_MS)
    assert store.get("empty") == b""
    assert [(found.key, found.size) for found in store.list()] == [("empty", 0)]


def test_a_stream_is_put_from_where_it_stands_and_stays_open(store: Store) -> None:
    body = io.BytesIO(b"skipped, stored")
    body.seek(9)
    store.put("a", body, timestamp_ms=NOON_MS)
    assert store.get("a") == b"stored"
    assert not body.closed


def test_a_put_replaces_the_object_of_that_key(store: Store) -> None:
    store.put("a", b"first and longer", timestamp_ms=NOON_MS)
    store.put("a", b"second", timestamp_ms=NOON_MS + 1)
    assert store.get("a") == b"second"
    assert [found.size for found in store.list()] == [6]


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 3, b"012"),
        (3, 4, b"3456"),
        (7, None, b"789"),
        (7, 100, b"789"),
        (9, 1, b"9"),
        (10, 1, b""),
        (10, None, b""),
        (50, 5, b""),
        (4, 0, b""),
    ],
)
def test_ranges_are_those_of_the_object(store: Store, start: int, length: int | None, expected: bytes) -> None:
    store.put("digits", b"0123456789", timestamp_ms=NOON_MS)
    assert store.get("digits", start, length) == expected


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(ObjectMissing) as caught:
        store.get("ltx/0/none")
    assert caught.value.key == "ltx/0/none"
    with pytest.raises(ObjectMissing):
        store.get("ltx/0/none", 5, 5)
    with pytest.raises(ObjectMissing):
        list(store.chunks("ltx/0/none"))


def test_a_listing_is_sorted_and_keeps_to_its_prefix(store: Store) -> None:
    keys = ["b/2", "b/1", "b/10", "b.1", "a", "b/c/1", "bb"]
    for key in keys:
        store.put(key, key.encode(), timestamp_ms=NOON_MS)
    assert [found.key for found in store.list()] == sorted(keys)
    assert [found.key for found in store.list("b/")] == ["b/1", "b/10", "b/2", "b/c/1"]
    assert [(found.key, found.size) for found in store.list("b/1")] == [("b/1", 3), ("b/10", 4)]
    assert list(store.list("c/")) == []


def test_an_archive_that_does_not_exist_yet_lists_as_empty(store: Store) -> None:
    assert list(store.list()) == []
    assert list(store.list("ltx/0/")) == []


@pytest.mark.parametrize("kind", ["directory", "rclone", "moto"])
def test_more_objects_than_one_answer_holds_are_listed_and_deleted(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    keys = [f"many/{number:05d}" for number in range(1005)]
    with filled(kind, tmp_path, keys, request) as store:
        assert [found.key for found in store.list("many/")] == keys
        store.delete(keys[1:])
        assert [found.key for found in store.list("many/")] == keys[:1]


@contextmanager
def filled(kind: str, folder: Path, keys: list[str], request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store with empty objects that did not come through its door, where a put takes 20 ms."""
    if kind == "moto":
        from moto.s3.models import s3_backends

        spec = request.getfixturevalue("moto").spec("filled")
        for key in keys:
            s3_backends["123456789012"]["aws"].put_object(spec.bucket, f"{spec.prefix}/{key}", b"")
        with open_store(spec) as store:
            yield store
        return
    for path in [folder / ("archive/db" if kind == "rclone" else "") / key for key in keys]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if kind == "directory":
        with open_store(str(folder)) as store:
            yield store
    else:  # a server of its own: the other one remembers its folders
        with rclone_s3(folder) as server, open_store(server.spec("db")) as store:
            yield store


def put_quickly(store: Store, keys: list[str]) -> None:
    parts = [keys[i::8] for i in range(8)]
    threads = [
        threading.Thread(target=lambda part: [store.put(key, b"", timestamp_ms=NOON_MS) for key in part], args=(part,))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(store: Store) -> None:
    store.put("a", b"1", timestamp_ms=NOON_MS)
    store.put("b", b"2", timestamp_ms=NOON_MS)
    store.delete(["a", "never-there"])
    store.delete(["a"])
    store.delete([])
    assert [found.key for found in store.list()] == ["b"]


def test_a_big_object_goes_up_in_parts_and_down_in_chunks(store: Store) -> None:
    piece = bytes(range(256)) * 4096
    body = b"".join(bytes([number]) + piece for number in range(20))
    store.put("big", io.BytesIO(body), timestamp_ms=NOON_MS)
    chunks = list(store.chunks("big", 3 << 20))
    assert {len(chunk) for chunk in chunks[:-1]} == {3 << 20}
    assert b"".join(chunks) == body
    assert store.get("big", 9 << 20, 1000) == body[9 << 20 :][:1000]


class Breaks(io.RawIOBase):
    """A stream that fails once `good` bytes are read."""

    def __init__(self, good: int) -> None:
        self.left = good

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self.left:
            raise RuntimeError("the disk caught fire")
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count


@pytest.mark.parametrize("good", [1000, 20 << 20])
def test_a_put_that_fails_midway_leaves_what_was_there(store: Store, good: int) -> None:
    store.put("kept", b"before", timestamp_ms=NOON_MS)
    for key in ("kept", "new"):
        with pytest.raises(RuntimeError, match="fire"):
            store.put(key, io.BufferedReader(Breaks(good)), timestamp_ms=NOON_MS)
    assert [(found.key, found.size) for found in store.list()] == [("kept", 6)]
    assert store.get("kept") == b"before"


def test_only_a_store_that_honours_preconditions_says_so(request: pytest.FixtureRequest, store: Store) -> None:
    assert store.honours_preconditions() == ("rclone" not in request.node.name)
    assert store.honours_preconditions() == ("rclone" not in request.node.name)
    assert list(store.list()) == []


@pytest.mark.parametrize("size", [5, 9 << 20])
def test_an_object_that_is_there_stays_where_it_must_be_absent(store: Store, size: int) -> None:
    store.put("a", b"first", timestamp_ms=NOON_MS, if_absent=True)
    if store.honours_preconditions():
        with pytest.raises(ObjectExists) as caught:
            store.put("a", io.BytesIO(bytes(size)), timestamp_ms=NOON_MS, if_absent=True)
        assert (caught.value.key, caught.value.url) == ("a", store.url)
        assert store.get("a") == b"first"
        assert [found.key for found in store.list()] == ["a"]
    else:
        store.put("a", io.BytesIO(bytes(size)), timestamp_ms=NOON_MS, if_absent=True)
    store.put("b", io.BytesIO(bytes(size)), timestamp_ms=NOON_MS, if_absent=True)
    assert store.get("b") == bytes(size)
    store.delete(["a"])
    store.put("a", b"again", timestamp_ms=NOON_MS, if_absent=True)
    assert store.get("a") == b"again"


def test_only_a_store_that_honours_swaps_says_so(request: pytest.FixtureRequest, store: Store) -> None:
    for _ in range(2):
        assert store.honours_swaps() == ("rclone" not in request.node.name)
    assert list(store.list()) == []


def test_what_was_swapped_in_is_read_with_its_version(store: Store) -> None:
    assert store.read("leases/a") is None
    version = store.swap("leases/a", b"one", None)
    assert store.read("leases/a") == Versioned(b"one", version)
    versions = [version]
    for body in (b"", b"two", bytes(range(256)) * 256, b"\n"):
        versions.append(store.swap("leases/a", body, versions[-1]))
        assert store.read("leases/a") == Versioned(body, versions[-1])
    assert len(set(versions)) == 5
    assert store.read("leases/b") is None
    assert list(store.list("ltx/")) == []
    with pytest.raises(ValueError, match="65537 bytes"):
        store.swap("leases/a", bytes(65537), versions[-1])


def test_a_swap_over_another_version_changes_nothing(swapping: Store) -> None:
    with pytest.raises(ObjectChanged):
        swapping.swap("lease", b"never", '"d41d8cd98f00b204e9800998ecf8427e"')
    assert swapping.read("lease") is None
    first = swapping.swap("lease", b"one", None)
    other = swapping.swap("other", b"other", None)
    second = swapping.swap("lease", b"two", first)
    third = swapping.swap("lease", b"three", second)
    for wrong in (None, first, second, other, '"d41d8cd98f00b204e9800998ecf8427e"'):
        with pytest.raises(ObjectChanged) as caught:
            swapping.swap("lease", b"mine", wrong)
        assert (caught.value.key, caught.value.url) == ("lease", swapping.url)
        assert swapping.read("lease") == Versioned(b"three", third)


def test_of_many_that_swap_one_version_at_most_one_succeeds(swapping: Store) -> None:
    """Six count together: no number is lost, and none is counted twice."""
    together = threading.Barrier(6)
    counted: list[int] = []

    def count(name: int) -> None:
        for turn in range(8):
            together.wait(20)
            now = swapping.read("counter")
            value = int(now.data.split()[0]) + 1 if now else 1
            together.wait(20)
            try:
                swapping.swap("counter", b"%d by %d in %d" % (value, name, turn), now.version if now else None)
                counted.append(value)
            except ObjectChanged:
                pass

    threads = [threading.Thread(target=count, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == list(range(1, 9))
    found = swapping.read("counter")
    assert found is not None
    assert found.data.startswith(b"8 ")


def test_a_check_leaves_nothing_behind(store: Store) -> None:
    store.check()
    assert list(store.list()) == []


def test_a_store_may_be_closed_twice_and_used_by_threads(store: Store) -> None:
    put_quickly(store, [f"k{number}" for number in range(32)])
    assert len(list(store.list())) == 32
    store.close()
    store.close()


# Directories


def test_a_file_has_the_time_of_its_transaction(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        store.put("ltx/0/a", b"1", timestamp_ms=NOON_MS)
        assert [found.timestamp_ms for found in store.list()] == [NOON_MS]


def test_of_many_that_put_where_nothing_is_in_a_directory_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have written, and nothing is there yet, when the first of them gives its object the name."""
    together = threading.Barrier(8)
    store = open_store(str(tmp_path))
    store.honours_preconditions()
    link = Path.hardlink_to
    linked: list[int] = []
    monkeypatch.setattr(Path, "hardlink_to", lambda *paths: (linked.append(together.wait(10)), link(*paths)))
    winners: list[bytes] = []
    losers: list[bytes] = []

    def put(body: bytes) -> None:
        try:
            store.put("lease", body, timestamp_ms=NOON_MS, if_absent=True)
            winners.append(body)
        except ObjectExists:
            losers.append(body)

    threads = [threading.Thread(target=put, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(linked) == 8  # nobody only looked whether it is free
    assert len(losers) == 7
    assert [store.get("lease")] == winners
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_a_link_that_nfs_makes_twice_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Path.hardlink_to
    with open_store(str(tmp_path)) as store:
        assert store.honours_preconditions()
        monkeypatch.setattr(Path, "hardlink_to", lambda *paths: (link(*paths), link(*paths)))
        store.put("a", b"mine", timestamp_ms=NOON_MS, if_absent=True)
        assert store.get("a") == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_a_crash_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "ltx/0").mkdir(parents=True)
    for name in ("ltx/0/.a.0000.tmp", "ltx/0/b.ltx.tmp", "ltx/0/c"):
        (tmp_path / name).write_bytes(b"x")
    with open_store(str(tmp_path)) as store:
        assert [found.key for found in store.list("ltx/")] == ["ltx/0/c"]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/"])
def test_a_key_cannot_leave_the_directory(tmp_path: Path, key: str) -> None:
    with open_store(str(tmp_path)) as store, pytest.raises(ValueError, match="not a key"):
        store.get(key)


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with open_store(str(tmp_path / "file/archive")) as store:
        with pytest.raises(ConfigError, match="check the path"):
            store.check()
        with pytest.raises(ConfigError, match="check the path"):
            store.put("a", b"", timestamp_ms=0)
    with open_store(str(tmp_path / "none")) as store, pytest.raises(ConfigError, match="does not exist"):
        store.check(write=False)


# S3


def impatient(spec: S3Spec) -> S3Store:
    return S3Store(spec, Bounds(connect_s=0.3, read_s=0.3, attempts=2))


def test_an_unreachable_endpoint_is_unavailable_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused
        spec = S3Server(f"http://127.0.0.1:{taken.getsockname()[1]}").spec()
        begun = time.monotonic()
        with impatient(spec) as store, pytest.raises(Unavailable, match="no answer"):
            store.check()
    assert time.monotonic() - begun < 5


def test_an_endpoint_that_never_answers_is_unavailable_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        spec = S3Server(f"http://127.0.0.1:{silent.getsockname()[1]}").spec()
        begun = time.monotonic()
        with impatient(spec) as store, pytest.raises(Unavailable, match="no answer"):
            store.get("a")
    assert time.monotonic() - begun < 5


def test_a_wrong_bucket_says_so(rclone: S3Server, moto: S3Server) -> None:
    for server in (rclone, moto):
        with open_store(server.spec(bucket="no-such-bucket")) as store:
            with pytest.raises(ConfigError, match=r"'no-such-bucket' .* does not exist: create it"):
                store.check()
            with pytest.raises(ConfigError, match="does not exist"):
                store.put("a", b"", timestamp_ms=0)
            with pytest.raises(ConfigError, match="does not exist"):
                store.get("a")


def test_a_wrong_secret_says_so_without_telling_it(rclone: S3Server) -> None:
    with open_store(rclone.spec(secret="not the secret")) as store, pytest.raises(ConfigError) as caught:
        store.check()
    assert "secret-access-key" in str(caught.value)
    assert "not the secret" not in str(caught.value) + repr(store)


def test_tls_spoken_to_a_plain_server_says_so(rclone: S3Server) -> None:
    spec = S3Server(rclone.endpoint.replace("http://", "https://")).spec()
    with impatient(spec) as store, pytest.raises(ConfigError, match="endpoint=http://"):
        store.check()


def test_litestreams_variables_hold_the_keys(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = rclone.spec("env")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITESTREAM_ACCESS_KEY_ID", spec.access_key_id.reveal())
    monkeypatch.setenv("LITESTREAM_SECRET_ACCESS_KEY", spec.secret_access_key.reveal())
    with open_store(spec.url) as store:
        store.check()


def test_no_keys_at_all_is_a_configuration_error(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "LITESTREAM_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with open_store(rclone.url("env")) as store, pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        store.check()


def test_the_time_is_kept_as_litestream_keeps_it(moto: S3Server) -> None:
    spec = moto.spec("times")
    with S3Store(spec) as store:
        store.put("a", b"small", timestamp_ms=NOON_MS)
        store.put("b", bytes(9 << 20), timestamp_ms=NOON_MS)
        for key in ("times/a", "times/b"):
            head = store._client().head_object(Bucket=spec.bucket, Key=key)
            assert head["Metadata"] == {"litestream-timestamp": "2025-06-15T15:06:40.123Z"}
    assert _rfc3339(1000) == "1970-01-01T00:00:01Z"
    assert _rfc3339(1100) == "1970-01-01T00:00:01.1Z"


def test_a_download_that_is_cut_goes_on_where_it_stopped() -> None:
    body = bytes(range(256)) * 40
    with cutting_server(body, cut_after=3000) as (endpoint, requests), S3Store(S3Server(endpoint).spec()) as store:
        assert b"".join(store.chunks("a", 1000)) == body
        assert store.get("a", 100, 5000) == body[100:5100]
    assert requests[:2] == ["", "bytes=3000-"]


def cutting_server(body: bytes, cut_after: int):  # type: ignore[no-untyped-def]
    """An S3 server that promises all of a range and hangs up after `cut_after` bytes of it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            requests.append(wanted)
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = body[int(first or 0) : int(last) + 1 if last else None]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", '"same"')
            self.end_headers()
            self.wfile.write(part[:cut_after])

        def log_message(self, *_: object) -> None:
            pass

    @contextmanager
    def run() -> Iterator[tuple[str, list[str]]]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}", requests
            finally:
                server.shutdown()
                thread.join()

    return run()
