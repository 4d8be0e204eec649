"""The configuration file: what its keys mean. A Litestream 0.5 file is accepted as it is.

What Litestream knows and walcast does not use is accepted and listed in `Config.ignored`. What would be stored in
another place or another way than the file asks for is an error.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from walcast.access import Policy
from walcast.access.folder import files_of
from walcast.errors import ConfigError
from walcast.permissions import parse_mode
from walcast.secret import Secret
from walcast.statedir import behind_link
from walcast.store import StoreSpec
from walcast.wire import Address, Tls
from walcast_node.config.access import KEYS as ACCESS
from walcast_node.config.access import read_access
from walcast_node.config.archives import IGNORED_REPLICA, PLACES, POLICY, SHARED, ArchiveConfig, ArchiveReader
from walcast_node.config.failover import KEYS as FAILOVER
from walcast_node.config.failover import FailoverConfig, read_failover
from walcast_node.config.yaml_values import BOOLEANS, Ignored, Keys, Yaml, line_of
from walcast_node.http.hosts import check_host_name
from walcast_node.process.folders import Folder, is_pattern
from walcast_node.process.logs import LEVELS
from walcast_node.process.ping import check_url
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

__all__ = ["Config", "DatabaseConfig", "FailoverConfig", "FolderConfig", "Ignored", "load_config"]

NAME_MAX_BYTES = 120
HEARTBEAT_INTERVAL_S = 300.0
HEARTBEAT_LEAST_S = 1.0
STOP_LEAST_S = 1.0
NO_ARCHIVE = "a heartbeat tells that every database is archived in time, and this one has no archive"


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOP = _keys(
    "listen http http-host log-level tls token-file insecure dbs log-max-bytes log-max-age heartbeat-url "
    "heartbeat-interval scrub-mb-per-s grpc-reflection exec stop-timeout wait-for-db addr logging "
    "shutdown-sync-timeout log-summary"
)
_TLS_FILES = _keys("ca cert key peer-ca client-ca")
_DATABASE = (
    _keys("path dir pattern recursive watch name snapshot restore-if-db-not-exists continue-archive mode") | PLACES
)

# Litestream's, from `cmd/litestream/main.go`; those of 0.3 that 0.5 still reads past, too.
_IGNORED_TOP = (IGNORED_REPLICA - {"tls", "name"}) | _keys(
    "socket validation l0-retention-check-interval verify-compaction mcp-addr shutdown-sync-interval snapshot-interval"
)
_IGNORED_DATABASE = _keys(
    "meta-path meta-dir monitor-interval checkpoint-interval busy-timeout min-checkpoint-page-count truncate-page-n "
    "max-checkpoint-page-count max-sync-wal-bytes"
)


_LITESTREAM_LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "error": "error"}


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """One database. `path` is absolute; `line` is where its entry of `dbs` begins."""

    path: Path
    name: str
    archive: StoreSpec | None
    line: int
    policy: ArchivePolicy = field(default_factory=ArchivePolicy)
    restore: bool = False
    continue_archive: bool = False
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """All databases of a folder, those to come as well with `watch`. `prefix` goes before their names, `where` is
    FILE:LINE."""

    folder: Folder
    watch: bool
    prefix: str | None
    archive: ArchiveConfig | None
    policy: ArchivePolicy
    line: int
    where: str

    def database(self, path: Path) -> DatabaseConfig:
        """One of them; ConfigError when its path makes no name."""
        relative = self.folder.relative(path)
        name = relative[: len(relative) - len(path.suffix)]
        name = f"{self.prefix}/{name}" if self.prefix else name
        if not _is_name(name):
            raise ConfigError(f"{path} makes no name for the database: {_NAME_RULE}")
        archive = self.archive.below(relative) if self.archive else None
        return DatabaseConfig(path, name, archive, self.line, self.policy)


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says; None where it says nothing and the command has the default."""

    path: Path
    listen: Address | None = None
    http: Address | None = None
    http_hosts: tuple[str, ...] = ()
    log_level: str | None = None
    log_summary_s: float | None = None
    tls: Tls = field(default_factory=Tls)
    log_max_bytes: int | None = None
    log_max_age_s: float | None = None
    dbs: tuple[DatabaseConfig, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    folders: tuple[FolderConfig, ...] = ()
    policy: ArchivePolicy = field(default_factory=ArchivePolicy)
    heartbeat_url: Secret | None = None
    heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S
    scrub_bytes_per_s: float | None = None
    failover: FailoverConfig = field(default_factory=FailoverConfig)
    access: Policy = field(default_factory=Policy)
    trust_user: bool = True
    reflect: bool = False
    command: str | None = field(default=None, repr=False)
    stop_timeout_s: float | None = None
    wait_for_db_s: float | None = None
    log_format: str | None = None

    @property
    def has_many(self) -> bool:
        """Is each database only one of several?"""
        return len(self.dbs) + len(self.folders) > 1

    def database(self, path: Path) -> DatabaseConfig | None:
        """What the file says of the database at `path`, whether it is there or not."""
        path = path.absolute()
        for database in self.dbs:
            if database.path == path or behind_link(database.path) == behind_link(path):
                return database
        return next((folder.database(path) for folder in self.folders if folder.folder.has(path)), None)


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file. ConfigError, "FILE:LINE: what is wrong", for the first thing that is. No folder is looked into."""
    return _Reader(Yaml(path, environ)).config()


class _Reader:
    """The file's parts."""

    def __init__(self, yaml: Yaml) -> None:
        self._yaml = yaml

    def config(self) -> Config:
        root = self._yaml.read()
        if root is None:
            return Config(self._yaml.path)
        optional = self._yaml.optional
        keys = self._yaml.mapping(root, "", _TOP | POLICY | SHARED | FAILOVER | ACCESS, _IGNORED_TOP)
        self._translate(keys)
        archives = ArchiveReader(self._yaml, keys)
        logging = self._logging(keys)
        dbs, folders = self._databases(keys, archives)
        config = Config(
            path=self._yaml.path,
            listen=optional(keys, "listen", self._address),
            http=optional(keys, "http", self._address) or optional(keys, "addr", self._any_host),
            http_hosts=optional(keys, "http-host", self._host_names) or (),
            log_level=optional(keys, "log-level", self._level) or optional(logging, "level", self._litestream_level),
            log_format=optional(logging, "type", self._log_format),
            command=optional(keys, "exec", self._command),
            stop_timeout_s=optional(keys, "stop-timeout", self._stop_timeout_s),
            wait_for_db_s=optional(keys, "wait-for-db", self._wait_s),
            log_summary_s=optional(keys, "log-summary", lambda node: self._yaml.seconds(node, zero=True)),
            tls=self._tls(keys),
            log_max_bytes=optional(keys, "log-max-bytes", self._yaml.bytes),
            log_max_age_s=optional(keys, "log-max-age", self._yaml.seconds),
            dbs=dbs,
            folders=folders,
            policy=archives.policy,
            heartbeat_url=optional(keys, "heartbeat-url", self._heartbeat_url),
            heartbeat_interval_s=optional(keys, "heartbeat-interval", self._heartbeat_s) or HEARTBEAT_INTERVAL_S,
            scrub_bytes_per_s=optional(keys, "scrub-mb-per-s", self._mb_per_s),
            failover=read_failover(self._yaml, keys),
            access=read_access(self._yaml, keys),
            reflect=optional(keys, "grpc-reflection", self._yaml.boolean) or False,
            trust_user=optional(keys, "trust-user", self._yaml.boolean) is not False,
        )
        bare = [one.line for one in dbs if one.archive is None] + [one.line for one in folders if one.archive is None]
        if config.heartbeat_url and bare:
            raise ConfigError(f"{config.path}:{min(bare)}: {NO_ARCHIVE}")
        return replace(config, ignored=tuple(sorted(self._yaml.ignored, key=lambda ignored: ignored.line)))

    # What Litestream has other words for

    def _translate(self, keys: Keys) -> None:
        """Litestream's words stand for walcast's; to give both is to say it twice."""
        for theirs, ours in (("addr", "http"), ("shutdown-sync-timeout", "stop-timeout")):
            if theirs in keys and ours in keys:
                raise self._yaml.error(keys[theirs], f"{theirs!r} is {ours!r} here: give one of them")
        if "shutdown-sync-timeout" in keys:
            keys["stop-timeout"] = keys.pop("shutdown-sync-timeout")

    def _logging(self, keys: Keys) -> Keys:
        if "logging" not in keys:
            return {}
        return self._yaml.mapping(keys["logging"], "logging.", _keys("level type"), _keys("stderr source"))

    def _litestream_level(self, node: yaml.Node) -> str:
        level = self._yaml.text(node).lower()
        if level not in _LITESTREAM_LEVELS:
            raise self._yaml.error(
                node, f"{self._yaml.shown(node)} is not a log level; they are {', '.join(_LITESTREAM_LEVELS)}"
            )
        return _LITESTREAM_LEVELS[level]

    def _log_format(self, node: yaml.Node) -> str:
        text = self._yaml.text(node).lower()
        if text not in ("text", "json"):
            raise self._yaml.error(node, f"{self._yaml.shown(node)} is not a log format; they are text, json")
        return text

    def _any_host(self, node: yaml.Node) -> Address | None:
        """Without a host: all of this machine's addresses, as Go has it. Nothing: none."""
        text = self._yaml.text(node)
        if not text:
            return None
        return self._yaml.parsed(node, lambda: Address.parse(f"0.0.0.0{text}" if text.startswith(":") else text))

    def _command(self, node: yaml.Node) -> str:
        text = self._yaml.text(node)
        try:
            there = bool(shlex.split(text))
        except ValueError as error:
            raise self._yaml.error(node, f"exec: {error}") from None
        if not there:
            raise self._yaml.error(node, "exec: give the command that starts the app")
        return text

    def _stop_timeout_s(self, node: yaml.Node) -> float:
        seconds = self._yaml.seconds(node)
        if seconds < STOP_LEAST_S:
            raise self._yaml.error(node, f"a stop may take {STOP_LEAST_S:g} s or more, not {seconds:g} s")
        return seconds

    def _wait_s(self, node: yaml.Node) -> float:
        return math.inf if self._yaml.text(node) == "forever" else self._yaml.seconds(node, zero=True)

    def _tls(self, keys: Keys) -> Tls:
        insecure = self._yaml.optional(keys, "insecure", self._yaml.boolean) or False
        token_file = self._yaml.optional(keys, "token-file", self._yaml.file)
        node = keys.get("tls")
        if node is None:
            return Tls(insecure=insecure, token_file=token_file)
        if isinstance(node, yaml.ScalarNode) and node.value.lower() in BOOLEANS:  # Litestream's, for NATS
            self._yaml.ignore(node, "tls")
            return Tls(insecure=insecure, token_file=token_file)
        if isinstance(node, yaml.ScalarNode):
            if "://" in self._yaml.text(node):
                raise self._yaml.error(node, "tls: a folder that `walcast certs` made belongs here, not a URL")
            folder = self._yaml.file(node)
            return self._yaml.parsed(node, lambda: Tls(**files_of(folder), token_file=token_file, insecure=insecure))
        files = self._yaml.mapping(node, "tls.", _TLS_FILES | {"client-auth"})
        if ("cert" in files) != ("key" in files):
            raise self._yaml.error(node, "tls: 'cert' and 'key' go together")
        client_auth = self._yaml.optional(files, "client-auth", self._client_auth) is not False
        paths = {key.replace("-", "_"): self._yaml.file(files[key]) for key in _TLS_FILES & files.keys()}

        def tls() -> Tls:
            return Tls(**paths, token_file=token_file, insecure=insecure, client_auth=client_auth)

        return self._yaml.parsed(node, tls)

    def _client_auth(self, node: yaml.Node) -> bool:
        text = self._yaml.text(node)
        if text not in ("required", "none"):
            raise self._yaml.error(node, f"required or none belongs here, not {text!r}")
        return text == "required"

    def _databases(
        self, top: Keys, archives: ArchiveReader
    ) -> tuple[tuple[DatabaseConfig, ...], tuple[FolderConfig, ...]]:
        found: list[DatabaseConfig] = []
        folders: list[FolderConfig] = []
        seen: dict[Path | str, int] = {}
        for node in self._yaml.items(top["dbs"]) if "dbs" in top else ():
            keys = self._yaml.mapping(node, "dbs.", _DATABASE, _IGNORED_DATABASE)
            one = self._one(node, keys, archives)
            if isinstance(one, FolderConfig):
                folders.append(one)
                continue
            for what, same in (("path", one.path.resolve()), ("name", one.name)):
                if same in seen:
                    where = keys.get(what, keys["path"])
                    hint = "" if what == "path" else "; give them different ones with 'name'"
                    there = f"is already that of the one in line {seen[same]}"
                    raise self._yaml.error(where, f"the {what} {same} {there}{hint}")
                seen[same] = one.line
            found.append(one)
        return tuple(found), tuple(folders)

    def _one(self, node: yaml.Node, keys: Keys, archives: ArchiveReader) -> DatabaseConfig | FolderConfig:
        """One of `dbs`: a database, or a folder of some."""
        if "path" in keys and "dir" in keys:
            raise self._yaml.error(keys["dir"], "'path' and 'dir': give one of them")
        if "dir" in keys:
            if "pattern" not in keys:
                raise self._yaml.error(node, "'dir' needs a 'pattern' for the files' names, as in '*.db'")
            return self._folder(node, keys, archives, self._yaml.file(keys["dir"]), self._yaml.text(keys["pattern"]))
        if "path" not in keys:
            raise self._yaml.error(node, "a database needs a 'path', or a 'dir' for all in a folder")
        for key in ("pattern", "recursive"):
            if key in keys:  # Litestream looks at them beside 'dir' only
                self._yaml.ignore(keys[key], f"dbs.{key}")
        path = self._yaml.file(keys["path"])
        if is_pattern(path.name) and not path.exists():
            if is_pattern(str(path.parent)):
                what = "only the file's name can be a pattern; a folder and all below it is 'dir' with 'recursive'"
                raise self._yaml.error(keys["path"], what)
            keys = {key: value for key, value in keys.items() if key != "recursive"}
            return self._folder(node, keys, archives, path.parent, path.name)
        if "watch" in keys and self._yaml.boolean(keys["watch"]):
            raise self._yaml.error(keys["watch"], "'watch' needs a 'dir', or a 'path' with a pattern")
        archive, policy = archives.read(keys)
        return DatabaseConfig(
            path,
            self._yaml.optional(keys, "name", self._name) or path.stem,
            archive.spec if archive else None,
            line_of(node),
            policy,
            restore=self._yaml.optional(keys, "restore-if-db-not-exists", self._yaml.boolean) or False,
            continue_archive=self._yaml.optional(keys, "continue-archive", self._yaml.boolean) or False,
            mode=self._yaml.optional(keys, "mode", self._mode),
        )

    def _folder(
        self, node: yaml.Node, keys: Keys, archives: ArchiveReader, directory: Path, pattern: str
    ) -> FolderConfig:
        if "restore-if-db-not-exists" in keys:  # what is missing in a folder nobody knows
            self._yaml.ignore(keys["restore-if-db-not-exists"], "dbs.restore-if-db-not-exists")
        if "continue-archive" in keys:  # it is said of one database and its archive, by whoever knows both
            raise self._yaml.error(keys["continue-archive"], "'continue-archive' is for one database, not for a folder")
        if "mode" in keys:  # what is in a folder is there
            raise self._yaml.error(keys["mode"], "'mode' is for one database, not for a folder")
        recursive = self._yaml.optional(keys, "recursive", self._yaml.boolean) or False
        where = keys.get("pattern") or keys["path"]
        folder = self._yaml.parsed(where, lambda: Folder(directory, pattern, recursive))
        archive, policy = archives.read(keys, folder=True)
        return FolderConfig(
            folder,
            self._yaml.optional(keys, "watch", self._yaml.boolean) or False,
            self._yaml.optional(keys, "name", self._name),
            archive,
            policy,
            line_of(node),
            f"{self._yaml.path}:{line_of(node)}",
        )

    # Values

    def _name(self, node: yaml.Node) -> str:
        name = self._yaml.text(node)
        if not _is_name(name):
            raise self._yaml.error(node, f"{self._yaml.shown(node)} is not a name: {_NAME_RULE}")
        return name

    def _address(self, node: yaml.Node) -> Address:
        text = self._yaml.text(node)
        return self._yaml.parsed(node, lambda: Address.parse(text))

    def _host_names(self, node: yaml.Node) -> tuple[str, ...]:
        """One, or a list of them."""
        return tuple(map(self._host_name, self._yaml.items(node) if isinstance(node, yaml.SequenceNode) else [node]))

    def _host_name(self, node: yaml.Node) -> str:
        text = self._yaml.text(node)
        return self._yaml.parsed(node, lambda: check_host_name(text))

    def _level(self, node: yaml.Node) -> str:
        level = self._yaml.text(node).lower()
        if level not in LEVELS:
            raise self._yaml.error(node, f"{self._yaml.shown(node)} is not a log level; they are {', '.join(LEVELS)}")
        return level

    def _mode(self, node: yaml.Node) -> int:
        text = self._yaml.text(node)
        return self._yaml.parsed(node, lambda: parse_mode(text))

    def _heartbeat_url(self, node: yaml.Node) -> Secret:
        url = Secret(self._yaml.text(node))
        return self._yaml.parsed(node, lambda: check_url(url))

    def _mb_per_s(self, node: yaml.Node) -> float:
        text = self._yaml.text(node)
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise self._yaml.error(node, f"{self._yaml.shown(node)} is not a number of MB a second, as in 4; 0: none")
        return rate * (1 << 20)

    def _heartbeat_s(self, node: yaml.Node) -> float:
        seconds = self._yaml.seconds(node)
        if seconds < HEARTBEAT_LEAST_S:
            raise self._yaml.error(node, f"a heartbeat at most every {HEARTBEAT_LEAST_S:.0f} s")
        return seconds


_NAME_RULE = f"1 to {NAME_MAX_BYTES} bytes, printable"


def _is_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name.encode()) <= NAME_MAX_BYTES
