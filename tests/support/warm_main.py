"""The main module of a process of `support.warm`: `-m MODULE ARGUMENTS` or `-c CODE`.

Before anything else it forks a fork server of its own, from which all comes that it starts itself with `subprocess`.
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from support import fork_server
from support.forks import Orders
from support.warm import WarmPopen, forked_as

PRELOADED = "PRELOADED"  # more modules, for what it starts
LEFT_BEHIND = "processes that it had started were still running when it ended"
Real = subprocess.Popen


def own_server() -> tuple[socket.socket, int]:
    """Where it takes orders, and its process. It ends with this process, and with it all that it started; its exit code
    is 1 if any of that was still running."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            fork_server.running.clear()  # those of the server that this one comes from
            fork_server.serve(theirs)
            fork_server.reap()
        finally:
            os._exit(1 if fork_server.running else 0)
    theirs.close()
    return ours, pid


def start_from(orders: Orders) -> type:
    """To be in the place of `subprocess.Popen`."""

    class Popen:
        def __class_getitem__(cls, item: object) -> object:
            return cls

        def __new__(cls, command: Any, *args: Any, **kwargs: Any) -> Any:
            if args or isinstance(command, (str, Path)) or forked_as(command) is None:
                return Real(command, *args, **kwargs)
            return WarmPopen(command, orders=orders, **kwargs)

    return Popen


def main() -> None:
    for module in os.environ.pop(PRELOADED, "").split():
        import_module(module)
    this = os.getpid()
    ours, pid = own_server()
    subprocess.Popen = start_from(Orders(os.environ, ours))  # type: ignore[misc,assignment]
    kind, what, *arguments = sys.argv[1:]
    try:
        if kind == "-m":
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        if os.getpid() == this:  # not in a worker that it forked
            ours.close()
            with suppress(ChildProcessError):  # it waits for all of its children itself
                if os.waitpid(pid, 0)[1]:
                    sys.exit(LEFT_BEHIND)


main()
