"""Litestream's files: each key at each place, accepted as it is or refused for a reason; how archives are kept."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.folders import rows, serving, write

from walcast.errors import ConfigError
from walcast.store import S3Spec
from walcast_node.cli import main
from walcast_node.config.configuration import Config, load_config
from walcast_primary.archiving.compaction_schedule import ArchivePolicy

LITESTREAM = Path(sysconfig.get_path("scripts")) / "litestream"
KEY = base64.b64encode(bytes(range(32))).decode()
DAY_S = 86400.0


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "walcast.yml"
    file.write_text(text)
    return load_config(file, {"SECRET": "s3cr3t", "KEY": KEY})


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert "s3cr3t" not in message
    return message.removeprefix(f"{tmp_path / 'walcast.yml'}:")


# Both programs take these. What has no effect here is listed.
ACCEPTED = {
    "replica by path": ("dbs: [{path: /d/a.db, replica: {path: /b/a}}]", ""),
    "replica by URL": ("dbs: [{path: /d/a.db, replica: {url: 'file:///b/a'}}]", ""),
    "the list of one of 0.3": ("dbs: [{path: /d/a.db, replicas: [{name: x, url: 's3://bucket/a'}]}]", "name"),
    "a path as apps write it": ("dbs: [{path: 'sqlite3:///d/a.db', replica: {path: /b/a}}]", ""),
    "the process id": ("dbs: [{path: '/d/$PID.db', replica: {path: '/b/${PID}'}}]", ""),
    "providers by their URLs": (
        "dbs:\n"
        "- {path: /a, replica: {url: 's3://b-a/p?endpoint=https://x.r2.cloudflarestorage.com', sign-payload: true}}\n"
        "- {path: /b, replica: {url: 's3://b-b.nyc3.digitaloceanspaces.com/p'}}\n"
        "- {path: /c, replica: {url: 's3://b-c/p?endpoint=fly.storage.tigris.dev&region=auto', part-size: 8MiB}}\n"
        "- {path: /d, replica: {url: 's3://b-d.localhost:9000/p', concurrency: 4, require-content-md5: false}}\n",
        "sign-payload part-size concurrency require-content-md5",
    ),
    "defaults for all replicas": (
        "access-key-id: k\nsecret-access-key: s\nregion: eu-west-1\nendpoint: https://minio:9000\nbucket: bucket\n"
        "force-path-style: true\nskip-verify: true\nstorage-class: STANDARD_IA\nsync-interval: 10s\n"
        "auto-recover: true\naccount-name: a\nhost: h\nuser: u\nwebdav-url: w\nnkey: n\n"
        "dbs: [{path: /d/a.db, replica: {type: s3, path: p, max-sync-ltx-files: 5}}]",
        "sync-interval auto-recover account-name host user webdav-url nkey max-sync-ltx-files",
    ),
    "everything about the process": (
        "addr: ':9090'\nexec: app -v\nlogging: {level: debug, type: json, stderr: true}\nmcp-addr: ':3'\n"
        "socket: {enabled: true, path: /s, permissions: 0600}\nvalidation: {interval: 5m}\nverify-compaction: true\n"
        "l0-retention-check-interval: 15s\nshutdown-sync-timeout: 30s\nshutdown-sync-interval: 500ms\ndbs: []",
        "stderr mcp-addr socket validation verify-compaction l0-retention-check-interval shutdown-sync-interval",
    ),
    "everything about a database": (
        "dbs:\n- path: /d/a.db\n  meta-path: /m\n  monitor-interval: 1s\n  checkpoint-interval: 1m\n"
        "  busy-timeout: 1s\n  min-checkpoint-page-count: 1000\n  truncate-page-n: 10\n  max-sync-wal-bytes: 1000\n"
        "  restore-if-db-not-exists: true\n  recursive: false\n  snapshot: {interval: 1h, retention: 48h}\n"
        "  replica: {path: /b}",
        "meta-path monitor-interval checkpoint-interval busy-timeout min-checkpoint-page-count truncate-page-n "
        "max-sync-wal-bytes recursive",
    ),
    "how archives are kept": (
        "levels: [{interval: 1m}, {interval: 1h30m}]\nsnapshot: {interval: 12h, retention: 720h}\nl0-retention: 0\n"
        "retention: {enabled: false}\nheartbeat-url: https://example.com/ping\nheartbeat-interval: 10m\n"
        "dbs: [{path: /d/a.db, replica: {path: /b}}]",
        "",
    ),
    "a folder": (
        "dbs: [{dir: '{tmp}', pattern: '*.db', recursive: true, watch: true, meta-dir: /m, replica: {path: /b}}]",
        "meta-dir",
    ),
    "encryption": (
        f"sse-customer-key: {KEY}\nsse-customer-algorithm: AES256\n"
        "dbs: [{path: /d/a.db, replica: {url: 's3://bucket/a'}}]",
        "",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_litestream_takes_is_accepted_as_it_is(tmp_path: Path, case: str) -> None:
    text, ignored = ACCEPTED[case]
    config = load(tmp_path, text.replace("{tmp}", str(tmp_path)))
    assert [one.key.split(".")[-1] for one in config.ignored] == ignored.split()
    done = subprocess.run(
        [LITESTREAM, "databases", "-config", config.path], capture_output=True, text=True, check=False
    )
    if "dir:" not in text:  # `databases` does not know folders
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What would not be stored as the file says.
        ("dbs:\n- path: /a\n  replica: {url: 'gs://b/p'}\n", "3: archives of type 'gs' are not supported"),
        (
            "dbs:\n- path: /a\n  replica:\n    type: nats\n    bucket: b\n",
            "4: archives of type 'nats' are not supported",
        ),
        ("dbs:\n- path: /a\n  replica: {url: 'sftp://u:s3cr3t@h/p'}\n", "3: archives of type 'sftp' are not supported"),
        ("age: {recipients: [x]}\ndbs:\n- path: /a\n  replica: {path: /b}\n", "1: 'age' is not supported"),
        (f"dbs:\n- path: /a\n  archive: /b\nsse-customer-key: {KEY}\n", "4: 'sse-customer-key' is for S3"),
        ("dbs:\n- path: /a\n  replica: {url: 's3://bucket/p', sse: rot13}\n", "3: sse is AES256 or aws:kms"),
        ("dbs:\n- path: /a\n  replica: {url: 's3://bucket/p', sse-customer-key: x}\n", "3: sse-customer-key"),
        (
            "dbs:\n- path: /a\n  replica: {url: 's3://b-b/p', sse-customer-key-path: /no}\n",
            "3: cannot read the key in /no",
        ),
        ("dbs:\n- path: /a\n  archive: s3://bucket/p?secret-access-key=${SECRET}\n", "3: archive URL"),
        ("dbs:\n- path: /a\n  archive: s3://k:${SECRET}@bucket/p\n", "3: an archive URL holds no credentials"),
        # What Litestream refuses or reads as nanoseconds, and what it reads past.
        ("levels: [{interval: 0s}]\n", "1: '0s' is not a duration"),
        ("levels: [{interval: 30}]\n", "1: '30' is not a duration"),
        ("levels: [{}]\n", "1: a level needs an 'interval'"),
        ("snapshot: {interval: 0s}\n", "1: '0s' is not a duration"),
        ("l0-retention: -1s\n", "1: '-1s' is not a duration"),
        ("retention: 24h\n", "1: a mapping belongs here, not a single value"),
        ("heartbeat-url: ftp://x\n", "1: 'ftp://x' is nothing to ping"),
        ("snapshot: {retentoin: 1h}\n", "1: unknown key 'retentoin'; did you mean 'retention'?"),
        # What means nothing.
        ("levels: []\n", "1: 0 levels: there are 1 to 8"),
        (f"levels: [{', '.join(['{interval: 1s}'] * 9)}]\n", "1: 9 levels: there are 1 to 8"),
        ("levels:\n- interval: 5m\n- interval: 30s\n", "3: the interval of a level must be longer"),
        ("heartbeat-interval: 10ms\n", "1: a heartbeat at most every 1 s"),
        ("heartbeat-url: http://x/\ndbs:\n- path: /a\n  archive: /b\n- path: /c\n", "5: a heartbeat tells that every"),
    ],
)
def test_what_is_refused_has_a_line_and_a_reason(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(tmp_path, text).startswith(expected)


def test_the_file_says_how_archives_are_kept_and_a_database_for_itself(tmp_path: Path) -> None:
    assert load(tmp_path, "dbs: []").policy == ArchivePolicy(retention_s=7 * DAY_S)
    config = load(
        tmp_path,
        """\
levels: [{interval: 1m}, {interval: 90m}]
snapshot: {interval: 12h, retention: 24h}
l0-retention: 2m
retention: {enabled: false}
dbs:
- path: /a
- {path: /b, snapshot: {retention: 72h}}
- path: /c
  snapshot: {interval: 4h}
  replica: {path: /x, retention: 48h, snapshot-interval: 1h}
- {path: /e.d, snapshot: }
""",
    )
    top = ArchivePolicy((60.0, 5400.0), DAY_S / 2, DAY_S, 120.0, delete=False)
    assert config.policy == config.dbs[0].policy == config.dbs[3].policy == top
    assert config.dbs[1].policy == ArchivePolicy((60.0, 5400.0), DAY_S / 2, 3 * DAY_S, 120.0, delete=False)
    assert config.dbs[2].policy == ArchivePolicy((60.0, 5400.0), 4 * 3600.0, 2 * DAY_S, 120.0, delete=False)
    assert load(tmp_path, "l0-retention: 0s").policy.raw_retention_s == math.inf
    assert load(tmp_path, "retention: {enabled: true}").policy.delete


def test_encryption_goes_into_the_store(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"  {KEY}\n")
    config = load(
        tmp_path,
        f"""\
sse-customer-key: ${{KEY}}
dbs:
- {{path: /a, replica: {{url: 's3://bucket/a'}}}}
- {{path: /b, replica: {{url: 's3://bucket/b', sse-customer-key-path: {tmp_path}/key, sse-customer-algorithm: AES256}}}}
""",
    )
    assert config.dbs[0].archive == S3Spec("bucket", "a", sse_customer_key=KEY)
    assert config.dbs[1].archive == S3Spec("bucket", "b", sse_customer_key=KEY, sse_customer_algorithm="AES256")
    config = load(tmp_path, "dbs: [{path: /a, archive: 's3://bucket/a'}]\nsse-kms-key-id: arn:x\nsse: 'aws:kms'\n")
    assert config.dbs[0].archive == S3Spec("bucket", "a", sse="aws:kms", sse_kms_key_id="arn:x")


# `walcast config check`


def checked(*arguments: str | Path, exit_code: int = 0) -> str:
    done = CliRunner().invoke(main, ["config", "check", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done.stdout


def test_check_shows_no_secret_of_a_command(tmp_path: Path) -> None:
    write(tmp_path / "a.db", 1)
    file = tmp_path / "walcast.yml"
    for command in ("APP_PASSWORD=s3cr3t app", "sh -c 'APP_PASSWORD=s3cr3t app'"):  # the first is no program
        file.write_text(f'exec: "{command}"\ndbs: [{{path: {tmp_path}/a.db}}]\n')
        done = CliRunner().invoke(main, ["config", "check", str(file)])
        assert "exec: " in done.output
        assert "s3cr3t" not in done.output


def test_check_prints_what_was_understood_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    write(tmp_path / "data" / "a.db", 1)
    write(tmp_path / "data" / "sub" / "b.db", 1)
    (tmp_path / "data" / "empty.db").touch()
    file = tmp_path / "walcast.yml"
    file.write_text(
        f"""\
listen: 127.0.0.1:7
socket: {{enabled: true}}
heartbeat-url: https://example.com/ping/${{SECRET}}?token=${{SECRET}}
access-key-id: id-${{SECRET}}
secret-access-key: ${{SECRET}}
sse-customer-key: {KEY}
dbs:
- path: {tmp_path}/data/a.db
  archive: s3://bucket/a
  snapshot: {{retention: 36h}}
- path: {tmp_path}/missing.db
  archive: s3://bucket/b
- dir: {tmp_path}/data
  pattern: '*.db'
  recursive: true
  watch: true
  archive: s3://bucket/all
- path: {tmp_path}/none/*.db
  archive: s3://bucket/none
"""
    )
    text = checked(file, exit_code=1)  # of what is missing
    facts = json.loads(checked(file, "--json", exit_code=1))
    for said in (text, json.dumps(facts)):
        assert "s3cr3t" not in said
        assert KEY not in said
        assert "https://example.com/***" in said
    one, missing = facts["databases"]
    assert one["archive"] == "s3://bucket/a"
    assert one["secret_access_key"] == one["access_key_id"] == one["sse_customer_key"] == "***"
    assert one["policy"]["retention_s"] == 36 * 3600
    assert "no such file" in missing["problem"]
    folder, none = facts["folders"]
    [found] = folder["databases"]  # a.db is listed by itself
    assert (found["name"], found["archive"]) == ("sub/b", "s3://bucket/all/sub/b.db")
    assert folder["waiting"] == [f"{tmp_path}/data/empty.db"]
    assert "No such file" in none["problem"]
    assert facts["ignored"] == [{"key": "socket", "line": 2}]
    shown = yaml.safe_load(text)
    assert shown["databases"][0]["policy"]["retention"] == "1d12h"
    assert shown["databases"][0]["policy"]["level-intervals"] == ["30s", "5m", "1h"]
    assert shown["ignored"] == [{"key": "socket", "line": 2}]


def test_check_fails_in_one_line_that_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text("dbs:\n- pth: /a\n")
    done = CliRunner().invoke(main, ["config", "check", str(file)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"error: {file}:2: unknown key 'pth'; did you mean 'path'?\n"


def test_a_missing_database_is_restored_before_it_is_served(tmp_path: Path) -> None:
    write(tmp_path / "app.db", 1, 2)
    file = tmp_path / "walcast.yml"
    file.write_text(f"dbs: [{{path: {tmp_path}/app.db, archive: {tmp_path}/b, restore-if-db-not-exists: true}}]\n")
    with serving(file) as node:
        node.wait_event("archived a snapshot")
        assert node.stop() == 0
    for path in tmp_path.glob("app.db*"):
        if path.is_file():
            path.unlink()
    with serving(file) as node:
        assert rows(tmp_path / "app.db") == [1, 2]
        assert node.stop() == 0
