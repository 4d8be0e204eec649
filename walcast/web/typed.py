"""Values of options as they come from an environment: text, or what JSON made of it (`Flask.config.from_prefixed_env`).

Options are strict: `standalone="no"` is an error, since it would be true. A variable can only hold text, so its value
is turned into the type that the option has.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

from walcast.errors import ConfigError
from walcast.web.options import Options

_TRUE = frozenset(["1", "true", "yes", "on"])
_FALSE = frozenset(["0", "false", "no", "off"])


def typed(name: str, value: object) -> object:
    """`value` for the option `name`, as the type that it takes; what is of that type already, and what is of no option,
    as it is. ConfigError."""
    kind = _kinds().get(name, "")
    if kind.startswith("bool") and not isinstance(value, bool):
        return _boolean(name, value)
    if kind.startswith(("int", "float")) and isinstance(value, str):
        return _number(name, value, whole=kind.startswith("int"))
    if kind.startswith("str") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind.startswith("tuple") and isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _boolean(name: str, value: object) -> object:
    if isinstance(value, int | str):
        text = str(value).strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise ConfigError(f"{name}={value!r}: true, false, 1 or 0 belongs there")
    return value


def _number(name: str, value: str, *, whole: bool) -> int | float:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r}: a number belongs there") from None


@cache
def _kinds() -> dict[str, str]:
    return {found.name: str(found.type) for found in fields(Options)} | {"database": "str"}
