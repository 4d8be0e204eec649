"""YAML nodes → values, with the file and line of each in every error.

`${NAME}` and `$NAME` in a value stand for environment variables, `$$` for a dollar sign, and as in Litestream `$PID`
for the process id. They are replaced after the YAML was read, so what they hold cannot change its structure. A key
without a value counts as not given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import yaml

from walcast.errors import ConfigError
from walcast.filesystem import read_at_most
from walcast.oserrors import at_path
from walcast.redaction import hide_value, redact, shown_url
from walcast_node.config.durations import parse_duration
from walcast_node.config.numbers import parse_size

MAX_BYTES = 1 << 20
TEXT_SHOWN = 80

T = TypeVar("T")
Keys = dict[str, yaml.Node]

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_VARIABLE = re.compile(r"\$(\$|\{[^}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")
_KINDS = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
_QUOTED = re.compile(r"'(?!<)[^']{2,}'")


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of Litestream's that has no effect, as in `dbs.monitor-interval`."""

    key: str
    line: int


def line_of(node: yaml.Node) -> int:
    """The line where it begins, from 1."""
    return int(node.start_mark.line) + 1


class Yaml:
    """One file. What its keys mean is the caller's; every error is a ConfigError "FILE:LINE: what is wrong"."""

    def __init__(self, path: Path, environ: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.ignored: list[Ignored] = []
        self._environ = os.environ if environ is None else environ
        self._expanded: dict[str, str] = {}  # what variables held → how the file names them

    def read(self) -> yaml.Node | None:
        """The file's root; None when there is nothing in it."""
        try:
            with self.path.open("rb") as file:
                data = read_at_most(file, MAX_BYTES)
        except OSError as error:
            raise ConfigError(at_path(error, self.path)) from error
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{self.path}: larger than {MAX_BYTES} bytes")
        try:
            return yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{self.path}:{line}: not UTF-8, so it is no YAML file; check the path") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            # What it quotes may be a value that begins like an alias or a tag.
            what = _QUOTED.sub("what is there", error.problem or error.context or "not YAML")
            raise ConfigError(f"{self.path}:{mark.line + 1 if mark else 1}: {what}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{self.path}: not YAML: {' '.join(str(error).split())}") from error

    def error(self, node: yaml.Node, what: str) -> ConfigError:
        """To be raised: the line of `node`, and what is wrong there. Of variables the names are shown, as in the file,
        never what they hold."""
        for value in sorted(self._expanded, key=len, reverse=True):
            what = hide_value(what, value, self._expanded[value])
        return ConfigError(f"{self.path}:{line_of(node)}: {what}")

    # Structure

    def mapping(self, node: yaml.Node, where: str, used: frozenset[str], ignored: frozenset[str] = frozenset()) -> Keys:
        """The values of the keys that are used and have one. `where` stands before the names of those ignored."""
        found: Keys = {}
        for key, (key_node, value) in self._pairs(node, ()).items():
            if key not in used | ignored:
                close = get_close_matches(key, sorted(used | ignored), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise self.error(key_node, f"unknown key {key!r}{hint}")
            if value.tag == "tag:yaml.org,2002:null":
                continue
            if key in used:
                found[key] = value
            else:
                self.ignore(key_node, where + key)
        return found

    def ignore(self, node: yaml.Node, key: str) -> None:
        """Remember that this has no effect."""
        self.ignored.append(Ignored(key, line_of(node)))

    def _pairs(self, node: yaml.Node, inside: tuple[int, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values, with what `<<` merges in."""
        self._expect(node, yaml.MappingNode)
        if id(node) in inside:
            raise self.error(node, "'<<' merges a mapping into itself")
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            self._expect(key, yaml.ScalarNode)
            if key.tag == "tag:yaml.org,2002:merge":
                for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._pairs(other, (*inside, id(node))) | merged
                continue
            if key.value in own:
                raise self.error(key, f"{key.value!r} is already in line {line_of(own[key.value][0])}")
            own[key.value] = (key, value)
        return merged | own

    def items(self, node: yaml.Node) -> list[yaml.Node]:
        """Of a list."""
        self._expect(node, yaml.SequenceNode)
        return list(node.value)

    def _expect(self, node: yaml.Node, kind: type[yaml.Node]) -> None:
        if not isinstance(node, kind):
            raise self.error(node, f"{_KINDS[kind]} belongs here, not {_KINDS[type(node)]}")

    # Values

    def optional(self, keys: Keys, key: str, read: Callable[[yaml.Node], T]) -> T | None:
        """None when the key is not given."""
        return read(keys[key]) if key in keys else None

    def parsed(self, node: yaml.Node, parse: Callable[[], T]) -> T:
        """What `parse` answers; the line is put before its ConfigError, and what may be secret taken out."""
        try:
            return parse()
        except ConfigError as error:
            raise self.error(node, redact(str(error))) from None

    def text(self, node: yaml.Node) -> str:
        """Any single value, as it is written: Litestream takes numbers for texts, too."""
        self._expect(node, yaml.ScalarNode)

        def expand(match: re.Match[str]) -> str:
            name = match[1].strip("{}")
            if match[1] == "$":
                return "$"
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or match[1].startswith("{") != match[1].endswith("}"):
                raise self.error(node, f"{match[0]!r} is not a variable; write $$ for a dollar sign")
            if name not in self._environ and name != "PID":
                raise self.error(node, f"the environment variable {name!r} is not set; write $$ for a dollar sign")
            value = self._environ.get(name, str(os.getpid()))
            self._remember(match[0], value)
            return value

        return _VARIABLE.sub(expand, node.value)

    def shown(self, node: yaml.Node) -> str:
        """In quotes, the value as it is in the file, with the names of variables: for errors."""
        return shown_url(str(node.value)[:TEXT_SHOWN])

    def _remember(self, name: str, value: str) -> None:
        for form in (value, value.lower(), value.upper(), quote(value), unquote(value)):
            self._expanded[form] = name

    def boolean(self, node: yaml.Node) -> bool:
        """true or false, in YAML's spellings."""
        text = self.text(node)
        if text.lower() not in BOOLEANS:
            raise self.error(node, f"true or false belongs here, not {self.shown(node)}")
        return BOOLEANS[text.lower()]

    def file(self, node: yaml.Node, below: str = "") -> Path:
        """An absolute path; `~` is the home of the user, `sqlite://` before it counts for nothing."""
        text = re.sub(r"^sqlite3?://", "", self.text(node))
        if not text:
            raise self.error(node, "a path belongs here")
        try:
            return Path(text, below).expanduser().absolute()
        except RuntimeError as error:
            raise self.error(node, str(error)) from None

    def bytes(self, node: yaml.Node) -> int:
        """A size, as in 256MB or 256MiB; more than nothing."""
        size = parse_size(self.text(node))
        if not size:
            raise self.error(node, f"{self.shown(node)} is not a size, as in 256MiB")
        return size

    def seconds(self, node: yaml.Node, *, zero: bool = False) -> float:
        """A duration as Go writes it, and with days; more than nothing, unless `zero` is allowed."""
        text = self.text(node)
        seconds = parse_duration(text)
        if seconds is None or (seconds <= 0 and not zero):
            raise self.error(node, f"{self.shown(node)} is not a duration, as in 90s or 1h30m")
        return seconds
