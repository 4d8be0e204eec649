"""The certificate of the HTTP server, and whether it may do without one. It is the node's: `Credentials` reads it, and
reads it again."""

from __future__ import annotations

import logging
import os
import ssl

from walcast.access.credentials import Credentials, Loaded
from walcast.errors import ConfigError
from walcast.rarely import Rarely
from walcast.shortage import reason
from walcast.wire import Address

log = logging.getLogger("walcast.http")


def certificate_for(credentials: Credentials, address: Address, *, loopback: bool) -> Certificate | None:
    """None: plain HTTP, which beyond loopback must be asked for. On loopback HTTP is always plain."""
    tls = credentials.tls
    if loopback:
        return None
    if tls.cert is None and tls.key is None:
        if not tls.insecure:
            raise ConfigError(
                f"HTTP on {address} is reached from other machines: give --tls DIR (walcast certs), or --insecure"
            )
        return None
    return Certificate(credentials)


class Certificate:
    """The certificate that was read last, for new connections. ConfigError for one that cannot be used."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._rarely = Rarely(log)
        self._loaded = credentials.loaded
        try:
            self._context = _context(self._loaded)
        except (OSError, ssl.SSLError) as error:
            what = f"cannot serve HTTPS with the certificate {credentials.tls.cert}: {reason(error)}"
            raise ConfigError(what) from error

    def context(self) -> ssl.SSLContext:
        """For one more connection."""
        loaded = self._credentials.loaded
        if loaded is not self._loaded:
            self._loaded = loaded
            try:
                self._context = _context(loaded)
            except (OSError, ssl.SSLError) as error:  # right for gRPC's TLS library, and not for this one
                facts = {"cert": str(self._credentials.tls.cert), "error": reason(error)}
                self._rarely.log(logging.ERROR, "cannot serve HTTPS with the new certificate", "", facts)
        return self._context


def _context(loaded: Loaded) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The bytes that were checked, not the files, which may be others by now; OpenSSL takes them from a file alone.
    descriptor = os.memfd_create("walcast-tls", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write((loaded.cert or b"") + b"\n" + (loaded.key or b""))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and wait."""
    return ""
