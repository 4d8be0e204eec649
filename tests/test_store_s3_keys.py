"""The keys that requests are signed with, and those that objects are encrypted with."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.s3 import S3Server, moto_s3
from support.s3_answers import Answer, Request, captured, friendly, s3_error

from walcast.errors import ConfigError, Unavailable
from walcast.store import S3Spec, parse_url
from walcast.store.s3 import S3Store
from walcast.store.s3_retry import Bounds

KEY = bytes(range(32))
KEY_BASE64 = base64.b64encode(KEY).decode()
KEY_MD5 = base64.b64encode(hashlib.md5(KEY, usedforsecurity=False).digest()).decode()


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of whoever runs the tests."""
    for kind in ("AWS", "LITESTREAM"):
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.delenv(f"{kind}_{name}", raising=False)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "WALCAST_SSE_CUSTOMER_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id=DEFAULT\naws_secret_access_key=s\n"
        "[backups]\naws_access_key_id=PROFILE\naws_secret_access_key=s\n"
    )


# Who signs


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "DEFAULT"),
        ({"AWS_PROFILE": "backups"}, "PROFILE"),
        ({"LITESTREAM_ACCESS_KEY_ID": "LITE", "LITESTREAM_SECRET_ACCESS_KEY": "s"}, "LITE"),
        ({"LITESTREAM_ACCESS_KEY_ID": "LITE"}, "DEFAULT"),
        (
            {
                "LITESTREAM_ACCESS_KEY_ID": "LITE",
                "LITESTREAM_SECRET_ACCESS_KEY": "s",
                "AWS_ACCESS_KEY_ID": "AWS",
                "AWS_SECRET_ACCESS_KEY": "s",
            },
            "AWS",
        ),
        (
            {"LITESTREAM_ACCESS_KEY_ID": "LITE", "LITESTREAM_SECRET_ACCESS_KEY": "s", "AWS_PROFILE": "backups"},
            "PROFILE",
        ),
    ],
)
def test_the_environment_says_who_signs(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with captured(S3Spec("bucket"), keys=False) as (store, requests):
        store.put("a", b"", timestamp_ms=0)
    assert f"Credential={expected}/" in requests[0].headers["authorization"]
    with captured(S3Spec("bucket")) as (store, requests):
        store.put("a", b"", timestamp_ms=0)
    assert "Credential=AKIA/" in requests[0].headers["authorization"]


def test_a_session_token_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "TEMP"), ("SECRET_ACCESS_KEY", "s"), ("SESSION_TOKEN", "token")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with captured(S3Spec("bucket"), keys=False) as (store, requests):
        store.put("a", b"", timestamp_ms=0)
    assert requests[0].headers["x-amz-security-token"] == "token"


def test_a_profile_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "typo")
    with pytest.raises(ConfigError, match="typo"), captured(S3Spec("bucket"), keys=False):
        pass


def test_keys_that_change_in_their_file_are_taken_up_when_the_old_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "credentials"

    def answer(request: Request) -> Answer:
        old = "Credential=DEFAULT/" in request.headers["authorization"]
        return s3_error(403, "InvalidAccessKeyId") if old and "NEW" in file.read_text() else friendly(request)

    with captured(S3Spec("bucket"), answer, keys=False) as (store, requests):
        store.put("a", b"x", timestamp_ms=0)
        file.write_text("[default]\naws_access_key_id=NEW\naws_secret_access_key=s\naws_session_token=t\n")
        store.put("b", b"x", timestamp_ms=0)
        store.put("c", b"x", timestamp_ms=0)
    assert ["Credential=NEW/" in request.headers["authorization"] for request in requests] == [
        False,
        False,
        True,
        True,
    ]
    assert requests[-1].headers["x-amz-security-token"] == "t"


@pytest.mark.parametrize("text", ["", "[default]\naws_access_key_id=NEW\n"])
def test_a_file_that_is_half_written_changes_nothing(tmp_path: Path, text: str) -> None:
    def answer(request: Request) -> Answer:
        return s3_error(403, "AccessDenied")

    with captured(S3Spec("bucket"), answer, keys=False) as (store, requests):
        (tmp_path / "credentials").write_text(text)
        with pytest.raises(ConfigError):
            store.put("a", b"x", timestamp_ms=0)
    assert ["Credential=DEFAULT/" in request.headers["authorization"] for request in requests] == [True]


def test_credentials_that_come_after_the_first_try_are_found(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    text = file.read_text()
    file.unlink()
    with S3Store(parse_url("s3://bucket?endpoint=http://127.0.0.1:1"), Bounds(attempts=1)) as store:
        with pytest.raises(ConfigError, match="no credentials"):
            store.put("a", b"x", timestamp_ms=0)
        file.write_text(text)
        with pytest.raises(Unavailable):  # it signs, and there is nobody to send it to
            store.put("a", b"x", timestamp_ms=0)


# What encrypts

_PREFIX = "x-amz-server-side-encryption"
_CUSTOMER = {
    f"{_PREFIX}-customer-algorithm": "AES256",
    f"{_PREFIX}-customer-key": KEY_BASE64,
    f"{_PREFIX}-customer-key-md5": KEY_MD5,
}


@pytest.mark.parametrize(
    ("settings", "first", "others"),
    [
        ({}, {}, {}),
        ({"sse": "AES256"}, {_PREFIX: "AES256"}, {}),
        ({"sse": "aws:kms"}, {_PREFIX: "aws:kms"}, {}),
        ({"sse_kms_key_id": "alias/a"}, {_PREFIX: "aws:kms", f"{_PREFIX}-aws-kms-key-id": "alias/a"}, {}),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "alias/a"},
            {_PREFIX: "aws:kms", f"{_PREFIX}-aws-kms-key-id": "alias/a"},
            {},
        ),
        ({"sse_customer_key": KEY_BASE64}, _CUSTOMER, _CUSTOMER),
        ({"sse_customer_key": KEY_BASE64, "sse_customer_algorithm": "AES256"}, _CUSTOMER, _CUSTOMER),
    ],
)
def test_every_request_for_an_object_says_how_it_is_encrypted(
    settings: dict[str, str], first: dict[str, str], others: dict[str, str]
) -> None:
    def answer(request: Request) -> Answer:
        return Answer(body=b"x") if request.operation == "GET" else friendly(request)

    with captured(S3Spec("bucket", **settings), answer) as (store, requests):  # type: ignore[arg-type]
        store.put("small", b"x", timestamp_ms=0)
        store.put("big", io.BytesIO(bytes(9 << 20)), timestamp_ms=0)
        store.get("small")
        store.get("small", 3, 5)
        list(store.chunks("small"))
        store.check()
        store._honours = None
        store.honours_preconditions()
    for request in requests:
        said = {name: value for name, value in request.headers.items() if name.startswith(_PREFIX)}
        expected = {"PUT": first, "MULTIPART": first, "PART": others, "GET": others}.get(request.operation, {})
        assert said == expected, request.operation
    assert {"PUT", "MULTIPART", "PART", "GET"} <= {request.operation for request in requests}


@pytest.mark.parametrize("size", [5, 9 << 20])
def test_a_server_says_that_the_object_is_encrypted(moto: S3Server, size: int) -> None:
    for settings, expected in (
        ({"sse": "AES256"}, {"ServerSideEncryption": "AES256"}),
        ({"sse_kms_key_id": "alias/a"}, {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/a"}),
    ):
        spec = replace(moto.spec("sse"), storage_class="STANDARD_IA", **settings)
        with S3Store(spec) as store:
            store.put("a", io.BytesIO(bytes(size)), timestamp_ms=0)
            assert store.get("a") == bytes(size)
            head = store._client().head_object(Bucket=spec.bucket, Key="sse/a")
        assert {name: head[name] for name in expected} == expected  # type: ignore[literal-required]
        assert head["StorageClass"] == "STANDARD_IA"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sse": "aes"}, "sse is AES256 or aws:kms, not 'aes'"),
        ({"sse": "AES256", "sse_kms_key_id": "k"}, "leave one of them out"),
        ({"sse_customer_algorithm": "AES128"}, "sse-customer-algorithm is AES256, not 'AES128'"),
        ({"sse_customer_key": "top secret!"}, "is not base64"),
        ({"sse_customer_key": ""}, "holds 0 bytes, not 32"),
        ({"sse_customer_key": base64.b64encode(b"top secret!").decode()}, "holds 11 bytes, not 32"),
        ({"sse_customer_key": KEY_BASE64, "sse": "AES256"}, "excludes"),
        ({"sse_customer_key": KEY_BASE64, "sse_kms_key_id": "k"}, "excludes"),
        ({"sse_customer_key": KEY_BASE64, "endpoint": "http://s3.example.com"}, "in the clear"),
        ({"sse_customer_key": KEY_BASE64, "endpoint": "http://8.8.8.8:9000"}, "in the clear"),
    ],
)
def test_settings_that_contradict_each_other_say_so(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        S3Spec("bucket", **settings)  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    assert settings.get("sse_customer_key") or "secret" not in str(caught.value)
    assert KEY_BASE64 not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "10.1.2.3", "192.168.0.9:9000", "[::1]:9000"])
def test_a_key_may_go_to_a_server_nearby_without_tls(host: str) -> None:
    assert S3Spec("bucket", endpoint=f"http://{host}", sse_customer_key=KEY_BASE64).sse_customer_key


def test_the_key_is_never_shown_and_never_in_a_url() -> None:
    spec = S3Spec("bucket", "a", sse_customer_key=KEY_BASE64, sse_customer_algorithm="AES256")
    assert KEY_BASE64 not in spec.url + repr(spec) + repr(S3Store(spec))
    assert parse_url(spec.url) == replace(spec, sse_customer_key=None)
    for name in ("sse-customer-key", "sseCustomerKey"):
        for rest in ("", "&typo=1", "&endpoint=http://:x", "&a&b"):
            with pytest.raises(ConfigError) as caught:
                parse_url(f"s3://bucket/a?region=x&{name}={KEY_BASE64}{rest}")
            assert "sse-customer-key in the configuration file" in str(caught.value)
            assert KEY_BASE64 not in str(caught.value)


def test_encryption_in_a_url_survives_being_printed() -> None:
    spec = S3Spec("bucket", "a", sse="aws:kms", sse_kms_key_id="arn:aws:kms:eu-west-1:1:key/k-1")
    assert parse_url(spec.url) == spec
    assert parse_url("s3://bucket/a?sse=aws:kms&sseKmsKeyId=arn:aws:kms:eu-west-1:1:key/k-1") == spec
    assert parse_url("s3://bucket/a?sse=AES256") == S3Spec("bucket", "a", sse="AES256")
    ignored = "sseCustomerAlgorithm=AES256&sse-customer-key-md5=x"
    assert parse_url(f"s3://bucket/a?{ignored}") == S3Spec("bucket", "a", sse_customer_algorithm="AES256")


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="WALCAST_SSE_CUSTOMER_KEY"):
        S3Store(S3Spec("bucket", sse_customer_algorithm="AES256"))
    monkeypatch.setenv("WALCAST_SSE_CUSTOMER_KEY", KEY_BASE64)
    with captured(S3Spec("bucket")) as (store, requests):
        store.put("a", b"", timestamp_ms=0)
    assert requests[0].headers[f"{_PREFIX}-customer-key"] == KEY_BASE64
