"""What docs/recipes.md says is run as it stands there, on two hosts that are two folders, or checked word by word."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpcore
import pytest
import yaml
from support.nodes import ENVIRONMENT, PATIENCE_S, Node, poll
from support.recipes import commands_in, parse_command, read_blocks, settings_of, variables_of

import walcast

DOCUMENT = Path(__file__).parent.parent / "docs" / "recipes.md"
RECIPES = read_blocks(DOCUMENT)
BIN = Path(sys.executable).parent
DB = "/srv/data/app.db"
UNITS = [name for name in RECIPES if name.endswith(".service")]

# What a project has beside the settings of the recipe, and an app with one page.
SETTINGS = """
SECRET_KEY = "django's own"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "books.urls"
INSTALLED_APPS = ["books"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
MODELS = """
from django.db import models

class Book(models.Model):
    title = models.TextField()

    class Meta:
        db_table = "books"
"""
URLS = """
import os
from django.http import JsonResponse
from django.urls import path
from books.models import Book

def books(request):
    if request.method == "POST":
        Book.objects.create(title=request.body.decode())
    found = list(Book.objects.order_by("pk"))
    read_at = {book._state.db for book in found}
    return JsonResponse({"host": os.environ["HOST"], "at": sorted(read_at), "titles": [book.title for book in found]})

urlpatterns = [path("", books)]
"""


@dataclass
class Server:
    """gunicorn, or Datasette, and what it says."""

    process: subprocess.Popen[bytes]
    said: Path

    def end(self) -> None:
        print(f"--- {self.said}:\n{self.said.read_text()[-3000:]}")
        self.process.send_signal(signal.SIGINT)  # gunicorn waits for nobody then
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Host:
    """A folder in the place of /srv, and where the app there listens."""

    name: str
    srv: Path
    listening: socket.socket
    places: dict[str, object] = field(default_factory=dict)
    cookie: str = ""

    @property
    def db(self) -> Path:
        return self.srv / "data" / "app.db"

    @property
    def app(self) -> str:
        return "{}:{}".format(*self.listening.getsockname())

    @property
    def env(self) -> dict[str, str]:
        # The secret is the same on all hosts, as the recipe says.
        own = {"HOST": self.name, "SECRET_KEY": "of all hosts", "DJANGO_SETTINGS_MODULE": "settings"}
        return ENVIRONMENT | own | {"HOME": str(self.srv), "XDG_RUNTIME_DIR": str(self.srv)}

    def text(self, recipe: str) -> str:
        """As this host has it."""
        return RECIPES[recipe].placed(self.places | {"/srv": self.srv, "/srv/venv/bin": BIN})

    def unit(self, recipe: str, key: str = "ExecStart") -> list[str]:
        """The command line of a unit."""
        start = next(line for line in self.text(recipe).splitlines() if line.startswith(f"{key}="))
        return shlex.split(start.partition("=")[2])

    def put(self, name: str, text: str) -> None:
        (self.srv / name).parent.mkdir(parents=True, exist_ok=True)
        (self.srv / name).write_text(text)

    def run(self, *command: str | Path) -> str:
        """A command's output."""
        said = subprocess.run(
            [*map(str, command)],
            cwd=self.srv,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    @contextmanager
    def serve(self, *command: str, name: str) -> Iterator[Server]:
        """A server that takes this host's listening socket, if it wants it."""
        said = self.srv / f"{name}.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.srv, env=self.env, stdout=log, stderr=log, pass_fds=[self.listening.fileno()]
            )
        server = Server(process, said)
        try:
            yield server
        finally:
            server.end()

    def ask(self, method: str = "GET", body: str = "", cookie: str = "") -> dict[str, Any]:
        """The app's page, as a visitor sees it who comes back with the cookie that was set."""
        with closing(http.client.HTTPConnection(self.app, timeout=PATIENCE_S)) as asked:
            asked.request(method, "/", body.encode(), {"Cookie": cookie})
            answer = asked.getresponse()
            text = answer.read().decode()
            self.cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        assert answer.status == 200, text
        page: dict[str, Any] = json.loads(text)
        return page


@dataclass
class Site:
    """Two hosts, each with walcast and the app, by the units of the recipes."""

    one: Host
    two: Host
    follower: Node

    def add(self, title: str) -> walcast.Token:
        """A book, committed by somebody else on the primary's host."""
        with closing(sqlite3.connect(self.one.db, timeout=10)) as db, db:
            db.execute("INSERT INTO books (title) VALUES (?)", [title])
        return walcast.Primary(self.one.db).barrier()

    def see(self, title: str) -> None:
        """The replica has it."""
        walcast.Replica(self.two.db).wait_for(self.add(title), PATIENCE_S)


def start(stack: ExitStack, host: Host, recipe: str) -> Node:
    """The process of a walcast.service, ready."""
    _, *arguments = host.unit(recipe)
    node = Node([*arguments, "--json", "--log-format", "json"], host.srv, "walcast")
    stack.callback(node.end)
    node.start().ready()
    return node


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        one, two = (
            Host(name, folder / name, stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))))
            for name in ("one", "two")
        )
        apps = {"https://10.0.0.1:8443": f"http://{one.app}", "https://10.0.0.2:8443": f"http://{two.app}"}
        for host in (one, two):
            host.db.parent.mkdir(parents=True)
            host.places = apps | {"10.0.0.1:7420": "127.0.0.1:0", "10.0.0.2:7420": "127.0.0.1:0"}
            host.put("wsgi.py", host.text("wsgi.py"))
            host.put("settings.py", host.text("settings.py") + SETTINGS)
            for name, text in {"__init__": "", "models": MODELS, "urls": URLS}.items():
                host.put(f"books/{name}.py", text)
        with closing(sqlite3.connect(one.db)) as db:
            db.execute("PRAGMA journal_mode = WAL")
        one.run(sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0", "--pythonpath=.")
        serving = start(stack, one, "primary/walcast.service")
        two.places["10.0.0.1:7420"] = serving.events("listening")[-1]["address"]
        following = start(stack, two, "follower/walcast.service")
        two.run(*two.unit("follower/walcast.service", "ExecStartPost"))
        for host, recipe in ((one, "gunicorn.conf.py"), (two, "gunicorn-gevent.conf.py")):
            host.put("gunicorn.conf.py", host.text(recipe))
            bound = ["--bind", f"fd://{host.listening.fileno()}", "--workers", "2"]  # four take the tests long to start
            stack.enter_context(host.serve(*host.unit("app.service"), *bound, name="app"))
        yield Site(one, two, following)


# What runs


def test_gunicorn_and_django_make_one_site_of_two_hosts(site: Site) -> None:
    titles: list[str] = []
    for n in range(10):
        titles.append(f"Book {n}")
        written = site.two.ask("POST", titles[-1])
        assert written == {"host": "one", "at": ["default"], "titles": titles}
        seen = site.two.ask(cookie=site.two.cookie)
        assert seen == {"host": "two", "at": ["replica"], "titles": titles}
    assert site.one.ask() == {"host": "one", "at": ["replica"], "titles": titles}


def test_gevent_workers_answer_others_while_reads_wait(site: Site) -> None:
    before = len(site.two.ask()["titles"])
    site.follower.signal(signal.SIGSTOP)
    try:
        site.one.ask("POST", "Emma")
        with ExitStack() as stack:
            # More than there are workers: workers that stop for one that waits come to no other soon.
            waiting = [http.client.HTTPConnection(site.two.app, timeout=PATIENCE_S) for _ in range(8)]
            for each in waiting:
                stack.enter_context(closing(each))
                each.request("GET", "/", headers={"Cookie": site.one.cookie})
            page = site.two.ask()  # without a token to wait for
            answered = select.select([each.sock for each in waiting], [], [], 0)[0]
            assert (page["host"], len(page["titles"]), answered) == ("two", before, [])
            pages = [json.loads(each.getresponse().read()) for each in waiting]
        assert [(page["host"], len(page["titles"])) for page in pages] == [("one", before + 1)] * 8
    finally:
        site.follower.signal(signal.SIGCONT)


def test_sqlalchemy_reads_and_writes_as_the_recipe_says(site: Site) -> None:
    before = site.one.ask()["titles"]
    blocks = site.one.text("sqlalchemy") + site.one.text("sqlalchemy-token")
    seen = 'print([row[0] for row in session.execute(text("SELECT title FROM books ORDER BY id"))])'
    site.one.put("recipe.py", blocks + textwrap.indent(seen, "    "))
    assert site.one.run(sys.executable, "recipe.py") == f"{[*before, 'Emma']}\n"


def test_datasette_shows_what_the_primary_commits(site: Site, tmp_path: Path) -> None:
    server, *arguments = shlex.split(site.two.text("datasette"))
    address = str(tmp_path / "s")
    pool = httpcore.ConnectionPool(uds=address)

    def get(path: str) -> httpcore.Response:
        answer = pool.request("GET", f"http://datasette{path}")
        assert answer.status == 200, answer.content
        return answer

    with site.two.serve(str(BIN / server), *arguments, "--uds", address, name="datasette"), closing(pool):
        assert poll(lambda: os.path.exists(address))  # noqa: PTH110
        for title in ("Persuasion", "Sanditon"):
            site.see(title)
            rows = json.loads(get("/app/books.json?_shape=array&_size=max").content)
            assert rows[-1]["title"] == title
        page = get("/app/books?_sort_desc=id")
        assert b"Sanditon" in page.content
        assert (b"Cache-Control", b"no-cache") in page.headers


def test_an_immutable_database_is_read_without_its_newest_commits(site: Site) -> None:
    def newest(how: str) -> str:
        with closing(sqlite3.connect(f"file:{site.two.db}?{how}", uri=True)) as db:
            return str(db.execute("SELECT title FROM books ORDER BY id DESC").fetchone())

    for n in range(20):  # the follower's own checkpoint may come between
        site.see(f"Lady Susan {n}")
        assert "Lady Susan" in newest("mode=ro")
        if newest("immutable=1") != newest("mode=ro"):
            return
    pytest.fail("it read them")


# What is checked


def test_every_block_is_tested() -> None:
    said = Path(__file__).read_text()
    assert [name for name in RECIPES if f'"{name}"' not in said] == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_command_in_a_block_is_one_and_has_its_flags(name: str) -> None:
    for arguments in commands_in(RECIPES[name].lines()):
        told = parse_command(arguments)
        assert str(told["db"]) == DB


def test_a_command_that_is_none_is_found_out() -> None:
    for line in ("walcast primary x.db --no-such-flag", "walcast prmary x.db", "run /usr/bin/walcast follower x.db"):
        with pytest.raises(click.ClickException):
            parse_command(commands_in([line])[0])


def test_commands_and_flags_in_the_text_exist() -> None:
    prose = re.sub(r"^```.*?^```$", "", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = {command: variables_of(command) for command in re.findall(r"`walcast ([a-z]+)`", prose)}
    flags = {f"--{name.removeprefix('WALCAST_').replace('_', '-').lower()}" for name in set().union(*found.values())}
    of_datasette = {"--immutable"}
    assert set(re.findall(r"`(--[a-z-]+)", prose)) <= flags | of_datasette


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_one_for_systemd(name: str, tmp_path: Path) -> None:
    told = settings_of(RECIPES[name])
    assert told["Service.User"] == ["app"]
    assert told["Service.Restart"] == ["always"]
    for command in told["Service.ExecStart"] + told.get("Service.ExecStartPost", []):
        program = Path(shlex.split(command)[0])
        assert program.parent == Path("/srv/venv/bin")
        assert (BIN / program.name).exists()
    if shutil.which("systemd-analyze") is None:
        return
    unit = tmp_path / Path(name).name
    unit.write_text(RECIPES[name].placed({"/srv/venv/bin": BIN}))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_the_environment_file_says_what_both_roles_read() -> None:
    said = dict(line.split("=", 1) for line in RECIPES["walcast.env"].text.splitlines())
    assert set(said) <= variables_of("primary") & variables_of("follower")


def test_the_containers_share_one_folder_and_are_told_what_the_units_are() -> None:
    services = yaml.safe_load(RECIPES["compose.yaml"].text)["services"]
    over = yaml.safe_load(RECIPES["compose.override.yaml"].text)["services"]
    folder = f"data:{Path(DB).parent}"
    assert all(folder in service["volumes"] for service in services.values())
    assert set(services["walcast"]["environment"]) <= variables_of("primary")
    unit = settings_of(RECIPES["app.service"])["Service.ExecStart"][0]
    assert services["app"]["command"] == unit.removeprefix("/srv/venv/bin/")
    for service, recipe in ((services, "primary/walcast.service"), (over, "follower/walcast.service")):
        inside = parse_command(shlex.split(service["walcast"]["command"])[1:])
        outside = parse_command(shlex.split(settings_of(RECIPES[recipe])["Service.ExecStart"][0])[1:])
        assert inside["app_url"] == outside["app_url"]
        assert inside.get("primary_address") == outside.get("primary_address")


def test_the_dockerfile_makes_the_folder_for_the_user_that_all_runs_as() -> None:
    lines = RECIPES["Dockerfile"].text.splitlines()
    assert [line.split()[0] for line in lines] == ["FROM", "RUN", "RUN", "USER", "WORKDIR", "COPY"]
    assert f"--owner=app {Path(DB).parent}" in lines[2]
    assert lines[3] == "USER app"
    unit = settings_of(RECIPES["app.service"])
    assert lines[4].split()[1] == unit["Service.WorkingDirectory"][0]


def test_the_one_container_runs_a_primary_with_the_app_in_it() -> None:
    lines = RECIPES["one/Dockerfile"].text.splitlines()
    assert lines[:4] == [line.replace("django", "flask") for line in RECIPES["Dockerfile"].text.splitlines()[:4]]
    program, *arguments = json.loads(lines[-1].removeprefix("CMD "))
    told = parse_command(arguments)
    assert (program, arguments[0], str(told["db"]), told["restore_missing"]) == ("walcast", "primary", DB, True)
    assert shlex.split(told["command"])[0] == "gunicorn"
