"""The certificate of the HTTP server, and whether it may do without one."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from walcast.errors import ConfigError
from walcast.rarely import Rarely
from walcast.shortage import reason
from walcast.wire import Address, Tls

log = logging.getLogger("walcast.http")


def certificate_for(tls: Tls, address: Address, *, loopback: bool) -> Certificate | None:
    """None: plain HTTP, which beyond loopback must be asked for. On loopback HTTP is always plain."""
    if loopback:
        return None
    if tls.cert is None and tls.key is None:
        if not tls.insecure:
            raise ConfigError(
                f"HTTP on {address} is reached from other machines: give --tls DIR (walcast certs), or --insecure"
            )
        return None
    if tls.cert is None or tls.key is None:
        raise ConfigError("--tls-cert and --tls-key go together")
    return Certificate(tls.cert, tls.key)


class Certificate:
    """A certificate and its key. New files are used for new connections, once they belong together."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._rarely = Rarely(log)
        try:
            self._seen = self._signature()
            self._context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use the certificate {cert} with the key {key}: {reason(error)}") from error

    def context(self) -> ssl.SSLContext:
        """For one more connection. Files that cannot be used leave the last ones in force."""
        try:
            seen = self._signature()
            if seen != self._seen:
                self._context, self._seen = self._load(), seen
                log.info("certificate of the HTTP server read again", extra={"cert": str(self._cert)})
        except (OSError, ssl.SSLError) as error:
            facts = {"cert": str(self._cert), "error": reason(error)}
            self._rarely.log(logging.WARNING, "cannot read the certificate again, using the last one", "tls", facts)
        return self._context

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        facts = (path.stat() for path in (self._cert, self._key))
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in facts)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key, password=_no_password)
        return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and wait."""
    return ""
