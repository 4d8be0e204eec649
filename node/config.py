"""The configuration file: YAML → `Config`. A Litestream 0.5 file is accepted as it is.

Every error names file and line. `${NAME}` and `$NAME` in a value stand for environment variables, `$$` for a dollar
sign; they are replaced after the YAML was read, so what they hold cannot change its structure. A key without a value
counts as not given.

What Litestream knows and walcast does not use is accepted and listed in `Config.ignored`. What would be stored in
another place or another way than the file asks for is an error: other kinds of store, encryption, several replicas.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import yaml

from node.logs import LEVELS
from walcast.errors import ConfigError
from walcast.store.url import DirectorySpec, S3Spec, StoreSpec, normal_endpoint, parse_url
from walcast.wire import Address, Tls

MAX_BYTES = 1 << 20
NAME_MAX_BYTES = 120

T = TypeVar("T")


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOP = _keys("listen http log-level tls insecure dbs log-max-bytes log-max-age")
_DATABASE = _keys("path name archive replica replicas")
_DIRECTORY = _keys("dir pattern recursive watch meta-dir")
# At the top of the file they are the defaults of all replicas.
_S3 = _keys(
    "access-key-id secret-access-key region bucket endpoint force-path-style skip-verify storage-class ca-bundle"
)
_ENCRYPTION = _keys("sse-customer-algorithm sse-customer-key sse-customer-key-path sse-kms-key-id age")
_REPLICA = _S3 | _ENCRYPTION | {"type", "url", "path"}

# Litestream's, from `cmd/litestream/main.go`; those of 0.3 that 0.5 still reads past, too.
_IGNORED_REPLICA = _keys(
    "sync-interval validation-interval max-sync-ltx-files auto-recover sign-payload require-content-md5 part-size "
    "concurrency account-name account-key sas-token host user password key-path concurrent-writes host-key webdav-url "
    "webdav-username webdav-password jwt seed creds nkey username token tls root-cas client-cert client-key "
    "max-reconnects reconnect-wait timeout name retention retention-check-interval snapshot-interval"
)
_IGNORED_TOP = (_IGNORED_REPLICA - {"tls", "name"}) | _keys(
    "addr socket levels snapshot validation l0-retention l0-retention-check-interval verify-compaction heartbeat-url "
    "heartbeat-interval exec logging mcp-addr shutdown-sync-timeout shutdown-sync-interval"
)
_IGNORED_DATABASE = _keys(
    "snapshot meta-path monitor-interval checkpoint-interval busy-timeout min-checkpoint-page-count truncate-page-n "
    "max-checkpoint-page-count max-sync-wal-bytes restore-if-db-not-exists"
)

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_VARIABLE = re.compile(r"\$(\$|\{[^}]*\}?|[A-Za-z_][A-Za-z0-9_]*)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of Litestream's that has no effect, as in `dbs.monitor-interval`."""

    key: str
    line: int


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """One of `dbs`. `path` is absolute; `line` is where its entry begins."""

    path: Path
    name: str
    archive: StoreSpec | None
    line: int


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says; None where it says nothing and the command has the default."""

    path: Path
    listen: Address | None = None
    http: Address | None = None
    log_level: str | None = None
    tls: Tls = field(default_factory=Tls)
    log_max_bytes: int | None = None
    log_max_age_s: float | None = None
    dbs: tuple[DatabaseConfig, ...] = ()
    ignored: tuple[Ignored, ...] = ()


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file. ConfigError, "FILE:LINE: what is wrong", for the first thing that is."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        root = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return _Reader(path, os.environ if environ is None else environ).config(root)


class _Reader:
    """YAML nodes → values, with the file and line of each in every error."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._ignored: list[Ignored] = []

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self._path}:{_line(node)}: {what}")

    # The file's parts

    def config(self, root: yaml.Node | None) -> Config:
        if root is None:
            return Config(self._path)
        keys = self._mapping(root, "", _TOP | _S3 | _ENCRYPTION, _IGNORED_TOP)
        return Config(
            path=self._path,
            listen=self._optional(keys, "listen", self._address),
            http=self._optional(keys, "http", self._address),
            log_level=self._optional(keys, "log-level", self._level),
            tls=self._tls(keys),
            log_max_bytes=self._optional(keys, "log-max-bytes", self._bytes),
            log_max_age_s=self._optional(keys, "log-max-age", self._seconds),
            dbs=self._databases(keys),
            ignored=tuple(sorted(self._ignored, key=lambda ignored: ignored.line)),
        )

    def _tls(self, keys: dict[str, yaml.Node]) -> Tls:
        insecure = self._optional(keys, "insecure", self._boolean) or False
        node = keys.get("tls")
        if node is None:
            return Tls(insecure=insecure)
        if isinstance(node, yaml.ScalarNode) and node.value.lower() in _BOOLEANS:  # Litestream's, for NATS
            self._ignored.append(Ignored("tls", _line(node)))
            return Tls(insecure=insecure)
        files = self._mapping(node, "tls.", frozenset(["ca", "cert", "key"]))
        if ("cert" in files) != ("key" in files):
            raise self._error(node, "tls: 'cert' and 'key' go together")
        return Tls(**{key: self._file(file) for key, file in files.items()}, insecure=insecure)

    def _databases(self, top: dict[str, yaml.Node]) -> tuple[DatabaseConfig, ...]:
        found: list[DatabaseConfig] = []
        seen: dict[Path | str, int] = {}
        for node in self._list(top["dbs"]) if "dbs" in top else ():
            keys = self._mapping(node, "dbs.", _DATABASE | _DIRECTORY, _IGNORED_DATABASE)
            for key in keys:
                if key in _DIRECTORY:
                    raise self._error(keys[key], f"{key!r}: a directory of databases is not supported yet; list them")
            if "path" not in keys:
                raise self._error(node, "a database needs a 'path'")
            path = self._file(keys["path"])
            name = self._optional(keys, "name", self._name) or path.stem
            database = DatabaseConfig(path, name, self._archive(keys, top), _line(node))
            for what, same in (("path", path.resolve()), ("name", name)):
                if same in seen:
                    where = keys.get(what, keys["path"])
                    hint = "" if what == "path" else "; give them different ones with 'name'"
                    raise self._error(where, f"the {what} {same} is already that of the one in line {seen[same]}{hint}")
                seen[same] = database.line
            found.append(database)
        return tuple(found)

    def _archive(self, keys: dict[str, yaml.Node], top: dict[str, yaml.Node]) -> StoreSpec | None:
        given = [key for key in ("archive", "replica", "replicas") if key in keys]
        if len(given) > 1:
            raise self._error(keys[given[1]], f"{given[0]!r} and {given[1]!r}: give one of them")
        shared = {key: node for key, node in top.items() if key in _S3 | _ENCRYPTION}
        if "archive" in keys:
            return self._store(keys["archive"], {"url": keys["archive"]}, shared)
        node = keys.get("replica")
        if "replicas" in keys:
            replicas = self._list(keys["replicas"])
            if len(replicas) > 1:
                raise self._error(replicas[1], "several replicas of one database are not supported; keep one")
            node = replicas[0] if replicas else None
        if node is None:
            return None
        return self._store(node, self._mapping(node, "dbs.replica.", _REPLICA, _IGNORED_REPLICA), shared)

    def _store(self, node: yaml.Node, own: dict[str, yaml.Node], shared: dict[str, yaml.Node]) -> StoreSpec:
        """As Litestream's NewReplicaFromConfig: the type is that of the URL, else `type`, else a directory."""
        keys = shared | own
        for key in own.keys() & {"path", "bucket"} if "url" in own else ():
            raise self._error(own[key], f"{key!r} and 'url': give one of them")
        url = self._optional(own, "url", self._text) or ""
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
        kind = scheme[1].lower() if scheme else "file" if url else self._optional(own, "type", self._text) or "file"
        if kind not in ("file", "s3"):
            where = own.get("url") or own["type"]
            raise self._error(where, f"archives of type {kind!r} are not supported; file and s3 are")
        for key in keys.keys() & _ENCRYPTION:
            raise self._error(keys[key], f"{key!r} is not supported: the archive would not be encrypted so")
        if kind == "s3":
            return self._s3(node, url, keys)
        if not url and "path" not in own:
            raise self._error(node, "an archive needs a 'url', or a 'path' for a directory")
        if not url and "://" in self._text(own["path"]):
            raise self._error(own["path"], "'path' is a directory; give a URL as 'url'")
        spec = self._parsed(own["url"], parse_url, url) if url else DirectorySpec(self._file(own["path"]))
        assert isinstance(spec, DirectorySpec)
        return DirectorySpec(spec.path.expanduser().absolute())

    def _s3(self, node: yaml.Node, url: str, keys: dict[str, yaml.Node]) -> S3Spec:
        if not url:
            if "bucket" not in keys:
                raise self._error(node, "an archive in S3 needs a 'bucket' or a 'url'")
            prefix = self._optional(keys, "path", self._text) or ""
            if prefix != "/".join(part for part in prefix.split("/") if part):
                # Litestream takes the slashes as part of the keys: another place than the one without them.
                raise self._error(keys["path"], f"{prefix!r}: slashes at an end or doubled are not supported here")
            url = f"s3://{self._text(keys['bucket'])}/{quote(prefix)}"
        spec = self._parsed(keys.get("url") or keys["bucket"], parse_url, url)
        assert isinstance(spec, S3Spec)
        if ("access-key-id" in keys) != ("secret-access-key" in keys):
            one = keys.get("access-key-id") or keys["secret-access-key"]
            raise self._error(one, "'access-key-id' and 'secret-access-key' go together")
        endpoint = self._optional(keys, "endpoint", lambda n: self._parsed(n, normal_endpoint, self._text(n)))
        path_style = self._optional(keys, "force-path-style", self._boolean)
        return replace(
            spec,
            endpoint=endpoint or spec.endpoint,
            path_style=bool(endpoint) or spec.path_style if path_style is None else path_style,
            region=self._optional(keys, "region", self._text) or spec.region,
            skip_verify=self._optional(keys, "skip-verify", self._boolean) or spec.skip_verify,
            storage_class=self._optional(keys, "storage-class", self._text) or spec.storage_class,
            ca_bundle=self._optional(keys, "ca-bundle", lambda n: str(self._file(n))) or spec.ca_bundle,
            access_key_id=self._optional(keys, "access-key-id", self._text),
            secret_access_key=self._optional(keys, "secret-access-key", self._text),
        )

    # Structure

    def _mapping(
        self, node: yaml.Node, where: str, used: frozenset[str], ignored: frozenset[str] = frozenset()
    ) -> dict[str, yaml.Node]:
        """The values of the keys that are used and have one."""
        found: dict[str, yaml.Node] = {}
        for key, (key_node, value) in self._pairs(node, ()).items():
            if key not in used | ignored:
                close = get_close_matches(key, sorted(used | ignored), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise self._error(key_node, f"unknown key {key!r}{hint}")
            if value.tag == "tag:yaml.org,2002:null":
                continue
            if key in used:
                found[key] = value
            else:
                self._ignored.append(Ignored(where + key, _line(key_node)))
        return found

    def _pairs(self, node: yaml.Node, inside: tuple[int, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values, with what `<<` merges in."""
        self._expect(node, yaml.MappingNode)
        if id(node) in inside:
            raise self._error(node, "'<<' merges a mapping into itself")
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            self._expect(key, yaml.ScalarNode)
            if key.tag == "tag:yaml.org,2002:merge":
                for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._pairs(other, (*inside, id(node))) | merged
                continue
            if key.value in own:
                raise self._error(key, f"{key.value!r} is already in line {_line(own[key.value][0])}")
            own[key.value] = (key, value)
        return merged | own

    def _list(self, node: yaml.Node) -> list[yaml.Node]:
        self._expect(node, yaml.SequenceNode)
        return list(node.value)

    def _expect(self, node: yaml.Node, kind: type[yaml.Node]) -> None:
        if not isinstance(node, kind):
            raise self._error(node, f"{_KINDS[kind]} belongs here, not {_KINDS[type(node)]}")

    # Values

    def _optional(self, keys: dict[str, yaml.Node], key: str, read: Callable[[yaml.Node], T]) -> T | None:
        return read(keys[key]) if key in keys else None

    def _parsed(self, node: yaml.Node, parse: Callable[[str], T], text: str) -> T:
        try:
            return parse(text)
        except ConfigError as error:
            raise self._error(node, str(error)) from error

    def _text(self, node: yaml.Node) -> str:
        """Any single value, as it is written: Litestream takes numbers for texts, too."""
        self._expect(node, yaml.ScalarNode)

        def expand(match: re.Match[str]) -> str:
            name = match[1].strip("{}")
            if match[1] == "$":
                return "$"
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or match[1].startswith("{") != match[1].endswith("}"):
                raise self._error(node, f"{match[0]!r} is not a variable; write $$ for a dollar sign")
            if name not in self._environ:
                raise self._error(node, f"the environment variable {name!r} is not set; write $$ for a dollar sign")
            return self._environ[name]

        return _VARIABLE.sub(expand, node.value)

    def _boolean(self, node: yaml.Node) -> bool:
        text = self._text(node)
        if text.lower() not in _BOOLEANS:
            raise self._error(node, f"true or false belongs here, not {text!r}")
        return _BOOLEANS[text.lower()]

    def _file(self, node: yaml.Node) -> Path:
        text = re.sub(r"^sqlite3?://", "", self._text(node))
        if not text:
            raise self._error(node, "a path belongs here")
        try:
            return Path(text).expanduser().absolute()
        except RuntimeError as error:
            raise self._error(node, str(error)) from error

    def _name(self, node: yaml.Node) -> str:
        name = self._text(node)
        if not name.isprintable() or not 0 < len(name.encode()) <= NAME_MAX_BYTES:
            raise self._error(node, f"{name[:40]!r} is not a name: 1 to {NAME_MAX_BYTES} bytes, printable")
        return name

    def _address(self, node: yaml.Node) -> Address:
        return self._parsed(node, Address.parse, self._text(node))

    def _level(self, node: yaml.Node) -> str:
        level = self._text(node).lower()
        if level not in LEVELS:
            raise self._error(node, f"{level!r} is not a log level; they are {', '.join(LEVELS)}")
        return level

    def _bytes(self, node: yaml.Node) -> int:
        """256MB is 256_000_000, 256MiB is 268_435_456, as Litestream has it."""
        match = _BYTES.fullmatch(self._text(node).strip())
        size = 0
        if match is not None:
            size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))
        if size <= 0:
            raise self._error(node, f"{self._text(node)!r} is not a size, as in 256MiB")
        return size

    def _seconds(self, node: yaml.Node) -> float:
        text = self._text(node)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text) if _DURATION.fullmatch(text) else []
        seconds = float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
        if seconds <= 0:
            raise self._error(node, f"{text!r} is not a duration, as in 90s or 1h30m")
        return seconds


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
