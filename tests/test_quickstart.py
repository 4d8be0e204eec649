"""docs/quickstart.md is typed from its first line to its last, in an empty folder, and shows what it says it shows."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.docs_session import Shell, is_as_shown, patched, shell
from support.nodes import ENVIRONMENT, poll
from support.recipes import Block, commands_in, parse_command, read_blocks

from walcast_node.cli import main

DOCUMENT = Path(__file__).parent.parent / "docs" / "quickstart.md"
BLOCKS = read_blocks(DOCUMENT)
ORIGIN, EDGE = ("7420", "8000"), ("7520", "8001")
PORTS = ORIGIN + EDGE
THERE = "there-"
APP = """
import app
client = app.app.test_client()
assert client.post("/", data={"text": "Hello"}, follow_redirects=True).text.count("<p>Hello</p>") == 1
"""


def free_ports(count: int) -> list[int]:
    """Nobody has them now."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in made]


def answers(port: int) -> bool:
    """Does somebody listen?"""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


@pytest.fixture
def places() -> dict[str, object]:
    """The document's addresses, and others that are free."""
    return {f"127.0.0.1:{port}": f"127.0.0.1:{free}" for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True)}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A reader's, for whom everything was installed before: pip has no index, and must find all of it here."""
    keep = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("FLASK_", "GUNICORN_"))}
    keep.pop("PYTHONPATH")
    # A machine that is busy with other tests may take longer to find a new primary than the document says.
    patience = {"FLASK_WALCAST_PRIMARY_WAIT_S": "60", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return keep | patience | {"PATH": f"{Path(sys.executable).parent}:{keep['PATH']}", "HOME": str(tmp_path)}


def do(block: Block, typed: Shell, places: dict[str, object]) -> None:
    """Type it; what is to be seen must be what the document shows. A reader is slower than what was started or killed:
    that is waited for here, and a command that only looks is repeated until it shows what it should."""
    text = block.placed(places)
    if block.name == "install":
        # The environment is the one that the tests run in; pip finds in it what it would install from the checkout.
        text = text.replace("python3 -m venv venv && . venv/bin/activate\n", "").replace("./walcast[", "walcast[")
    said = typed.type(text)
    for port in re.findall(r"--(?:listen|bind) 127\.0\.0\.1:(\d+)", text) if "&\n" in text else []:
        assert poll(lambda port=int(port): answers(port)), f"nobody listens at {port}: {text}"
    if text.startswith("kill -9"):
        ports = [int(str(places[f"127.0.0.1:{port}"]).rpartition(":")[2]) for port in ORIGIN]
        assert poll(lambda: not any(answers(port) for port in ports)), "the origin lives on"
    expected = BLOCKS.get(f"{block.name}.out")
    if expected is not None:
        shown = expected.placed(places)
        if text.startswith("walcast status"):
            said = poll(lambda: (seen := typed.type(text)) and is_as_shown(shown, seen) and seen, 20.0, 0.1) or said
        assert is_as_shown(shown, said), f"{DOCUMENT.name}:{block.line}: otherwise than shown:\n{said}"


def test_every_command_does_what_the_document_says(
    tmp_path: Path, places: dict[str, object], environment: dict[str, str]
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    done = set()
    with shell(folder, environment) as typed:
        for block in BLOCKS.values():
            if block.name.startswith(THERE):
                done.add(block.name)  # see the test of two machines
            elif block.language == "sh":
                do(block, typed, places)
                done |= {block.name, f"{block.name}.out"}
            elif block.language == "python":
                (folder / block.name).write_text(block.text)
                done.add(block.name)
            elif block.language == "diff":
                changed = folder / block.name.removesuffix(".diff")
                changed.write_text(patched(changed.read_text(), block.text))
                done.add(block.name)
        typed.type("wait")
        for log in ("walcast.log", "app.log"):
            for host in ("origin", "edge"):
                said = (folder / host / log).read_text()
                assert "Traceback" not in said, said
    assert done >= set(BLOCKS)
    with closing(sqlite3.connect(folder / "origin" / "app.db")) as db:
        assert db.execute("SELECT text FROM note").fetchall() == [("Hello from the edge",), ("Still here",)]


def test_the_app_works_before_it_is_changed(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(BLOCKS["app.py"].text)
    (command,) = [line for line in BLOCKS["database"].lines() if line.startswith("python3")]
    subprocess.run(f"mkdir origin && {command}", shell=True, check=True, cwd=tmp_path, env=environment)
    environment |= {"FLASK_DATABASE": "origin/app.db"}
    subprocess.run([sys.executable, "-c", APP], check=True, cwd=tmp_path, env=environment)


def test_three_lines_are_added_to_the_app() -> None:
    lines = BLOCKS["app.py.diff"].text.splitlines()
    assert len([line for line in lines if line.startswith("+")]) == 3


def test_every_flag_that_the_document_names_is_one() -> None:
    known = {flag for name in ("primary", "follower", "switchover", "certs") for flag in flags_of(name)}
    prose = re.sub(r"^```.*?^```$", "", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`(--[a-z-]+)", prose)) | set(re.findall(r" (--[a-z-]+)", prose))
    assert named >= {"--tls", "--insecure", "--advertise", "--token-file"}
    assert named <= known
    # What is said of a private network makes one command that walcast takes.
    (flags,) = re.findall(r"`(--insecure --token[^`]*)`", prose)
    (arguments,) = commands_in([f"walcast primary app.db s3://bucket/app --listen 10.0.0.1:7420 {flags}"])
    assert parse_command(arguments)["token_file"] == Path("tokens")


def test_two_machines_need_the_certificates_and_nothing_else(tmp_path: Path, environment: dict[str, str]) -> None:
    """Two addresses of this one; the certificates are shown and asked for all the same."""
    origin, edge = (f"127.0.0.{host}:{port}" for host, port in enumerate(free_ports(2), 1))
    here = {
        "10.0.0.1:7420": origin,
        "10.0.0.2:7420": edge,
        "10.0.0.1": "127.0.0.1",
        "10.0.0.2": "127.0.0.2",
        "s3://bucket/app": tmp_path / "archive",
    }
    folder = tmp_path / "empty"
    folder.mkdir()
    with shell(folder, environment) as typed:
        typed.type(BLOCKS["certs"].placed(here))
        for host in ("origin", "edge"):
            (folder / host).mkdir()
            (folder / "certs" / host).rename(folder / host / host)
        with closing(sqlite3.connect(folder / "origin" / "app.db")) as db:
            db.execute("CREATE TABLE note (text)")
        for host in ("origin", "edge"):
            command = BLOCKS[f"{THERE}{host}"].placed(here).strip()
            typed.type(f"(cd {host} && {command} > walcast.log 2>&1) &")
        (folder / "certs" / "ann").rename(folder / "ann")
        export, status, switchover = BLOCKS[f"{THERE}operator"].placed(here).splitlines()
        typed.type(export)
        assert poll(lambda: re.search(r"edge +streaming", typed.type(f"{status} || true")), 30.0, 0.1)
        assert f"edge at {edge} is the primary, term 2" in typed.type(switchover)
        assert poll(lambda: re.search(r"origin +streaming", typed.type(status.replace(origin, edge))), 30.0, 0.1)


def test_every_command_of_the_page_on_failover_is_one_that_walcast_takes() -> None:
    text = (DOCUMENT.parent / "failover.md").read_text()
    fenced = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    taken = [arguments for arguments in commands_in(fenced.splitlines()) if arguments[0] != "certs"]
    assert {arguments[0] for arguments in taken} >= {"primary", "follower", "switchover", "promote", "repair"}
    for arguments in taken:
        parse_command(arguments)


def flags_of(name: str) -> list[str]:
    """Of a command."""
    from click import Context, Group

    command = main.get_command(Context(main), name)
    assert command is not None
    commands = [command, *command.commands.values()] if isinstance(command, Group) else [command]
    return [flag for one in commands for parameter in one.params for flag in parameter.opts]


def test_a_difference_is_applied_or_refused() -> None:
    assert patched("a\nb\nc\nd\n", " a\n-b\n+B\n@@\n c\n+C\n") == "a\nB\nc\nC\nd\n"
    for difference in ("-x\n", " b\n a\n", "what\n"):
        with pytest.raises(ValueError, match=r"not|no line"):
            patched("a\nb\n", difference)
