"""What a primary is told, by flags and the configuration file together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from walcast import wire
from walcast.access import Policy
from walcast.appurl import ANY_APP_URL, AppUrlPolicy
from walcast.permissions import OWNER_ONLY
from walcast.planted import resolve_database
from walcast.scrub import DEFAULT_BYTES_PER_S
from walcast.secret import Secret
from walcast.store import StoreSpec
from walcast_node.config.configuration import DatabaseConfig, FolderConfig
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

STOP_TIMEOUT_S = 8.0  # a container is killed ten seconds after it was told to end
SUMMARY_S = 3600.0
DEFAULT_LOG_BYTES = 256 << 20
DEFAULT_LOG_AGE_S = 3600.0


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """One database to serve. With `restore` a missing file is made from the archive first, if that has any; where there
    is none then, the app is waited for to make it, for `wait_s` seconds, which may be infinite; with
    `continue_archive` the archive is gone on with, whosever database it is by its id. With `serve_unarchived` it is
    served also while its archive is another database's; without, that keeps a primary from starting. A link
    stands for the file behind it, as it does for SQLite: `-wal`, `-shm` and walcast's folder are beside that. `mode` is
    that of a file that is made where there was none."""

    path: Path
    name: str
    archive: str | StoreSpec | None = field(
        default=None, repr=False
    )  # a URL that nobody has looked at yet may be wrong
    policy: ArchivePolicy = field(default_factory=ArchivePolicy)
    restore: bool = False
    continue_archive: bool = False
    serve_unarchived: bool = False
    mode: int = OWNER_ONLY
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", resolve_database(self.path))


def settings_of(config: DatabaseConfig) -> DatabaseSettings:
    """What to serve, of what the file says."""
    return DatabaseSettings(
        config.path,
        config.name,
        config.archive,
        config.policy,
        config.restore,
        config.continue_archive,
        mode=OWNER_ONLY if config.mode is None else config.mode,
    )


@dataclass(frozen=True, slots=True)
class HeartbeatSettings:
    """Where to tell, every `interval_s`, that all is well."""

    url: Secret
    interval_s: float


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """One database of a replica set. `role`: what it is to be the first time; after that it is what it became.

    `primaries`: where to look for the primary; `eligible`: it may be promoted at all; `auto`: it takes over by itself,
    with `priority` among equals, if it was level with the primary no longer than `max_lag_s` before that was lost.
    `advertise`: where others reach this node, when that is not where it listens. `force`: take the place of a
    primary that is gone for good. `replace`: overwrite what is no replica.
    """

    database: DatabaseSettings
    role: str
    primaries: tuple[wire.Address, ...] = ()
    follower_id: str | None = None
    guess: bool = False
    auto: bool = False
    eligible: bool = True
    priority: int = 0
    max_lag_s: float = 60.0
    lease_s: float = 10.0
    advertise: wire.Address | None = None
    force: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a node is told. `app_url`: where the app answers HTTP on this host, for apps beside followers; `app_urls`:
    which addresses of apps on other hosts are used. `http_hosts`: names by which clients reach `http`, besides the
    address that it listens on. `access`: who may do what; with `trust_user` processes of the same user on this machine
    may do everything. `command` starts the app; a stop
    takes `stop_timeout_s` at most, the app's own included."""

    databases: list[DatabaseSettings]
    listen: wire.Address
    tls: wire.Tls = field(default_factory=wire.Tls)
    http: wire.Address | None = None
    http_hosts: tuple[str, ...] = ()
    log_bytes: int = DEFAULT_LOG_BYTES
    log_age_s: float = DEFAULT_LOG_AGE_S
    scrub_bytes_per_s: float = DEFAULT_BYTES_PER_S
    folders: tuple[FolderConfig, ...] = ()
    heartbeat: HeartbeatSettings | None = None
    members: tuple[MemberSettings, ...] = ()
    app_url: str = ""
    access: Policy = field(default_factory=Policy)
    trust_user: bool = True
    file: Path | None = None  # the configuration file that was read
    reflect: bool = False  # gRPC server reflection
    app_urls: AppUrlPolicy = ANY_APP_URL
    command: str | None = field(default=None, repr=False)  # it may have a password
    stop_timeout_s: float = STOP_TIMEOUT_S
    summary_s: float = SUMMARY_S  # between two lines of the log that say how all is; 0: none
