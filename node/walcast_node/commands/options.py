"""What the commands have in common: flags that also read from WALCAST_<FLAG>, errors in one line, exit codes."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from walcast.access.folder import files_of
from walcast.errors import ConfigError, WalcastError
from walcast.identifiers import printable
from walcast.oserrors import at_path
from walcast.permissions import parse_mode
from walcast.redaction import redact
from walcast.shortage import reason
from walcast.statedir import behind_link
from walcast.wire import Tls
from walcast_node.config.durations import Duration, parse_duration
from walcast_node.config.numbers import Number, Seconds
from walcast_node.process.logs import LEVELS, configure, log_failure

DEFAULT_LISTEN = "127.0.0.1:7420"
ERROR_MAX_CHARS = 4000

F = TypeVar("F", bound=Callable[..., Any])


class Flag(click.Option):
    """An option that also reads from WALCAST_<FLAG>."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.envvar is None and self.name:
            longest = max((o for o in self.opts if o.startswith("--")), key=len, default=self.name)
            self.envvar = "WALCAST_" + longest.lstrip("-").replace("-", "_").upper()


def flag(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """A click option of the kind above."""
    kwargs.setdefault("show_default", True)
    return click.option(*names, cls=Flag, **kwargs)


LOG_FLAGS = ("log_level", "log_format")


class Command(click.Command):
    """A command with the flags that all have; walcast's errors end it with one line and exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._takes_config = any(param.name == "config" for param in self.params)
        self.params += (
            []
            if self._takes_config
            else [Flag(["--config"], type=PATH, help="Read settings from this YAML file; flags win over it.")]
        )
        self.params += [
            Flag(
                ["--log-level"],
                type=click.Choice(LEVELS),
                default="info",
                show_default=True,
                help="The least severe level that is logged.",
            ),
            Flag(
                ["--log-format"],
                type=click.Choice(["text", "json"]),
                default="text",
                show_default=True,
                help="Log lines as logfmt or as JSON.",
            ),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            again = self._use_config(ctx)
            configure(ctx.params.pop("log_level"), as_json=ctx.params.pop("log_format") == "json", again=again)
            return super().invoke(ctx)
        except WalcastError as error:
            fail(str(error))
        except OSError as error:
            fail(at_path(error, error.filename) if isinstance(error.filename, str) else reason(error))
        except KeyboardInterrupt:
            sys.exit(130)

    def _use_config(self, ctx: click.Context) -> Callable[[], str] | None:
        """Of the configuration file, what any command has: the log level and the TLS files. Flags win over it. Returns
        what reads the log level again, where the file says it."""
        path = ctx.params["config"] if self._takes_config else ctx.params.pop("config")
        if path is None:
            return None
        from walcast_node.config.configuration import load_config

        told = load_config(path)
        by_file = ctx.get_parameter_source("log_level") is ParameterSource.DEFAULT
        unsaid = str(ctx.params["log_level"])
        if told.log_level and by_file:
            ctx.params["log_level"] = told.log_level
        if told.log_format and ctx.get_parameter_source("log_format") is ParameterSource.DEFAULT:
            ctx.params["log_format"] = told.log_format
        if "tls_ca" in ctx.params:
            given = tls_of(**{name: ctx.params[name] for name in TLS_FLAGS})
            tls = told.tls if replace(given, token_file=None) == Tls() else given
            ctx.params.update(flags_of(replace(tls, token_file=given.token_file or told.tls.token_file)))
        return (lambda: load_config(path).log_level or unsaid) if by_file else None


def hint_at_secret(name: str) -> None:
    """Log how to give this flag's value, which is a secret, where other users of the machine cannot see it."""
    if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
        option = "--" + name.replace("_", "-")
        logging.getLogger("walcast").info(
            f"others can see {option} in the list of processes: give it as WALCAST_{name.upper()} instead"
        )


def fail(message: str) -> None:
    """One line on standard error, of the log's format where that is JSON; exit code 1."""
    line = printable(" ".join(redact(message).split()), ERROR_MAX_CHARS)
    if not log_failure(line):
        click.echo(f"error: {line}", err=True)
    sys.exit(1)


PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is said by whoever reads it


class DatabasePath(click.Path):
    """The path of a database that a command looks at: of the file itself, where it is a symbolic link."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return behind_link(Path(os.fsdecode(super().convert(value, param, ctx))))


DATABASE = DatabasePath(path_type=Path, readable=False)

JSON = flag("--json", "as_json", is_flag=True, help="Print the result as JSON.")
CONFIG = flag("--config", type=PATH, default=None, help="Read settings from this YAML file; flags win over it.")


class Wait(click.ParamType[float]):
    """Seconds, a duration as a configuration file has it, or for ever."""

    name = "seconds|forever"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value == "forever":
            return math.inf
        seconds = parse_duration(value) if isinstance(value, str) else None
        if seconds is None:
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r} is neither a number of seconds, nor a duration, as in 90s, nor 'forever'", param, ctx)
        return seconds


EXEC = (
    "The command that starts the app, without a shell: started when the database can be used, sent the signals that "
    "this process gets, and the process ends with it, and its exit code, once what it committed is archived. If this "
    "process is killed, the app is sent SIGTERM."
)
STOP = "Seconds that a stop may take, half of it for the app of --exec.  [default: 8]"


def process_flags(function: F) -> F:
    """--exec, --stop-timeout."""
    for option in (
        flag("--stop-timeout", default=None, type=Seconds(min=1), help=STOP),
        flag("--exec", "command", default=None, metavar="CMD", help=EXEC),
    ):
        function = option(function)
    return function


SCRUB = (
    "How fast, at most, pages are compared with their checksums in the background, MB a second; 0: only when the "
    "file's times say that something other than SQLite wrote it.  [default: 4]"
)
MB = 1 << 20


def scrub_flag(function: F) -> F:
    """--scrub-mb-per-s."""
    return flag("--scrub-mb-per-s", default=None, type=Number(min=0), help=SCRUB)(function)


def scrub_bytes(flag_mb: float | None, told_bytes: float | None) -> float:
    """Bytes a second, by the flag or the configuration file."""
    from walcast.scrub import DEFAULT_BYTES_PER_S

    if flag_mb is not None:
        return flag_mb * MB
    return DEFAULT_BYTES_PER_S if told_bytes is None else told_bytes


SUMMARY = (
    "How often a line of the log says how all is, as in 1h or 30m: `all well`, or what is wrong; 0: never.  [default: "
    "1h]"
)


def summary_flag(function: F) -> F:
    """--log-summary."""
    return flag("--log-summary", "log_summary_s", default=None, type=Duration(), help=SUMMARY)(function)


def summary_seconds(flag_s: float | None, told_s: float | None) -> float:
    """By the flag or the configuration file."""
    from walcast_node.config.settings import SUMMARY_S

    return next((given for given in (flag_s, told_s) if given is not None), SUMMARY_S)


HTTP_HOST = (
    "A name by which clients reach --http, besides its address and localhost; repeatable. Requests for other hosts are "
    "refused."
)


def http_flags(function: F) -> F:
    """--http, --http-host."""
    for option in (
        flag("--http-host", "http_hosts", multiple=True, metavar="NAME", help=HTTP_HOST),
        flag("--http", default=None, help="Serve /healthz, /status and /metrics over HTTP at this HOST:PORT."),
    ):
        function = option(function)
    return function


class Mode(click.ParamType[int]):
    """The mode of a file, as chmod has it: 640, 0640."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_mode(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def mode_flag(function: F) -> F:
    """--mode."""
    told = "Mode of a new database file, as in 0640; one that was there keeps its own.  [default: 0600]"
    return flag("--mode", type=Mode(), default=None, show_default=False, help=told)(function)


TLS_FLAGS = (
    "tls",
    "tls_cert",
    "tls_key",
    "tls_ca",
    "tls_peer_ca",
    "tls_client_ca",
    "tls_client_auth",
    "token_file",
    "insecure",
)


TLS_FOLDER = "A folder that `walcast certs node` or `client` made, instead of --tls-cert, --tls-key and --tls-ca."


def tls_flags(function: F) -> F:
    """--tls, --tls-cert and its kin, --token-file, --insecure."""
    for option in (
        flag("--insecure", is_flag=True, help="Allow connections without TLS beyond this machine."),
        flag(
            "--token-file",
            type=PATH,
            default=None,
            help="File with the token to show to others, and the hashes of tokens to accept.",
        ),
        flag(
            "--tls-client-auth",
            type=click.Choice(["required", "none"]),
            default="required",
            help="Must whoever connects show a certificate, where a CA is given? none: tokens tell who it is.",
        ),
        flag("--tls-client-ca", type=PATH, default=None, help="PEM file: the CA of clients, with --tls-peer-ca."),
        flag("--tls-peer-ca", type=PATH, default=None, help="PEM file: the CA of nodes alone, instead of --tls-ca."),
        flag("--tls-ca", type=PATH, default=None, help="PEM file: the CA whose certificates are trusted."),
        flag("--tls-key", type=PATH, default=None, help="PEM file: the private key of --tls-cert."),
        flag("--tls-cert", type=PATH, default=None, help="PEM file: the certificate of this process."),
        flag("--tls", type=PATH, default=None, metavar="DIR", help=TLS_FOLDER),
    ):
        function = option(function)
    return function


def tls_of(
    *,
    tls: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    tls_peer_ca: Path | None,
    tls_client_ca: Path | None,
    tls_client_auth: str,
    token_file: Path | None,
    insecure: bool,
) -> Tls:
    """From the flags."""
    if tls is not None:
        if tls_cert or tls_key or tls_ca:
            raise ConfigError(
                "--tls has the certificate, its key and the CA: leave out --tls-cert, --tls-key, --tls-ca"
            )
        tls_cert, tls_key, tls_ca = itemgetter("cert", "key", "ca")(files_of(tls))
    return Tls(
        ca=tls_ca,
        cert=tls_cert,
        key=tls_key,
        insecure=insecure,
        peer_ca=tls_peer_ca,
        client_ca=tls_client_ca,
        token_file=token_file,
        client_auth=tls_client_auth == "required",
    )


def flags_of(tls: Tls) -> dict[str, Any]:
    """The flags that would say the same."""
    return {
        "tls": None,
        "tls_cert": tls.cert,
        "tls_key": tls.key,
        "tls_ca": tls.ca,
        "tls_peer_ca": tls.peer_ca,
        "tls_client_ca": tls.client_ca,
        "tls_client_auth": "required" if tls.client_auth else "none",
        "token_file": tls.token_file,
        "insecure": tls.insecure,
    }
