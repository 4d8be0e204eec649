"""Proofs of forwarded requests that were taken: each is taken once, by whichever worker of this host comes first.

All worker processes share a file in the state folder, `forwarded`: a table of nonces and until when each is remembered,
in places that the nonce itself chooses, behind one lock. Only who knows the secret can put anything in. Where that file
cannot be written, as by a worker of another user, each process remembers for itself, and says so: then a request could
be taken once by each. That is looked at anew each time, and what only passes, as a want of descriptors, is no reason.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from pathlib import Path

from walcast.shortage import EXHAUSTED, FULL

log = logging.getLogger("walcast.web")

NAME = "forwarded"
PLACES = 1 << 17  # 3 MiB; more than a thousand requests a second for a minute
TRIED = 128  # places of a nonce, one after the other
ALONE_MOST = 100_000

_PLACE = struct.Struct("<16sQ")
_NONCE_BYTES = 16
_LONGEST_S = 3600  # what says that it is remembered for longer is damaged


class Full(Exception):
    """There is no place left to remember a nonce, or nothing to write it with: more requests came than can be told
    apart."""


class Taken:
    """For the database whose state folder is `folder`. For all threads, and after a fork."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        self._alone: dict[bytes, int] = {}
        self._said = False

    def take(self, nonce: bytes, until_s: int, now_s: int) -> bool:
        """True for the first who takes it; it is remembered until then, in seconds since the epoch. Full."""
        assert len(nonce) == _NONCE_BYTES
        with self._lock:
            if self._alone.get(nonce, 0) >= now_s:
                return False
            try:
                return self._take_shared(nonce, until_s, now_s)
            except OSError as error:
                if error.errno in EXHAUSTED | FULL:
                    raise Full from error
                self._say(error)
            return _take_alone(self._alone, nonce, until_s, now_s)

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            log.warning(
                "each worker remembers for itself which forwarded requests were taken",
                extra={"path": str(self._path), "error": error.strerror or str(error)},
            )

    def _take_shared(self, nonce: bytes, until_s: int, now_s: int) -> bool:
        # Opened each time: after a fork, and when the folder is made anew, it is still the one file of this host.
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            return _take_at(fd, nonce, until_s, now_s)
        finally:
            os.close(fd)


def _take_at(fd: int, nonce: bytes, until_s: int, now_s: int) -> bool:
    first = int.from_bytes(nonce[:8], "little") % (PLACES - TRIED)
    data = os.pread(fd, TRIED * _PLACE.size, first * _PLACE.size).ljust(TRIED * _PLACE.size, b"\0")
    free = None
    for number, (there, there_until_s) in enumerate(_PLACE.iter_unpack(data)):
        remembered = now_s <= there_until_s <= now_s + _LONGEST_S
        if remembered and there == nonce:
            return False
        if not remembered and free is None:
            free = number
    if free is None:
        raise Full
    os.pwrite(fd, _PLACE.pack(nonce, until_s), (first + free) * _PLACE.size)
    return True


def _take_alone(known: dict[bytes, int], nonce: bytes, until_s: int, now_s: int) -> bool:
    if known.get(nonce, 0) >= now_s:
        return False
    if len(known) >= ALONE_MOST:
        for old in [one for one, until in known.items() if until < now_s]:
            del known[old]
        if len(known) >= ALONE_MOST:
            raise Full
    known[nonce] = until_s
    return True
