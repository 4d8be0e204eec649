"""Starts an app so that it does not outlive the walcast that started it: run as a program of its own, in between.

    app_launcher.py PARENT PROGRAM ARGUMENT…

When its parent dies, also by SIGKILL, Linux sends the app SIGTERM (prctl(2), PR_SET_PDEATHSIG; it is kept over the
exec). A parent that died before that was asked for is noticed by its process id. This becomes the app, with the same
process id. It is not done between fork and exec in walcast itself, which has threads then.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_RUN = 127  # as a shell has it


def main() -> None:
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # this interpreter ignores them, and the app would, too
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        sys.stderr.write(f"error: --exec: {arguments[0]}: {error.strerror}\n")
        sys.exit(NOT_RUN)


if __name__ == "__main__":
    main()
