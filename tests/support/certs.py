"""Authorities, certificates and token files for tests, as `walcast certs` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from walcast.access import Kind
from walcast.access.issuing import Pair, certificate_pem, issue, key_pem, new_authority
from walcast.access.tokens import new_token, token_line

HOSTS = ("127.0.0.1", "localhost")
NODE, CLIENT, OPERATOR = Kind.NODE, Kind.CLIENT, Kind.OPERATOR


class Authority:
    """A CA whose certificates go to files in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.pair: Pair = new_authority()
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(certificate_pem(self.pair[0]))

    def files(self, name: str, kind: Kind = NODE, hosts: Sequence[str] = HOSTS) -> tuple[Path, Path]:
        """Certificate and key; made anew they take the place of those that are there."""
        return self.write(name, issue(self.pair, kind, name, hosts if kind is NODE else ()))

    def ending(self, name: str, after: timedelta) -> tuple[Path, Path]:
        """A node's that ends so long after now; before, where it is negative."""
        certificate, key = issue(self.pair, NODE, name, HOSTS)
        return self.write(name, (self._resigned(certificate, datetime.now(UTC) + after), key))

    def _resigned(self, certificate: x509.Certificate, end: datetime) -> x509.Certificate:
        begin = min(certificate.not_valid_before_utc, end - timedelta(days=1))
        builder = x509.CertificateBuilder(
            certificate.issuer,
            certificate.subject,
            certificate.public_key(),
            certificate.serial_number,
            begin,
            end,
            list(certificate.extensions),
        )
        return builder.sign(self.pair[1], hashes.SHA256())

    def foreign(self, common_name: str = "", dns: Sequence[str] = (), uris: Sequence[str] = ()) -> bytes:
        """A certificate as some other tool makes it, as PEM."""
        certificate, key = issue(self.pair, CLIENT, "x")
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(attributes))
            .issuer_name(self.pair[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(certificate.not_valid_before_utc)
            .not_valid_after(certificate.not_valid_after_utc)
        )
        names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return certificate_pem(builder.sign(self.pair[1], hashes.SHA256()))

    def write(self, name: str, pair: Pair) -> tuple[Path, Path]:
        """One file after the other, each at once."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, data in ((key, key_pem(pair[1])), (cert, certificate_pem(pair[0]))):
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(data)
            fresh.replace(path)
        return cert, key

    def flags(self, name: str, kind: Kind = NODE) -> tuple[str | Path, ...]:
        """Of a command that shows a certificate of this name."""
        cert, key = self.files(name, kind)
        return ("--tls-ca", self.ca, "--tls-cert", cert, "--tls-key", key)


def token_file(path: Path, *lines: str) -> Path:
    """With mode 0600; it takes the place of the one that is there."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text("".join(f"{line}\n" for line in lines))
    return fresh.replace(path)


def token_of(name: str) -> tuple[str, str]:
    """A new one, and its line."""
    token = new_token()
    return token, token_line(name, token)
