"""What a certificate says of who shows it, and whether this node believes that.

The identity stands in the subject alternative name as a URI, which `walcast certs` writes:

    walcast://node/ID            a node: it serves and follows
    walcast://client/NAME        an app or a person that reads
    walcast://operator/NAME      one that may also change roles

A certificate without such a URI, made by some other authority, is of the kind "other": its name is the subject's common
name, or its first DNS name. TLS has verified the chain by the time that anything here is asked; what it does not tell
is which authority vouched, so that is verified here wherever peers and clients are trusted separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from walcast.access.names import is_name
from walcast.access.roles import CLAIMED_IN_CERTIFICATES, Kind
from walcast.errors import CertificateRefused, ConfigError

SCHEME = "walcast"
PEM_BYTES = 1 << 16  # of one certificate that a peer shows
UNREADABLE = (  # what reading a certificate raises that is none; fields are parsed when they are asked for
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class CertificateIdentity:
    """Whose certificate it is. `by_peers` and `by_clients`: which of the two trusted sets of authorities vouched; both
    where they are one. Times are in UTC."""

    kind: Kind
    name: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    hosts: tuple[str, ...] = ()
    by_peers: bool = True
    by_clients: bool = True

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def identity_uri(kind: Kind, name: str) -> str:
    """As `walcast certs` writes it. ValueError for a kind that no certificate can claim."""
    if kind not in CLAIMED_IN_CERTIFICATES:
        raise ValueError(f"{kind!s} is not what a certificate can say of who shows it")
    return f"{SCHEME}://{kind}/{quote(name, safe='')}"


def parse_identity_uri(uri: str) -> tuple[Kind, str]:
    """ValueError for what `identity_uri` cannot have written."""
    if not (uri.isascii() and uri.isprintable()):  # which `urlsplit` would in part leave out
        raise ValueError(f"{uri[:300]!a} is no identity")
    parts = urlsplit(uri)
    encoded = parts.path.removeprefix("/")
    if "/" in encoded or parts.query or parts.fragment:
        raise ValueError(f"{uri[:300]!r} is no identity")
    name = unquote(encoded, errors="strict")
    kind = Kind(parts.netloc)
    if kind not in CLAIMED_IN_CERTIFICATES or not is_name(name):
        raise ValueError(f"{uri[:300]!r} is no identity")
    return kind, name


def identity_of_certificate(certificate: x509.Certificate) -> CertificateIdentity:
    """CertificateRefused when it names nobody, or more than one."""
    try:
        kind, name = _kind_and_name(certificate)
        return CertificateIdentity(
            kind,
            name,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.fingerprint(hashes.SHA256()).hex(),
            hosts_of(certificate),
        )
    except UNREADABLE as error:
        raise CertificateRefused(f"the certificate names nobody: {error}") from error


def _kind_and_name(certificate: x509.Certificate) -> tuple[Kind, str]:
    names = _alternative_names(certificate)
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if _is_ours(uri)] if names else []
    if len(uris) > 1:
        raise ValueError(f"it has {len(uris)} identities, and must have one")
    if uris:
        return parse_identity_uri(uris[0])
    common = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    found = common or (names.get_values_for_type(x509.DNSName) if names else [])
    if not found or not is_name(found[0]):
        raise ValueError("it has no identity, no common name and no DNS name that could be one")
    return Kind.OTHER, found[0]


def _is_ours(uri: str) -> bool:
    return uri.partition(":")[0].lower() == SCHEME


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names and addresses that a server may have with it."""
    names = _alternative_names(certificate)
    if names is None:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def parse_certificates(data: bytes, path: Path) -> tuple[x509.Certificate, ...]:
    """Of a PEM file; ConfigError when there is none in it."""
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not a PEM file with a certificate") from error


@dataclass(frozen=True, slots=True)
class Trust:
    """The authorities that vouch for those who connect. `separate`: those of peers vouch for nodes alone, those of
    clients for clients and operators alone. `retired`: authorities that were trusted by this process before."""

    peers: tuple[x509.Certificate, ...] = ()
    clients: tuple[x509.Certificate, ...] = ()
    separate: bool = False
    retired: tuple[x509.Certificate, ...] = ()

    def identity_of(
        self, auth_context: Mapping[str, Iterable[bytes]], now: datetime | None = None
    ) -> CertificateIdentity | None:
        """Of a gRPC peer; None when it has shown no certificate. CertificateRefused when it has, and it is nobody's.

        Asked at each call, since a connection may outlive its certificate, and the trust in who issued it.
        """
        shown = list(auth_context.get("x509_pem_cert", ()))
        if not shown:
            return None
        certificate, identity = _read(shown[0])
        moment = now or datetime.now(UTC)
        if not identity.not_before <= moment <= identity.not_after:
            valid = f"{identity.not_before:%Y-%m-%d} to {identity.not_after:%Y-%m-%d}"
            raise CertificateRefused(f"the certificate of {identity} is valid from {valid}", identity.name)
        return self._vouched(certificate, identity)

    def _vouched(self, certificate: x509.Certificate, identity: CertificateIdentity) -> CertificateIdentity:
        by_peers, by_clients = issued_by(certificate, self.peers), issued_by(certificate, self.clients)
        if not (by_peers or by_clients) and issued_by(certificate, self.retired):
            why = f"the authority that issued the certificate of {identity} is not trusted any longer"
            raise CertificateRefused(why, identity.name)
        if not self.separate:
            return identity
        wanted = {Kind.NODE: by_peers, Kind.OTHER: by_peers or by_clients}
        if not wanted.get(identity.kind, by_clients):
            side = "peers" if identity.kind is Kind.NODE else "clients"
            why = f"the certificate of {identity} was not issued by an authority that is trusted for {side}"
            raise CertificateRefused(why, identity.name)
        return CertificateIdentity(
            identity.kind,
            identity.name,
            identity.not_before,
            identity.not_after,
            identity.fingerprint,
            identity.hosts,
            by_peers,
            by_clients,
        )


def identity_of(auth_context: Mapping[str, Iterable[bytes]], trust: Trust | None = None) -> CertificateIdentity | None:
    """As `Trust.identity_of`; without a `trust` TLS alone has decided who vouches."""
    return (trust or Trust()).identity_of(auth_context)


def issued_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Did one of them sign it? Intermediate authorities count only where they are among them."""
    return any(_signed(certificate, authority) for authority in authorities)


@lru_cache(maxsize=4096)
def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)  # the name of the issuer as well
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


@lru_cache(maxsize=1024)
def _parse(pem: bytes) -> tuple[x509.Certificate, CertificateIdentity]:
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate, identity_of_certificate(certificate)


def _read(pem: bytes) -> tuple[x509.Certificate, CertificateIdentity]:
    if len(pem) > PEM_BYTES:
        raise CertificateRefused(f"a certificate of {len(pem)} bytes; {PEM_BYTES} are the most")
    try:
        return _parse(pem)
    except UNREADABLE as error:  # TLS has read it, with another parser
        raise CertificateRefused(f"the certificate cannot be read: {error}") from error
