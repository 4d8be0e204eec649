"""A secret from outside is in no error, log line, `repr` or status, however its URL is mistyped."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest
from botocore.exceptions import HTTPClientError
from click.testing import CliRunner
from support.folders import write

from walcast.appurl import check_app_url
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.redaction import redact, shown_origin, shown_url
from walcast.secret import Secret, SecretBytes
from walcast.store import S3Spec, parse_url
from walcast.store.s3_errors import translate
from walcast.store.url import normal_endpoint
from walcast.web.options import Options
from walcast.wire import Address
from walcast_node.cli import main
from walcast_node.commands.config import facts
from walcast_node.config.configuration import load_config
from walcast_node.config.settings import DatabaseSettings, HeartbeatSettings
from walcast_node.process.logs import Human, Json
from walcast_node.process.ping import check_url, ping

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PARTS = ("wJalrXUtnFEMI", "K7MDENG", "bPxRfiCYEXAMPLEKEY")

MISTYPED = [
    "s3://AKIA:{}@bucket/p",
    "S3://AKIA:{}@bucket/p",
    "s3:/AKIA:{}@bucket/p",
    "s3:AKIA:{}@bucket/p",
    "s3//AKIA:{}@bucket/p",
    "s3 ://AKIA:{}@bucket/p",
    "s3:\\\\AKIA:{}@bucket",
    "htps://AKIA:{}@host",
    "gs://AKIA:{}@bucket",
    "AKIA:{}@bucket/p",
    "//AKIA:{}@bucket/p",
    "s3://AKIA:{}/bucket",
    "s3://AKIA:{}",
    "s3://AKIA@{}",
    "s3://[AKIA:{}@bucket",
    "s3://[AKIA:{}",
    "s3://bucket\u2100:{}@x",
    "s3://bucket/p?access_key=AK&secret={}",
    "s3://bucket/p?region=eu&secret-access-key={}",
    "s3://bucket/p?secret={}&secret={}",
    "s3://bucket/p?{}",
    "s3://bucket/p&secret={}",
    "s3://bucket/p;secret={}",
    "s3://bucket/p#secret={}",
    "s3://bucket/p?sse={}",
    "s3://bucket/p?sse-customer-algorithm={}",
    "s3://bucket/p?sse_customer_key={}",
    "s3://bucket/p?endpoint=https://AKIA:{}@host",
    "s3://bucket/p?endpoint=https://AKIA:{}",
    "s3://bucket/p?endpoint=https://host/?key={}",
    "s3://bucket/p?path-style=x&token={}",
    "file://AKIA:{}@host/p",
    "file:///p?secret={}",
    "https://host/p?X-Amz-Signature={}",
]
CASES = [case.format(SECRET, SECRET) for case in MISTYPED]
CASES += [quote(case, safe="") for case in CASES] + [quote(case, safe=":/?&=") for case in CASES]
CASES += [quote(quote(case)) for case in CASES[: len(MISTYPED)]]


def told(text: str) -> None:
    """No part of the secret, as it is or percent-encoded."""
    assert not [part for part in PARTS if part in text], text


def error_of(url: str) -> str:
    """What is said of it by everything that takes a URL or an address, with the tracebacks."""
    said: list[str] = []
    for parse in (parse_url, normal_endpoint, check_app_url, Address.parse, lambda text: check_url(Secret(text))):
        try:
            parse(url)
        except WalcastError as error:
            said += [str(error), repr(error), "".join(traceback.format_exception(error))]
    return "\n".join(said)


@pytest.mark.parametrize("url", CASES)
def test_a_url_is_shown_without_what_is_secret_however_it_is_mistyped(url: str) -> None:
    told(shown_url(url))
    told(shown_origin(url))
    for text in (
        url,
        repr(url),
        f"cannot use {url}: why",
        f"cannot use {url!r}: why",
        f'{{"url": "{url}"}}',
        f"url={url}",
    ):
        told(redact(text))
    told(error_of(url))


def test_what_a_url_of_an_archive_says_otherwise_is_shown() -> None:
    for url in (
        "s3://bucket/a/b?endpoint=https://localhost:9000&region=eu-west-1&path-style=true&sse=aws:kms",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/name/p",
        "s3://bucket.localhost:9000/year=2026/p",
        "file:///srv/me@home/app",
        "/srv/me@home/app",
    ):
        assert shown_url(url) == repr(url)
        assert redact(f"cannot use {url}") == f"cannot use {url}"
    assert "10.0.0.1:7420" in redact("follower a@b at 10.0.0.1:7420 txid=3: write http://HOST:PORT, or http://[::1]:80")
    assert "***" not in redact("follower a@b at 10.0.0.1:7420 txid=3: write http://HOST:PORT, or http://[::1]:80")


@pytest.mark.parametrize("path", ["AKIA:key@bucket", "s3//bucket", "s4:bucket/p", "S3:bucket"])
def test_a_mistyped_url_is_no_directory(path: str) -> None:
    with pytest.raises(ConfigError):
        parse_url(path)


@pytest.mark.parametrize("path", ["./a:b", "/a:b/c@d", "backup/s3", "s3/backup", "a/b:c"])
def test_a_directory_may_have_a_colon_where_no_scheme_would_be(path: str) -> None:
    assert parse_url(path).path == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/x",
        f"https://host:{SECRET}/x",
        f"htps://host/{SECRET}",
        f"https:/host/{SECRET}",
        f"host/{SECRET}",
        f"https://host/{SECRET} \n",
        f"https://host/\u00e9{SECRET}",
        f"https://[host/{SECRET}",
        f"https://host/?token={SECRET}",
        f"https://127.0.0.1:1/{SECRET}",
    ],
)
def test_of_a_url_to_ping_at_most_the_host_is_shown(url: str) -> None:
    try:
        ping(Secret(url))
    except (ConfigError, Unavailable) as error:
        told("".join(traceback.format_exception(error)))
    told(repr(HeartbeatSettings(Secret(url), 1.0)) + str(HeartbeatSettings(Secret(url), 1.0)))


def test_a_secret_shows_itself_to_nobody_who_does_not_ask_for_it() -> None:
    secret = Secret(SECRET)
    spec = S3Spec("bucket", access_key_id=secret, secret_access_key=Secret(SECRET))
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret!r:>80}", repr([secret]), repr(spec)):
        told(shown)
    told(json.dumps(asdict(spec), default=str))
    told(repr(copy.deepcopy(spec)))
    with pytest.raises(TypeError):
        pickle.dumps(spec)
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert secret.reveal() == SECRET
    assert secret == Secret(SECRET) != Secret("other")
    told(repr(Options.of(secret=SECRET)) + repr(Options.of(secret=[SECRET, "x"]).secrets))
    key = Options.of(secret=SECRET).secrets[0]
    assert isinstance(key, SecretBytes)
    assert str(bytes(key)) not in repr(Options.of(secret=SECRET)) + f"{key} {key!r}"
    told(repr(DatabaseSettings(Path("/a"), "a", f"s3://AKIA:{SECRET}@b")))


TOP = "listen http heartbeat-url heartbeat-interval log-level log-max-bytes log-max-age scrub-mb-per-s app-url id"
TOP += " advertise priority lease-time max-lag insecure auto-failover force-path-style endpoint l0-retention tls region"
VALUES = [
    "{}",
    "x{}",
    "s3://{}@b",
    "s3://k:{}@b",
    "https://h:{}",
    "s3://b/p?x={}",
    "{}://x",
    "{}:99999",
    "http://h/{}?a",
]


@pytest.mark.parametrize("value", VALUES)
def test_no_error_of_a_configuration_file_has_what_a_variable_holds(tmp_path: Path, value: str) -> None:
    file = tmp_path / "walcast.yml"
    lines = [f"{key}: '{value.format('${NAME}')}'" for key in TOP.split()]
    replica = value.format("${NAME}")
    lines += [f"dbs: [{{path: /a, {key}: '{replica}'}}]" for key in ("archive", "name", "watch", "recursive")]
    lines += [
        f"dbs: [{{path: /a, replica: {{{k}: '{replica}'}}}}]" for k in ("url", "type", "bucket", "path", "sse", "age")
    ]
    lines += [f"sse-customer-key: '{replica}'\ndbs: [{{path: /a, archive: 's3://b'}}]"]
    lines += [f"sse: '{replica}'\ndbs: [{{path: /a, archive: 's3://b'}}]"]
    for held in (SECRET, "A\\'B\"" + SECRET, SECRET + "\n", "%2F" + SECRET, SECRET.lower()):
        for line in lines:
            file.write_text(line)
            try:
                config = load_config(file, {"NAME": held})
            except ConfigError as error:
                said = "".join(traceback.format_exception(error)).lower()
                assert not [part for part in PARTS if part.lower() in said], (line, said)
            else:
                told(repr(config.heartbeat_url))


@pytest.mark.parametrize("line", ["secret-access-key: *{}", "a: !{}!x y", "secret-access-key: {{{}", "x: &{} [*{}"])
def test_a_value_that_is_no_yaml_is_not_quoted(tmp_path: Path, line: str) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(line.format(PARTS[0], PARTS[1]))
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    told("".join(traceback.format_exception(caught.value)))


def test_config_check_shows_that_there_are_secrets_and_none_of_them(tmp_path: Path) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(
        f"access-key-id: {SECRET}\nsecret-access-key: {SECRET}\nheartbeat-url: https://host/{SECRET}\n"
        f"dbs:\n- path: {tmp_path}/a.db\n  archive: s3://bucket/a\n"
    )
    told(json.dumps(facts(load_config(file, {}))))


@pytest.mark.parametrize(
    "said",
    [
        f"Invalid header value b'AWS4-HMAC-SHA256 Credential=AKIA/2026, Signature={SECRET}\\n'",
        f"Invalid header value b'{SECRET}\\n'",
        f"illegal header line: bytearray(b'Set-Cookie sid={SECRET}')",
        f"Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={SECRET}",
        f"custom-process: {{'SecretAccessKey': '{SECRET}'}}",
        f'custom-process: {{"SessionToken": "{SECRET}", "Version": 1}}',
        f"aws_secret_access_key = {SECRET}",
        f"Could not connect to https://host/b?X-Amz-Security-Token={SECRET}&x",
        f"Could not connect to https://AKIA:{SECRET}@host/b",
        f"the key {SECRET} is not welcome",
    ],
)
def test_what_a_store_or_its_library_says_comes_without_keys(said: str) -> None:
    spec = S3Spec("bucket", access_key_id=Secret("AKIA" * 5), secret_access_key=Secret(SECRET))
    error = translate(HTTPClientError(error=said), spec if "welcome" in said else S3Spec("bucket"), "a", "read")
    assert isinstance(error, Unavailable)
    told(str(error))


def test_a_session_token_with_a_line_end_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """http.client refuses the header, and quotes it."""
    for name, value in {"ACCESS_KEY_ID": "AKIA", "SECRET_ACCESS_KEY": "x", "SESSION_TOKEN": SECRET + "\n"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    from walcast.store import open_store

    with open_store("s3://bucket/p?endpoint=http://127.0.0.1:1") as store, pytest.raises(WalcastError) as caught:
        store.get("a")
    told(str(caught.value))


@pytest.mark.parametrize("formatter", [Human(), Json()], ids=["text", "json"])
def test_no_log_line_has_a_url_with_a_password_nor_does_its_traceback(formatter: logging.Formatter) -> None:
    url = f"s3://AKIA:{SECRET}@bucket"
    try:
        raise ValueError(url)
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord("walcast", logging.DEBUG, "x.py", 1, f"cannot use {url}", None, caught)
    record.url, record.spec = url, {"archive": [url]}
    told(formatter.format(record))


@pytest.mark.parametrize(
    "command",
    [
        "ls URL",
        "ls x URL",
        "URL",
        "restore URL -o x",
        "snapshot URL DB",
        "snapshot DB URL",
        "snapshot DB DIR --ping-url PING",
        "primary URL",
        "primary DB URL",
        "primary DB --listen URL",
        "primary DB --app-url URL",
        "primary DB DIR --heartbeat-url PING",
        "primary DB --lease-time URL",
        "primary DB --URL",
        "follower DB --primary URL",
        "follower DB --primary URL --archive URL",
        "follower DB --primary 127.0.0.1:1 --advertise URL",
        "drill --archive URL",
        "status URL",
        "verify URL",
        "wait URL 5",
        "config check URL",
    ],
)
def test_no_command_repeats_a_secret_from_its_command_line(tmp_path: Path, command: str) -> None:
    write(tmp_path / "app.db", 1)
    words = {
        "URL": f"s3:/AKIA:{SECRET}@bucket/p",
        "PING": f"htps://host/{SECRET}",
        "DB": str(tmp_path / "app.db"),
        "DIR": str(tmp_path / "archive"),
    }
    arguments = [words.get(word, word.replace("--URL", f"--{words['URL']}")) for word in command.split()]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code != 0
    told(done.output + done.stderr)
