"""Log lines: one event a line, its facts behind it. As logfmt, which people and parsers read, or as JSON.

What ends the process unforeseen, what fails in a thread, Python's warnings and what libraries log are lines of the same
kind, so that whatever reads the log need not expect anything else.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from walcast.rarely import Rarely
from walcast.redaction import redact

VALUE_MAX_CHARS = 4000
LEVELS = ("debug", "info", "warning", "error")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _short(text: str) -> str:
    """Ids, addresses and errors may be a peer's words: they do not fill the disk."""
    return text if len(text) <= VALUE_MAX_CHARS else f"{text[:VALUE_MAX_CHARS]}... ({len(text):,} characters)"


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> str | None:
    """Its end, where it is long: the error itself is there."""
    if not record.exc_info:  # False where somebody asked for none
        return None
    text = formatter.formatException(record.exc_info)
    return text if len(text) <= VALUE_MAX_CHARS else f"...{text[-VALUE_MAX_CHARS:]}"


class Human(logging.Formatter):
    """logfmt: `time=2026-01-31T12:00:01.234+01:00 level=warning msg="follower gone" follower=edge-1`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        parts = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": _value(record.getMessage(), quoted=True),
        }
        for name, value in _facts(record).items():
            parts[_name(name, parts)] = _value(_txid(value) if name.endswith("txid") else _text(value))
        if (trace := _traceback(record, self)) is not None:
            parts[_name("traceback", parts)] = _value(trace, shorten=False)
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _name(name: str, taken: dict[str, str]) -> str:
    return f"{name}_" if name in taken else name


def _txid(value: object) -> str:
    """As flags take it, where it is one."""
    return f"{value:016x}" if isinstance(value, int) else _text(value)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _value(text: str, *, quoted: bool = False, shorten: bool = True) -> str:
    """In quotes and escaped as in JSON, where it has to be: it ends no line, moves no cursor, is no other fact."""
    text = redact(_short(text) if shorten else text)
    if not quoted and text and text.isprintable() and not any(char in ' "=\\' for char in text):
        return text
    line = json.dumps(text, ensure_ascii=False)
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


class Json(logging.Formatter):
    """One JSON object a line, in ASCII: what cannot be printed is escaped by that."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": f"{moment.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redact(_short(record.getMessage())),
        }
        for name, value in _facts(record).items():
            line[f"{name}_" if name in line else name] = _plain(value)
        if (trace := _traceback(record, self)) is not None:
            line["traceback"] = redact(trace)
        return json.dumps(line, allow_nan=False)


def _plain(value: object) -> object:
    """What JSON can say of it, without secrets: numbers that are none, and objects, as text."""
    if isinstance(value, dict):
        return {redact(_short(str(name))): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if (
        value is None
        or isinstance(value, bool)
        or (type(value) is int or (type(value) is float and math.isfinite(value)))
    ):
        return value
    return redact(_short(str(value)))


_again: Callable[[], str] | None = None
_as_json = False
_libraries: logging.StreamHandler[TextIO] | None = None


def configure(level: str, *, as_json: bool, again: Callable[[], str] | None = None) -> None:
    """Send walcast's log to standard error. `again` reads the level once more, where a file has it."""
    global _again, _as_json, _libraries
    _again, _as_json = again, as_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else Human())
    root = logging.getLogger("walcast")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    sys.excepthook = _show
    _libraries = libraries = logging.StreamHandler(sys.stderr)
    libraries.setLevel(logging.WARNING)
    libraries.setFormatter(handler.formatter)
    libraries.addFilter(_rare(root))
    for name in ("grpc", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [libraries]
        library.setLevel(logging.WARNING)
        library.propagate = False


def take_everything() -> None:
    """In a process that is walcast's alone, after `configure`: whatever Python and its libraries write to standard
    error by themselves becomes a line of the log."""
    threading.excepthook, sys.unraisablehook = _show_in_thread, _show_ignored
    warnings.showwarning = _show_warning
    logging.raiseExceptions = False  # a line that cannot be written is no reason to write others
    if _libraries is not None:
        logging.lastResort = _libraries  # for all loggers that have no handler


def level_again() -> str | None:
    """Log from now on what the file says, where one says it: the level; None where a flag or nobody has said it."""
    if _again is None:
        return None
    level = _again()
    logging.getLogger("walcast").setLevel(level.upper())
    return level


def log_failure(message: str) -> bool:
    """What ends a command, as a line of a log in JSON. False where the log is text."""
    if _as_json:
        logging.getLogger("walcast").error("failed", extra={"error": message})
    return _as_json


# What nobody foresaw may come from a library, which quotes what it likes: it is redacted as everything is.


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("walcast").error("ended by an unexpected error", exc_info=(kind, error, trace))


def _show_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is SystemExit:
        return
    name = failed.thread.name if failed.thread is not None else ""
    error = failed.exc_value or failed.exc_type()
    caught = (failed.exc_type, error, failed.exc_traceback)
    logging.getLogger("walcast").error("a thread ended by an unexpected error", exc_info=caught, extra={"thread": name})


def _show_ignored(ignored: sys.UnraisableHookArgs) -> None:
    error = ignored.exc_value or ignored.exc_type()
    caught = (ignored.exc_type, error, ignored.exc_traceback)
    what = {"where": ignored.err_msg or repr(ignored.object)}
    logging.getLogger("walcast").error("an unexpected error that nobody can take", exc_info=caught, extra=what)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    facts = {"category": category.__name__, "where": f"{filename}:{lineno}"}
    logging.getLogger("walcast").warning(str(message), extra=facts)


def _rare(root: logging.Logger) -> Callable[[logging.LogRecord], bool]:
    """Lets through what a library says of a kind now and then: others can make it say the same without end."""
    rarely = Rarely(root)
    return lambda record: rarely.due((record.name, record.msg)) is not None
