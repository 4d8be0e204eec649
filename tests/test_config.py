"""The configuration file: Litestream's and walcast's keys, and errors that name file and line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest

from walcast.errors import ConfigError
from walcast.store import DirectorySpec, S3Spec
from walcast.wire import Address, Tls
from walcast_node.commands.config import facts
from walcast_node.commands.failover_flags import failover_flags
from walcast_node.config.configuration import Config, FailoverConfig, Ignored, load_config
from walcast_node.config.failover import flags_over_file

SECRETS = {"KEY_ID": "AKIA", "SECRET": "s3cr3t: #x", "BUCKET": "backups", "PORT": "7420"}


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "walcast.yml"
    file.write_text(text)
    return load_config(file, SECRETS)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    prefix = f"{tmp_path / 'walcast.yml'}:"
    assert message.startswith(prefix)
    assert "\n" not in message
    return message.removeprefix(prefix)


def test_walcasts_own_keys_are_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
listen: 127.0.0.1:${PORT}
http: "[::1]:7421"
log-level: WARNING
tls: {ca: /pem/ca, cert: /pem/cert, key: /pem/key}
token-file: /pem/tokens
log-max-bytes: 512MiB
log-max-age: 1h30m
dbs:
  - path: /data/app.db
    archive: s3://bucket/app?endpoint=minio:9000
  - path: /data/users.sqlite
    name: people
    archive: /backups/users
  - path: /data/plain.db
""",
    )
    assert config.listen == Address("127.0.0.1", 7420)
    assert config.http == Address("[::1]", 7421)
    assert config.log_level == "warning"
    assert config.tls == Tls(Path("/pem/ca"), Path("/pem/cert"), Path("/pem/key"), token_file=Path("/pem/tokens"))
    assert config.log_max_bytes == 512 << 20
    assert config.log_max_age_s == 5400
    assert [(db.path, db.name, db.line) for db in config.dbs] == [
        (Path("/data/app.db"), "app", 10),
        (Path("/data/users.sqlite"), "people", 12),
        (Path("/data/plain.db"), "plain", 15),
    ]
    assert [db.archive for db in config.dbs] == [
        S3Spec("bucket", "app", endpoint="https://minio:9000", path_style=True),
        DirectorySpec(Path("/backups/users")),
        None,
    ]
    assert config.ignored == ()


def test_a_litestream_file_is_accepted_as_it_is(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """\
access-key-id: ${KEY_ID}
secret-access-key: $SECRET
region: eu-central-1
addr: ":9090"
exec: "app -dsn $$HOME"
logging: {level: debug, type: json, stderr: true}
snapshot:
  interval: 4h
  retention: 24h
levels: [{interval: 30s}, {interval: 5m}]
socket: {enabled: true, path: /run/l.sock, permissions: 0600}
mcp-addr: ":3001"
dbs:
  - path: sqlite:///data/app.db
    monitor-interval: 1s
    replica:
      type: s3
      bucket: ${BUCKET}
      path: app
      endpoint: fly.storage.tigris.dev
      region: auto
      sync-interval: 10s
      part-size: 5MB
  - path: /data/other.db
    replica:
      url: s3://${BUCKET}/other?region=us-east-1
      force-path-style: true
      skip-verify: true
  - path: /data/third.db
    replicas:
      - path: /mnt/third
        retention: 72h
""",
    )
    keys = {"access_key_id": "AKIA", "secret_access_key": "s3cr3t: #x"}
    assert [db.archive for db in config.dbs] == [
        S3Spec("backups", "app", endpoint="https://fly.storage.tigris.dev", region="auto", path_style=True, **keys),
        S3Spec("backups", "other", region="eu-central-1", path_style=True, skip_verify=True, **keys),
        DirectorySpec(Path("/mnt/third")),
    ]
    assert config.dbs[0].path == Path("/data/app.db")
    assert config.http == Address("0.0.0.0", 9090)
    assert (config.command, config.log_level, config.log_format) == ("app -dsn $HOME", "debug", "json")
    assert config.ignored[0] == Ignored("logging.stderr", 6)
    assert {(found.key, found.line) for found in config.ignored} >= {
        ("socket", 11),
        ("dbs.monitor-interval", 15),
        ("dbs.replica.sync-interval", 22),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dbs:\n- pth: /a.db\n", "2: unknown key 'pth'; did you mean 'path'?"),
        ("frobnicate: 1\n", "1: unknown key 'frobnicate'"),
        ("tls:\n  cart: x\n", "2: unknown key 'cart'; did you mean 'cert'?"),
        ("dbs:\n- path: /a\n  replica:\n    buket: b\n", "4: unknown key 'buket'; did you mean 'bucket'?"),
        ("listen: ${NOWHERE}:1\n", "1: the environment variable 'NOWHERE' is not set; write $$ for a dollar sign"),
        ("\nlisten: $NOWHERE\n", "2: the environment variable 'NOWHERE' is not set; write $$ for a dollar sign"),
        ("listen: ${PORT\n", "1: '${PORT' is not a variable; write $$ for a dollar sign"),
        ("listen: 7420\n", "1: '7420' is not HOST:PORT, as in 127.0.0.1:7420"),
        ("listen: [a]\n", "1: a single value belongs here, not a list"),
        ("insecure: maybe\n", "1: true or false belongs here, not 'maybe'"),
        ("log-level: loud\n", "1: 'loud' is not a log level; they are debug, info, warning, error"),
        ("log-max-bytes: lots\n", "1: 'lots' is not a size, as in 256MiB"),
        ("log-max-age: 90\n", "1: '90' is not a duration, as in 90s or 1h30m"),
        ("dbs: /a.db\n", "1: a list belongs here, not a single value"),
        ("dbs:\n- /a.db\n", "2: a mapping belongs here, not a single value"),
        ("- a\n", "1: a mapping belongs here, not a list"),
        ("dbs:\n- name: a\n", "2: a database needs a 'path', or a 'dir' for all in a folder"),
        ("listen: a:1\nhttp: a:2\nlisten: a:3\n", "3: 'listen' is already in line 1"),
        ("tls:\n  cert: /c\n", "2: tls: 'cert' and 'key' go together"),
        ("tls:\n  client-auth: maybe\n", "2: required or none belongs here, not 'maybe'"),
        ("listen: 'a\n", "2: found unexpected end of stream"),
        (
            "dbs:\n- path: /a.db\n- path: /x/../a.db\n  name: b\n",
            "3: the path /a.db is already that of the one in line 2",
        ),
        (
            "dbs:\n- path: /a.db\n- path: /b/a.db\n",
            "3: the name a is already that of the one in line 2; give them different ones with 'name'",
        ),
        ("dbs:\n- path: /a\n  archive: /x\n  replica: {path: /y}\n", "4: 'archive' and 'replica': give one of them"),
        ("dbs:\n- path: /a\n  archive: gs://b/p\n", "3: archives of type 'gs' are not supported; file and s3 are"),
        (
            "dbs:\n- path: /a\n  replica:\n    type: sftp\n",
            "4: archives of type 'sftp' are not supported; file and s3 are",
        ),
        ("dbs:\n- path: /a\n  replica:\n    type: s3\n", "4: an archive in S3 needs a 'bucket' or a 'url'"),
        ("dbs:\n- path: /a\n  replica:\n    path: s3://b/p\n", "4: 'path' is a directory; give a URL as 'url'"),
        (
            "dbs:\n- path: /a\n  replica:\n    url: s3://b1b/p\n    bucket: b1b\n",
            "5: 'bucket' and 'url': give one of them",
        ),
        (
            "dbs:\n- path: /a\n  replicas:\n  - path: /x\n  - path: /y\n",
            "5: several replicas of one database are not supported; keep one",
        ),
        (
            "sse-kms-key-id: k\ndbs:\n- path: /a\n  archive: /x\n",
            "1: 'sse-kms-key-id' is for S3: an archive in a directory would not be encrypted",
        ),
        (
            "access-key-id: k\ndbs:\n- path: /a\n  archive: s3://bucket/p\n",
            "1: 'access-key-id' and 'secret-access-key' go together",
        ),
        (
            "dbs:\n- path: /a\n  replica: {type: s3, bucket: bucket, path: /app}\n",
            "3: '/app': slashes at an end or doubled are not supported here",
        ),
        ("tls: &a\n  <<: *a\n", "1: '<<' merges a mapping into itself"),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, text) == expected


def test_a_store_url_that_is_wrong_is_an_error_of_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path, "dbs:\n- path: /a\n  archive: s3://bucket/p?endpont=x\n")
    assert message.startswith("3: archive URL")
    assert "endpont" in message


def test_a_secret_is_not_in_an_error_nor_in_the_repr(tmp_path: Path) -> None:
    text = "access-key-id: ${KEY_ID}\nsecret-access-key: ${SECRET}\ndbs:\n- path: /a\n  archive: s3://bucket/p\n"
    assert "s3cr3t" not in repr(load(tmp_path, text))
    assert "s3cr3t" not in refused(tmp_path, text + "  nam: ${SECRET}\n")


def test_a_variable_cannot_change_the_structure(tmp_path: Path) -> None:
    config = load(tmp_path, "dbs:\n- path: /a/${SECRET}/$$x\n")
    assert config.dbs[0].path == Path("/a/s3cr3t: #x/$x")


def test_anchors_and_merges_work_as_in_yaml(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
dbs:
  - path: /a.db
    replica: &store {type: s3, bucket: backups, path: a, region: auto}
  - path: /b.db
    replica: {<<: *store, path: b}
""",
    )
    assert [db.archive for db in config.dbs] == [
        S3Spec("backups", "a", region="auto"),
        S3Spec("backups", "b", region="auto"),
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "dbs:\nlisten:\n", "dbs: []\n"])
def test_a_key_without_a_value_is_not_given(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    assert (config.dbs, config.listen) == ((), None)


def test_a_path_may_begin_at_home_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/app")
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, "dbs:\n- path: ~/app.db\n- path: here.db\n  archive: there\n")
    assert [db.path for db in config.dbs] == [Path("/home/app/app.db"), tmp_path / "here.db"]
    assert config.dbs[1].archive == DirectorySpec(tmp_path / "there")


def test_a_link_to_the_same_database_is_the_same_database(tmp_path: Path) -> None:
    (tmp_path / "app.db").touch()
    (tmp_path / "link.db").symlink_to("app.db")
    text = f"dbs:\n- path: {tmp_path}/app.db\n- path: {tmp_path}/link.db\n"
    assert refused(tmp_path, text) == f"3: the path {tmp_path}/app.db is already that of the one in line 2"


def test_the_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/somewhere")
    file = tmp_path / "walcast.yml"
    file.write_text("dbs: [{path: '${WHERE}/app.db'}]\n")
    assert load_config(file).dbs[0].path == Path("/somewhere/app.db")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yml: No such file"):
        load_config(tmp_path / "nowhere.yml")
    file = tmp_path / "bad.yml"
    file.write_bytes(b"listen: a:1\nhttp: \xff\n")
    with pytest.raises(ConfigError, match=r"bad\.yml:2: not UTF-8"):
        load_config(file)
    file.write_bytes(b"listen: \x00\n")
    with pytest.raises(ConfigError, match=r"bad\.yml"):
        load_config(file)
    file.write_bytes(os.urandom(1) * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(file)


def test_failover_is_read_as_the_flags_of_the_same_names(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """\
auto-failover: yes
lease-time: 1m30s
priority: -3
never-promote: true
max-lag: 0
advertise: 10.0.0.1:${PORT}
id: edge ${PORT}
app-url: https://edge-1.example.com
allowed-app-urls:
  - https://edge-1.example.com
  - "*.example.com"
insecure-app-url: true
""",
    )
    assert config.failover == FailoverConfig(
        True, 90.0, -3, True, 0.0, Address("10.0.0.1", 7420), "edge 7420",
        "https://edge-1.example.com", ("https://edge-1.example.com", "*.example.com"), True,
    )  # fmt: skip
    assert load(tmp_path, "listen: 127.0.0.1:1\n").failover == FailoverConfig()
    assert load(tmp_path, "priority:\n").failover == FailoverConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto-failover: perhaps\n", "1: true or false belongs here, not 'perhaps'"),
        ("lease-time: 10\n", "1: '10' is not a duration, as in 90s or 1h30m"),
        ("lease-time: 900ms\n", "1: a lease lasts 1 s to 3600 s, not 0.9 s"),
        ("\npriority: high\n", "2: 'high' is not a whole number"),
        ("max-lag: none\n", "1: 'none' is not a duration, as in 90s or 1h30m"),
        ("advertise: here\n", "1: 'here' is not HOST:PORT, as in 127.0.0.1:7420"),
        ('id: ""\n', "1: '' is not an id: 1 to 100 bytes, printable"),
        (
            "app-url: edge-1:8000\n",
            "1: 'edge-1:8000' is not where an app answers: http://HOST:PORT, or https, with a path at most",
        ),
        (
            "allowed-app-urls:\n  - https://ok.example\n  - ftp://x\n",
            "2: 'ftp://x' is no app URL that can be allowed: http or https with HOST[:PORT][/PREFIX], or HOST; "
            "HOST may begin with *.",
        ),
        ("allowed-app-urls: https://ok.example\n", "1: a list belongs here, not a single value"),
        ("autofailover: true\n", "1: unknown key 'autofailover'; did you mean 'auto-failover'?"),
    ],
)
def test_a_wrong_failover_key_names_the_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, text) == expected


def told(arguments: list[str], config: FailoverConfig) -> dict[str, Any]:
    """What a command with the flags of failover is left with."""
    found: dict[str, Any] = {}

    @click.command()
    @failover_flags
    def command(**flags: Any) -> None:
        found.update(flags_over_file(flags, config))

    command(arguments, standalone_mode=False)
    return found


def test_a_flag_wins_over_the_file_and_so_does_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    file = FailoverConfig(True, 20.0, 5, False, 7.0, Address("h", 1), "of the file", "http://h:2", ("h",), True)
    expected = {
        "auto_failover": True,
        "lease_time": 20.0,
        "priority": 5,
        "never_promote": False,
        "max_lag": 7.0,
        "advertise": "h:1",
        "follower_id": "of the file",
        "app_url": "http://h:2",
        "allowed_app_urls": ("h",),
        "insecure_app_url": True,
    }
    assert told([], file) == expected
    assert told(["--lease-time", "10", "--id", "mine"], file) == expected | {"lease_time": 10.0, "follower_id": "mine"}
    monkeypatch.setenv("WALCAST_PRIORITY", "0")
    assert told([], file) == expected | {"priority": 0}
    assert told(["--priority", "9"], FailoverConfig())["priority"] == 9


def test_a_check_shows_what_is_said_of_failover(tmp_path: Path) -> None:
    config = load(tmp_path, "lease-time: 5s\nadvertise: h:1\nauto-failover: false\n")
    assert facts(config)["failover"] == {"lease_time_s": 5.0, "advertise": "h:1", "auto_failover": False}
    assert facts(load(tmp_path, ""))["failover"] is None


def test_a_database_has_the_mode_that_its_file_is_made_with(tmp_path: Path) -> None:
    config = load(tmp_path, "dbs: [{path: /a.db, mode: 0640}, {path: /b.db, mode: '660'}, {path: /c.db}]\n")
    assert [one.mode for one in config.dbs] == [0o640, 0o660, None]


@pytest.mark.parametrize(
    "entry", ["path: /a.db, mode: 0755", "path: /a.db, mode: rw", "dir: /d, pattern: '*.db', mode: 0640"]
)
def test_a_mode_that_is_none_or_of_a_whole_folder_is_an_error_with_its_line(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match=r":2: "):
        load(tmp_path, f"dbs:\n- {{{entry}}}\n")
