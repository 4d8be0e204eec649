"""Values that nobody is to read in a log, an error, a `repr` or a status: they show as `***`, and are given away only
by the one call that says so."""

from __future__ import annotations

import hmac
from typing import NoReturn, final

HIDDEN = "***"


@final
class Secret:
    """A text, such as a key, or a URL that works for whoever knows it. `reveal` is the only way to it: `str`, `repr`,
    formatting and JSON never have it, nor has a traceback or a dataclass that holds one."""

    __slots__ = ("_value",)

    def __init__(self, value: str | Secret) -> None:
        self._value: str = value.reveal() if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """The text itself, for the one place that uses it."""
        return self._value

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_raw(self), _raw(other))

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


@final
class SecretBytes(bytes):
    """A key for `hmac`, which takes nothing but bytes. Shown, it is hidden; where it is used, it is itself."""

    def __repr__(self) -> str:
        return f"SecretBytes({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN


def _raw(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")
