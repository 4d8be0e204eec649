"""URLs and addresses: of archives, endpoints, apps, monitors and nodes. What is understood means the same again."""

from __future__ import annotations

from walcast.appurl import check_app_url
from walcast.errors import WalcastError
from walcast.redaction import redact, shown_origin, shown_url
from walcast.secret import Secret
from walcast.store import DirectorySpec, parse_url
from walcast.store.url import normal_endpoint
from walcast.wire import Address
from walcast_node.commands.failover_flags import addresses
from walcast_node.process.ping import check_url

SHORT = 2000
TOKENS = [b"s3://", b"file:///", b"https://", b"@", b":", b"?", b"#", b"%40", b"%2F", b"%25", b"[::1]", b"&", b"="]
TOKENS += [b"endpoint=", b"path-style=true", b"arn:aws:s3:eu-west-1:1:accesspoint", b".amazonaws.com", b"\xc2\xb2"]


def seeds() -> list[bytes]:
    return [
        b"s3://bucket/a/b?endpoint=https://host:9000&region=eu&path-style=true&sse=aws:kms",
        b"s3://bucket.s3.eu-west-1.amazonaws.com/a",
        b"s3://arn:aws:s3:us-east-1:123456789012:accesspoint/name/p",
        b"s3://bucket.localhost:9000/p",
        b"s3://AKIA:secret/word@bucket/p?secret=x",
        b"file:///var/backups/app",
        b"/var/backups/app",
        b"https://app.example.com:8443/shop",
        b"https://hc-ping.com/7a1f?x=y",
        b"10.0.0.1:7420",
        b"[::1]:7420, host:1",
        b"s3://bucket/\xff",
        b"file:///a%ff%00b",
        b"s3://buck\net/p",
    ]


def target(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for show in (shown_url, shown_origin, redact):
        show(text)
    refused: list[WalcastError] = []
    for parse in (_archive, normal_endpoint, _app, _address, addresses, lambda given: check_url(Secret(given))):
        try:
            parse(text)
        except WalcastError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _archive(text: str) -> None:
    spec = parse_url(text)
    if isinstance(spec, DirectorySpec):
        assert "\0" not in str(spec.path)
        if not spec.path.is_absolute():
            return
    assert parse_url(spec.url) == spec, spec


def _app(text: str) -> None:
    url = check_app_url(text)
    assert check_app_url(url) == url


def _address(text: str) -> None:
    address = Address.parse(text)
    assert Address.parse(str(address)) == address
