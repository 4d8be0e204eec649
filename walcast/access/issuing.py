"""A private certificate authority: keys and certificates, as objects. No file is touched here.

Keys are on the curve P-256. A node's certificate serves both ends of TLS, since each node connects and is connected to;
a client's never serves as a server's.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from walcast.access import Kind
from walcast.access.certificates import identity_uri
from walcast.access.names import check_name
from walcast.errors import ConfigError

AUTHORITY_DAYS = 3650
LEAF_DAYS = 825  # what browsers and Apple's libraries take at most, for an own authority
BACKDATED = timedelta(hours=1)  # clocks differ
COMMON_NAME_CHARACTERS = 64  # of X.520
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

Key = ec.EllipticCurvePrivateKey
Pair = tuple[x509.Certificate, Key]


def new_authority(days: int = AUTHORITY_DAYS) -> Pair:
    """Its certificate, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"walcast CA {secrets.token_hex(4)}")])
    builder = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def issue(authority: Pair, kind: Kind, name: str, hosts: Sequence[str] = (), *, days: int = LEAF_DAYS) -> Pair:
    """A certificate and its key. ConfigError for what is no name or no host, or an authority that ends before."""
    check_name(name, f"the name of a {kind}")
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_CHARACTERS])])
    builder = _builder(subject, issuer.subject, key.public_key(), days)
    until = datetime.now(UTC) + timedelta(days=days)
    if until > issuer.not_valid_after_utc:
        ends = f"{issuer.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"the CA is valid until {ends}, not for {days} days: give fewer --days, or make a new CA")
    names = [x509.UniformResourceIdentifier(identity_uri(kind, name)), *map(parse_host, hosts)]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if kind is Kind.NODE:
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()), key


def parse_host(text: str) -> x509.DNSName | x509.IPAddress:
    """A host name or an address; ConfigError for anything else."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(text.lower()):
        raise ConfigError(f"{text[:300]!a} is neither a host name nor an IP address; a port does not belong here")
    return x509.DNSName(text.lower())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """As a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """As a file, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
