"""Forks processes that have everything imported: a real `walcast` starts in milliseconds instead of half a second.

    fork_server.py FD       takes orders from the socket FD, one packet each, until the other side is closed

An order is JSON, with file descriptors: standard input, output and error, those that it is to keep under their numbers,
and where to report.

    {"run": "walcast" or a script of `support`, "arguments": […], "environment": {…}, "directory": PATH, "umask": N,
     "session": has it one of its own?, "kept": [numbers of descriptors]}

The report is two lines: the process id when it runs; when it has ended, the exit code as `subprocess` has it and the
seconds of processor time.

The server has one thread and has used neither gRPC nor SQLite, so that a child is as good as a process of its own.
Children end with it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PRELOADED = (
    "walcast_node.cli",
    "walcast_node.commands.failover",
    "walcast_node.commands.follower",
    "walcast_node.commands.primary",
    "walcast_node.commands.repair",
    "walcast_node.commands.restore",
    "walcast_node.commands.snapshot",
    "walcast_node.commands.status",
    "walcast_node.commands.verify",
    "walcast.store.s3_client",
)
SUPPORT = Path(__file__).parent
ORDER_MAX_BYTES = 1 << 18
MOST_FDS = 1024
running: dict[int, int] = {}  # process id → where to report


def become(order: dict[str, Any], fds: list[int]) -> int:
    """In the child: do what the process is to do; its exit code."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    put_in_place(dict(zip([0, 1, 2, *order["kept"]], fds, strict=True)))
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    os.umask(order["umask"])
    if order["session"]:
        os.setsid()
    sys.argv = [order["run"], *order["arguments"]]
    code = run(order["run"])
    threading._shutdown()  # type: ignore[attr-defined] # as the end of an interpreter does: wait for threads,
    atexit._run_exitfuncs()  # do what is left to do, and write what is left to write
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def put_in_place(fds: dict[int, int]) -> None:
    """Number → descriptor: each under its number, and no others."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, MOST_FDS) for fd in fds.values()]
    for number, fd in zip(fds, above, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    at = 3
    for number in sorted(number for number in fds if number >= at):
        os.closerange(at, number)
        at = number + 1
    os.closerange(at, MOST_FDS)


def run(what: str) -> int:
    try:
        if what == "walcast":
            if os.environ.get("PLANTED_BUG"):
                import_module("support.power_cut_planted").plant(os.environ["PLANTED_BUG"])
            import_module("walcast_node.cli").main(prog_name="walcast")
        else:
            runpy.run_path(str(SUPPORT / what), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:  # noqa: BLE001 - it is the whole process
        traceback.print_exc()
        return 1
    return 0


def reap() -> None:
    """Report of those that have ended."""
    while running:
        pid, status, used = os.wait4(-1, os.WNOHANG)
        if not pid:
            break
        report(running[pid], f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime}")
        os.close(running.pop(pid))


def report(fd: int, line: str) -> None:
    try:
        os.write(fd, f"{line}\n".encode())
    except BrokenPipeError:  # nobody asks any more
        pass


def serve(orders: socket.socket) -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; whoever started it ends it
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if orders not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(orders, ORDER_MAX_BYTES, 16)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                signal.set_wakeup_fd(-1)
                code = become(json.loads(data), fds[:-1])
            finally:
                os._exit(code)
        running[pid] = fds.pop()
        report(running[pid], str(pid))
        for fd in fds:
            os.close(fd)


def main() -> None:
    for module in PRELOADED:
        import_module(module)
    sys.path.insert(0, str(SUPPORT.parent))
    gc.collect()
    gc.freeze()  # children share these objects, and look at none of them when they collect
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
