"""Whatever is wrong between a store and its S3 server, the error says in one line what to change."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.s3 import KEY_ID, SECRET, S3Server, moto_s3, rclone_s3
from support.s3_answers import HANG_UP, Answer, Request, answering, captured, certificate, friendly, s3_error

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store import ObjectMissing, S3Spec, Store, open_store
from walcast.store.s3 import S3Store
from walcast.store.s3_retry import Bounds

ONCE = Bounds(connect_s=1, read_s=1, attempts=1)
HTML = b"<!doctype html><html><body>Welcome to nginx</body></html>"
XHTML = b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><body>Log in</body></html>"


def put(store: Store) -> None:
    store.put("a", b"x", timestamp_ms=0)


def get(store: Store) -> None:
    store.get("a")


def listing(store: Store) -> None:
    list(store.list())


def delete(store: Store) -> None:
    store.delete(["a", "b"])


def said_by(store: Store, operation: Callable[[Store], None]) -> WalcastError:
    """The error, which is one line and holds no secret."""
    with pytest.raises(WalcastError) as caught:
        operation(store)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    assert SECRET not in text
    return caught.value


def put_parts(store: Store) -> None:
    store.put("a", bytes(9 << 20), timestamp_ms=0)


ALL = (put, get, listing, delete)


@pytest.mark.parametrize(
    ("answer", "kind", "operations", "advice"),
    [
        (s3_error(404, "NoSuchBucket"), ConfigError, ALL, "'archive' at http://127.0.0.1:PORT does not exist: create"),
        (s3_error(403, "InvalidAccessKeyId"), ConfigError, ALL, "does not know the access key"),
        (s3_error(403, "SignatureDoesNotMatch"), ConfigError, ALL, "correct access-key-id and secret-access-key"),
        (s3_error(400, "ExpiredToken"), ConfigError, ALL, "no longer takes the session token (ExpiredToken): renew"),
        (
            s3_error(403, "RequestTimeTooSkewed", ServerTime="2026-01-01T00:00:00Z"),
            ConfigError,
            ALL,
            "set this host's clock; it is 2026-01-01T00:00:00Z there",
        ),
        (
            s3_error(403, "AccessDenied", headers={"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}),
            ConfigError,
            ALL,
            "set this host's clock; it is",
        ),
        (s3_error(403, "AccessDenied"), ConfigError, [listing], "may not list what is in bucket 'archive'"),
        (s3_error(403, "AccessDenied"), ConfigError, [listing], "allow s3:ListBucket"),
        (s3_error(403, "AccessDenied"), ConfigError, [put], "may not write a in bucket 'archive'"),
        (s3_error(403, "AccessDenied"), ConfigError, [put], "allow s3:PutObject"),
        (s3_error(403, "AccessDenied"), ConfigError, [get], "allow s3:GetObject"),
        (s3_error(403, "AccessDenied"), ConfigError, [delete], "allow s3:DeleteObject"),
        (
            s3_error(400, "AuthorizationHeaderMalformed", Region="eu-central-1"),
            ConfigError,
            ALL,
            "is in another region (AuthorizationHeaderMalformed): set region=eu-central-1",
        ),
        (s3_error(301, "PermanentRedirect"), ConfigError, ALL, "set the right region=…"),
        (
            Answer(301, HTML, {"Location": "https://127.0.0.1/x"}),
            ConfigError,
            ALL,
            "go to https://127.0.0.1/x, so it is no S3",
        ),
        (Answer(302, b"", {"Location": "/login"}), ConfigError, ALL, "go to /login, so it is no S3"),
        (Answer(200, HTML), ConfigError, [put, put_parts, listing], "no S3 server: correct the endpoint"),
        (Answer(200, XHTML), ConfigError, [listing], "no S3 server: correct the endpoint"),
        (Answer(200, b""), ConfigError, [listing], "no S3 server: correct the endpoint"),
        (Answer(200, b'{"ok": true}'), ConfigError, [put, listing], "no S3 server: correct the endpoint"),
        (Answer(404, HTML), ConfigError, [put, listing, delete], "no S3 server: correct the endpoint"),
        (Answer(405, HTML), ConfigError, ALL, "no S3 server: correct the endpoint"),
        (
            Answer(400, b"Client sent an HTTP request to an HTTPS server.\n"),
            ConfigError,
            ALL,
            "write endpoint=https://",
        ),
        (s3_error(501, "NotImplemented", "A header"), ConfigError, ALL, "(NotImplemented): A header"),
        (
            s3_error(400, "InvalidStorageClass", "The storage\nclass"),
            ConfigError,
            [put],
            "(InvalidStorageClass): The stor",
        ),
        (s3_error(404, "NoSuchKey"), ObjectMissing, [get], "a is not in the archive"),
        (Answer(404, b""), ObjectMissing, [get], "a is not in the archive"),
        (s3_error(503, "SlowDown"), Unavailable, ALL, "asks to try later (SlowDown)"),
        (s3_error(500, "InternalError"), Unavailable, ALL, "is in trouble (InternalError)"),
        (Answer(502, HTML), Unavailable, ALL, "is in trouble (502)"),
        (s3_error(409, "OperationAborted"), Unavailable, ALL, "asks to try later"),
        (HANG_UP, Unavailable, ALL, "if it stays so, check the endpoint and whether it has TLS"),
    ],
)
def test_an_answer_says_what_to_change(
    answer: Answer, kind: type[WalcastError], operations: list[Callable[[Store], None]], advice: str
) -> None:
    with answering(lambda _: answer) as (endpoint, _), S3Store(S3Server(endpoint).spec(), ONCE) as store:
        for operation in operations:
            error = said_by(store, operation)
            assert type(error) is kind or (kind is ConfigError and isinstance(error, ConfigError)), error
            assert advice.replace("PORT", endpoint.rpartition(":")[2]) in str(error)


def test_keys_that_are_not_in_the_configuration_are_named_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with answering(lambda _: s3_error(403, "InvalidAccessKeyId")) as (endpoint, _):
        spec = replace(S3Server(endpoint).spec(), access_key_id=None, secret_access_key=None)
        with S3Store(spec, ONCE) as store:
            assert "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(said_by(store, listing))


def test_one_key_that_may_not_be_deleted_is_named_and_does_not_keep_the_others() -> None:
    keys = [f"k{number:03d}" for number in range(250)]

    def answer(request: Request) -> Answer:
        if b"k007" in request.body:
            denied = "<Error><Key>db/k007</Key><Code>AccessDenied</Code><Message>held</Message></Error>"
            return Answer(body=f"<DeleteResult>{denied}</DeleteResult>".encode())
        return friendly(request)

    with captured(S3Spec("bucket", "db"), answer) as (store, requests):
        error = said_by(store, lambda store: store.delete(keys))
    assert isinstance(error, ConfigError)
    assert "may not delete k007" in str(error)
    assert "s3:DeleteObject" in str(error)
    assert sum(request.body.count(b"<Key>") for request in requests) == len(keys)
    trouble = b"<DeleteResult><Error><Key>db/k1</Key><Code>InternalError</Code></Error></DeleteResult>"
    with captured(S3Spec("bucket", "db"), lambda _: Answer(body=trouble)) as (store, _):
        assert type(said_by(store, lambda store: store.delete(["k1"]))) is Unavailable


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_a_server_that_deletes_no_list_of_keys_is_asked_to_delete_one_by_one(status: int, code: str) -> None:
    def answer(request: Request) -> Answer:
        if request.method == "POST":
            return s3_error(status, code)
        return s3_error(404, "NoSuchKey") if request.url.endswith("k1") else Answer(204)

    with captured(S3Spec("bucket", "db"), answer) as (store, requests):
        store.delete(["k0", "k1", "k2"])
        store.delete(["k3"])  # it was learned
    assert [request.method for request in requests] == ["POST", *["DELETE"] * 4]
    assert [request.url[-2:] for request in requests[1:]] == ["k0", "k1", "k2", "k3"]


def test_who_may_delete_nothing_is_told_so_after_one_try_of_each_way() -> None:
    with captured(S3Spec("bucket", "db"), lambda _: s3_error(403, "AccessDenied")) as (store, requests):
        assert isinstance(said_by(store, lambda store: store.delete(["k0", "k1", "k2"])), ConfigError)
    assert [request.method for request in requests] == ["POST", "DELETE"]


def test_a_check_names_the_permission_that_is_missing() -> None:
    for operation, action in (("LIST", "list"), ("PUT", "write"), ("DELETE", "delete")):

        def answer(request: Request, denied: str = operation) -> Answer:
            return s3_error(403, "AccessDenied") if request.operation == denied else friendly(request)

        with captured(S3Spec("bucket", "db"), answer) as (store, _):
            assert f"may not {action}" in str(said_by(store, lambda store: store.check()))


# Endpoints where no S3 is


def test_nobody_listening_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with S3Store(S3Server(f"http://127.0.0.1:{taken.getsockname()[1]}").spec(), ONCE) as store:
            error = said_by(store, listing)
    assert type(error) is Unavailable
    assert "Connection refused" in str(error)


def test_an_unknown_host_says_so() -> None:
    with S3Store(S3Server("http://no-such-host.invalid").spec(), ONCE) as store:
        error = said_by(store, listing)
    assert type(error) is Unavailable
    assert "http://no-such-host.invalid" in str(error)


# TLS, with a real server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    with rclone_s3(folder / "s3", tls=certificate(folder)) as server:
        yield server, certificate(folder)


@pytest.fixture(autouse=True)
def no_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def test_a_certificate_of_an_own_authority_is_taken_when_that_is_given(tls: tuple[S3Server, Path]) -> None:
    server, ca = tls
    for spec in (replace(server.spec(), ca_bundle=str(ca)), replace(server.spec(), skip_verify=True)):
        with S3Store(spec, ONCE) as store:
            store.check()
            store.put("a", b"over TLS", timestamp_ms=0)
            assert store.get("a") == b"over TLS"


def test_a_certificate_that_nobody_vouches_for_says_so(tls: tuple[S3Server, Path]) -> None:
    with S3Store(tls[0].spec(), Bounds(attempts=3)) as store:
        error = said_by(store, listing)
    assert isinstance(error, ConfigError)
    assert "give its CA as ca-bundle=FILE" in str(error)
    assert "self-signed" in str(error)


def test_a_certificate_of_another_host_says_so(tls: tuple[S3Server, Path]) -> None:
    server, ca = tls
    spec = replace(server.spec(), endpoint=server.endpoint.replace("127.0.0.1", "localhost"), ca_bundle=str(ca))
    with S3Store(spec, ONCE) as store:
        error = said_by(store, listing)
    assert isinstance(error, ConfigError)
    assert "localhost" in str(error)


def test_plain_http_to_a_tls_port_says_so(tls: tuple[S3Server, Path]) -> None:
    spec = replace(tls[0].spec(), endpoint=tls[0].endpoint.replace("https:", "http:"))
    with S3Store(spec, ONCE) as store:
        error = said_by(store, listing)
    # It either says so or only hangs up, which other TLS servers do.
    assert "write endpoint=https://" in str(error) if isinstance(error, ConfigError) else "has TLS" in str(error)


def test_a_bundle_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("not a certificate")
    for name, reason in (("missing.pem", "No such file"), ("empty.pem", "no PEM file")):
        spec = replace(S3Server("https://127.0.0.1:1").spec(), ca_bundle=str(tmp_path / name))
        with S3Store(spec, ONCE) as store:
            error = said_by(store, listing)
        assert isinstance(error, ConfigError)
        assert f"{tmp_path / name} cannot be used ({reason}" in str(error)


# Real refusals: moto checks signatures and permissions


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[S3Server, str, str]]:
    """A server that knows one user, who may only put objects; with that user's keys."""
    import boto3
    from moto.core.authorization import enable_iam_authentication

    with moto_s3() as server:
        keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=server.endpoint, **keys)
        allowed = {"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject"], "Resource": "*"}
        user = f"writer-{os.urandom(4).hex()}"  # moto remembers its users for as long as the process lives
        iam.create_user(UserName=user)
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName=user, PolicyName="put", PolicyDocument=policy)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        iam.close()
        with enable_iam_authentication():
            yield server, made["AccessKeyId"], made["SecretAccessKey"]


@pytest.mark.parametrize(
    ("key_id", "secret", "operation", "advice"),
    [
        ("AKIAUNKNOWN", None, put, "(InvalidAccessKeyId): correct access-key-id"),
        (None, "wrong", put, "(SignatureDoesNotMatch): correct access-key-id"),
        (None, None, listing, "may not list"),
        (None, None, delete, "may not delete"),
    ],
)
def test_a_refusal_of_a_server_that_checks_says_what_to_change(
    guarded: tuple[S3Server, str, str],
    key_id: str | None,
    secret: str | None,
    operation: Callable[[Store], None],
    advice: str,
) -> None:
    server, good_id, good_secret = guarded
    right = replace(server.spec(), access_key_id=good_id, secret_access_key=good_secret)
    with open_store(right) as store:
        put(store)
        assert store.get("a") == b"x"
    wrong = replace(right, access_key_id=key_id or good_id, secret_access_key=secret or good_secret)
    with open_store(wrong) as store:
        error = said_by(store, operation)
    assert isinstance(error, ConfigError)
    assert advice in str(error)
    assert good_secret not in str(error)
