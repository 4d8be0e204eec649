"""`app.db-walcast/status`: what a node says of the database on its host, 1024 bytes, rewritten in place at each commit.

Apps read it without asking anybody; a change wakes whoever watches the file. A torn read fails its CRC and is read
again.

    crc32 u32 · version u32 · pid u32 · state u32 · term u32 · lag µs u32 · TXID u64 · checksum u64
    newest TXID of the primary known here u64 · written at, ns since the epoch u64 · level with the primary at, ns u64
    end of a primary's tenure, ns u64, 0: none
    how far the wall clock was ahead of CLOCK_BOOTTIME when it was written, ns i64 · which boot that was u64
    primary's address, name of the database, follower's id, URL of the app at the primary: a length byte and UTF-8 each
    why the URL that the primary told is not used: the same, in what is left of the 1024 bytes

Times are those of the wall clock, which outlives a reboot and is the same in every virtual machine. A wall clock that
is set back would make old things young; so a reader of the same boot also counts by CLOCK_BOOTTIME, and takes the
higher age of the two.
"""

from __future__ import annotations

import math
import os
import struct
import time
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from walcast.appurl import known_app_url
from walcast.errors import Unavailable
from walcast.filesystem import fsync_directory
from walcast.oserrors import at_path
from walcast.permissions import create_file
from walcast.position import Position
from walcast.sharing import share_status
from walcast.statedir import STATUS, SUFFIX, UnsafeState, in_use_at, open_folder, open_state_file, state_dir

SIZE = 1024
VERSION = 3
STALE_AFTER_S = 5.0
LOOK_BOUND_S = 2.0  # a primary looks at its WAL every second at least; what it has not looked at for longer is unknown
QUIET_S = 3.0 + LOOK_BOUND_S  # a heartbeat every three seconds at least tells of the newest look
READ_TRIES = 100
AHEAD_S = 2.0  # what is of the future, by more than that, was written before the clock was set back
TEXTS = 5
TEXT_BYTES = 230  # four of them fit, and the beginning of the last

_FIXED = struct.Struct("<IIIIIIQQQQQQqQ")
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TO_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STEP_NS = 1_000_000  # clocks that are slewed drift apart by less in any time that matters


class State(IntEnum):
    """What a follower is doing."""

    STOPPED = 0
    BOOTSTRAPPING = 1
    CATCHING_UP = 2
    STREAMING = 3
    DISCONNECTED = 4
    DIVERGED = 5
    PRIMARY = 6  # it is the primary: what is committed here is the newest there is
    FENCED = 7  # it was, and may not act now

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


_STATES = frozenset(State)


@dataclass(frozen=True, slots=True)
class Status:
    """A follower's replica. `lag_us` is of the newest transaction applied; `level_ns` is the newest moment of which it
    is known that the replica has every commit made until then, 0: there is none; `app_url`: where the app answers HTTP
    on the primary's host, empty when nobody said; `app_url_refused`: why what was said is not used. `until_ns`: when a
    primary's tenure ends, if it was not renewed; 0: it has no end. `was`, never written: what a process that is gone
    said last.
    """

    state: State = State.STOPPED
    term: int = 0
    position: Position = Position()  # noqa: RUF009 - frozen
    primary_txid: int = 0
    lag_us: int = 0
    level_ns: int = 0
    written_ns: int = 0
    pid: int = 0
    primary: str = ""
    name: str = ""
    follower_id: str = ""
    app_url: str = ""
    until_ns: int = 0
    was: State | None = None
    app_url_refused: str = ""

    def encode(self) -> bytes:
        """1024 bytes."""
        fixed = _FIXED.pack(
            0,
            VERSION,
            self.pid,
            self.state,
            self.term,
            min(self.lag_us, 0xFFFFFFFF),
            self.position.txid,
            self.position.checksum,
            self.primary_txid,
            self.written_ns,
            self.level_ns,
            self.until_ns,
            ahead_ns(),
            _boot(),
        )
        texts = b"".join(_text(t) for t in (self.primary, self.name, self.follower_id, known_app_url(self.app_url)))
        texts += _text(self.app_url_refused, SIZE - len(fixed) - len(texts) - 1)
        body = (fixed[4:] + texts).ljust(SIZE - 4, b"\0")
        return zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def decode(cls, data: bytes) -> Status | None:
        """None when it is torn, or of another version, or says what no node would."""
        if len(data) != SIZE or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            return None
        if int.from_bytes(data[4:8], "little") != VERSION:
            return None
        _, _, pid, state, term, lag_us, txid, checksum, newest, written, level, until, ahead, boot = _FIXED.unpack_from(
            data
        )
        if boot == _boot() and boot:
            back_ns = ahead - ahead_ns()
            written, level, until = earlier(written, back_ns), earlier(level, back_ns), earlier(until, back_ns)
        if state not in _STATES:
            return None
        at, texts = _FIXED.size, []
        for _ in range(TEXTS):
            size = data[at] if at < SIZE else SIZE
            if at + 1 + size > SIZE:
                return None
            texts.append(data[at + 1 : at + 1 + size].decode(errors="replace"))
            at += 1 + size
        position = Position(txid, checksum)
        primary, name, follower, app, refused = texts
        return cls(
            State(state), term, position, newest, lag_us, level, written, pid, primary, name, follower,
            known_app_url(app), until, app_url_refused=refused,
        )  # fmt: skip

    def is_live(self, now_ns: int) -> bool:
        """Is the process that wrote it still at it? A primary that hangs is not, from the end of its tenure on."""
        age_ns = now_ns - self.written_ns
        recent = -AHEAD_S * 1e9 < age_ns < STALE_AFTER_S * 1e9
        return self.state is not State.STOPPED and recent and (not self.until_ns or now_ns < self.until_ns)

    @property
    def is_own(self) -> bool:
        """Was this node itself the primary when it last said something? Then `primary` and `app_url` are its own."""
        return (self.was or self.state) in (State.PRIMARY, State.FENCED)

    def lag_ms(self, now_ns: int) -> float:
        """How old this replica's newest state may be: the measured lag while it is level, else the time since then.

        A claim to be level holds for QUIET_S; by no more than that, and AHEAD_S where clocks were set, this may be less
        than the truth.
        """
        since_ns = now_ns - self.level_ns
        if since_ns < -AHEAD_S * 1e9:
            return math.inf
        heard = since_ns < QUIET_S * 1e9
        if heard and self.state in (State.STREAMING, State.PRIMARY) and self.position.txid >= self.primary_txid:
            return self.lag_us / 1000
        return max(0, since_ns) / 1e6


def doubled(age_s: float, bound_s: float) -> int:
    """The bound, or its double, and so on: the highest that an age beyond it has passed. For texts that are logged when
    they change."""
    return int(bound_s * 2 ** max(0, int(math.log2(age_s / bound_s))))


def ahead_ns() -> int:
    """How far the wall clock is ahead of CLOCK_BOOTTIME now."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def earlier(moment_ns: int, back_ns: int) -> int:
    """A moment by a wall clock that was set back by `back_ns` since; one that was set forward, by less than a step, or
    no moment (0) leaves it as it is."""
    return moment_ns if back_ns < _STEP_NS or not moment_ns else max(1, moment_ns - back_ns)


@lru_cache(maxsize=1)
def _boot() -> int:
    """Which boot of which machine this is; 0 when the system does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return int(text.replace("-", ""), 16) & 0xFFFFFFFFFFFFFFFF
    except (OSError, ValueError):
        return 0


def _text(text: str, most: int = TEXT_BYTES) -> bytes:
    data = text.encode(errors="replace")[: min(most, TEXT_BYTES)]
    return bytes([len(data)]) + data


def status_path(database: Path) -> Path:
    """Where a replica's status is."""
    return state_dir(database) / STATUS


class StatusWriter:
    """Rewrites the file in place, without a sync: it says what is true now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._fd = os.open(directory / STATUS, _TO_WRITE)
        except FileNotFoundError:
            self._fd = create_file(directory / STATUS)
        try:
            self.share()
        except BaseException:
            os.close(self._fd)
            raise

    def share(self) -> None:
        """Let those read it who may read the database now."""
        share_status(self._directory, self._fd)

    def write(self, status: Status) -> None:
        """Show it to whoever looks."""
        os.pwrite(self._fd, status.encode(), 0)

    def close(self) -> None:
        """Close."""
        os.close(self._fd)


def sync_status(directory: Path) -> None:
    """Have what the file says outlive a power cut. With a descriptor of its own, since this may take its time. OSError
    when it cannot be, or there is no file yet."""
    fd = os.open(directory / STATUS, _TO_READ)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_directory(directory)


def read_status(database: Path) -> Status:
    """What the follower of this replica says; Unavailable when none ever ran."""
    path = f"{database}{SUFFIX}/{STATUS}"  # as `status_path`, without making a Path: apps ask for every page
    try:
        folder = open_folder(f"{database}{SUFFIX}")
        try:
            for _ in range(READ_TRIES):
                status = Status.decode(_read(folder))
                if status is not None:
                    # A follower that was killed cannot say so: its lock is gone.
                    if in_use_at(folder) is False:
                        return replace(status, state=State.STOPPED, was=status.state)
                    return status
                time.sleep(0.0002)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise Unavailable(
            f"{database}: no walcast process has run here ({path} is missing): start a primary or a follower"
        ) from None
    except UnsafeState as error:
        raise Unavailable(str(error)) from error
    except OSError as error:
        raise Unavailable(at_path(error, path)) from error
    raise Unavailable(f"{path}: unreadable, or written by another version")


def _read(folder: int) -> bytes:
    fd = os.open(STATUS, _TO_READ, dir_fd=folder)
    try:
        return os.read(fd, SIZE + 1)
    finally:
        os.close(fd)


def read_last_status(directory: Path) -> Status:
    """What the follower before this one said last; one that says nothing when there was none."""
    try:
        with open_state_file(directory, STATUS) as file:
            data = file.read(SIZE + 1)
    except (OSError, UnsafeState):
        return Status()
    return Status.decode(data) or Status()
