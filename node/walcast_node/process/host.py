"""The primary as a process: databases that come and go, the gRPC server in front of them, archivers behind them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2

from walcast import audit, wire
from walcast.access import Role
from walcast.access.credentials import Credentials
from walcast.access.neighbours import parse_peer
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.facts import primary_facts
from walcast.lasting import outlast
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast.statusfile import State
from walcast.store.url import parse_url
from walcast_node.config.configuration import load_config
from walcast_node.config.settings import DatabaseSettings, HostSettings
from walcast_node.failover.member import Member
from walcast_node.failover.reachable import check_ids
from walcast_node.http.request import Request
from walcast_node.process import limits
from walcast_node.process.configured_databases import Listed
from walcast_node.process.connection_crowds import Peer, keep_room
from walcast_node.process.draining import to_archives, to_followers
from walcast_node.process.first_boot import (
    check_there,
    is_awaited,
    opened_when_free,
    restore_when_reachable,
    wait_for_database,
)
from walcast_node.process.grpc_server import listen
from walcast_node.process.health import Failure, member_failure, serving_failure
from walcast_node.process.heartbeat import ARCHIVED_WITHIN_S, Heartbeat
from walcast_node.process.log_summary import summarize
from walcast_node.process.open_inodes import Inode, Inodes
from walcast_node.process.primary_status_file import SHOW_S, show_primary
from walcast_node.process.reload import keep_fresh
from walcast_node.process.replica_set_members import KeptMembers, check_member
from walcast_node.process.retried_databases import Retrying
from walcast_node.process.serving import ServedByName, Serving, not_served
from walcast_node.process.watched_folders import Watching, databases_of
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Refused, Served
from walcast_primary.publish.visible_status import Sees, visible

log = logging.getLogger("walcast.primary")

GRACE_S = 1.0
LOOK_S = 0.05
CLOSE_S = 2.0  # of the time that a stop may take: streams end and files are let go, after what goes out
STATUS_S = 5.0
APP_MAKES_IT = "the app has not made it yet"
GUARDED_PATHS = ("/status", "/metrics")
AT_ONCE = 4  # that are opened or closed


class Host:
    """All that one primary process serves. Used in its event loop, but for `failure` and `heartbeat_trouble`."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.credentials = Credentials(settings.tls)
        self.listening: wire.Address = settings.listen
        self.http_listening: wire.Address | None = None
        self.inodes = Inodes()
        self._access = Gate(
            settings.access,
            listening=lambda: self.listening,
            credentials=self.credentials,
            trust_user=settings.trust_user,
        )
        self._serving: dict[str, Serving] = {}
        self._served = ServedByName()
        self._opening: set[str] = set()
        self._closing: dict[str, asyncio.Task[None]] = {}
        self.gate = asyncio.Semaphore(AT_ONCE)
        self._most = limits.capacity()
        self.members: list[Member] = []
        self._watching: list[Retrying] = [Watching(config, self) for config in settings.folders if config.watch]
        self._healthy: Any = None
        self._stop = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: WalcastError | None = None
        self._awaited: dict[str, DatabaseSettings] = {}
        self._awaits: dict[str, str | None] = {}  # of those: why they are not there, once that is known
        self.start_app: Callable[[], object] = lambda: None  # called once, when the app can have what it needs
        self.drain_within_s = settings.stop_timeout_s - min(CLOSE_S, settings.stop_timeout_s / 4)
        self.all_archived = True
        self._began_ms = int(time.time() * 1000)

    @property
    def stopping(self) -> bool:
        """Nothing more is to be opened."""
        return self._stop.is_set() or self._failed.is_set()

    @property
    def _one_of_many(self) -> bool:
        """Is each database only one of several, none of which is to be stopped by what is wrong with another?"""
        return len(self.settings.databases) + len(self.settings.folders) + len(self.settings.members) > 1

    @property
    def room(self) -> int:
        """How many databases more can be served."""
        return max(0, self._most - len(self._serving) - len(self._opening))

    def is_leaving(self, name: str, inode: Inode | None) -> bool:
        """Is a database of this name, or this file, still being let go?"""
        return name in self._closing or (inode is not None and self.inodes.holder(inode) in self._closing)

    @property
    def names(self) -> list[str]:
        """Of the databases that are served now."""
        return sorted(self._serving)

    async def run(self, stop: asyncio.Event, ready: Callable[[Host], None]) -> None:
        """Serve until `stop` is set; raises why when a database cannot be served any longer.

        Everything that can be wrong with the settings is found out before anything is changed on disk.
        """
        self._stop = stop
        databases = await asyncio.to_thread(self._find)
        check_ids(self.settings, self.credentials)
        publisher = Publisher(self._served, self.status, self._access, self._served.away, self.settings.app_url)
        expected = self._most if self._watching else len(databases) + len(self.settings.members)
        connections = limits.connections(expected)
        server, self._healthy, self.listening = listen(
            publisher,
            self.settings.listen,
            self.credentials,
            connections=connections,
            reflect=self.settings.reflect,
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            stack.push_async_callback(server.stop, GRACE_S)
            stack.callback(publisher.stop)
            self._http(stack)
            if self._one_of_many:
                self._watching.insert(0, Listed(databases, self))
            else:
                await self._add_all(databases)
            for watching in self._watching:
                await stack.enter_async_context(watching)
            for member in self.settings.members:  # whoever asks before its role is known must ask again
                self._served.away[member.database.name] = not_served(member.database.name, "its role is not known yet")
            await server.start()
            for awaited in list(self._awaited.values()):
                await self.set_away(awaited.name, "it is not restored, or its app has not made it yet")
                stack.callback(asyncio.create_task(self._serve_awaited(awaited)).cancel)
            stack.callback(asyncio.create_task(outlast(self._keep_showing, "status files", "status")).cancel)
            stack.callback(asyncio.create_task(keep_fresh(self.credentials)).cancel)
            summing = partial(summarize, self.settings.summary_s, self.status, self.failures)
            stack.callback(asyncio.create_task(outlast(summing, "summary", "summary")).cancel)

            def busy() -> list[Peer]:
                return [end for peer in publisher.busy_peers if (end := parse_peer(peer)) is not None]

            stack.callback(asyncio.create_task(keep_room(self.listening.port, connections, busy)).cancel)
            log.info("listening", extra={"address": str(self.listening)})
            self._record_settings()
            await self._begin_members(stack)
            await self._begin_awaited()
            if self.settings.heartbeat is not None:
                beating = self.settings.heartbeat
                stack.callback(Heartbeat(beating.url, beating.interval_s, self.heartbeat_trouble).start().stop)
            if not self.stopping:
                if self._is_restoring:
                    log.warning("the app is not started before its databases are restored")
                    stack.callback(asyncio.create_task(self._start_app_when(lambda: not self._is_restoring)).cancel)
                else:
                    self.start_app()
                ready(self)
            await _first(stop, self._failed)
            await self._drain(publisher)
        if self._failure is not None:
            raise self._failure

    @property
    def _is_restoring(self) -> bool:
        """Is a database of several to be restored that its app, if it ran, would make instead?"""
        return any(watching.is_restoring for watching in self._watching)

    async def _start_app_when(self, ready: Callable[[], bool]) -> None:
        while not ready():
            await asyncio.sleep(LOOK_S)
        if not self.stopping:
            try:
                self.start_app()
            except WalcastError as error:
                self._static_failed(error)

    async def _begin_awaited(self) -> None:
        """Until each that may be restored is served, or only its app can make it, or we are to stop."""
        while not self.stopping and any(self._awaits.get(name) != APP_MAKES_IT for name in self._awaited):
            await asyncio.sleep(LOOK_S)

    @property
    def awaited(self) -> list[str]:
        """Of the databases that the app is to make first."""
        waiting = [member.name for member in self.members if member.awaits_app.is_set() and member.serving is None]
        listed = [name for watching in self._watching for name in watching.awaited]
        return sorted([*self._awaited, *waiting, *listed])

    def reload_access(self) -> int | None:
        """Read the rules of the configuration file again, and go by them: how many there are; None where no file was
        given. ConfigError, and nothing changes, when it cannot be read. For any thread."""
        if self.settings.file is None:
            return None
        try:
            told = load_config(self.settings.file)
        except ConfigError as error:
            facts = {"file": str(self.settings.file), "error": str(error)}
            audit.record("configuration", f"user:{os.geteuid()}", **facts, outcome="refused")
            raise
        self._access.go_by(told.access, trust_user=told.trust_user)
        said = {"rules": len(told.access.rules), "trust_user": told.trust_user, "file": str(told.path)}
        audit.record("configuration", f"user:{os.geteuid()}", **said, outcome="reloaded")
        return len(told.access.rules)

    def _record_settings(self) -> None:
        """In the audit trail: what this process goes by."""
        settings = self.settings
        facts = {
            "listen": str(settings.listen),
            "tls": settings.tls.cert is not None,
            "client_certificates": settings.tls.ca is not None,
            "rules": len(settings.access.rules),
            "trust_user": settings.trust_user,
            "file": str(settings.file) if settings.file else "",
        }
        audit.record("configuration", f"user:{os.geteuid()}", **facts, outcome="loaded")

    async def _drain(self, publisher: Publisher) -> None:
        """What was committed goes out, before anything ends."""
        drains = await to_followers(list(self._serving.values()), self.drain_within_s)
        publisher.stop()
        self.all_archived = await to_archives(drains)

    async def _begin_members(self, stack: AsyncExitStack) -> None:
        """Until each has found its role, or we are to stop."""
        if self._one_of_many:
            kept = KeptMembers(self.settings.members, self)
            self._watching.append(kept)
            await stack.enter_async_context(kept)
            await kept.settle()
            return
        for settings in self.settings.members:
            member = Member(self, settings)
            self.members.append(member)
            stack.push_async_callback(member.close)
            member.start(self._static_failed)
        if self.members:  # what is no member may have to be restored first: the app would make it instead
            stack.callback(asyncio.create_task(self._start_app_when(self._is_readable)).cancel)
        for member in self.members:
            await _first(member.settled, member.awaits_app, self._stop, self._failed)

    def _is_readable(self) -> bool:
        """An app beside a follower need not wait for a primary that is away: the replica can be read, and is locked."""
        return all(
            member.settled.is_set() or (member.following is not None and member.following.applier is not None)
            for member in self.members
        )

    async def _keep_showing(self) -> None:
        """To the apps on this host, for databases that are no members. In a thread: a disk that hangs must not keep
        heartbeats, barriers and status of all databases with it."""
        while True:
            members = {member.name for member in self.members}
            shown = [(name, serving) for name, serving in self._serving.items() if name not in members]
            await asyncio.to_thread(self._show, shown)
            await asyncio.sleep(SHOW_S)

    def _show(self, databases: Sequence[tuple[str, Serving]]) -> None:
        for name, serving in databases:
            if self._serving.get(name) is serving:
                show_primary(serving, State.PRIMARY, self.listening, "", self.settings.app_url)

    def _find(self) -> list[DatabaseSettings]:
        """All databases but those of watched folders; ConfigError when one cannot be served."""
        found = {database.path.resolve(): database for database in self.settings.databases}
        for folder in self.settings.folders:
            for database in () if folder.watch else databases_of(folder, self.inodes):
                found.setdefault(database.path.resolve(), database)  # what is listed by itself has its own settings
        names: dict[str, Path] = {}
        for database in found.values():
            if database.name in names:
                raise _name_taken(database, names[database.name])
            names[database.name] = database.path
            if not self._one_of_many and not is_awaited(database):
                check_there(database)
            if isinstance(database.archive, str):
                parse_url(database.archive)
        for member in self.settings.members:
            if not self._one_of_many and not is_awaited(member.database):
                check_member(member)
            if isinstance(member.database.archive, str):
                parse_url(member.database.archive)
        if len(found) > self._most:
            raise ConfigError(f"{len(found)} databases: one primary serves {self._most} at most here")
        return list(found.values())

    def _http(self, stack: AsyncExitStack) -> None:
        if self.settings.http is None:
            return
        from walcast_node.http.routes import routes
        from walcast_node.http.server import HttpServer

        loop = asyncio.get_running_loop()

        async def collect(sees: Sees) -> dict[str, Any] | None:
            shown = visible(self.status(), sees)
            return primary_facts(shown) if shown is not None else None

        async def status(sees: Sees) -> dict[str, Any] | None:  # called in the HTTP server's event loop
            collecting = asyncio.run_coroutine_threadsafe(collect(sees), loop)
            return await asyncio.wait_for(asyncio.wrap_future(collecting), STATUS_S)

        def metrics() -> bytes:
            from walcast_node.process.metrics import exposition  # loaded by the first who asks

            return exposition(self.credentials)

        http = HttpServer(
            self.settings.http,
            routes(self.failures, status, metrics),
            self._admits,
            connections=limits.http_connections(),
            credentials=self.credentials,
            names=self.settings.http_hosts,
        )
        self.http_listening = http.listening
        stack.push_async_callback(asyncio.to_thread, http.close)

    def _admits(self, request: Request) -> Sees | None:
        """Of which databases who makes this HTTP request may see the status; None: of none. Called in the HTTP server's
        thread."""
        local = wire.Address(request.local, request.local_port)
        identity = self._access.identify_http(request.peer, request.peer_port, local, request.authorization or "")
        sees = self._access.sees(identity)
        if sees("") or any(map(sees, self._all_names())):
            return sees
        if request.path in GUARDED_PATHS:
            peer = f"{request.peer}:{request.peer_port}"
            audit.record_denied(str(identity), peer, request.path, "", str(Role.STATUS))
        return None

    def _all_names(self) -> list[str]:
        """Of the databases that the status has. For any thread."""
        failed = [name for watching in self._watching for name in watching.failed_names()]
        return [*list(self._serving), *(member.name for member in self.members), *list(self._awaited), *failed]

    # Databases come and go

    async def add(self, settings: DatabaseSettings, on_failure: Callable[[WalcastError], object]) -> Serving:
        """Serve one more, inside `gate`; `on_failure` is called when its capture ended by itself.

        ConfigError when it cannot be served, or its name or its file is served already; Unavailable when it may be
        served later.
        """
        name = settings.name
        if name in self._closing:
            raise Unavailable(f"{settings.path}: still being let go")
        if name in self._serving or name in self._opening:
            raise _name_taken(settings, self._serving[name].settings.path if name in self._serving else None)
        if not self.room:
            raise ConfigError(f"{settings.path}: one primary serves {self._most} databases at most here")
        self._opening.add(name)
        try:
            serving = await Serving.open(
                settings,
                self.inodes,
                log_bytes=self.settings.log_bytes,
                log_age_s=self.settings.log_age_s,
                on_failure=on_failure,
                scrub_bytes_per_s=self.settings.scrub_bytes_per_s,
            )
        finally:
            self._opening.discard(name)
        self._serving[name] = serving
        limits.warn_of_polling(len(self._serving))
        self._served[name] = serving.served
        self._served.away.pop(name, None)
        await self._healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        return serving

    # Databases that change their role

    async def put_on_air(self, serving: Serving) -> None:
        """What a member serves as the primary from now on."""
        name = serving.settings.name
        self._serving[name], self._served[name] = serving, serving.served
        self._served.away.pop(name, None)
        await self._healthy.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def set_fenced(self, name: str) -> None:
        """To those who ask for the health of a member: it cannot be written to; until it is on the air again."""
        await self._healthy.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    def forget(self, name: str) -> None:
        """A member lets go of it itself."""
        self._serving.pop(name, None)
        self._served.pop(name, None)

    def find(self, name: str) -> Served:
        """What is on the air under this name; Refused, as whoever asks over the network is."""
        served = self._served.get(name)
        if served is None:
            raise self._served.away.get(name) or not_served(name, "its role is not known yet")
        return served

    def refuse(self, name: str, refused: Refused) -> None:
        """What to say to those who ask for a member that is not on the air."""
        self._served.away[name] = refused

    async def take_off_air(self, name: str, refused: Refused) -> None:
        """A member is not the primary, or not now: who asks for it is told so."""
        self._serving.pop(name, None)
        self._served.pop(name, None)
        self.refuse(name, refused)
        await self._healthy.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def _add_all(self, databases: Sequence[DatabaseSettings]) -> None:
        errors: list[Exception] = []

        async def add(settings: DatabaseSettings) -> None:
            async with self.gate:
                if not errors and not self.stopping:
                    try:
                        if is_awaited(settings):
                            self._awaited[settings.name] = settings
                            return
                        await self.add(settings, self._static_failed)
                    except Exception as error:  # noqa: BLE001 - raised when the others are done
                        errors.append(error)

        await asyncio.gather(*map(add, databases))
        if errors:
            raise errors[0]

    async def _serve_awaited(self, settings: DatabaseSettings) -> None:
        """Once it is restored, or the app has made it."""

        def say(why: str | None) -> None:
            self._awaits[settings.name] = why

        try:
            there = await restore_when_reachable(settings, lambda: self.stopping, say)
            if not there and not self.stopping:
                say(APP_MAKES_IT)
            if there or await wait_for_database(settings, lambda: self.stopping):
                async with self.gate:
                    await opened_when_free(lambda: self.add(settings, self._static_failed), lambda: self.stopping)
        except Exception as error:  # noqa: BLE001 - as that of one that was there at the start
            known = error if isinstance(error, WalcastError) else Unavailable(f"{type(error).__name__}: {error}")
            self._static_failed(known)
        finally:
            self._awaited.pop(settings.name, None)

    def _awaited_kind(self, name: str) -> FailureKind:
        return FailureKind.NOT_MADE if self._awaits.get(name) == APP_MAKES_IT else FailureKind.NOT_SERVED

    def _why_awaited(self, settings: DatabaseSettings) -> str:
        why = self._awaits.get(settings.name)
        return f"{settings.path}: {why or 'not restored yet'}" if why in (None, APP_MAKES_IT) else why

    async def remove(self, serving: Serving, reason: WalcastError, *, away: bool) -> None:
        """Let go of it; its followers are told `reason`. `away`: it may come back. Returns before all is closed."""
        name = serving.settings.name
        if self._serving.get(name) is not serving:
            return
        del self._serving[name], self._served[name]
        if away:
            self._served.away[name] = not_served(name, str(reason))
        self._closing[name] = asyncio.create_task(self._close_one(serving, reason))
        await self._set_away(name, str(reason) if away else None)

    async def _close_one(self, serving: Serving, reason: WalcastError) -> None:
        try:
            await serving.close(self.inodes, reason)
        except Exception:
            log.exception("could not be let go", extra={"database": serving.settings.name})
        else:
            log.info("let go", extra={"database": serving.settings.name, "reason": str(reason)})
        finally:
            del self._closing[serving.settings.name]
            for watching in self._watching:
                watching.look_again()  # what has the same name or is the same file can be served now

    async def set_away(self, name: str, why: str | None) -> None:
        """A database that is not served is to be refused for now, because of `why`; None: it is unknown."""
        if name in self._serving:
            return
        await self._set_away(name, why)

    async def _set_away(self, name: str, why: str | None) -> None:
        if why is None:
            self._served.away.pop(name, None)
            await self._healthy.set(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        else:
            self._served.away[name] = not_served(name, why)
            await self._healthy.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    def _static_failed(self, failure: WalcastError) -> None:
        self._failure = self._failure or failure
        self._failed.set()

    async def _close(self) -> None:
        """Let go of all, when the server is gone."""

        async def close(serving: Serving) -> None:
            async with self.gate:
                try:
                    await serving.close(self.inodes, patience_s=GRACE_S)
                except Exception:
                    log.exception("could not be let go", extra={"database": serving.settings.name})

        await asyncio.gather(*map(close, self._serving.values()))
        if self._closing:
            await asyncio.wait(list(self._closing.values()), timeout=GRACE_S)

    # What others ask

    def failures(self) -> list[Failure]:
        """Why not every commit of every database is captured now. For any thread."""
        found = [member_failure(member) for member in self.members]
        found += [serving_failure(serving) for serving in list(self._serving.values())]
        found += [
            Failure(self._awaited_kind(name), self._why_awaited(awaited), name)
            for name, awaited in list(self._awaited.items())
        ]
        for watching in self._watching:
            found += [
                Failure(watching.kind_of(where), text, watching.name_of(where))
                for where, text in list(watching.trouble.items())
            ]
        return [failure for failure in found if failure is not None]

    def heartbeat_trouble(self) -> str | None:
        """Why not every database is captured, and archived in time. For any thread."""
        archives = (serving.archive_trouble(ARCHIVED_WITHIN_S) for serving in list(self._serving.values()))
        failures = self.failures()
        return failures[0].text if failures else next((trouble for trouble in archives if trouble), None)

    def status(self) -> pb.StatusReply:
        """For the Status call. What a watched folder has and cannot be served is there with why, as of its archive."""
        tls = self.credentials.tls_status()
        reply = pb.StatusReply(role="primary", term=1, protocol=wire.PROTOCOL_VERSION, tls=tls)
        reply.credentials_error = self.credentials.trouble or ""
        members = {member.name: member for member in self.members}
        reply.databases.extend(member.status() for member in self.members)
        reply.databases.extend(serving.status() for name, serving in self._serving.items() if name not in members)
        for name, awaited in list(self._awaited.items()):
            if name not in self._serving:
                reply.databases.append(
                    pb.DatabaseStatus(
                        name=name,
                        path=str(awaited.path.absolute()),
                        position=pb.Position(),
                        state_since_ms=self._began_ms,
                        trouble=self._why_awaited(awaited),
                        trouble_kind=self._awaited_kind(name),
                    )
                )
        if self.members and not self.settings.databases and not self.settings.folders:
            reply.role = reply.databases[0].role
        reply.term = max([1, *(database.term for database in reply.databases)])
        for watching in self._watching:
            reply.databases.extend(watching.status())
        return reply


def _name_taken(settings: DatabaseSettings, path: Path | None) -> ConfigError:
    holder = path or "a database that is being opened"
    what = f"the name {settings.name} is already that of {holder}"
    return ConfigError(f"{settings.path}: {what}; give them different ones with 'name'")


async def _first(*events: asyncio.Event) -> None:
    """Until one of the events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
