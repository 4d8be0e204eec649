"""The PEM files of a process, read and checked together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from walcast.access.certificates import (
    UNREADABLE,
    CertificateIdentity,
    Trust,
    identity_of_certificate,
    issued_by,
    parse_certificates,
)
from walcast.access.credentials import Loaded, joined, read_pem
from walcast.errors import CertificateRefused, ConfigError
from walcast.wire import Tls


def load(tls: Tls, before: Trust | None = None) -> Loaded:
    """ConfigError when a file is not what it should be, or they do not fit together. Authorities that are in `before`
    and not here are retired."""
    authorities = {path: read_pem(path) for path in (tls.ca, tls.peer_ca, tls.client_ca) if path is not None}
    parsed = {path: parse_certificates(data, path) for path, data in authorities.items()}
    try:
        return _loaded(tls, authorities, parsed, before)
    except UNREADABLE as error:
        paths = ", ".join(str(path) for path in (tls.cert, tls.key, *parsed) if path is not None)
        raise ConfigError(f"{paths}: what is in them cannot be used: {error}") from error


def _loaded(
    tls: Tls,
    authorities: dict[Path, bytes],
    parsed: dict[Path, tuple[x509.Certificate, ...]],
    before: Trust | None,
) -> Loaded:
    cert, key, own, shown = _pair(tls)
    expiring = [(tls.cert, one) for one in shown[:1]] + [(path, one) for path in parsed for one in parsed[path]]
    return Loaded(
        cert=cert,
        key=key,
        servers_ca=authorities[tls.servers_ca] if tls.servers_ca else None,
        callers_ca=joined(list(authorities.values())),
        trust=_trust(tls, parsed, before),
        own=own,
        expiring=tuple(
            (path, one.fingerprint(hashes.SHA256()).hex(), one.not_valid_after_utc)
            for path, one in expiring
            if path is not None and (path == tls.cert or not shown or issued_by(shown[0], [one]))
        ),
    )


def _trust(tls: Tls, parsed: dict[Path, tuple[x509.Certificate, ...]], before: Trust | None) -> Trust:
    peers = parsed.get(tls.ca or tls.peer_ca or Path(), ())
    clients = parsed.get(tls.ca or tls.client_ca or Path(), ())
    known = {*peers, *clients}
    retired = () if before is None else (*before.peers, *before.clients, *before.retired)
    retired = tuple(dict.fromkeys(one for one in retired if one not in known))
    return Trust(peers, clients, separate=tls.ca is None, retired=retired)


def _pair(
    tls: Tls,
) -> tuple[bytes | None, bytes | None, CertificateIdentity | None, tuple[x509.Certificate, ...]]:
    """Certificate and key, and whose they are; None where there are none."""
    if tls.cert is None and tls.key is None:
        return None, None, None, ()
    if tls.cert is None or tls.key is None:
        raise ConfigError("--tls-cert and --tls-key go together")
    cert, key = read_pem(tls.cert), read_pem(tls.key)
    shown = parse_certificates(cert, tls.cert)
    if _public(_private_key(key, tls.key)) != _public(shown[0]):
        raise ConfigError(f"{tls.key}: not the key of the certificate in {tls.cert}")
    try:
        own = identity_of_certificate(shown[0])
    except CertificateRefused:
        own = None  # others may refuse it; as a server's it is as good as any
    return cert, key, own, shown


def _private_key(data: bytes, path: Path) -> Any:
    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(f"{path}: the key is encrypted; give one that is not, readable by its owner alone") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: not a PEM file with a private key") from error


def _public(holder: Any) -> bytes:
    data: bytes = holder.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data
