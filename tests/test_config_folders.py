"""Folders in the configuration file: which files are meant, what they are called, where their archives are."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import sysconfig
from contextlib import closing
from pathlib import Path

import pytest
from support.folders import rows, serving, write
from support.nodes import barrier

from walcast.errors import ConfigError
from walcast.restore import restore
from walcast.store import DirectorySpec, S3Spec, open_store
from walcast_node.config.archives import ArchiveConfig
from walcast_node.config.configuration import Config, load_config
from walcast_node.process.folders import Folder, Kind, compile_pattern, look
from walcast_node.process.open_inodes import Inodes, inode_of

LITESTREAM = Path(sysconfig.get_path("scripts")) / "litestream"


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "walcast.yml"
    file.write_text(text)
    return load_config(file, {})


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value).removeprefix(f"{tmp_path / 'walcast.yml'}:")


# Patterns


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.db", ["a.db", ".db", "a b.db"], ["a.db2", "a.sqlite", "adb"]),
        ("tenant-?.db", ["tenant-1.db"], ["tenant-12.db", "tenant-.db"]),
        ("[a-c]*", ["a", "bcd", "c.db"], ["d", "A"]),
        ("[^a-c]?", ["dx", "^x"], ["ax", "d"]),
        ("[!a]", ["!", "a"], ["b"]),  # Go knows '^' only
        (r"\*.db", ["*.db"], ["a.db"]),
        (r"[\]\-x]", ["]", "-", "x"], ["a"]),
        ("a]", ["a]"], ["a"]),
        ("a+(b).db", ["a+(b).db"], ["aab.db"]),
        ("*", ["anything", ""], []),
    ],
)
def test_patterns_mean_what_they_mean_in_go(pattern: str, yes: list[str], no: list[str]) -> None:
    regex = compile_pattern(pattern)
    assert [name for name in yes if not regex.fullmatch(name)] == []
    assert [name for name in no if regex.fullmatch(name)] == []


@pytest.mark.parametrize("pattern", ["", "a/*.db", "[", "[]", "[]a]", "[a", "[-a]", "[a-]", "[z-a]", "x\\"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="is not a pattern"):
        compile_pattern(pattern)


def test_stars_and_question_marks_are_those_of_a_shell() -> None:
    names = ["".join(letters) for count in range(4) for letters in itertools.product("ab.", repeat=count)]
    for parts in itertools.product("ab.*?", repeat=3):
        pattern = "".join(parts)
        regex = compile_pattern(pattern)
        for name in names:
            assert bool(regex.fullmatch(name)) == fnmatch.fnmatchcase(name, pattern), (pattern, name)


# What is in a folder


def test_only_databases_are_found_and_nothing_else_is_touched(tmp_path: Path) -> None:
    write(tmp_path / "a.db", 1)
    write(tmp_path / "sub" / "b.db", 1)
    write(tmp_path / ".hidden" / "c.db", 1)
    write(tmp_path / "a.db-walcast" / "d.db", 1)
    for name in (".e.db", "f.db-wal", "g.db-shm", "h.db-journal", "i.tmp", "j.db~"):
        shutil.copy(tmp_path / "a.db", tmp_path / name)
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database, though its name is that of one")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "loop.db").symlink_to("loop.db")
    (tmp_path / "dangling.db").symlink_to("nowhere")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "alias.db").symlink_to("a.db")
    write(tmp_path.with_name(f"{tmp_path.name}-elsewhere") / "k.db", 1)
    (tmp_path / "link.db").symlink_to(tmp_path.with_name(f"{tmp_path.name}-elsewhere") / "k.db")
    os.mkfifo(tmp_path / "fifo.db")
    before = {path: path.lstat() for path in tmp_path.rglob("*")}

    found = Folder(tmp_path, "*", recursive=True).scan(Inodes())
    assert found.databases == (tmp_path / "a.db", tmp_path / "link.db", tmp_path / "sub" / "b.db")
    assert found.waiting == ((tmp_path / "empty.db", Kind.EMPTY),)
    assert set(found.folders) == {tmp_path, tmp_path / "sub", tmp_path / "folder.db"}
    assert Folder(tmp_path, "*.db").scan(Inodes()).databases == (tmp_path / "a.db", tmp_path / "link.db")
    assert Folder(tmp_path, ".*").scan(Inodes()).databases == (tmp_path / ".e.db",)
    assert {path: path.lstat().st_mtime_ns for path in before} == {p: s.st_mtime_ns for p, s in before.items()}


def test_a_copy_that_is_not_whole_yet_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(2000)))
    data = (tmp_path / "a.db").read_bytes()
    copy = tmp_path / "copy.db"
    now_s = (tmp_path / "a.db").stat().st_mtime
    for length, kind in (
        (0, Kind.EMPTY),
        (7, Kind.UNFINISHED),
        (50, Kind.UNFINISHED),
        (4096, Kind.UNFINISHED),
        (len(data) - 1, Kind.UNFINISHED),
        (len(data), Kind.DATABASE),
    ):
        copy.write_bytes(data[:length])
        assert look(copy, Inodes(), now_s) is kind, length
    copy.write_bytes(bytes(len(data)))  # allocated ahead
    assert look(copy, Inodes(), now_s) is Kind.EMPTY
    copy.write_bytes(data[:4096])
    assert look(copy, Inodes(), now_s + 60) is Kind.DATABASE  # nobody writes any more: let SQLite say what it is
    (tmp_path / "copy.db-wal").write_bytes(b"what a crash in a checkpoint leaves")
    assert look(copy, Inodes(), now_s) is Kind.DATABASE


def test_looking_does_not_drop_the_locks_of_this_process(tmp_path: Path) -> None:
    """A close of any descriptor drops all POSIX locks of the process on the file."""
    path = tmp_path / "app.db"
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("BEGIN EXCLUSIVE")
        script = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"

        def others_may_write() -> bool:
            return subprocess.run(["python3", "-c", script], capture_output=True, check=False).returncode == 0

        inodes = Inodes()
        assert inodes.hold(inode_of(path), "app") is None
        (tmp_path / "alias.db").hardlink_to(path)
        assert Folder(tmp_path, "*.db").scan(inodes).databases == (tmp_path / "alias.db", path)
        assert not others_may_write()
        inodes.let_go(inode_of(path))
        Folder(tmp_path, "*.db").scan(inodes)
        assert others_may_write()  # so the test can fail
    db.close()


# The file


def test_a_folder_is_read_with_its_names_and_archives(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """\
dbs:
- dir: /data
  pattern: '*.db'
  recursive: true
  watch: true
  replica: {url: 's3://bucket/base?endpoint=https://minio:9000'}
- path: /var/lib/app/*.sqlite
  name: app
  archive: /backups
  snapshot: {retention: 30d}
- {dir: /plain, pattern: '*', replica: {type: s3, bucket: bucket}}
- {dir: /more, pattern: '*', replica: {type: s3, bucket: bucket, path: base/}}
- {dir: /none, pattern: '*'}
""",
    )
    assert config.dbs == ()
    data, app, plain, more, none = config.folders
    assert (data.folder.recursive, data.watch, data.line) == (True, True, 2)
    one = data.database(Path("/data/tenants/42.db"))
    assert (one.name, one.path, one.line) == ("tenants/42", Path("/data/tenants/42.db"), 2)
    assert one.archive == S3Spec("bucket", "base/tenants/42.db", endpoint="https://minio:9000", path_style=True)
    assert (app.folder.dir, app.folder.pattern, app.watch) == (Path("/var/lib/app"), "*.sqlite", False)
    two = app.database(Path("/var/lib/app/x.y.sqlite"))
    assert (two.name, two.archive) == ("app/x.y", DirectorySpec(Path("/backups/x.y.sqlite")))
    assert two.policy.retention_s == 30 * 86400
    assert plain.database(Path("/plain/a")).archive == S3Spec("bucket", "a")
    assert more.database(Path("/more/a")).archive == S3Spec("bucket", "base/a")
    assert none.database(Path("/none/a")).archive is None

    assert ArchiveConfig(DirectorySpec(Path("/b"))).below("a %.db") == DirectorySpec(Path("/b/a %.db"))
    # Litestream does not decode the path of a file: URL that it appends to.
    assert ArchiveConfig(DirectorySpec(Path("/b")), True).below("a %.db") == DirectorySpec(Path("/b/a%20%25.db"))

    assert config.database(Path("/data/tenants/42.db")) == one
    assert config.database(Path("/data/.hidden/42.db")) is None
    assert config.database(Path("/data/42.sqlite")) is None
    assert config.database(Path("/var/lib/app/sub/x.sqlite")) is None


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "odd[1].db", 1)
    config = load(tmp_path, f"dbs:\n- path: {tmp_path}/odd[1].db\n- path: {tmp_path}/odd[2].db\n")
    assert [one.name for one in config.dbs] == ["odd[1]"]
    assert [one.folder.pattern for one in config.folders] == ["odd[2].db"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- dir: /a\n", "2: 'dir' needs a 'pattern' for the files' names, as in '*.db'"),
        ("- {path: /a, dir: /b, pattern: x}\n", "2: 'path' and 'dir': give one of them"),
        ("- path: /a.db\n  watch: true\n", "3: 'watch' needs a 'dir', or a 'path' with a pattern"),
        ("- dir: /a\n  pattern: 'x/*'\n", "3: 'x/*' is not a pattern for file names, as in '*.db'"),
        ("- dir: /a\n  pattern: '[a'\n", "3: '[a' is not a pattern: '[' without what belongs to it"),
        ("- path: /a/*/x-*.db\n", "2: only the file's name can be a pattern; a folder and all below it is 'dir'"),
        ("- dir: /a\n  pattern: '*'\n  watch: perhaps\n", "4: true or false belongs here, not 'perhaps'"),
        ("- dir: /a\n  pattern: '*'\n  replica: {type: s3, bucket: b-b, path: /x}\n", "4: '/x': slashes at an end"),
        ("- dir: /a\n  pattern: '*'\n  replica: {type: file}\n", "4: an archive needs a 'url', or a 'path'"),
    ],
)
def test_an_error_in_a_folder_names_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, "dbs:\n" + text).startswith(expected)


def test_a_file_whose_path_makes_no_name_is_refused(tmp_path: Path) -> None:
    [folder] = load(tmp_path, "dbs:\n- {dir: /data, pattern: '*', recursive: yes}\n").folders
    for name in ("x" * 130, "line\nbreak", os.fsdecode(b"\xff\xfe.db")):
        with pytest.raises(ConfigError, match="makes no name"):
            folder.database(Path("/data") / name)


# The same places as Litestream's


def test_litestream_and_walcast_find_each_others_archives_of_a_folder(tmp_path: Path) -> None:
    """Once the archive is a path, once a URL, in which Litestream has the odd name percent-encoded."""
    archives, file = tmp_path / "archives", tmp_path / "both.yml"
    names = ["path/a.db", "path/deep/er/x.db", "path/odd name+é=.db", "url/a.db", "url/odd name+é=.db"]
    paths = [tmp_path / "data" / name for name in names]
    for number, path in enumerate(paths):
        write(path, number)
    entry = "- {{dir: {}/data/{}, name: {}, pattern: '*.db', recursive: true, replica: {{{}}}}}\n"
    one = entry.format(tmp_path, "path", "path", f"path: {archives}/path")
    file.write_text("dbs:\n" + one + entry.format(tmp_path, "url", "url", f"url: 'file://{archives}/url'"))

    done = subprocess.run([LITESTREAM, "replicate", "-config", file, "-once"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(file)
    for number, path in enumerate(paths):
        database = config.database(path)
        assert database is not None
        assert database.archive is not None
        with open_store(database.archive) as store:
            restore(store, tmp_path / f"ours-{number}.db")
        assert rows(tmp_path / f"ours-{number}.db") == [number]
    theirs = {path.parent for path in archives.rglob("ltx")}
    assert len(theirs) == len(names)
    assert archives / "url" / "odd%20name+%C3%A9=.db" in theirs

    with serving(file) as node:
        for number, (name, path) in enumerate(zip(names, paths, strict=True)):
            write(path, number + 10)
            barrier(node.address, name.removesuffix(".db"))
        assert node.stop() == 0
    assert {path.parent for path in archives.rglob("ltx")} == theirs
    for number, place in enumerate(theirs):
        single, copy = tmp_path / "single.yml", tmp_path / f"theirs-{number}.db"
        single.write_text(f"dbs:\n- path: {tmp_path}/some.db\n  replica: {{path: '{place}'}}\n")
        command = [LITESTREAM, "restore", "-config", single, "-o", copy, tmp_path / "some.db"]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.fullmatch(r"\[\d, 1\d\]", str(rows(copy)))
