"""The restore plan against a brute-force oracle; names in both layouts; URLs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.archive import (
    SNAPSHOT_LEVEL,
    ArchiveEmpty,
    ArchiveFile,
    ArchiveGap,
    TxidNotAvailable,
    list_files,
    ltx_key,
    plan_restore,
)
from walcast.errors import ConfigError
from walcast.store import DirectorySpec, S3Spec, open_store, parse_url


def file(level: int, min_txid: int, max_txid: int, timestamp_ms: int | None = None) -> ArchiveFile:
    when = max_txid * 1000 if timestamp_ms is None else timestamp_ms
    return ArchiveFile(level, min_txid, max_txid, 100, when, f"{level}/{min_txid}-{max_txid}")


def ranges(plan: list[ArchiveFile]) -> list[tuple[int, int, int]]:
    return [(found.level, found.min_txid, found.max_txid) for found in plan]


def test_the_newest_snapshot_comes_first_then_the_longest_steps() -> None:
    files = [file(9, 1, 5), file(9, 1, 20), file(0, 21, 21), file(0, 22, 22), file(1, 15, 22), file(0, 23, 23)]
    assert ranges(plan_restore(files)) == [(9, 1, 20), (1, 15, 22), (0, 23, 23)]


def test_a_level_0_file_from_the_first_txid_is_a_beginning() -> None:
    assert ranges(plan_restore([file(0, 1, 1), file(0, 2, 2)])) == [(0, 1, 1), (0, 2, 2)]


def test_a_txid_is_reached_exactly() -> None:
    files = [file(9, 1, 5), file(1, 6, 9), file(0, 6, 6), file(0, 7, 7)]
    assert ranges(plan_restore(files, txid=7)) == [(9, 1, 5), (0, 6, 6), (0, 7, 7)]
    assert ranges(plan_restore(files, txid=5)) == [(9, 1, 5)]
    with pytest.raises(TxidNotAvailable) as caught:
        plan_restore(files, txid=8)
    assert (caught.value.txid, caught.value.reached) == (8, 7)
    for txid in (1, 10):
        with pytest.raises(TxidNotAvailable):
            plan_restore(files, txid=txid)


def test_a_time_includes_the_commit_of_that_millisecond() -> None:
    files = [file(9, 1, 5), file(0, 6, 6), file(0, 7, 7)]
    assert plan_restore(files, timestamp_ms=6000)[-1].max_txid == 6
    assert plan_restore(files, timestamp_ms=5999)[-1].max_txid == 5
    assert plan_restore(files, timestamp_ms=99_000)[-1].max_txid == 7
    with pytest.raises(TxidNotAvailable):
        plan_restore(files, timestamp_ms=4999)


def test_a_time_inside_a_compacted_range_stops_before_it() -> None:
    files = [file(9, 1, 5), file(1, 6, 10), file(0, 8, 8), file(0, 9, 9)]
    assert ranges(plan_restore(files, timestamp_ms=9000)) == [(9, 1, 5)]


def test_a_gap_says_where() -> None:
    with pytest.raises(ArchiveGap) as caught:
        plan_restore([file(9, 1, 5), file(0, 6, 6), file(0, 8, 8), file(0, 9, 9)])
    assert (caught.value.have, caught.value.next_min) == (6, 8)


def test_nothing_to_begin_with_is_empty() -> None:
    with pytest.raises(ArchiveEmpty, match="no LTX files"):
        plan_restore([])
    with pytest.raises(ArchiveEmpty, match="no snapshot"):
        plan_restore([file(0, 2, 2)])


def test_a_follower_needs_no_snapshot() -> None:
    files = [file(9, 1, 20), file(1, 6, 9), file(0, 10, 10), file(0, 11, 11)]
    assert ranges(plan_restore(files, after_txid=7)) == [(9, 1, 20)]
    files = files[1:]
    assert ranges(plan_restore(files, after_txid=7)) == [(1, 6, 9), (0, 10, 10), (0, 11, 11)]
    assert plan_restore(files, after_txid=11) == []
    assert plan_restore(files, after_txid=50) == []
    with pytest.raises(ArchiveGap):
        plan_restore(files, after_txid=3)


def test_a_txid_and_a_time_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="not to both"):
        plan_restore([file(9, 1, 5)], txid=5, timestamp_ms=5)


small_files = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 4)).map(lambda t: file(t[0], t[1], t[1] + t[2])),
    max_size=9,
    unique_by=lambda found: (found.level, found.min_txid, found.max_txid),
)


def reachable(files: list[ArchiveFile], start: int) -> set[int]:
    """Every TXID that some order of applying files can end at: tried until nothing new comes."""
    ends = {start}
    while True:
        more = {f.max_txid for f in files for end in ends if f.min_txid <= end + 1 and f.max_txid > end} | ends
        if more == ends:
            return ends
        ends = more


@settings(max_examples=400, deadline=None)
@given(small_files, st.one_of(st.none(), st.integers(1, 14)), st.integers(0, 12))
def test_the_plan_is_what_brute_force_finds(files: list[ArchiveFile], txid: int | None, after: int) -> None:
    usable = [f for f in files if txid is None or f.max_txid <= txid]
    ends = reachable(usable, after)
    goal = txid if txid is not None else max([f.max_txid for f in usable] + [after])
    possible = goal in ends and (after > 0 or len(ends) > 1)
    failure: Exception | None = None
    try:
        plan = plan_restore(files, txid=txid, after_txid=after)
    except (ArchiveEmpty, ArchiveGap, TxidNotAvailable) as error:
        failure = error
    if failure is not None:
        assert not possible
        if isinstance(failure, ArchiveGap):
            assert failure.have in ends
            assert not any(f.min_txid <= failure.have + 1 <= f.max_txid for f in files)
        return
    reached = after
    for step in plan:
        assert step.min_txid <= reached + 1
        assert step.max_txid > reached
        reached = step.max_txid
    if goal >= after:
        assert reached == goal
    if plan and not after:
        assert plan[0].is_snapshot
        assert not any(f.is_snapshot for f in plan[1:])


def test_listing_reads_both_layouts_and_ignores_foreign_names(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        assert ltx_key(store, 9, 1, 255) == "ltx/9/0000000000000001-00000000000000ff.ltx"
        for level, low, high in [(9, 1, 3), (0, 4, 4), (0, 5, 5)]:
            store.put(ltx_key(store, level, low, high), b"x", timestamp_ms=high)
        for name in ("ltx/0/notes.txt", "ltx/0/1-2.ltx", "ltx/0/0000000000000009-0000000000000001.ltx", "ltx/x/y"):
            store.put(name, b"x", timestamp_ms=0)
        assert ranges(list_files(store)) == [(0, 4, 4), (0, 5, 5), (9, 1, 3)]
        assert ranges(list_files(store, [SNAPSHOT_LEVEL])) == [(9, 1, 3)]
    with open_store(S3Spec("bucket", "db")) as remote:
        assert ltx_key(remote, 9, 1, 255) == "0009/0000000000000001-00000000000000ff.ltx"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/var/backups/app", DirectorySpec(Path("/var/backups/app"))),
        ("relative/dir", DirectorySpec(Path("relative/dir"))),
        ("file:///var/back%20ups", DirectorySpec(Path("/var/back ups"))),
        ("s3://bucket", S3Spec("bucket")),
        ("s3://bucket/", S3Spec("bucket")),
        ("s3://bucket/a/b/", S3Spec("bucket", "a/b")),
        ("s3://b-1.x/a?region=eu-west-1", S3Spec("b-1.x", "a", region="eu-west-1")),
        ("s3://bucket/a?endpoint=host:9000", S3Spec("bucket", "a", endpoint="https://host:9000", path_style=True)),
        ("s3://bucket/a?endpoint=http://h", S3Spec("bucket", "a", endpoint="http://h", path_style=True)),
        ("s3://bucket/a?endpoint=https://h&path-style=false", S3Spec("bucket", "a", endpoint="https://h")),
        ("s3://bucket/a?path-style=YES", S3Spec("bucket", "a", path_style=True)),
        ("s3://bucket/a?force-path-style=1&skipVerify=true", S3Spec("bucket", "a", path_style=True, skip_verify=True)),
        ("s3://bucket/a?ca-bundle=/etc/ca.pem", S3Spec("bucket", "a", ca_bundle="/etc/ca.pem")),
        ("s3://bucket/a?part-size=5&sign-payload=true", S3Spec("bucket", "a")),
    ],
)
def test_a_url_means(text: str, expected: object) -> None:
    spec = parse_url(text)
    assert spec == expected
    assert parse_url(spec.url) == spec


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("gs://bucket/a", "unknown scheme 'gs'"),
        ("s3:///a", "bucket is missing"),
        ("s3:/bucket", "two slashes"),
        ("s3://bucket/a?regoin=x", "unknown option 'regoin'"),
        ("s3://bucket/a?path-style=maybe", "'path-style' is true or false, not 'maybe'"),
        ("s3://bucket/a?region=", "'region' has no value"),
        ("s3://bucket/a?region=a&region=b", "given twice"),
        ("s3://bucket/a?endpoint=ftp://h", "unknown scheme 'ftp'"),
        ("s3://bucket/a?endpoint=http://", "host is missing"),
        ("s3://bucket/a?endpoint=http://h:port", "endpoint"),
        ("s3://host:9000/a", "is not a bucket name"),
        ("file://var/app", "three slashes"),
        ("file:///", "directory is missing"),
        ("file:///a?region=x", "takes no options"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(text)
    assert complaint in str(caught.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    for text in ("s3://key:s3cr3t@bucket/a", "s3://bucket/a?endpoint=https://key:s3cr3t@host"):
        with pytest.raises(ConfigError, match="holds no credentials") as caught:
            parse_url(text)
        assert "s3cr3t" not in str(caught.value)


def test_keys_of_a_specification_are_not_shown() -> None:
    spec = S3Spec("bucket", "a", access_key_id="AKIA1", secret_access_key="s3cr3t")
    assert "s3cr3t" not in repr(spec) + spec.url
    assert "AKIA1" not in repr(spec) + spec.url
