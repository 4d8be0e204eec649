"""Log lines: one event a line, its facts behind it; for people on a terminal, JSON where a program reads."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType

from walcast.identifiers import printable
from walcast.rarely import Rarely
from walcast.redaction import redact

VALUE_MAX_CHARS = 4000
LEVELS = ("debug", "info", "warning", "error")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _one_line(value: object) -> str:
    """Ids, addresses and errors may be a peer's words: they end no line, move no cursor and fill no disk."""
    return printable(str(value), VALUE_MAX_CHARS)


def _short(value: object) -> object:
    too_long = isinstance(value, str) and len(value) > VALUE_MAX_CHARS
    return f"{str(value)[:VALUE_MAX_CHARS]}..." if too_long else value


class Human(logging.Formatter):
    """`12:00:01.234 warning follower gone follower=edge-1`; a traceback stands indented below its line."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f" {name}={_one_line(value)}" for name, value in _facts(record).items())
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower()} {_one_line(record.getMessage())}{facts}"
        if not record.exc_info:
            return redact(line)
        traceback = self.formatException(record.exc_info).split("\n")
        return redact("\n".join([line, *(f"  {_one_line(text)}" for text in traceback)]))


class Json(logging.Formatter):
    """One JSON object a line, in ASCII: what cannot be printed is escaped by that."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _short(record.getMessage()),
            **{name: _short(value) for name, value in _facts(record).items()},
        }
        if record.exc_info:  # False where somebody asked for none
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_redacted(line), default=lambda value: redact(str(value)))


def _redacted(value: object) -> object:
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


_again: Callable[[], str] | None = None


def configure(level: str, *, as_json: bool, again: Callable[[], str] | None = None) -> None:
    """Send walcast's log to standard error. `again` reads the level once more, where a file has it."""
    global _again
    _again = again
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else Human())
    sys.excepthook = _show
    root = logging.getLogger("walcast")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(handler.formatter)
    libraries.addFilter(_rare(root))
    for name in ("grpc", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [libraries]
        library.setLevel(logging.WARNING)
        library.propagate = False


def level_again() -> str | None:
    """Log from now on what the file says, where one says it: the level; None where a flag or nobody has said it."""
    if _again is None:
        return None
    level = _again()
    logging.getLogger("walcast").setLevel(level.upper())
    return level


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends the process unforeseen may come from a library, which quotes what it likes."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _rare(root: logging.Logger) -> Callable[[logging.LogRecord], bool]:
    """Lets through what a library says of a kind now and then: others can make it say the same without end."""
    rarely = Rarely(root)
    return lambda record: rarely.due((record.name, record.msg)) is not None
