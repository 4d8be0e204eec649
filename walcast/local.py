"""The socket in a state folder: how a command finds the process that serves a database on this host, and asks it.

`app.db-walcast/socket`, for its owner only; no address, no port, no certificate. A request is one line of JSON, the
answer is one line of JSON, `{"error": …}` when it failed, and what that line announces after it. One request a
connection: a kept one would save 0.2 ms of a barrier's millisecond, and threads and forks would share it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from walcast.errors import ConfigError, NotAllowed, Unavailable, WalcastError
from walcast.permissions import OWNER_ONLY
from walcast.statedir import open_folder, state_dir
from walcast.token import NotPrimary

NAME = "socket"
LINE_BYTES = 1 << 16
TIMEOUT_S = 60.0
BACKLOG = 1024  # who asks while more than these wait to be let in tries again
AGAIN_S = 0.001


def listen(database: Path) -> socket.socket:
    """A listening socket in the state folder, which this process must have locked. OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short_path(database) as path:
            Path(path).unlink(missing_ok=True)  # of a process that was killed
            os.fchmod(made.fileno(), OWNER_ONLY)
            made.bind(path)
            Path(path).chmod(OWNER_ONLY)  # of which the umask may have left less
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def forget(database: Path) -> None:
    """Remove the socket; nobody listens any more."""
    (state_dir(database) / NAME).unlink(missing_ok=True)


@contextmanager
def ask(
    database: Path, want: str, *, timeout_s: float = TIMEOUT_S, **arguments: object
) -> Iterator[tuple[dict[str, Any], BinaryIO]]:
    """The answer of the process that serves a database, and the stream behind it. `arguments` go with the request.

    `timeout_s` bounds every single wait. Unavailable when nobody serves it or the answer breaks off, NotPrimary when
    the primary was wanted and it is not, ConfigError when that is another user's process or it refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(timeout_s)
        try:
            _connect(made, database, timeout_s)
            made.sendall(json.dumps({"want": want} | arguments).encode() + b"\n")
            with made.makefile("rb") as stream:
                line = stream.readline(LINE_BYTES)
                try:
                    answer = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    answer = None
                if not isinstance(answer, dict):
                    raise Unavailable(f"{database}: the process that serves it hung up")
                if "error" in answer:
                    raise _refused(answer)
                yield answer, cast(BinaryIO, stream)
        except PermissionError as error:
            raise NotAllowed(
                f"{database}: served by another user's process, whose socket this one, of uid {os.geteuid()},"
                " may not open; run this as that user"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Unavailable(
                f"{database}: no walcast process runs for it: start walcast follower or walcast primary, and try again"
            ) from error
        except (TimeoutError, ConnectionError) as error:
            raise Unavailable(f"{database}: the process that serves it does not answer: {error}") from error


def _connect(made: socket.socket, database: Path, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    with _short_path(database) as path:
        while True:
            try:
                made.connect(path)
                return
            except BlockingIOError:  # a full backlog; no time is waited for room in it
                if time.monotonic() > until_s:
                    raise TimeoutError("too many ask at once") from None
                time.sleep(AGAIN_S)


def _refused(answer: dict[str, Any]) -> WalcastError:
    if "primary" in answer:
        return NotPrimary(answer["error"], primary=answer["primary"])
    return (Unavailable if answer.get("again") else ConfigError)(answer["error"])


@contextmanager
def _short_path(database: Path) -> Iterator[str]:
    """A path of the socket that fits into a socket address, which holds 107 bytes."""
    folder = open_folder(state_dir(database))
    try:
        yield f"/proc/self/fd/{folder}/{NAME}"
    finally:
        os.close(folder)
