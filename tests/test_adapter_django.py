"""`walcast.adapters.django`: a real project, in processes of its own, on a real primary and a real follower."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.nodes import ENVIRONMENT, PATIENCE_S, Node, follower, primary, wait_level

PROJECT = {
    "settings.py": """
        import os
        from walcast.adapters.django import replica_database

        DATABASES = {
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["APP_DB"]},
            "replica": replica_database(os.environ["APP_REPLICA"]),
        }
        DATABASE_ROUTERS = ["walcast.adapters.django.ReplicaRouter"]
        SECRET_KEY = "secret"
        DEBUG = True
        ROOT_URLCONF = "urls"
        ALLOWED_HOSTS = ["testserver"]
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        INSTALLED_APPS = [
            "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
            "django.contrib.sessions", "django.contrib.messages", "books",
        ]
        MIDDLEWARE = [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ]
        TEMPLATES = [{
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]},
        }]
        STATIC_URL = "/static/"
        """,
    "urls.py": """
        from django.contrib import admin
        from django.http import JsonResponse
        from django.urls import path
        from books.models import Author, Book

        def write(request):
            Author.objects.create(name="in a view")
            return JsonResponse({"read at": Author.objects.last()._state.db})

        async def awrite(request):
            await Author.objects.acreate(name="in an asynchronous view")
            return JsonResponse({"read at": (await Author.objects.alast())._state.db})

        def read(request):
            return JsonResponse({"read at": Author.objects.first()._state.db})

        urlpatterns = [
            path("admin/", admin.site.urls), path("write", write), path("awrite", awrite), path("read", read)
        ]
        """,
    "books/__init__.py": "",
    "books/models.py": """
        from django.db import models

        class Author(models.Model):
            name = models.CharField(max_length=100, unique=True)

        class Book(models.Model):
            author = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")
            title = models.CharField(max_length=100)
        """,
    "books/admin.py": """
        from django.contrib import admin
        from books.models import Author

        admin.site.register(Author)
        """,
    "books/migrations/__init__.py": "",
    "books/tests.py": """
        from django.test import TestCase, TransactionTestCase
        from books.models import Author

        class Tests(TestCase):
            def test_reads_what_it_wrote(self):
                Author.objects.create(name="Austen")
                self.assertEqual(self.client.get("/read").json(), {"read at": "default"})

        class Committing(TransactionTestCase):
            databases = {"default", "replica"}

            def test_a_mirror_is_the_database_that_it_mirrors(self):
                Author.objects.create(name="Austen")
                self.assertEqual(self.client.get("/read").json(), {"read at": "replica"})
        """,
}

# Runs what it is told, a function body that returns something, and answers with that or with the error.
SHELL = """
import json, os, sys, textwrap
import django
django.setup()
from django.core.management import call_command
from django.core.signals import request_finished
from django.db import connections, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from books.models import Author, Book
from walcast.adapters.django import forget_writes

kept = {}  # from one function to another

def sql(alias, *statements):
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall()

for line in sys.stdin:
    scope = dict(globals())
    default, replica = (CaptureQueriesContext(connections[alias]) for alias in ("default", "replica"))
    with default, replica:
        try:
            exec("def body():\\n" + textwrap.indent(json.loads(line), "    "), scope)
            answer = {"is": scope["body"]()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
    answer |= {"default": len(default), "replica": len(replica)}
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Project:
    """The project's folder, and a process of it that does what it is told."""

    directory: Path
    primary: Node
    db: Path
    replica: Path
    shell: subprocess.Popen[str] | None = None
    queries: tuple[int, int] = (0, 0)

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.directory}:{ENVIRONMENT['PYTHONPATH']}"
        own = {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONWARNINGS": "error"}
        return ENVIRONMENT | own | {"APP_DB": str(self.db), "APP_REPLICA": str(self.replica)}

    def manage(self, *arguments: str) -> str:
        """`django-admin …`; what it says."""
        said = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout + said.stderr

    def ask(self, body: str) -> dict[str, Any]:
        """Have a function body run; afterwards `queries` is how many were asked of default and of replica."""
        assert self.shell is not None
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        print(json.dumps(textwrap.dedent(body)), file=self.shell.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.shell.stdout.readline())
        self.queries = answer["default"], answer["replica"]
        return answer

    def __call__(self, body: str) -> Any:
        answer = self.ask(body)
        assert "is" in answer, answer
        return answer["is"]

    def error(self, body: str) -> str:
        return str(self.ask(body)["error"])


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Migrated on the primary, while the follower follows."""
    directory = tmp_path_factory.mktemp("django")
    for name, text in PROJECT.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(textwrap.dedent(text))
    db, replica = directory / "app.db", directory / "edge 100%?mode=memory#" / "app.db"
    with closing(sqlite3.connect(db)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA user_version = 1")
    with primary(db) as serving, follower(replica, serving.address):
        project = Project(directory, serving, db, replica)
        project.manage("makemigrations", "books", "--verbosity=0")
        project.manage("migrate", "--verbosity=0")
        wait_level(serving.address, replica)
        with subprocess.Popen(
            [sys.executable, "-c", SHELL], env=project.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as project.shell:
            yield project
            project.shell.kill()


@pytest.fixture
def project(migrated: Project) -> Project:
    """With one author of one book, on both sides; nothing was written in this request."""
    migrated(
        """
        Author.objects.all().delete()
        Book(author=Author.objects.create(pk=1, name="Austen"), title="Emma").save()
        request_finished.send(None)
        """
    )
    wait_level(migrated.primary.address, migrated.replica)
    return migrated


def test_objects_are_read_at_the_replica_with_their_relations(project: Project) -> None:
    body = """
        author = Author.objects.prefetch_related("books").get()
        book = Book.objects.select_related("author").get(title__contains="mm")
        return [author.books.all()[0].title, book.author.name, book._state.db, Book.objects.get().author._state.db]
        """
    assert project(body) == ["Emma", "Austen", "replica", "replica"]
    assert project.queries == (0, 5)


def test_a_write_at_the_replica_is_refused_and_changes_nothing(project: Project) -> None:
    where = f"{project.replica} is a replica; write at the primary, which is at {project.primary.address}"
    refused = f"OperationalError: attempt to write a readonly database: {where}"
    assert project.error("Author.objects.using('replica').create(name='x')") == refused
    assert project.error("Author.objects.using('replica').all().delete()") == refused
    assert project.error("sql('replica', 'CREATE TEMP TABLE mine (a)')") == refused
    assert project("return Author.objects.using('replica').get().name") == "Austen"


def test_writes_go_to_the_primary_and_reads_after_them_until_the_request_ends(project: Project) -> None:
    body = """
        at = [Author.objects.get()._state.db]
        Author.objects.create(name="Brontë")
        at += [author._state.db for author in Author.objects.all()]
        request_finished.send(None)
        at.append(Author.objects.first()._state.db)
        return at
        """
    assert project(body) == ["replica", "default", "default", "replica"]


def test_a_view_that_wrote_reads_its_write_and_the_next_request_reads_the_replica(project: Project) -> None:
    for view in ("write", "awrite"):
        assert project(f"return Client().get('/{view}').json()") == {"read at": "default"}
        assert project("return Client().get('/read').json()") == {"read at": "replica"}


def test_another_thread_is_another_request(project: Project) -> None:
    body = """
        from threading import Thread
        at = []
        Author.objects.create(name="Brontë")
        def read():
            at.append(Author.objects.first()._state.db)
            connections.close_all()
        thread = Thread(target=read)
        thread.start()
        thread.join()
        return at
        """
    assert project(body) == ["replica"]


def test_inside_a_transaction_of_the_primary_all_is_read_there(project: Project) -> None:
    body = """
        with transaction.atomic():
            return Author.objects.get()._state.db
        """
    assert project(body) == "default"
    assert project("return Author.objects.get()._state.db") == "replica"


def test_a_transaction_of_the_replica_is_one_moment(project: Project) -> None:
    assert (
        project(
            """
        connections["replica"].ensure_connection()
        kept["transaction"] = transaction.atomic(using="replica")
        kept["transaction"].__enter__()
        return Author.objects.count()
        """
        )
        == 1
    )
    project("Author.objects.create(name='Brontë')\nforget_writes()")
    wait_level(project.primary.address, project.replica)
    end = "kept['transaction'].__exit__(None, None, None)"
    counts = f"return [Author.objects.count(), {end}, Author.objects.count()]"
    assert project(counts) == [1, None, 2]


def test_an_object_of_the_replica_is_saved_deleted_and_related_at_the_primary(project: Project) -> None:
    body = """
        author = Author.objects.get()
        read_at = author._state.db
        author.name = "Jane Austen"
        author.save()
        request_finished.send(None)
        old = Book.objects.get()
        author.books.add(Book(title="Persuasion"), bulk=False)
        old.author = Author.objects.using("default").get()
        old.delete()
        return [read_at, author._state.db, list(Book.objects.values_list("title", "author__name"))]
        """
    assert project(body) == ["replica", "default", [["Persuasion", "Jane Austen"]]]


def test_the_admin_lists_what_the_replica_has(project: Project) -> None:
    body = """
        from django.contrib.auth.models import User
        client = Client()
        client.force_login(User.objects.filter(pk=1).first() or User.objects.create_superuser("admin"))
        kept["client"] = client
        request_finished.send(None)
        """
    project(body)
    wait_level(project.primary.address, project.replica)
    assert "Log out" in project("return kept['client'].get('/admin/').content.decode()")
    assert "Author object (1)" in project("return kept['client'].get('/admin/books/author/').content.decode()")
    default, replica = project.queries
    assert default == 0
    assert replica >= 4


def test_migrations_leave_the_replica_alone(migrated: Project) -> None:
    body = """
        import io
        said = io.StringIO()
        call_command("makemigrations", check=True, dry_run=True, stdout=said)
        call_command("migrate", database="replica", stdout=said)
        call_command("check", databases=["default", "replica"], stdout=said)
        return said.getvalue()
        """
    assert "No migrations to apply" in migrated(body)
    asked = "from django.db import router; return [router.allow_migrate(at, 'books') for at in ('default', 'replica')]"
    assert migrated(asked) == [True, False]


def test_the_projects_own_tests_read_what_they_write(migrated: Project) -> None:
    assert "Ran 2 tests" in migrated.manage("test", "--verbosity=0", "books")


def test_a_replica_that_is_not_there_yet_cannot_be_opened(project: Project, tmp_path: Path) -> None:
    body = f"""
        from walcast.adapters.django import replica_database
        connections.settings["missing"] = connections.configure_settings(
            {{"default": {{}}, "missing": replica_database({str(tmp_path / "app.db")!r})}})["missing"]
        return Author.objects.using("missing").count()
        """
    uri = f"file://{tmp_path}/app.db?mode=ro"
    assert project.error(body) == f"OperationalError: {uri}: unable to open database file"
    assert not list(tmp_path.iterdir())
