"""What docs/consistency.md says is to be seen: each anomaly, its absence, the lines of the scripts, the settings."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support import warm
from support.docs_session import is_as_shown, lines_of
from support.nodes import ENVIRONMENT
from support.recipes import read_blocks

from examples.consistency.__main__ import EXAMPLES
from examples.consistency.telling import NotSeen, Tell
from walcast.web import Options

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "consistency.md"
BLOCKS = read_blocks(DOCUMENT)
QUOTES = [name for name, block in BLOCKS.items() if block.language == "python"]
PATIENCE_S = 120.0


def run(*names: str) -> str:
    """What the examples print."""
    done = warm.run(
        [sys.executable, "-m", "examples.consistency", *names], cwd=ROOT, env=ENVIRONMENT, timeout=PATIENCE_S
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return done.stdout


def parts_of(said: str) -> dict[str, str]:
    """Example → the lines that it printed."""
    found, name = {"": ""}, ""
    for line in said.splitlines():
        if line.startswith(" "):
            found[name] += f"{line}\n"
        else:
            name = line
            found[name] = ""
    del found[""]
    return found


def test_every_anomaly_is_seen_and_then_prevented_and_the_document_shows_what_is_printed() -> None:
    (typed,) = [line for line in BLOCKS["run"].lines() if line]
    command, names = typed.partition("#")[::2]
    assert command.split() == ["python", "-m", "examples.consistency", "read_your_writes"]
    assert names.split()[-1] == "all"

    parts = parts_of(run("all"))

    assert list(parts) == list(EXAMPLES)
    for name, said in parts.items():
        assert is_as_shown(BLOCKS[name].text, said), f"{name}: {DOCUMENT.name} shows otherwise than\n{said}"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_by_itself(name: str) -> None:
    assert is_as_shown(BLOCKS[name].text, parts_of(run(name))[name])


def test_every_example_is_in_the_document_and_shows_both_sides() -> None:
    assert {name for name, block in BLOCKS.items() if block.language == "text"} == set(EXAMPLES)
    assert {name.removesuffix(".py") for name in QUOTES} == set(EXAMPLES)
    for name in EXAMPLES:
        assert {line.split()[0] for line in lines_of(BLOCKS[name].text)} == {"without", "with"}


@pytest.mark.parametrize("name", QUOTES)
def test_what_the_document_quotes_is_in_the_script(name: str) -> None:
    assert BLOCKS[name].text in (ROOT / "examples" / "consistency" / name).read_text()


def test_the_settings_that_the_document_names_exist() -> None:
    text = DOCUMENT.read_text()
    options = {field.name for field in fields(Options)}
    named = {found.lower() for found in re.findall(r"WALCAST_([A-Z_]+[A-Z])", text)}
    named |= set(re.findall(r"`([a-z_]+)(?:=[^`]*)?` \(\d+ s\)", text))
    named |= {row.partition("=")[0].strip("`") for row in re.findall(r"\| (`[a-z_]+=\S+`) \|", text)}
    assert named >= {"max_lag_s", "monotonic_reads", "followers", "read_wait_s", "cookie_s", "barrier_s"}
    assert named <= options
    for name, seconds in re.findall(r"`([a-z_]+)` \((\d+) s\)", text):
        assert getattr(Options.of(), name) == int(seconds), name


def test_links_within_the_document_lead_somewhere() -> None:
    text = DOCUMENT.read_text()
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text)
    assert links
    for path, anchor in links:
        assert anchor in headings or path, anchor
        assert not path or (DOCUMENT.parent / path).exists(), path


def test_an_example_that_shows_one_side_only_fails() -> None:
    tell = Tell(lambda line: None)
    tell.without(True, "the anomaly")
    with pytest.raises(NotSeen, match="one half"):
        tell.end()
    with pytest.raises(NotSeen, match="with the guarantee"):
        tell.given(False, "its absence")
    with pytest.raises(NotSeen, match="without the guarantee"):
        tell.without(False, "the anomaly")


def test_an_output_is_compared_line_by_line() -> None:
    assert is_as_shown("a … c\n\n…\nend", "a b c  \none\ntwo\n\nend\n")
    assert is_as_shown("…\nend", "end")
    for said in ("a b d\nend", "a b c\nend\nmore", "more\na b c\nend", "a b c"):
        assert not is_as_shown("a … c\nend", said)
