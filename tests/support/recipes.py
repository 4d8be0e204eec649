"""The blocks of a document, so that what is tested is the text that people copy.

A block is fenced and named on its opening line: three backticks, the language, `recipe=NAME`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import yaml

from walcast_node.cli import main

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INFO = re.compile(r"(?P<language>\w+) recipe=(?P<name>\S+)")
_COMMAND = re.compile(r"(?:^|[\s=/`])walcast (?P<rest>[^`]*)")


@dataclass(frozen=True, slots=True)
class Block:
    """One of them. `line` is where it begins in its document."""

    name: str
    language: str
    text: str
    line: int

    def placed(self, places: Mapping[str, object]) -> str:
        """The text with other places in it: each key of `places`, longest first, becomes its value."""
        pattern = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(pattern, lambda found: str(places[found[0]]), self.text)

    def lines(self) -> list[str]:
        """Where a command may stand: logical lines, or the texts in YAML."""
        if self.language == "yaml":
            return list(_texts(yaml.safe_load(self.text)))
        return self.text.replace("\\\n", " ").splitlines()


def read_blocks(document: Path) -> dict[str, Block]:
    """By name. ValueError for a block without one."""
    text = document.read_text()
    found: dict[str, Block] = {}
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        info = _INFO.fullmatch(fence["info"])
        if info is None or info["name"] in found:
            raise ValueError(f"{document.name}:{line}: a block without a name of its own: {fence['info']!r}")
        found[info["name"]] = Block(info["name"], info["language"], fence["text"], line)
    if text.count("```") != 2 * len(found):
        raise ValueError(f"{document.name}: a fence that is not closed, or not at the beginning of its line")
    return found


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for each in data:
            yield from _texts(each)
    elif isinstance(data, str):
        yield data


def settings_of(unit: Block) -> dict[str, list[str]]:
    """A systemd unit's `Section.Key` and what it is set to; a key may be set several times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in filter(None, unit.text.splitlines()):
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
            continue
        key, equals, value = line.partition("=")
        if not (section and equals and re.fullmatch(r"[A-Z]\w+", key)):
            raise ValueError(f"{unit.name}: {line!r}")
        found.setdefault(f"{section}.{key}", []).append(value)
    return found


def commands_in(lines: list[str]) -> list[list[str]]:
    """The arguments of each `walcast …`."""
    return [shlex.split(found["rest"], comments=True) for line in lines if (found := _COMMAND.search(line))]


def parse_command(arguments: list[str]) -> dict[str, Any]:
    """What the real command takes from its arguments. click.ClickException when it does not take them."""
    with mock.patch.dict(os.environ), click.Context(main) as context:
        for name in [name for name in os.environ if name.startswith("WALCAST_")]:
            del os.environ[name]
        command = main.get_command(context, arguments[0])
        if command is None:
            raise click.UsageError(f"walcast has no command {arguments[0]!r}")
        return command.make_context(arguments[0], arguments[1:]).params


def variables_of(name: str) -> set[str]:
    """The environment variables that a command reads."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return {str(option.envvar) for option in command.params if option.envvar}
