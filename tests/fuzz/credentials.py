"""Who somebody says that he is: token files, `authorization`, names in certificates, certificates and keys."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.utils import CryptographyDeprecationWarning
from support.certs import Authority, token_of

from fuzz.places import folder_in_memory
from walcast.access import Kind, pemfiles
from walcast.access.certificates import Trust, identity_uri, parse_identity_uri
from walcast.access.issuing import issue
from walcast.access.names import is_name
from walcast.access.tokens import ACCEPTED_MOST, Tokens, bearer, parse_tokens, token_in
from walcast.wire import Tls

SHORT = 300
NOWHERE = Path("tokens")
TOKENS = [b"wct_", b" sha256:", b"#", b"\n", b"Bearer ", b"walcast://", b"node/", b"operator/", b"%2F", b"%00", b"%"]
TOKENS += [b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"\x86", b"\x82", b"\xc2\x85", b"\x30\x80"]
FOLDERS: list[Path] = []
TRUSTED: list[Trust] = []
MAKING = TemporaryDirectory()
AUTHORITY = Authority(Path(MAKING.name))
OWN, LINE = token_of("edge-1")
FILE = parse_tokens(f"{OWN}\n{LINE}\n".encode(), NOWHERE)


@contextmanager
def running() -> Iterator[None]:
    with folder_in_memory() as name, warnings.catch_warnings():
        folder = Path(name)
        for file in (AUTHORITY.ca, *AUTHORITY.files("a")):
            (folder / file.name).touch(mode=0o600)
            (folder / file.name).write_bytes(file.read_bytes())
        FOLDERS[:] = [folder]
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # of what it will refuse one day
        TRUSTED[:] = [Trust((AUTHORITY.pair[0],), (AUTHORITY.pair[0],), separate=True)]
        yield


def seeds() -> list[bytes]:
    certificate, key = issue(AUTHORITY.pair, Kind.NODE, "edge-1", ("127.0.0.1", "edge.example"))
    foreign = AUTHORITY.foreign("someone", ("a.example",), ("https://x/", "walcast://node/a%20b"))
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    der, authority = certificate.public_bytes(Encoding.DER), AUTHORITY.pair[0].public_bytes(Encoding.DER)
    uris = [identity_uri(kind, "edge/1 ü%") for kind in (Kind.NODE, Kind.OPERATOR)]
    return [
        b"\0" + f"# ours\n{OWN}\n\n{LINE}\nother sha256:{'0f' * 32}\n".encode(),
        b"\1" + bearer(OWN).encode(),
        *(b"\2" + uri.encode() for uri in uris),
        b"\3" + certificate.public_bytes(Encoding.PEM),
        b"\4" + der,
        b"\4" + base64.b64decode(b"".join(foreign.splitlines()[1:-1])),
        b"\5" + private,
        b"\6" + authority,
    ]


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"\0":
        _file(parse_tokens(data, NOWHERE))
    elif kind == b"\1":
        presented = token_in(data.decode("latin-1"))
        assert FILE.identity(presented) == ("edge-1" if presented == OWN else None)
    elif kind == b"\2":
        _uri(data.decode("utf-8", "replace"))
    else:
        _certificate(kind, data)


def _uri(text: str) -> None:
    try:
        kind, name = parse_identity_uri(text)
    except ValueError:  # which `identity_of_certificate` handles
        return
    assert parse_identity_uri(identity_uri(kind, name)) == (kind, name)


def _file(tokens: Tokens) -> None:
    assert len(tokens.accepted) <= ACCEPTED_MOST
    assert all(is_name(name) for name in tokens.names)
    assert OWN not in repr(tokens)
    tokens.identity(OWN)


def _certificate(kind: bytes, data: bytes) -> None:
    if kind in (b"\5", b"\6"):
        folder, changed = FOLDERS[0], "a.key" if kind == b"\5" else "ca.pem"
        before = (folder / changed).read_bytes()
        (folder / changed).write_bytes(_armoured(data, "PRIVATE KEY" if kind == b"\5" else "CERTIFICATE"))
        try:
            pemfiles.load(Tls(ca=folder / "ca.pem", cert=folder / "a.pem", key=folder / "a.key"))
        finally:
            (folder / changed).write_bytes(before)
        return
    pem = data if kind == b"\3" else _armoured(data, "CERTIFICATE")
    identity = TRUSTED[0].identity_of({"x509_pem_cert": [pem]}, datetime.now(UTC))
    assert identity is not None
    assert is_name(identity.name)
    assert identity.by_peers


def _armoured(der: bytes, what: str) -> bytes:
    return f"-----BEGIN {what}-----\n".encode() + base64.encodebytes(der) + f"-----END {what}-----\n".encode()
