"""Configuration files, walcast's own and Litestream's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz.places import folder_in_memory
from walcast.access import Identity, Kind, Role
from walcast_node.config.configuration import load_config

SHORT = 400
FILES: list[Path] = []
TOKENS = [b"${NAME}", b"$", b"<<: *a", b"&a ", b"*a", b"!!int ", b"- ", b": ", b"{", b"[", b"'", b'"', b"\t", b"|\n"]
TOKENS += [
    b"dbs:",
    b"path: ",
    b"replica: ",
    b"9999999999999999999999h",
    b"1e400MiB",
    b"~nobody/",
    b"\x00",
    b"\xef\xbb\xbf",
]
MEMORY_BYTES = 16 << 20  # PyYAML makes an object of every character's token

OURS = b"""listen: 127.0.0.1:7420
http: 127.0.0.1:8080
log-level: info
log-max-bytes: 256MiB
log-max-age: 1h30m
heartbeat-url: https://host/${NAME}
heartbeat-interval: 60s
scrub-mb-per-s: 4
tls: {ca: a.pem, cert: b.pem, key: c.pem}
auto-failover: yes
lease-time: 10s
priority: 1
id: a
app-url: http://h:80
advertise: 10.0.0.1:7420
snapshot: {interval: 24h, retention: 72h}
levels: [{interval: 30s}, {interval: 5m}]
l0-retention: 5m
access-key-id: $NAME
secret-access-key: ${NAME}
dbs:
- path: /srv/app.db
  name: app
  archive: s3://bucket/app?endpoint=https://host
  restore-if-db-not-exists: true
- {dir: /srv/many, pattern: '*.db', recursive: true, watch: true, archive: file:///backup}
"""
ACCESS = b"""access:
- {who: reporting, kinds: [client], databases: ["tenants/*", app], roles: [status, replicate]}
- {who: "edge-[0-9]?*", roles: [status, replicate, member]}
- {who: anyone, kinds: [nobody], roles: []}
trust-user: false
token-file: /etc/walcast/tokens
allowed-app-urls: ["https://*.example.com"]
dbs: []
"""
LITESTREAM = b"""x: &a {type: s3, bucket: b, path: p}
"""
THEIRS = b"""access-key-id: a
secret-access-key: b
region: eu-west-1
endpoint: http://minio:9000
exec: none
addr: ":9090"
dbs:
  - path: sqlite:///srv/app.db
    monitor-interval: 1s
    replicas:
      - type: s3
        bucket: b
        path: p
        sse-customer-key: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=
        force-path-style: true
        retention: 24h
        snapshot-interval: 1h
  - path: /a
    replica: {url: 'gs://x/y'}
"""


@contextmanager
def running() -> Iterator[None]:
    with folder_in_memory() as folder:
        FILES[:] = [Path(folder) / "walcast.yml"]
        yield


def seeds() -> list[bytes]:
    return [
        OURS,
        THEIRS,
        LITESTREAM,
        ACCESS,
        b"dbs: []",
        b"tls: true\ninsecure: on\n",
        b"dbs:\n- &a {path: /a}\n- {<<: *a, path: /b}\n",
    ]


def target(data: bytes) -> None:
    FILES[0].write_bytes(data)
    config = load_config(FILES[0], {"NAME": "a-value"})
    repr(config)
    for kind, name in ((Kind.NODE, "edge-12"), (Kind.OTHER, "a" * 200), (Kind.NOBODY, "")):
        roles = config.access.roles(Identity(kind, name), "tenants/" + "a" * 100)
        assert kind is not Kind.NOBODY or not roles - {Role.STATUS, Role.REPLICATE}
