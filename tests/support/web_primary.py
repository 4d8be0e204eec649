"""The primary's socket, for tests that are about the middleware alone."""

from __future__ import annotations

from typing import Any

from walcast.token import Token


class FakePrimary:
    """Answers every barrier with one token, or so many times with an error; `got.log` tells when it was asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.errors = 1000
        self.got: Any = None

    def barrier(self, followers: int = 0, timeout: float = 2.0) -> Token:
        self.got.log.append(f"barrier {followers}")
        if self.error is not None and self.errors:
            self.errors -= 1
            raise self.error
        return Token("2-64")
