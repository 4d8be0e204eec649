"""How many databases a process can serve on this host, and how many connections it takes beside them."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

log = logging.getLogger("walcast.primary")

MAX_DATABASES = 1000
FILES_EACH = 20  # three of the database and its connections', the log's, the archive's, the wake-up's
SPARE_FILES = 256
MAX_CONNECTIONS = 2000  # twice the followers that a primary takes
MAX_LOCAL_CALLS = 1000
MAX_HTTP_CONNECTIONS = 64
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


def capacity() -> int:
    """The most databases, so that those that are served never lack descriptors. Raises the soft limit to the hard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return MAX_DATABASES
    return max(1, min(MAX_DATABASES, (hard - SPARE_FILES) // FILES_EACH))


def connections(databases: int) -> int:
    """How many connections from other hosts a process that serves `databases` takes at a time, so that capture, log,
    archive and local commands always have descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    least = min(hard // 8, SPARE_FILES // 2)
    return max(least, min(MAX_CONNECTIONS, hard - SPARE_FILES - FILES_EACH * databases))


def local_calls() -> int:
    """How many commands and apps on this host are answered at a time by each database's socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_LOCAL_CALLS if hard == resource.RLIM_INFINITY else max(4, min(MAX_LOCAL_CALLS, hard // 8))


def http_connections() -> int:
    """How many connections to `--http` there are at a time; out of what is spared for all but databases."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_HTTP_CONNECTIONS if hard == resource.RLIM_INFINITY else max(4, min(MAX_HTTP_CONNECTIONS, hard // 8))


def warn_of_polling(databases: int) -> None:
    """Each has an inotify instance, of which a user has 128 on most systems; those without one are polled."""
    try:
        instances = int(_INSTANCES.read_text())
    except (OSError, ValueError):
        return
    if databases == instances:
        facts = {"databases": databases, "fs.inotify.max_user_instances": instances}
        log.warning("out of inotify instances: further databases cost processor time; raise the limit", extra=facts)
