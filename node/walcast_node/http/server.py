"""The connections of the HTTP server: how many, for how long, and which one goes when there are too many.

One thread with an event loop of its own serves them all, so that no number of clients takes threads, and none of them
holds up capture or replication. A connection is for one request and has one deadline from accept to close, which TLS
handshake, request and answer share: what a client sends meanwhile does not extend it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from uvicorn.server import ServerState

from walcast.access.credentials import Credentials
from walcast.errors import ConfigError, Unavailable
from walcast.lasting import outlast
from walcast.rarely import Rarely
from walcast.shortage import EXHAUSTED, reason
from walcast.wire import Address, Tls
from walcast_node.http.app import Admits, App, Hosts, Route
from walcast_node.http.near import ip_of, is_loopback
from walcast_node.http.protocol import OneRequest, config_for
from walcast_node.http.routes import near
from walcast_node.http.tls import certificate_for
from walcast_node.process import listen_errors

TOTAL_S = 10.0
BYE_S = 1.0  # for a client to say that it has read the end of a TLS connection
BACKLOG = 256  # connections that the kernel keeps until they are accepted
CROWDED_S = 0.01  # a rest after each CROWDED_MOST connections that had to make room: some 1400 of them a second
CROWDED_MOST = 20
ACCEPT_AGAIN_S = 0.5

log = logging.getLogger("walcast.http")


@dataclass(eq=False, slots=True)
class Connection:
    """One that was accepted. `protocol` is None until its task has begun."""

    socket: socket.socket
    peer: str
    protocol: OneRequest | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def busy(self) -> bool:
        """Is its request being answered now?"""
        return self.protocol is not None and self.protocol.busy


def whom_to_drop(connections: Collection[Connection]) -> Connection | None:
    """Of connections in the order of their age, the one that makes room for a new one; None when all are busy.

    It is the oldest of the peer that has the most: an honest client asks at once and is answered within milliseconds,
    and who floods from one address drops his own.
    """
    idle = [one for one in connections if not one.busy]
    if not idle:
        return None
    (peer, _), *_ = Counter(one.peer for one in idle).most_common(1)
    return next(one for one in idle if one.peer == peer)


class HttpServer:
    """Answers `routes`, each to those whom `admits` says; from construction to `close`."""

    def __init__(
        self,
        address: Address,
        routes: Mapping[str, Route],
        admits: Admits = near,
        *,
        connections: int,
        credentials: Credentials | None = None,
        names: Collection[str] = (),
    ) -> None:
        self._most = connections
        self._connections: dict[Connection, None] = {}
        self._rarely = Rarely(log)
        self._state = ServerState()
        self._stop = asyncio.Event()
        self._config = config_for(App(routes, admits, Hosts(address.host.strip("[]"), frozenset(names))))
        self._socket = bind(address)
        try:
            own, port = self._socket.getsockname()[:2]
            self._certificate = certificate_for(credentials or Credentials(Tls()), address, loopback=is_loopback(own))
            self._socket.listen(BACKLOG)
            self._loop = asyncio.SelectorEventLoop()
        except OSError as error:
            self._socket.close()
            raise _cannot(address, error) from error
        except ConfigError:
            self._socket.close()
            raise
        self.listening = Address(address.host, port)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread is left
            self._loop.close()
            self._socket.close()
            raise Unavailable(f"cannot serve HTTP on {address}: {reason(error)}") from error

    def close(self) -> None:
        """Hang up on everybody and stop."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop.set_exception_handler(self._unexpected)
        accepting = asyncio.create_task(outlast(self._accept, "HTTP", "accept"))
        await self._stop.wait()
        tasks = [accepting, *(one.task for one in self._connections if one.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the loop's next turn

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):  # a client that hung up
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        facts = {"error": reason(error)}
        self._rarely.log(logging.WARNING, "cannot answer over HTTP", type(error).__name__, facts)

    # Connections

    async def _accept(self) -> None:
        crowded = 0
        while True:
            try:
                accepted, peer = await self._loop.sock_accept(self._socket)
            except OSError as error:
                exhausted = error.errno in EXHAUSTED  # the connection stays in the backlog
                if exhausted:
                    self._failed(error)
                    self._make_room()
                await asyncio.sleep(ACCEPT_AGAIN_S if exhausted else CROWDED_S)
                continue
            full = len(self._connections) >= self._most
            if full and not self._make_room():
                accepted.close()
            else:
                self._take(Connection(accepted, str(ip_of(peer[0]) or peer[0])))
            crowded = crowded + 1 if full else 0
            rests = full and crowded % CROWDED_MOST == 0
            await asyncio.sleep(CROWDED_S if rests else 0)  # at least a turn of the loop for those that were accepted

    def _make_room(self) -> bool:
        """Drop a connection, if there is one that may be dropped."""
        dropped = whom_to_drop(self._connections)
        if dropped is None or dropped.task is None:
            return False
        self._connections.pop(dropped, None)
        dropped.task.cancel()
        return True

    def _take(self, connection: Connection) -> None:
        self._connections[connection] = None
        connection.task = asyncio.create_task(self._attend(connection))
        connection.task.add_done_callback(lambda _: self._ended(connection))

    def _ended(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if connection.protocol is None:  # cancelled before it began: no transport owns the socket
            connection.socket.close()

    async def _attend(self, connection: Connection) -> None:
        """One connection, from the TLS handshake to the end."""
        protocol = connection.protocol = OneRequest(self._config, self._state)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(TOTAL_S):
                if self._certificate is None:
                    transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection.socket)
                else:
                    transport, _ = await self._loop.connect_accepted_socket(
                        lambda: protocol,
                        connection.socket,
                        ssl=self._certificate.context(),
                        ssl_handshake_timeout=TOTAL_S,
                        ssl_shutdown_timeout=BYE_S,
                    )
                await protocol.closed.wait()
        except (OSError, TimeoutError):  # among them what is wrong with a handshake
            pass
        except Exception as error:  # noqa: BLE001 - logged; the others are served on
            self._failed(error)
        finally:
            if transport is not None:
                transport.abort()


def bind(address: Address) -> socket.socket:
    """A socket for it, that does not listen yet; ConfigError."""
    try:
        return listen_errors.bound(address)
    except OSError as error:
        raise _cannot(address, error) from error


def _cannot(address: Address, error: OSError) -> ConfigError:
    return ConfigError(f"cannot serve HTTP on {address}: {listen_errors.explained(error)}")
