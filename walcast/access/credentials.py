"""What a process shows to others and whom it believes, read from files, and read again when those change.

    wire.Tls        which files
    Credentials     what is in them: as long as a file is wrong, what was read before stays

A server gives each new connection the certificate and authorities that were read last. A client's channel keeps what
it was opened with; who keeps channels for long opens a new one when `version` has moved. Calls show the token that was
read last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from walcast.access.neighbours import check_connected, check_neighbour
from walcast.access.roles import Kind
from walcast.access.secretfile import read_file
from walcast.access.tokens import Tokens, bearer, is_token, read_tokens, token_in
from walcast.errors import ConfigError
from walcast.rpc import replication_pb2 as pb
from walcast.unreachable import Spoken, failure_words
from walcast.wire import Address, Tls

if TYPE_CHECKING:
    import grpc

    from walcast.access.certificates import CertificateIdentity, Trust

log = logging.getLogger("walcast.credentials")

PEM_BYTES = 4 << 20  # a system's bundle of authorities has 250 kB
LOOK_S = 1.0
AUTHORIZATION = "authorization"

Metadata = tuple[tuple[str, str], ...]
Signature = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The files' contents, which fit together. `servers_ca`: whom to believe where this process connects to;
    `callers_ca`: whose certificates those who connect may show; `own`: what the certificate to show says; `expiring`:
    of each certificate the file, the fingerprint and the end."""

    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    servers_ca: bytes | None = None
    callers_ca: bytes | None = None
    trust: Trust | None = None
    own: CertificateIdentity | None = None
    expiring: tuple[tuple[Path, str, datetime], ...] = ()
    tokens: Tokens = Tokens()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of looking at the files again: which were changed, or why what was read before stays. `mended`: files
    that were refused before are right again. `waits`: they change just now, and are to be looked at again soon."""

    changed: tuple[Path, ...] = ()
    error: ConfigError | None = None
    mended: bool = False
    waits: bool = False


class Credentials:
    """Of one process. Any thread may use it. Files are read when something is asked for the first time: ConfigError
    when they are wrong then. `token` is shown where `tls` has no token file."""

    def __init__(self, tls: Tls, token: str = "") -> None:
        if token and not is_token(token):
            raise ConfigError("the token is none that `walcast certs token` made: it begins with wct_")
        if token and tls.token_file:
            raise ConfigError(f"a token and a token file, {tls.token_file}: give one of them")
        self.tls = tls
        self.version = 0
        self.is_watched = False  # somebody calls `refresh` every few seconds, so that nobody else need look
        self.trouble: str | None = None  # why changed files are not in force; None: they are
        self._given = Tokens(own=token)
        self._paths = tuple(
            path for path in (tls.cert, tls.key, tls.ca, tls.peer_ca, tls.client_ca, tls.token_file) if path is not None
        )
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._seen: Signature = ()  # at the last look
        self._good: Signature = ()  # of what was read last, and was right
        self._unsettled: Signature = ()  # at the last look but one of `refresh`
        self._looked_s = -LOOK_S

    @classmethod
    def of(cls, tls: Tls | Credentials) -> Credentials:
        """Of the files that are given, or these."""
        return tls if isinstance(tls, Credentials) else cls(tls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tls!r})"

    @property
    def loaded(self) -> Loaded:
        """What was read last, and was right."""
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._seen = self._good = self._look()
                    self._loaded = self._read()
                    self._looked_s = time.monotonic()
        return self._loaded

    # What others are shown

    def present(self, to: Address) -> Metadata:
        """For a call to the node at `to`: `authorization`, where there is a token. ConfigError where it would go in
        plain text beyond loopback, and nobody asked for that."""
        self.look_again()
        own = self.loaded.tokens.own
        if not own:
            return ()
        self.tls.is_encrypted_to(to)
        self.check_neighbour(to)  # before it is given away
        return ((AUTHORIZATION, bearer(own)),)

    def channel(self, address: Address) -> grpc.ChannelCredentials | None:
        """To connect to `address`. None: plain text, which beyond loopback must be asked for."""
        self.look_again()
        loaded = self.loaded
        if not self.tls.is_encrypted_to(address):
            return None
        import grpc

        return grpc.ssl_channel_credentials(loaded.servers_ca, loaded.key, loaded.cert)

    def check_neighbour(self, address: Address) -> None:
        """Unavailable when nothing but the address says who answers there, and it is another user of this machine. With
        TLS the certificate says it, and with --insecure whoever gave that has decided to trust the address."""
        if not self.tls.is_encrypted_to(address) and not self.tls.insecure:
            check_neighbour(address)

    def check_answered(self, address: Address) -> None:
        """As `check_neighbour`, of a connection of this process over which something has come, before that is believed:
        it tells who is at the other end, whoever listens by now."""
        if not self.tls.is_encrypted_to(address) and not self.tls.insecure:
            check_connected(address)

    def server(self, address: Address) -> grpc.ServerCredentials | None:
        """To listen on `address`. None: plain text, which beyond loopback must be asked for."""
        if not self.tls.is_encrypted_server(address):
            self.loaded  # noqa: B018 - a token file that cannot be used is found out now
            return None
        import grpc

        given = self.loaded

        def configuration(loaded: Loaded) -> Any:
            assert loaded.key is not None
            assert loaded.cert is not None
            pair = (loaded.key, loaded.cert)
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=loaded.callers_ca)

        def changed() -> Any:  # gRPC asks before each handshake
            nonlocal given
            newest = self.loaded
            if newest is given:
                return None
            given = newest
            return configuration(newest)

        return grpc.dynamic_ssl_server_credentials(configuration(given), changed, self.tls.asks_certificates)

    # Who others are

    def certificate_identity(self, auth_context: Any) -> CertificateIdentity | None:
        """Of a gRPC peer; None when it has shown no certificate. CertificateRefused when it has, and it is nobody's."""
        trust = self.loaded.trust
        return trust.identity_of(auth_context) if trust is not None else None

    def token_identity(self, authorization: str | bytes | None) -> str | None:
        """Whose token the value of `authorization` has; None when it has none that is accepted here."""
        text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
        return self.loaded.tokens.identity(token_in(text))

    @property
    def not_after(self) -> datetime | None:
        """When the certificate to show ends; None when there is none."""
        return next((end for path, _, end in self.loaded.expiring if path == self.tls.cert), None)

    def tls_status(self) -> pb.TlsStatus | None:
        """For the Status call: the certificate to show; None when there is none."""
        end = self.not_after
        if end is None:
            return None
        own = self.loaded.own
        return pb.TlsStatus(identity=str(own) if own else "", not_after_s=int(end.timestamp()))

    def failure(self, to: Address, code: str, details: str | None, timeout_s: float | None = None) -> str:
        """Why a call to the node at `to` failed that ended with this gRPC status, and what to do about it."""
        encrypted = self.tls.servers_ca is not None or self.tls.cert is not None
        words = failure_words(code, details, Spoken(encrypted, self.tls.cert is not None), timeout_s)
        return f"{to}: {words}{self.hint()}"

    def hint(self) -> str:
        """For the message of a call that failed: what is wrong on this side; "" when nothing is. The other side only
        hangs up on a certificate that has expired."""
        end = self.not_after
        if end is None or end > datetime.now(UTC):
            return ""
        return f"; the certificate in {self.tls.cert} has expired on {end:%Y-%m-%d}: show another one"

    @property
    def node_id(self) -> str | None:
        """The id of the node that the certificate was made for."""
        own = self.loaded.own
        return own.name if own is not None and own.kind is Kind.NODE else None

    # Files that change

    def refresh(self, *, force: bool = False, settled: bool = False) -> Reload:
        """Look at the files, and read them where they have changed; with `force` in any case; if they are to be
        `settled`, once they were the same at two looks: a file that is being written may look whole, with fewer tokens
        and authorities than it is to have."""
        with self._lock:
            if settled and self._loaded is not None and (found := self._look()) not in (self._seen, self._unsettled):
                self._unsettled = found
                return Reload(waits=True)
            return self._refresh(force=force)

    def look_again(self) -> None:
        """As `refresh`, now and then: for processes in which nobody else does. Does not wait for another thread."""
        if self.is_watched or self._loaded is None or time.monotonic() - self._looked_s < LOOK_S:
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            say(self._refresh())
        finally:
            self._lock.release()

    def _refresh(self, *, force: bool = False) -> Reload:
        self._looked_s = time.monotonic()
        signature = self._look()
        if signature == self._seen and not force:
            return Reload()
        self._seen = signature  # what is wrong is not read again until it changes
        pairs = zip(self._paths, signature, self._good or (None,) * len(signature), strict=True)
        changed = tuple(path for path, now, then in pairs if now != then)
        try:
            loaded = self._read()
        except ConfigError as error:
            self.trouble = str(error)
            return Reload(changed, error)
        mended, self.trouble = self.trouble is not None, None
        self._good = signature
        if loaded == self._loaded:
            return Reload(mended=mended)
        self._loaded = loaded
        self.version += 1
        return Reload(changed, mended=mended)

    def _look(self) -> Signature:
        return tuple(map(_signature, self._paths))

    def _read(self) -> Loaded:
        tokens = read_tokens(self.tls.token_file) if self.tls.token_file else self._given
        if not any((self.tls.cert, self.tls.key, self.tls.ca, self.tls.peer_ca, self.tls.client_ca)):
            return Loaded(tokens=tokens)
        from walcast.access.pemfiles import load

        before = self._loaded.trust if self._loaded else None
        return replace(load(self.tls, before), tokens=tokens)


def say(reload: Reload) -> None:
    """Log what a look at the files came to, if it came to anything."""
    if reload.error is not None:
        facts = {"error": str(reload.error)}
        log.error("credentials cannot be read again; what was read before stays", extra=facts)
    elif reload.changed:
        log.info("credentials reloaded", extra={"files": ", ".join(map(str, reload.changed))})
    elif reload.mended:
        log.info("the files of the credentials are again as they were read")


def shown_in_calls(channel: grpc.Channel, credentials: Credentials, to: Address) -> grpc.Channel:
    """The channel to `to`, with the token in the metadata of each call, and each answer from whom it should be."""
    import grpc

    from walcast.access.interceptor import Checked

    return grpc.intercept_channel(channel, Checked(credentials, to))


def read_pem(path: Path) -> bytes:
    """A PEM file, of whatever."""
    data = read_file(path, PEM_BYTES)
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{path}: not a PEM file")
    return data


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        facts = os.stat(path)  # noqa: PTH116 - of what a link leads to, too
    except OSError:
        return None
    return (
        facts.st_dev,
        facts.st_ino,
        facts.st_mtime_ns,
        facts.st_ctime_ns,
        facts.st_size,
        facts.st_mode,
        facts.st_uid,
    )


def joined(parts: Sequence[bytes]) -> bytes | None:
    """PEM files as one."""
    return b"\n".join(parts) if parts else None
