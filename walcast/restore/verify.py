"""Prove an archive: read every object, compare all that they say, restore the newest state and let SQLite check it.

Or take a sample, which is cheap and says what it leaves out. Problems and notes: see `walcast.archive.checks`. Memory
is what some files need while they are decoded, and some 100 bytes a file.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from walcast.archive.checks import Findings, Read, check_holes, check_reads
from walcast.archive.damage import DamagedFile
from walcast.archive.files import (
    LEVELS,
    ArchiveEmpty,
    ArchiveFile,
    ArchiveGap,
    TxidNotAvailable,
    file_of,
    list_files,
    plan_restore,
)
from walcast.archive.generations import list_generations
from walcast.archive.reading import announced_bytes, file_events, read_header, read_headers
from walcast.checksum import PageChecksums, page_checksum
from walcast.errors import ConfigError, Corrupt, WalcastError
from walcast.ltx import Header, Page
from walcast.ltx.possible import TAIL_BYTES, check_tail, snapshot_pages
from walcast.oserrors import at_path
from walcast.position import CHECKSUM_FLAG
from walcast.restore.apply import Progress
from walcast.restore.parts import cut
from walcast.restore.restoring import RestoreReport, restore
from walcast.store.base import LISTED_MOST, ListingTooLong, ObjectMissing, Store

T = TypeVar("T")

_SCAN_BYTES = 4 << 20
_AHEAD = 1024
_FOREIGN_NAMED = 100
_NOT_RESTORABLE = (Corrupt, ObjectMissing, ArchiveEmpty, ArchiveGap, TxidNotAvailable)


def verify_archive(
    store: Store, *, scratch: Path | None = None, parallelism: int = 8, progress: Progress | None = None
) -> Findings:
    """Read every file, restore the newest state into the folder `scratch` (None: the system's own), and check it all.

    Raises ArchiveEmpty, ConfigError when the scratch folder has no space for the database, and what the store raises.
    """
    findings = Findings(store.url)
    files = _listed(store, findings)
    plan = _plan(files, findings)
    _check_space(store, plan, scratch)
    counter = _Counter(progress, sum(file.size for file in [*files, *plan]))
    reads = _read_all(store, files, findings, parallelism, counter)
    check_reads(reads, findings)
    if plan:
        _check_restore(store, findings, scratch, parallelism, counter)
    return findings


def sample_archive(store: Store, *, count: int = 8, parallelism: int = 8, progress: Progress | None = None) -> Findings:
    """Look at what is cheap: names, the newest snapshot's two ends, the newest plan's headers, `count` files whole.

    The files are picked at random among those that are no snapshots. Raises ArchiveEmpty and what the store raises.
    """
    findings = Findings(store.url)
    files = _listed(store, findings)
    plan = _plan(files, findings)
    small = [file for file in files if not file.is_snapshot]
    chosen = sorted(random.sample(small, min(count, len(small))), key=lambda file: (file.level, file.max_txid))
    for answer in read_headers(store, plan):
        if not isinstance(answer, Header):
            findings.problems.append(str(answer))
    if plan:
        with _damage_is_a_problem(findings):
            _check_tail(store, plan[0])
    reads = _read_all(store, chosen, findings, parallelism, _Counter(progress, sum(file.size for file in chosen)))
    check_reads(reads, findings)
    if left := len(files) - len(reads):
        findings.unchecked.append(f"the contents of {left:,} of {len(files):,} files, among them the snapshots'")
    findings.unchecked.append("whether the newest state restores")
    return findings


def _listed(store: Store, findings: Findings) -> list[ArchiveFile]:
    """The archive's LTX files, by level and TXID; other names are noted."""
    files: list[ArchiveFile] = []
    foreign = 0
    for level in LEVELS:
        for found in store.list(store.level_prefix(level)):
            if len(files) >= LISTED_MOST:
                raise ListingTooLong("", store.url)
            if (file := file_of(store, level, found)) is not None:
                files.append(file)
                continue
            foreign += 1
            if foreign <= _FOREIGN_NAMED:
                findings.notes.append(f"{found.key}: not the name of an LTX file")
    if foreign > _FOREIGN_NAMED:
        findings.notes.append(f"{foreign - _FOREIGN_NAMED:,} more objects that have not the name of an LTX file")
    if not files and list_generations(store):
        raise ConfigError(
            "an archive of Litestream 0.3 has no checksums to compare: prove it with "
            "`walcast restore … --integrity-check full`"
        )
    if not files:
        raise ArchiveEmpty(f"nothing to verify: {store.url} has no LTX files; check the URL")
    findings.files = len(files)
    check_holes(files, findings)
    return files


def _plan(files: Sequence[ArchiveFile], findings: Findings) -> list[ArchiveFile]:
    try:
        return plan_restore(files)
    except WalcastError as error:
        findings.problems.append(f"the newest state cannot be restored: {error}")
        return []


def _read_all(
    store: Store, files: Sequence[ArchiveFile], findings: Findings, parallelism: int, counter: _Counter
) -> list[Read]:
    """What each file says; damage becomes a problem, and so does a file that is listed and not there."""

    def attempt(file: ArchiveFile) -> Read | DamagedFile | ObjectMissing:
        try:
            return _read(store, file)
        except (DamagedFile, ObjectMissing) as error:
            return error
        finally:
            counter.add(file.size)

    reads: list[Read] = []
    gone: list[ArchiveFile] = []
    with ThreadPoolExecutor(parallelism, thread_name_prefix="walcast-verify") as pool:
        for file, answer in zip(files, _mapped(pool, attempt, files), strict=True):
            if isinstance(answer, Read):
                reads.append(answer)
                findings.bytes_read += file.size
            elif isinstance(answer, ObjectMissing):
                gone.append(file)
            else:
                findings.problems.append(str(answer))
    findings.files_read = len(reads)
    still = {file.key for file in list_files(store)} if gone else set()  # the others were removed by retention
    findings.problems += [f"{file.key}: is listed, but not there" for file in gone if file.key in still]
    return reads


def _mapped(pool: ThreadPoolExecutor, work: Callable[[ArchiveFile], T], files: Sequence[ArchiveFile]) -> Iterator[T]:
    """As the pool's own `map`, which would take all files at once."""
    for start in range(0, len(files), _AHEAD):
        yield from pool.map(work, files[start : start + _AHEAD])


def _read(store: Store, file: ArchiveFile) -> Read:
    header, checksum, post_checksum = None, CHECKSUM_FLAG, 0
    for event in file_events(store, file):
        if isinstance(event, Header):
            header = event
        elif not isinstance(event, Page):
            post_checksum = event.post_checksum
        elif file.is_snapshot:
            checksum ^= page_checksum(event.pgno, event.data) & ~CHECKSUM_FLAG
    assert header is not None  # `file_events` begins with it
    said = header.database_checksum if header.no_checksum else post_checksum
    if file.is_snapshot and said not in (0, checksum):
        raise DamagedFile(file, f"says database checksum {said:016x}, but its pages have {checksum:016x}")
    return Read(
        file,
        header.timestamp_ms,
        header.page_size,
        header.commit_pages,
        header.pre_checksum,
        checksum if file.is_snapshot else said,
    )


def _check_tail(store: Store, snapshot: ArchiveFile) -> None:
    """The page index of a snapshot names all its pages, and they fill the file. Raises DamagedFile, ObjectMissing."""
    header = read_header(store, snapshot)
    try:
        last = store.get(snapshot.key, max(0, snapshot.size - TAIL_BYTES), TAIL_BYTES)
        size = check_tail(header, snapshot.size, last)
        if snapshot_pages(header):
            cut(header, snapshot.size, store.get(snapshot.key, snapshot.size - size, size))
    except Corrupt as error:
        raise DamagedFile(snapshot, str(error)) from error


def _check_space(store: Store, plan: Sequence[ArchiveFile], scratch: Path | None) -> None:
    """ConfigError when the scratch folder cannot hold the database."""
    folder = scratch or Path(tempfile.gettempdir())
    try:
        free = shutil.disk_usage(folder).free
        size = announced_bytes(store, plan) if plan else 0
    except OSError as error:
        raise ConfigError(f"scratch folder {at_path(error, folder)}") from error
    except (DamagedFile, ObjectMissing):
        return  # found again when it is read
    if size > free:
        raise ConfigError(
            f"the scratch folder {folder} has {free:,} bytes free, and the database needs {size:,}: give another "
            "with --scratch, or look at a --sample"
        )


def _check_restore(store: Store, findings: Findings, scratch: Path | None, parallelism: int, counter: _Counter) -> None:
    with tempfile.TemporaryDirectory(prefix="walcast-verify-", dir=scratch) as folder:
        target = Path(folder) / "restored.db"
        try:
            report = restore(
                store, target, integrity_check="full", parallelism=parallelism, progress=counter.restarting()
            )
        except _NOT_RESTORABLE as error:
            findings.problems.append(f"the newest state cannot be restored: {error}")
            return
        _check_file(target, report, findings)


def _check_file(target: Path, report: RestoreReport, findings: Findings) -> None:
    """What is on the disk has the checksum that was computed on the way there."""
    restored = report.restored
    assert restored is not None  # nothing made `restore` skip it
    on_disk = PageChecksums.scan(restored.page_size, _pieces(target, restored.page_size)).database
    if on_disk != restored.position.checksum:
        findings.problems.append(
            f"restored to {restored.position}, but the file in the scratch folder has checksum {on_disk:016x}"
        )
    findings.position, findings.timestamp_ms = restored.position, restored.timestamp_ms
    findings.pages, findings.page_size = restored.commit_pages, restored.page_size
    if report.went_around:
        findings.notes.append(f"the newest state restores around {', '.join(report.went_around)}")


def _pieces(path: Path, page_size: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        first = 1
        while piece := file.read(_SCAN_BYTES):
            yield first, piece
            first += len(piece) // page_size


@contextmanager
def _damage_is_a_problem(findings: Findings) -> Iterator[None]:
    try:
        yield
    except (DamagedFile, ObjectMissing) as error:
        if str(error) not in findings.problems:
            findings.problems.append(str(error))


class _Counter:
    """Adds up the bytes of several threads for a progress report."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._total = total

    def add(self, size: int) -> None:
        """More bytes are done; fewer, where something is done again."""
        with self._lock:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)

    def restarting(self) -> Progress:
        """A progress report that counts up from here, and may begin again."""
        last = 0

        def progress(done: int, total: int) -> None:
            nonlocal last
            self.add(done - last)
            last = done

        return progress
