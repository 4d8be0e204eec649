"""walcast as process 1 of a container: a script for the fork server, run as root.

    container.py VOLUME ARGUMENT…     `walcast ARGUMENT…` where nothing can be written but VOLUME, which is at /mnt/data

It has process ids and mounts of its own, a root file system that is read-only with all that is mounted in it, /tmp too,
and runs as a user without rights. Its network is the machine's. SIGTERM and its like go on to it; when the script is
killed, or the container's process 1, all that runs in it is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

USER = 65534
MOUNTED, DATA = Path("/mnt"), Path("/mnt/data")
WRITABLE = ("/proc", "/dev", "/sys", str(DATA))  # what a container's kernel makes, and the volume
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str, target: Path | str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    call("mount", source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def make_reachable(folder: Path) -> None:
    """For every user, also where a folder above is for one alone, as an interpreter in the home of root."""
    closed = next((above for above in reversed(folder.parents) if not above.stat().st_mode & 0o001), None)
    if closed is None:
        return
    kept = MOUNTED / "kept"
    kept.mkdir(exist_ok=True)
    mount(str(folder), kept, flags=MS_BIND | MS_REC)
    mount("none", closed, "tmpfs", data="mode=755")
    folder.mkdir(parents=True)
    mount(str(kept), folder, flags=MS_BIND | MS_REC)


def make_read_only() -> None:
    """All that is mounted, but for what is `WRITABLE`."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in {point for point in points if not point.startswith(WRITABLE) and Path(point).exists()}:
        mount("none", point, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def run(volume: Path, arguments: list[str]) -> int:
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("none", MOUNTED, "tmpfs", data="mode=755")
    DATA.mkdir()
    mount(str(volume), DATA, flags=MS_BIND)
    for folder in (Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[2]):
        make_reachable(folder)
    mount("proc", "/proc", "proc")
    make_read_only()
    os.chdir(DATA)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    assert os.getpid() == 1
    assert not any(os.access(path, os.W_OK) for path in ("/", "/tmp", "/var/tmp", sys.prefix, volume))
    from walcast_node.cli import main

    sys.argv = ["walcast", *arguments]
    main(prog_name="walcast")
    return 0


def outside() -> int:
    """In the machine's own namespace: forward signals, and end as the container does."""
    call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return run(Path(sys.argv[1]), sys.argv[2:])
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(outside())
