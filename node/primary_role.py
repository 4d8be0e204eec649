"""The primary as a process: databases, the gRPC server in front of them, archivers behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from node.http import Facts, HttpServer
from primary.archiver import Archiver
from primary.database import Database
from primary.local_service import LocalService
from primary.publisher import Publisher, Served
from walcast import wire
from walcast.errors import ConfigError
from walcast.facts import primary_facts
from walcast.filesystem import check_database_file
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.store import Store, StoreSpec, open_store

log = logging.getLogger("walcast.primary")

SERVICE = pb.DESCRIPTOR.services_by_name["Replication"].full_name
GRACE_S = 1.0
STATUS_S = 5.0


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """One database to serve."""

    path: Path
    name: str
    archive: str | StoreSpec | None = None


@dataclass(frozen=True, slots=True)
class PrimarySettings:
    """What a primary is told."""

    databases: list[DatabaseSettings]
    listen: wire.Address
    tls: wire.Tls = field(default_factory=wire.Tls)
    http: wire.Address | None = None
    log_bytes: int = 256 << 20
    log_age_s: float = 3600.0


class Primary:
    """All that one primary process serves."""

    def __init__(self, settings: PrimarySettings) -> None:
        self.settings = settings
        self.listening: wire.Address = settings.listen
        self.http_listening: wire.Address | None = None
        self._stores: dict[str, Store] = {}
        self._archivers: dict[str, Archiver] = {}
        self._served: dict[str, Served] = {}
        self._local: dict[str, LocalService] = {}
        self._failed = asyncio.Event()

    async def run(self, stop: asyncio.Event, ready: Callable[[Primary], None]) -> None:
        """Serve until `stop` is set; raises why when a database cannot be served any longer.

        Everything that can be wrong with the settings is found out before anything is changed on disk.
        """
        for database in self.settings.databases:
            check_database_file(database.path)
            if database.archive:
                self._stores[database.name] = open_store(database.archive)
        publisher = Publisher(self._served, self.status)
        server = self._server(publisher)
        http = self._http()
        try:
            for settings in self.settings.databases:
                await self._open(settings)
            await server.start()
            log.info("listening", extra={"address": str(self.listening)})
            ready(self)
            await _first(stop, self._failed)
        finally:
            if http is not None:
                await asyncio.to_thread(http.close)
            publisher.stop()
            await server.stop(GRACE_S)
            for local in self._local.values():
                await local.stop()
            for archiver in self._archivers.values():
                await asyncio.to_thread(archiver.stop)
            for served in self._served.values():
                await asyncio.to_thread(served.database.stop)
            for store in self._stores.values():
                store.close()
        for served in self._served.values():
            if served.database.loop.failure:
                raise served.database.loop.failure

    def _server(self, publisher: Publisher) -> grpc.aio.Server:
        server = grpc.aio.server(options=wire.OPTIONS)
        rpc.add_ReplicationServicer_to_server(publisher, server)
        healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        self._healthy = healthy
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = self.settings.listen
        credentials = self.settings.tls.server(address)
        try:
            port = (
                server.add_secure_port(str(address), credentials)
                if credentials
                else server.add_insecure_port(str(address))
            )
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(f"cannot listen on {address}: the port is taken, or the address is not this machine's")
        self.listening = wire.Address(address.host, port)
        return server

    def _http(self) -> HttpServer | None:
        if self.settings.http is None:
            return None
        loop = asyncio.get_running_loop()

        async def facts() -> Facts:
            return primary_facts(self.status())

        def failure() -> str | None:
            loops = [served.database.loop for served in self._served.values()]
            return next((str(one.failure or one.trouble) for one in loops if one.failure or one.trouble), None)

        http = HttpServer(
            self.settings.http, lambda: asyncio.run_coroutine_threadsafe(facts(), loop).result(STATUS_S), failure
        )
        self.http_listening = http.listening
        return http

    async def _open(self, settings: DatabaseSettings) -> None:
        database = await asyncio.to_thread(
            Database, settings.path, settings.name, log_bytes=self.settings.log_bytes, log_age_s=self.settings.log_age_s
        )
        loop = asyncio.get_running_loop()
        database.loop.on_failure = lambda: loop.call_soon_threadsafe(self._failed.set)
        served = Served(database)
        self._served[settings.name] = served
        await asyncio.to_thread(database.start)
        facts = {"database": settings.name, "path": str(settings.path), "position": str(database.log.position)}
        log.info("serving", extra=facts)
        await self._healthy.set(settings.name, health_pb2.HealthCheckResponse.SERVING)
        archiver = None
        if settings.name in self._stores:
            archiver = Archiver(database, self._stores[settings.name])
            self._archivers[settings.name] = archiver
            archiver.start()
        self._local[settings.name] = LocalService(
            database,
            lambda: primary_facts(self.status()),
            archiver.look_again if archiver else lambda: None,
        )
        await self._local[settings.name].start()

    def status(self) -> pb.StatusReply:
        """For the Status call."""
        reply = pb.StatusReply(role="primary", term=1, protocol=wire.PROTOCOL_VERSION)
        for name, served in self._served.items():
            reply.databases.append(self._database_status(name, served))
            reply.term = max(reply.term, served.log.term)
        return reply

    def _database_status(self, name: str, served: Served) -> pb.DatabaseStatus:
        database, position = served.database, served.log.position
        checksums = served.log.checksums
        message = pb.DatabaseStatus(
            name=name,
            path=str(database.path),
            position=wire.position_message(position, served.log.term),
            page_size=database.page_size,
            pages=checksums.commit_pages if checksums else 0,
            wal_bytes=database.wal_bytes,
            log_bytes=served.log.size_bytes,
            log_first_txid=served.log.first.txid,
        )
        archiver = self._archivers.get(name)
        if archiver is not None:
            message.archive.CopyFrom(
                pb.ArchiveStatus(
                    url=archiver.store.url, txid=archiver.txid, error=archiver.error or archiver.upkeep_error or ""
                )
            )
        for follower in served.followers.connected:
            message.followers.append(
                pb.FollowerStatus(
                    id=follower.id,
                    received_txid=follower.received_txid,
                    applied_txid=follower.applied_txid,
                    lag_txids=max(0, position.txid - follower.applied_txid),
                    lag_ms=follower.lag_ms(),
                    state=follower.state,
                    peer=follower.peer,
                )
            )
        return message


async def _first(*events: asyncio.Event) -> None:
    """Until one of the events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
