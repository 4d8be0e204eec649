"""Owner and mode of what walcast makes: decided purely, and given whatever the umask says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.users import APP, APP_GROUP, modes, needs_root, umask

from walcast.errors import ConfigError
from walcast.filesystem import make_directory, write_durably
from walcast.permissions import (
    Permissions,
    create_file,
    give,
    inherit,
    open_or_create,
    parse_mode,
    permissions_of,
)
from walcast.sharing import shared_with
from walcast.store.directory import DirectoryStore
from walcast.store.directory_modes import folder_permissions, object_permissions

ME, GROUP, OTHER_GROUP = 1000, 100, 200
UMASKS = (0o000, 0o022, 0o777)


@pytest.mark.parametrize(
    ("mode", "granted"),
    [(0o660, 0o600), (0o640, 0o600), (0o644, 0o644), (0o664, 0o644), (0o604, 0o600), (0o600, 0o600)],
)
def test_another_group_gets_what_the_right_group_and_all_others_have_both(mode: int, granted: int) -> None:
    assert Permissions(ME, GROUP, mode).granted(GROUP) == mode
    assert Permissions(ME, GROUP, mode).granted(OTHER_GROUP) == granted


@pytest.mark.parametrize(
    ("mode", "folder", "status"),
    [
        (0o600, 0o700, 0o600),
        (0o640, 0o710, 0o640),
        (0o660, 0o710, 0o640),
        (0o644, 0o711, 0o644),
        (0o666, 0o711, 0o644),
        (0o604, 0o701, 0o604),
        (0o620, 0o700, 0o600),
    ],
)
def test_the_status_file_is_read_by_whom_the_database_is_read_by(mode: int, folder: int, status: int) -> None:
    shared = shared_with(Permissions(ME, GROUP, mode), ME, OTHER_GROUP)
    assert shared.folder == Permissions(ME, GROUP, folder)
    assert shared.status == Permissions(ME, GROUP, status)


def test_where_root_runs_walcast_the_owner_of_the_database_reads_the_status_file() -> None:
    shared = shared_with(Permissions(ME, GROUP, 0o600), 0, 0)
    assert shared.folder == Permissions(0, GROUP, 0o711)  # to go through, not to list
    assert shared.status == Permissions(ME, GROUP, 0o600)


def test_nothing_is_shared_before_there_is_a_database() -> None:
    shared = shared_with(None, ME, GROUP)
    assert (shared.folder.mode, shared.status.mode) == (0o700, 0o600)


@pytest.mark.parametrize(
    ("root", "file", "folder"),
    [
        (0o700, 0o600, 0o700),
        (0o755, 0o600, 0o700),  # as most folders are made
        (0o777, 0o600, 0o700),
        (0o750, 0o640, 0o750),
        (0o770, 0o660, 0o770),
        (0o775, 0o660, 0o770),
        (0o711, 0o600, 0o700),
    ],
)
def test_an_archive_is_shared_with_a_group_that_its_folder_sets_apart_and_never_with_others(
    root: int, file: int, folder: int
) -> None:
    given = Permissions(ME, GROUP, root)
    assert object_permissions(given) == Permissions(ME, GROUP, file)
    assert folder_permissions(given) == Permissions(ME, GROUP, folder)


@pytest.mark.parametrize(("text", "mode"), [("600", 0o600), ("0640", 0o640), ("0660", 0o660), ("666", 0o666)])
def test_modes_are_read_as_chmod_reads_them(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize(
    "text", ["", "0", "8", "0o600", "400", "0755", "4600", "60", "-600", "0600\n", "٦٠٠", "6" * 5000]
)
def test_what_is_no_mode_of_a_database_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mode(text)


@pytest.mark.parametrize("mask", UMASKS)
def test_files_and_folders_are_for_their_owner_only_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        os.close(create_file(tmp_path / "created"))
        os.close(open_or_create(tmp_path / "opened"))
        make_directory(tmp_path / "a" / "b", parents=True)
        write_durably(tmp_path / "a" / "b" / "written", b"x")
        store = DirectoryStore(tmp_path / "archive" / "app")
        store.put("ltx/0/one.ltx", b"x", timestamp_ms=0)
        store.put("ltx/0/two.ltx", b"x", timestamp_ms=0, if_absent=True)
        version = store.swap("lease", b"1", None)
        store.swap("lease", b"2", version)
    for name, mode in modes(tmp_path).items():
        assert mode == (0o700 if (tmp_path / name).is_dir() else 0o600), name


@pytest.mark.parametrize("mask", UMASKS)
def test_an_archive_follows_the_folder_that_was_there(tmp_path: Path, mask: int) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    root.chmod(0o770)
    with umask(mask):
        store = DirectoryStore(root)
        store.put("ltx/0/one.ltx", b"x", timestamp_ms=0)
        store.swap("lease", b"1", None)
    for name, mode in modes(root).items():
        assert mode == (0o770 if (root / name).is_dir() else 0o660), name


def test_a_file_that_an_older_version_left_open_is_closed_to_others_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "positions").touch(0o666)
    os.close(open_or_create(tmp_path / "positions"))
    assert modes(tmp_path) == {"positions": 0o600}


@pytest.mark.parametrize("leads", ["to a file", "nowhere"])
def test_no_link_is_followed_to_what_is_written(tmp_path: Path, leads: str) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    if leads == "to a file":
        victim.write_bytes(b"precious")
    link.symlink_to(victim)
    for make in (create_file, open_or_create):
        with pytest.raises(OSError, match=r"link|exists"):
            make(link)
    (tmp_path / "role.tmp").symlink_to(victim)
    write_durably(tmp_path / "role", b"x")
    assert not (tmp_path / "role").is_symlink()
    assert victim.read_bytes() == b"precious" if leads == "to a file" else not victim.exists()


def test_a_new_file_takes_over_the_mode_of_the_old_one_or_has_its_own(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    new.touch(0o644)
    inherit(new, old, 0o640)
    assert new.stat().st_mode & 0o777 == 0o640
    old.touch()
    old.chmod(0o664)
    inherit(new, old, 0o600)
    assert new.stat().st_mode & 0o777 == 0o664


def test_the_bits_for_the_group_are_not_taken_for_those_of_an_access_control_list(tmp_path: Path) -> None:
    """One named user may read; the group may not, though the mode shows r for the most that anybody in the list may."""
    path = tmp_path / "app.db"
    path.touch(0o600)
    entry = [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 12345),
        (0x04, 0, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    packed = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, bits, who in entry
    )
    try:
        os.setxattr(path, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    assert path.stat().st_mode & 0o777 == 0o640
    found = permissions_of(path)
    assert found is not None
    assert found.mode == 0o600


@needs_root
def test_root_gives_owner_and_group_before_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replica"
    fd = create_file(path)
    chown = os.fchown

    def still_closed(fd: int, uid: int, gid: int) -> None:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        chown(fd, uid, gid)

    monkeypatch.setattr(os, "fchown", still_closed)
    give(fd, Permissions(APP, APP_GROUP, 0o664))
    os.close(fd)
    assert permissions_of(path) == Permissions(APP, APP_GROUP, 0o664)


@needs_root
def test_what_root_archives_into_a_users_folder_is_that_users(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir(0o700)
    os.chown(root, APP, APP_GROUP)
    store = DirectoryStore(root)
    store.put("ltx/0/one.ltx", b"x", timestamp_ms=0)
    store.swap("lease", b"1", None)
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in root.rglob("*")} == {(APP, APP_GROUP)}
