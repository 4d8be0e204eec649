"""What others put into an archive's folder is not believed: links, FIFOs, names, sizes, numbers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from walcast.archive import list_files
from walcast.store import directory, directory_swap
from walcast.store.base import WHOLE_MOST_BYTES, ForeignObject, ListingTooLong
from walcast.store.directory import DirectoryStore
from walcast.store.regular import NotAnObject
from walcast.store.swaps import MAX_SWAP_BYTES

KEY = "ltx/9/0000000000000001-00000000000000ff.ltx"
# A call that waits for ever, or takes the memory that a file claims to have, is to fail a test and not to end it.
READ = """
import resource, sys
from pathlib import Path
from walcast.store.directory import DirectoryStore
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
store = DirectoryStore(Path(sys.argv[1]))
for read in (store.get, lambda key: store.get(key, 0, 100), lambda key: list(store.chunks(key)), store.read):
    try:
        read(sys.argv[2])
        print("read")
    except Exception as error:
        print(type(error).__name__)
"""


def kinds_of_errors(root: Path, key: str) -> list[str]:
    """What each way of reading that object says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(root), key], capture_output=True, text=True, timeout=20.0, check=True
    )
    return done.stdout.split()


def make(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/etc/passwd")
        case "endless":
            path.symlink_to("/dev/zero")
        case "socket":
            os.chdir(path.parent)  # its address may have 107 bytes only
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        case "folder":
            path.mkdir()


@pytest.mark.parametrize("kind", ["fifo", "link", "endless", "socket", "folder"])
def test_only_a_regular_file_is_an_object(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / KEY, kind)
    store = DirectoryStore(tmp_path)
    assert list(store.list()) == []
    assert list_files(store) == []
    if kind == "folder":
        with pytest.raises(NotAnObject):
            store.get(KEY)
        return
    assert kinds_of_errors(tmp_path, KEY) == ["NotAnObject", "NotAnObject", "NotAnObject", "ForeignObject"]


def test_nothing_waits_for_the_writer_of_a_fifo_that_takes_a_versions_place(tmp_path: Path) -> None:
    make(tmp_path / "walcast-lease" / f"{1:016x}", "fifo")
    assert kinds_of_errors(tmp_path, "walcast-lease")[-1] == "ForeignObject"


def test_no_memory_is_taken_for_what_a_file_claims_to_have(tmp_path: Path) -> None:
    for key in ("walcast-claims/x", f"walcast-lease/{1:016x}"):
        path = tmp_path / key
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(1 << 40)
    store = DirectoryStore(tmp_path)
    with pytest.raises(NotAnObject):
        store.get("walcast-claims/x")
    with pytest.raises(ForeignObject):
        store.read("walcast-lease")
    assert WHOLE_MOST_BYTES <= 1 << 28
    with (tmp_path / "small").open("wb") as file:
        file.write(b"abc")
    assert store.get("small", 1, 1 << 50) == b"bc"
    assert store.get("small", 5, 10) == b""


def test_a_version_as_large_as_may_be_swapped_is_read(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.swap("lease", bytes(MAX_SWAP_BYTES), None)
    found = store.read("lease")
    assert found is not None
    assert found.data == bytes(MAX_SWAP_BYTES)


@pytest.mark.parametrize("at", ["ltx", "ltx/9"])
def test_no_link_leads_out_of_the_archive(tmp_path: Path, at: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "archive"
    victim = outside / KEY.removeprefix(f"{at}/")
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"private")
    (root / at).parent.mkdir(parents=True)
    (root / at).symlink_to(outside)
    store = DirectoryStore(root)
    assert list(store.list()) == []
    for use in (
        lambda: store.get(KEY),
        lambda: list(store.list("ltx/9/")),
        lambda: store.put(KEY, b"mine", timestamp_ms=1),
        lambda: store.delete([KEY]),
    ):
        with pytest.raises(NotAnObject):
            use()
    assert victim.read_bytes() == b"private"
    assert len(list(victim.parent.iterdir())) == 1


def test_the_archives_own_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "disk")
    store = DirectoryStore(tmp_path / "archive")
    store.put(KEY, b"mine", timestamp_ms=1)
    assert [found.key for found in store.list("ltx/9/")] == [KEY]
    assert store.get(KEY) == b"mine"
    store.delete([KEY])
    assert list(store.list()) == []


def test_to_delete_a_link_removes_the_link(tmp_path: Path) -> None:
    victim, root = tmp_path / "victim", tmp_path / "archive"
    victim.write_bytes(b"private")
    (root / KEY).parent.mkdir(parents=True)
    (root / KEY).symlink_to(victim)
    DirectoryStore(root).delete([KEY])
    assert victim.exists()
    assert not (root / KEY).is_symlink()


def test_names_that_are_no_objects_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "ltx" / "0"
    folder.mkdir(parents=True)
    for name in (b"x\ny.ltx", b"\x1b[2J.ltx", b"\xff\xfe.ltx", b"-o.ltx", b"$(id).ltx"):
        (folder / os.fsdecode(name)).write_bytes(b"x")
    (folder / "0000000000000001-ffffffffffffffff.ltx").write_bytes(b"x")  # no history ever has so many transactions
    store = DirectoryStore(tmp_path)
    assert [found.key for found in store.list()] == [
        "ltx/0/$(id).ltx",
        "ltx/0/-o.ltx",
        "ltx/0/0000000000000001-ffffffffffffffff.ltx",
    ]
    assert list_files(store) == []


def test_a_listing_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "LISTED_MOST", 10)
    monkeypatch.setattr(directory_swap, "_NAMES_MOST", 10)
    folder = tmp_path / "ltx" / "0"
    folder.mkdir(parents=True)
    store = DirectoryStore(tmp_path)
    store.swap("lease", b"1", None)
    for number in range(11):
        (folder / f".{number}").touch()
        (tmp_path / "lease" / f"x{number}").touch()
    with pytest.raises(ListingTooLong):
        list(store.list("ltx/0/"))
    with pytest.raises(ForeignObject):
        store.read("lease")


def test_folders_in_folders_end_somewhere(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "object").touch()
    assert list(DirectoryStore(tmp_path).list()) == []


def test_tidying_removes_nothing_that_a_link_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write to an archive's folder must not have others' files removed by whoever archives there."""
    theirs = tmp_path / "theirs"
    for folder in (theirs / "0", theirs / "0" / ".folder.tmp"):
        folder.mkdir(parents=True)
        (folder / ".file.tmp").touch()
    before = sorted(theirs.rglob("*"))
    archive = tmp_path / "archive"
    (archive / "ltx").mkdir(parents=True)
    (archive / "ltx" / "0").symlink_to(theirs / "0")
    (archive / "ltx" / "1").mkdir()
    (archive / "ltx" / "1" / ".left.tmp").touch()
    (archive / ".linked.tmp").symlink_to(theirs)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_500)
    DirectoryStore(archive).tidy()
    assert sorted(theirs.rglob("*")) == before
    assert list((archive / "ltx" / "1").iterdir()) == []
    (archive / "ltx").rename(archive / "moved")
    (archive / "ltx").symlink_to(theirs)
    DirectoryStore(archive).tidy()
    assert sorted(theirs.rglob("*")) == before


def test_nothing_is_written_where_a_link_leads_also_when_it_comes_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, archive = tmp_path / "theirs", tmp_path / "archive"
    theirs.mkdir()
    store = DirectoryStore(archive)
    store.put("ltx/0/a", b"x", timestamp_ms=1)
    create = directory.create_object

    def swapped(*arguments: Any, **more: Any) -> int:
        (archive / "ltx" / "0").rename(tmp_path / "moved")
        (archive / "ltx" / "0").symlink_to(theirs)
        return create(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "create_object", swapped)
        store.put("ltx/0/b", b"of the database", timestamp_ms=1)
    assert (tmp_path / "moved" / "b").read_bytes() == b"of the database"
    (archive / "ltx").rename(tmp_path / "moved-too")
    (archive / "ltx").symlink_to(theirs)
    for one in (store, DirectoryStore(archive)):
        with pytest.raises(NotAnObject):
            one.put("ltx/7/b", b"x", timestamp_ms=1)
    assert list(theirs.iterdir()) == []
