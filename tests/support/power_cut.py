"""A disk that loses power: what was not synced is gone, but for what the kernel happened to write back.

    with own_mounts(), disk(tmp_path / "a") as a:
        ...                                     # processes work on a.path
        ...                                     # stop the processes of that host: SIGSTOP
        a.cut()                                 # nothing more reaches the disk
        ...                                     # kill them
        a.back()                                # the same folder, as a reboot finds it

The disk is ext4 on a loop device. `EXT4_IOC_SHUTDOWN` without a flush drops the page cache and the journal's running
transaction, as a power failure does; the journal is replayed at the next mount. The mount options take away what makes
ext4 forgiving: no sync of a file that is renamed over another, no commit by a timer. `Writeback` is what the kernel may
do at any time: it writes some dirty pages back, in any order.

Stop the processes first: a sync that is under way when ext4 is shut down may answer that it succeeded although the data
is lost (10 of 400 here). Without power nobody would hear that answer, so nobody may act on it.

What a disk does below is not simulated: a page that was handed to the loop device is there after the cut, whole.
Needs root, a kernel with ext4 and loop devices, and `mkfs.ext4`; `why_not` says what is missing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
ORDERED = "noatime,data=ordered,noauto_da_alloc,commit=300"
WRITEBACK = "noatime,data=writeback,noauto_da_alloc,commit=300"
SIZE_BYTES = 192 << 20
UNMOUNT_S = 10.0
WRITE_RANGE = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 1 << 18, 0x1000
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_libc = ctypes.CDLL(None, use_errno=True)


@cache
def why_not() -> str | None:
    """Why power cannot be cut here; None when it can."""
    if os.geteuid() != 0:
        return "a power cut needs root: it mounts a file system and shuts it down"
    if shutil.which("mkfs.ext4") is None:
        return "a power cut needs mkfs.ext4 (e2fsprogs)"
    if not Path("/dev/loop-control").exists():
        return "a power cut needs loop devices, and there is no /dev/loop-control"
    probe = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return f"a power cut needs a free loop device: {probe.stderr.strip()}" if probe.returncode else None


_own_mounts = False


def own_mounts() -> None:
    """From now on this thread, and what it starts, has mounts of its own: whatever ends it, the kernel removes them,
    and with them their loop devices. The kernel's boot id becomes a file of ours: each cut is a start of the machine.
    """
    global _own_mounts
    if _own_mounts:
        return
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    with tempfile.NamedTemporaryFile("w") as file:  # a file without a name, in place of the kernel's
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        _check(_libc.mount(os.fsencode(file.name), os.fsencode(BOOT_ID), None, MS_BIND, None), "mount")
    _own_mounts = True


def start_anew() -> None:
    """As far as processes can tell, the machine was started again."""
    if _own_mounts:
        BOOT_ID.write_text(f"{uuid.uuid4()}\n")


def _check(answer: int, what: str) -> None:
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Disk:
    """A folder on a disk of its own. `images` should be on a fast file system."""

    def __init__(self, path: Path, images: Path, options: str = ORDERED, size_bytes: int = SIZE_BYTES) -> None:
        self.path = path
        self.options = options
        self.cuts = 0
        self._image = images / f"{path.name}.img"
        self._mounted = False
        path.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as file:
            file.truncate(size_bytes)
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        run = ["mkfs.ext4", "-q", "-F", "-E", lazy, "-J", "size=4", "-m", "0", str(self._image)]
        subprocess.run(run, check=True, capture_output=True)
        self._mount()

    def _mount(self) -> None:
        run = ["mount", "-t", "ext4", "-o", f"loop,{self.options}", str(self._image), str(self.path)]
        subprocess.run(run, check=True, capture_output=True)
        self._mounted = True

    def cut(self) -> None:
        """What was not synced is gone, and nothing can be written any more."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)
        self.cuts += 1

    def back(self) -> None:
        """Power is back. Who had files open there must have ended, or have closed them."""
        self._unmount()
        self._mount()
        start_anew()

    def _unmount(self) -> None:
        end_s = time.monotonic() + UNMOUNT_S
        while _libc.umount2(os.fsencode(self.path), 0):
            if time.monotonic() > end_s:
                _check(-1, f"umount {self.path}")
            time.sleep(0.002)  # processes that were killed are on their way out
        self._mounted = False

    def sync(self) -> None:
        """All that was written is durable, as some time after the last write."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            _check(_libc.syncfs(fd), "syncfs")
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmount, whoever still uses it, and remove the image."""
        if self._mounted:
            _libc.umount2(os.fsencode(self.path), 2)  # MNT_DETACH
            self._mounted = False
        self._image.unlink(missing_ok=True)


@contextmanager
def disk(path: Path, images: Path | None = None, options: str = ORDERED) -> Iterator[Disk]:
    """A disk, removed with the block. Call `own_mounts` before."""
    made = Disk(path, images or path.parent, options)
    try:
        yield made
    finally:
        made.close()


class Writeback:
    """Writes random dirty pages of random files of a disk back, `rate` times a second on average, until `stop`."""

    def __init__(self, folder: Path, rng: random.Random, rate: float) -> None:
        self.folder = folder
        self.rng = rng
        self.rate = rate
        self.done = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writeback-{folder.name}", daemon=True)
        if rate:
            self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self.rng.expovariate(self.rate)):
            try:
                self._write_some()
            except (OSError, IndexError):
                pass  # the file is gone, the disk is shut down, or there are no files yet

    def _write_some(self) -> None:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        fd = os.open(self.rng.choice(files), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            at = self.rng.randrange(0, max(size, 1), 4096)
            length = self.rng.choice((4096, 4096, 16384, 1 << 20))
            _libc.sync_file_range(fd, ctypes.c_longlong(at), ctypes.c_longlong(length), WRITE_RANGE)
            self.done += 1
        finally:
            os.close(fd)

    def stop(self) -> None:
        """End; before the disk is mounted again."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
