"""Forks processes that have everything imported: a real `walcast` starts in milliseconds instead of half a second.

    fork_server.py          reads a line of JSON for each process, writes its pid; until its standard input ends

    {"run": "walcast" or a script of `support`, "arguments": […], "out": PATH, "err": PATH}

It has one thread and has used neither gRPC nor SQLite, so that a child is as good as a process of its own.
Children end with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PRELOADED = ("node.cli", "node.primary_command", "node.follower_command", "node.failover_commands")
SUPPORT = Path(__file__).parent


def become(order: dict[str, Any]) -> int:
    """In the child: do what the process is to do; its exit code."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        fd = os.open(path, flags, 0o644)
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = [order["run"], *order["arguments"]]
    try:
        if order["run"] == "walcast":
            if os.environ.get("PLANTED_BUG"):
                import_module("support.power_cut_planted").plant(os.environ["PLANTED_BUG"])
            import_module("node.cli").main(prog_name="walcast")
        else:
            runpy.run_path(str(SUPPORT / order["run"]), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:  # noqa: BLE001 - it is the whole process
        traceback.print_exc()
        return 70
    return 0


def main() -> None:
    for module in PRELOADED:
        import_module(module)
    sys.path.insert(0, str(SUPPORT.parent))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for exit codes: no zombies
    print("ready", flush=True)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            code = become(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)


main()
