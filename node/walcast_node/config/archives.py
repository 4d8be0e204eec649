"""What a configuration file says of archives: where each one is, and how it is kept.

The places are Litestream's (`NewReplicaFromConfig`, `cloneReplicaConfigWithRelativePath` in `cmd/litestream/main.go`),
so that either program finds the other's archives. What would be stored in another place or another way than the file
asks for is an error: other kinds of store, encryption of a directory, several replicas.
"""

from __future__ import annotations

import math
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import yaml

from walcast.secret import Secret
from walcast.store import DirectorySpec, S3Spec, StoreSpec
from walcast.store.url import normal_endpoint, parse_url
from walcast_node.config.yaml_values import Keys, Yaml
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

MAX_LEVELS = 8  # level 9 has the snapshots
MAX_KEY_BYTES = 1 << 10
_GO_PATH_SAFE = "/$&+,:;=@"  # beside letters, digits and -_.~: what Go's url.URL leaves as it is in a path


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# At the top of the file these are the defaults of all replicas.
_S3 = _keys(
    "access-key-id secret-access-key region bucket endpoint force-path-style skip-verify storage-class ca-bundle"
)
_ENCRYPTION = _keys("sse sse-customer-algorithm sse-customer-key sse-customer-key-path sse-kms-key-id age")
SHARED = _S3 | _ENCRYPTION
_REPLICA = SHARED | _keys("type url path retention snapshot-interval")

# Litestream's, from `ReplicaSettings`; those of 0.3 that 0.5 still reads past, too.
IGNORED_REPLICA = _keys(
    "sync-interval validation-interval max-sync-ltx-files auto-recover sign-payload require-content-md5 part-size "
    "concurrency account-name account-key sas-token host user password key-path concurrent-writes host-key webdav-url "
    "webdav-username webdav-password jwt seed creds nkey username token tls root-cas client-cert client-key "
    "max-reconnects reconnect-wait timeout name retention-check-interval"
)
POLICY = _keys("levels snapshot retention l0-retention")
PLACES = _keys("archive replica replicas")


@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """A place. With `escaped` Litestream has what it appends to it for a folder's databases percent-encoded."""

    spec: StoreSpec
    escaped: bool = False

    def below(self, relative: str) -> StoreSpec:
        """The archive of a folder's database, by its path relative to the folder."""
        if isinstance(self.spec, S3Spec):
            return replace(self.spec, prefix=posixpath.join(self.spec.prefix, relative))
        return DirectorySpec(self.spec.path / (quote(relative, safe=_GO_PATH_SAFE) if self.escaped else relative))


class ArchiveReader:
    """Reads the archives of a file whose top has the keys `top`."""

    def __init__(self, yaml: Yaml, top: Keys) -> None:
        self._yaml = yaml
        self._shared = {key: node for key, node in top.items() if key in SHARED}
        self.policy = self._policy(top)

    # How it is kept

    def _policy(self, top: Keys) -> ArchivePolicy:
        policy = self._with_snapshot(ArchivePolicy(), top)
        if "levels" in top:
            policy = replace(policy, level_intervals_s=self._levels(top["levels"]))
        if "retention" in top:
            keys = self._yaml.mapping(top["retention"], "retention.", _keys("enabled"))
            enabled = self._yaml.optional(keys, "enabled", self._yaml.boolean)
            policy = replace(policy, delete=enabled is not False)
        if "l0-retention" in top:
            # 0 is Litestream's way to say that age alone removes none: they go with what the retention lets go.
            raw_s = self._yaml.seconds(top["l0-retention"], zero=True)
            policy = replace(policy, raw_retention_s=raw_s or math.inf)
        return policy

    def _levels(self, node: yaml.Node) -> tuple[float, ...]:
        intervals: list[float] = []
        items = self._yaml.items(node)
        if not 1 <= len(items) <= MAX_LEVELS:
            raise self._yaml.error(node, f"{len(items)} levels: there are 1 to {MAX_LEVELS}")
        for item in items:
            keys = self._yaml.mapping(item, "levels.", _keys("interval"))
            if "interval" not in keys:
                raise self._yaml.error(item, "a level needs an 'interval'")
            interval = self._yaml.seconds(keys["interval"])
            if intervals and interval <= intervals[-1]:
                raise self._yaml.error(item, "the interval of a level must be longer than that of the level before")
            intervals.append(interval)
        return tuple(intervals)

    def _with_snapshot(self, policy: ArchivePolicy, keys: Keys) -> ArchivePolicy:
        if "snapshot" not in keys:
            return policy
        snapshot = self._yaml.mapping(keys["snapshot"], "snapshot.", _keys("interval retention"))
        return self._kept(policy, snapshot, "interval", "retention")

    def _kept(self, policy: ArchivePolicy, keys: Keys, interval: str, retention: str) -> ArchivePolicy:
        return replace(
            policy,
            snapshot_interval_s=self._yaml.optional(keys, interval, self._yaml.seconds) or policy.snapshot_interval_s,
            retention_s=self._yaml.optional(keys, retention, self._yaml.seconds) or policy.retention_s,
        )

    # Where it is

    def read(self, keys: Keys, *, folder: bool = False) -> tuple[ArchiveConfig | None, ArchivePolicy]:
        """Of one of `dbs`. Its own `snapshot` wins over what 0.3 had at the replica, and that over the file's."""
        given = [key for key in ("archive", "replica", "replicas") if key in keys]
        if len(given) > 1:
            raise self._yaml.error(keys[given[1]], f"{given[0]!r} and {given[1]!r}: give one of them")
        node, own = self._replica(keys)
        policy = self._with_snapshot(self._kept(self.policy, own, "snapshot-interval", "retention"), keys)
        return (None if node is None else self._store(node, own, folder)), policy

    def _replica(self, keys: Keys) -> tuple[yaml.Node | None, Keys]:
        if "archive" in keys:
            return keys["archive"], {"url": keys["archive"]}
        node = keys.get("replica")
        if "replicas" in keys:
            replicas = self._yaml.items(keys["replicas"])
            if len(replicas) > 1:
                raise self._yaml.error(replicas[1], "several replicas of one database are not supported; keep one")
            node = replicas[0] if replicas else None
        if node is None:
            return None, {}
        return node, self._yaml.mapping(node, "dbs.replica.", _REPLICA, IGNORED_REPLICA)

    def _store(self, node: yaml.Node, own: Keys, folder: bool) -> ArchiveConfig:
        """As Litestream has it: the type is that of the URL, else `type`, else a directory."""
        text = self._yaml.text
        for key in sorted(own.keys() & {"path", "bucket"}) if "url" in own else ():
            raise self._yaml.error(own[key], f"{key!r} and 'url': give one of them")
        url = self._yaml.optional(own, "url", text) or ""
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
        kind = scheme[1].lower() if scheme else "file" if url else self._yaml.optional(own, "type", text) or "file"
        if kind not in ("file", "s3"):
            where = own.get("url") or own["type"]
            named = repr(kind) if scheme else self._yaml.shown(where)
            raise self._yaml.error(where, f"archives of type {named} are not supported; file and s3 are")
        keys = self._shared | own
        if "age" in keys:
            raise self._yaml.error(keys["age"], "'age' is not supported: the archive would not be encrypted so")
        if kind == "s3":
            return ArchiveConfig(self._s3(node, url, keys, folder))
        for key in sorted(keys.keys() & _ENCRYPTION):
            raise self._yaml.error(keys[key], f"{key!r} is for S3: an archive in a directory would not be encrypted")
        return ArchiveConfig(self._directory(node, url, own), escaped=scheme is not None)

    def _directory(self, node: yaml.Node, url: str, own: Keys) -> DirectorySpec:
        if not url and "path" not in own:
            raise self._yaml.error(node, "an archive needs a 'url', or a 'path' for a directory")
        if not url and "://" in self._yaml.text(own["path"]):
            raise self._yaml.error(own["path"], "'path' is a directory; give a URL as 'url'")
        if not url:
            return DirectorySpec(self._yaml.file(own["path"]))
        spec = self._yaml.parsed(own["url"], lambda: parse_url(url))
        assert isinstance(spec, DirectorySpec)
        return DirectorySpec(spec.path.expanduser().absolute())

    def _s3(self, node: yaml.Node, url: str, keys: Keys, folder: bool) -> S3Spec:
        optional, text, boolean = self._yaml.optional, self._yaml.text, self._yaml.boolean
        url = url or self._bucket_url(node, keys, folder)
        spec = self._yaml.parsed(keys.get("url") or keys["bucket"], lambda: parse_url(url))
        assert isinstance(spec, S3Spec)
        if ("access-key-id" in keys) != ("secret-access-key" in keys):
            one = keys.get("access-key-id") or keys["secret-access-key"]
            raise self._yaml.error(one, "'access-key-id' and 'secret-access-key' go together")
        endpoint = optional(keys, "endpoint", self._endpoint)
        path_style = optional(keys, "force-path-style", boolean)
        encryption: dict[str, Any] = {
            "sse": optional(keys, "sse", text) or spec.sse,
            "sse_kms_key_id": optional(keys, "sse-kms-key-id", text) or spec.sse_kms_key_id,
            "sse_customer_algorithm": optional(keys, "sse-customer-algorithm", text) or spec.sse_customer_algorithm,
            "sse_customer_key": self._customer_key(keys),
        }
        plain = replace(
            spec,
            endpoint=endpoint or spec.endpoint,
            path_style=bool(endpoint) or spec.path_style if path_style is None else path_style,
            region=optional(keys, "region", text) or spec.region,
            skip_verify=optional(keys, "skip-verify", boolean) or spec.skip_verify,
            storage_class=optional(keys, "storage-class", text) or spec.storage_class,
            ca_bundle=optional(keys, "ca-bundle", lambda n: str(self._yaml.file(n))) or spec.ca_bundle,
            access_key_id=optional(keys, "access-key-id", self._secret),
            secret_access_key=optional(keys, "secret-access-key", self._secret),
        )
        said = next((keys[key] for key in sorted(_ENCRYPTION) if key in keys), node)
        return self._yaml.parsed(said, lambda: replace(plain, **encryption))

    def _secret(self, node: yaml.Node) -> Secret:
        return Secret(self._yaml.text(node))

    def _endpoint(self, node: yaml.Node) -> str:
        text = self._yaml.text(node)
        return self._yaml.parsed(node, lambda: normal_endpoint(text))

    def _bucket_url(self, node: yaml.Node, keys: Keys, folder: bool) -> str:
        if "bucket" not in keys:
            raise self._yaml.error(node, "an archive in S3 needs a 'bucket' or a 'url'")
        prefix = self._yaml.optional(keys, "path", self._yaml.text) or ""
        if folder and prefix:
            prefix = posixpath.normpath(prefix)  # as Litestream does when it appends a database's path
        if prefix != "/".join(part for part in prefix.split("/") if part):
            # Litestream takes the slashes as part of the keys: another place than the one without them.
            raise self._yaml.error(
                keys["path"], f"{self._yaml.shown(keys['path'])}: slashes at an end or doubled are not supported here"
            )
        return f"s3://{self._yaml.text(keys['bucket'])}/{quote(prefix)}"

    def _customer_key(self, keys: Keys) -> Secret | None:
        """The key itself, or what is in the file at `sse-customer-key-path`, which wins in Litestream too."""
        if "sse-customer-key-path" not in keys:
            return self._yaml.optional(keys, "sse-customer-key", self._secret)
        node = keys["sse-customer-key-path"]
        path: Path = self._yaml.file(node)

        def fail(why: str | None) -> NoReturn:
            raise self._yaml.error(node, f"cannot read the key in {path}: {why}")

        try:
            with path.open("rb") as file:
                data = file.read(MAX_KEY_BYTES + 1)
        except OSError as error:
            fail(error.strerror)
        if len(data) > MAX_KEY_BYTES or not data.isascii():
            fail("that is no key")
        return Secret(data.decode().strip())
