"""The files of a private CA and of what it issues. Nothing is ever overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from walcast.access import Kind
from walcast.access.certificates import (
    UNREADABLE,
    hosts_of,
    identity_of_certificate,
    parse_certificates,
)
from walcast.access.credentials import PEM_BYTES
from walcast.access.folder import CA_KEY_NAME, CA_NAME
from walcast.access.issuing import Pair, certificate_pem, issue, key_pem, new_authority
from walcast.access.names import check_name
from walcast.access.secretfile import read_file, read_secret
from walcast.errors import CertificateRefused, ConfigError
from walcast.filesystem import fsync_directory
from walcast.oserrors import at_path, explained

FILE_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Described:
    """What a certificate says; `identity` is None when it names nobody."""

    identity: str | None
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str
    issuer: str


def make_authority(directory: Path, days: int) -> list[Path]:
    """A new CA in `directory`, which nobody else can look into."""
    _private_directory(directory)
    certificate, key = new_authority(days)
    files = {
        directory / CA_KEY_NAME: (key_pem(key), 0o600),
        directory / CA_NAME: (certificate_pem(certificate), 0o644),
    }
    _create(files)
    return [directory / CA_NAME, directory / CA_KEY_NAME]


def make_certificate(
    directory: Path, kind: Kind, name: str, hosts: Sequence[str], output: Path | None, days: int
) -> list[Path]:
    """By the CA in `directory`: certificate, key and the CA's certificate in `output`, or in a folder of that name."""
    check_name(name, f"the name of a {kind}")
    stem = _file_name(name)
    authority = read_authority(directory)
    certificate, key = issue(authority, kind, name, hosts, days=days)
    folder = output or directory / stem
    ca, ca_pem = folder / CA_NAME, certificate_pem(authority[0])
    files = {
        folder / f"{stem}.key": (key_pem(key), 0o600),
        folder / f"{stem}.pem": (certificate_pem(certificate), 0o644),
    }
    if not ca.exists():
        files[ca] = (ca_pem, 0o644)
    elif read_file(ca, PEM_BYTES) != ca_pem:
        raise ConfigError(f"{ca}: another CA's certificate is there; write to another folder with -o")
    try:
        _have_directory(folder)
    except OSError as error:
        raise ConfigError(at_path(error, folder)) from error
    _create(files)
    return [folder / f"{stem}.pem", folder / f"{stem}.key", ca]


def read_authority(directory: Path) -> Pair:
    """The CA that `make_authority` made."""
    path = directory / CA_KEY_NAME
    if not (directory / CA_NAME).exists():
        raise ConfigError(f"{directory}: no CA here; make one with `walcast certs init {directory}`")
    certificate = parse_certificates(read_file(directory / CA_NAME, PEM_BYTES), directory / CA_NAME)[0]
    try:
        key = serialization.load_pem_private_key(read_secret(path, PEM_BYTES), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a PEM file with a private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{path}: not the key of {directory / CA_NAME}")
    return certificate, key


def describe(path: Path) -> list[Described]:
    """The certificates in a file."""
    try:
        return [_described(one) for one in parse_certificates(read_file(path, PEM_BYTES), path)]
    except UNREADABLE as error:
        raise ConfigError(f"{path}: a certificate that cannot be read: {error}") from error


def _described(certificate: x509.Certificate) -> Described:
    try:
        identity = "the CA itself" if _is_authority(certificate) else str(identity_of_certificate(certificate))
    except CertificateRefused:
        identity = None
    return Described(
        identity,
        hosts_of(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
        certificate.issuer.rfc4514_string(),
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _file_name(name: str) -> str:
    """A name that stays in its folder, whatever is in it."""
    encoded = quote(name, safe=" @+=,~")
    if encoded.startswith(".") or encoded == Path(CA_KEY_NAME).stem:  # which would be hidden, or the CA's own
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > FILE_NAME_BYTES:
        raise ConfigError(f"{name!a}: too long for the name of a file")
    return encoded


def _private_directory(directory: Path) -> None:
    """Of our own, for nobody else."""
    try:
        _have_directory(directory)
        facts = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise ConfigError(at_path(error, directory)) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ConfigError(f"{directory}: must be a folder of your own, with the mode 0700: the key of a CA goes there")


def _have_directory(directory: Path) -> None:
    """For nobody else, where it is new; its name is durable then."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return
    fsync_directory(directory.parent)


def _create(files: dict[Path, tuple[bytes, int]]) -> None:
    """All of them, durably, or none; ConfigError where one is there already."""
    made: list[Path] = []
    try:
        for path, (data, mode) in files.items():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            made.append(path)
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(data)
                file.flush()
                os.fsync(fd)
        for folder in {path.parent for path in files}:
            fsync_directory(folder)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        where = error.filename if isinstance(error.filename, str) else next(iter(files))
        there = isinstance(error, FileExistsError)
        why = "is there already, and is not overwritten; give another folder" if there else explained(error, where)
        raise ConfigError(f"{where}: {why}") from error
