"""Which URL a request goes to, and with which headers, for every way to name a bucket. Nothing is sent."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from support.s3_answers import Answer, Request, captured, friendly, s3_error

from walcast.errors import ConfigError
from walcast.store import S3Spec, parse_url
from walcast.store.s3_client import from_environment


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")


def s3(url: str) -> S3Spec:
    spec = parse_url(url)
    assert isinstance(spec, S3Spec)
    return spec


def sent(url: str) -> str:
    """Where the object `k` of an archive URL goes."""
    with captured(s3(url)) as (store, requests):
        store.put("k", b"x", timestamp_ms=0)
    return requests[0].url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        # AWS
        ("s3://bucket/p", "https://bucket.s3.amazonaws.com/p/k"),
        ("s3://bucket", "https://bucket.s3.amazonaws.com/k"),
        ("s3://bucket/p?region=eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com/p/k"),
        ("s3://bucket/p?region=eu-west-1&path-style=true", "https://s3.eu-west-1.amazonaws.com/bucket/p/k"),
        ("s3://bucket/p?region=cn-north-1", "https://bucket.s3.cn-north-1.amazonaws.com.cn/p/k"),
        # A wildcard certificate covers one label, so a bucket with dots goes into the path.
        ("s3://my.bucket.org/p?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com/my.bucket.org/p/k"),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/p",
            "https://name-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/p/k",
        ),
        # Others: path style, as Litestream has it, unless told otherwise
        (
            "s3://bucket/p?endpoint=s3.us-west-002.backblazeb2.com",
            "https://s3.us-west-002.backblazeb2.com/bucket/p/k",
        ),
        ("s3://bucket/p?endpoint=https://s3.example.com", "https://s3.example.com/bucket/p/k"),
        ("s3://bucket/p?endpoint=http://s3.example.com", "http://s3.example.com/bucket/p/k"),
        ("s3://bucket/p?endpoint=https://s3.example.com/", "https://s3.example.com/bucket/p/k"),
        ("s3://bucket/p?endpoint=s3.example.com:8443", "https://s3.example.com:8443/bucket/p/k"),
        ("s3://bucket/p?endpoint=s3.example.com&path-style=false", "https://bucket.s3.example.com/p/k"),
        ("s3://bucket/p?endpoint=s3.example.com:8443&path-style=no", "https://bucket.s3.example.com:8443/p/k"),
        ("s3://my.bucket/p?endpoint=s3.example.com", "https://s3.example.com/my.bucket/p/k"),
        ("s3://my.bucket/p?endpoint=s3.example.com&path-style=false", "https://s3.example.com/my.bucket/p/k"),
        ("s3://bucket/p?endpoint=localhost:9000", "https://localhost:9000/bucket/p/k"),
        ("s3://bucket/p?endpoint=http://localhost:9000", "http://localhost:9000/bucket/p/k"),
        ("s3://bucket/p?endpoint=http://10.0.0.7:9000&path-style=false", "http://10.0.0.7:9000/bucket/p/k"),
        ("s3://bucket/p?endpoint=http://[::1]:9000", "http://[::1]:9000/bucket/p/k"),
        ("s3://bucket/p?endpoint=https://gateway.example.com/s3", "https://gateway.example.com/s3/bucket/p/k"),
        # Hosts that name the server, too
        ("s3://bucket.s3.amazonaws.com/p", "https://bucket.s3.amazonaws.com/p/k"),
        ("s3://bucket.s3.eu-west-1.amazonaws.com/p", "https://bucket.s3.eu-west-1.amazonaws.com/p/k"),
        ("s3://bucket.nyc3.digitaloceanspaces.com/p", "https://bucket.nyc3.digitaloceanspaces.com/p/k"),
        ("s3://bucket.s3.us-west-002.backblazeb2.com/p", "https://s3.us-west-002.backblazeb2.com/bucket/p/k"),
        ("s3://bucket.s3.filebase.com/p", "https://s3.filebase.com/bucket/p/k"),
        ("s3://bucket.s3.nl-ams.scw.cloud/p", "https://bucket.s3.nl-ams.scw.cloud/p/k"),
        ("s3://bucket.localhost:9000/p", "http://localhost:9000/bucket/p/k"),
        ("s3://bucket.127.0.0.1:9000/p", "http://127.0.0.1:9000/bucket/p/k"),
        ("s3://bucket.minio.example.net:9000/p", "http://minio.example.net:9000/bucket/p/k"),
        ("s3://my.bucket.s3.eu-west-1.amazonaws.com/p", "https://s3.eu-west-1.amazonaws.com/my.bucket/p/k"),
        ("s3://my.bucket.s3.nl-ams.scw.cloud/p", "https://s3.nl-ams.scw.cloud/my.bucket/p/k"),
        ("s3://bucket.s3.nl-ams.scw.cloud/p?path-style=true", "https://s3.nl-ams.scw.cloud/bucket/p/k"),
        ("s3://bucket.s3.nl-ams.scw.cloud/p?endpoint=https://cache:1", "https://cache:1/bucket/p/k"),
        # The prefix
        ("s3://bucket//a//b/", "https://bucket.s3.amazonaws.com/a/b/k"),
        ("s3://bucket/a%20b", "https://bucket.s3.amazonaws.com/a%20b/k"),
        ("s3://bucket/a+b", "https://bucket.s3.amazonaws.com/a%2Bb/k"),
    ],
)
def test_an_object_of_this_url_goes_there(url: str, expected: str) -> None:
    assert sent(url) == expected
    assert s3(s3(url).url) == s3(url)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("s3://bucket/p", "us-east-1"),
        ("s3://bucket/p?region=eu-west-1", "eu-west-1"),
        ("s3://bucket.s3.eu-west-1.amazonaws.com/p", "eu-west-1"),
        ("s3://bucket.s3.eu-west-1.amazonaws.com/p?region=eu-west-2", "eu-west-2"),
        ("s3://bucket.nyc3.digitaloceanspaces.com/p", "nyc3"),
        ("s3://bucket/p?endpoint=https://account.r2.cloudflarestorage.com&region=auto", "auto"),
        ("s3://bucket/p?endpoint=https://s3.example.com", "us-east-1"),
    ],
)
def test_requests_are_signed_for_the_region(url: str, region: str) -> None:
    with captured(s3(url)) as (store, requests):
        list(store.list())
    assert f"/{region}/s3/aws4_request" in requests[0].headers["authorization"]


def test_aws_may_send_a_request_on_to_the_bucket_s_region() -> None:
    def answer(request: Request) -> Answer:
        if "eu-north-1" in request.url:
            return friendly(request)
        return s3_error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-north-1"})

    with captured(S3Spec("bucket"), answer) as (store, requests):
        store.put("k", b"x", timestamp_ms=0)
    assert requests[-1].url == "https://bucket.s3.eu-north-1.amazonaws.com/k"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (
            "s3://s3.us-west-002.backblazeb2.com/bucket/a/b",
            "write s3://bucket/a/b?endpoint=https://s3.us-west-002.backblazeb2.com",
        ),
        ("s3://s3.eu-west-1.amazonaws.com/bucket/p", "write s3://bucket/p?endpoint=https://s3.eu-west-1.amazonaws.com"),
        ("s3://s3.filebase.com", "write s3://BUCKET/PREFIX?endpoint=https://s3.filebase.com"),
        ("s3://s3.nl-ams.scw.cloud/bucket/p", "write s3://bucket/p?endpoint=https://s3.nl-ams.scw.cloud"),
        ("s3://nyc3.digitaloceanspaces.com/bucket/p", "endpoint=https://SERVER"),
        ("s3://bucket.fly.storage.tigris.dev/p", "endpoint=https://SERVER"),
        ("s3://account.r2.cloudflarestorage.com/bucket", "endpoint=https://SERVER"),
        ("s3://localhost:9000/bucket/p", "write s3://bucket/p?endpoint=http://localhost:9000"),
        ("s3://minio:9000/bucket/p", "write s3://bucket/p?endpoint=http://minio:9000"),
        ("s3://127.0.0.1:9000/bucket/p", "write s3://bucket/p?endpoint=http://127.0.0.1:9000"),
        ("s3://127.0.0.1/bucket/p", "write s3://bucket/p?endpoint=https://127.0.0.1"),
        ("s3://[::1]:9000/bucket/p", "write s3://bucket/p?endpoint=http://[::1]:9000"),
        ("s3://s3.example.net:9000/bucket/p", "write s3://bucket/p?endpoint=http://s3.example.net:9000"),
        ("s3://minio.example.com:9000/bucket/p", "write s3://bucket/p?endpoint=https://minio.example.com:9000"),
        ("s3://bucket.minio:port/p", "what follows the colon in the host is no port"),
        ("s3://buck$et/p", "is not a bucket name"),
        ("s3://bucket/p?endpoint=https://minio_server:9000", "letters, digits, dots and dashes"),
    ],
)
def test_a_host_that_is_no_bucket_says_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sent(url)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_written_as_a_bucket_of_aws_is_found_out_when_there_is_none() -> None:
    with (
        captured(s3("s3://s3.example.com/bucket/p"), lambda _: s3_error(404, "NoSuchBucket")) as (store, _),
        pytest.raises(ConfigError, match=r"endpoint=https://s3\.example\.com"),
    ):
        store.check()


def test_litestreams_endpoint_variable_is_the_endpoint_of_a_url_without_one() -> None:
    environ = {"LITESTREAM_S3_ENDPOINT": "s3.example.com"}
    spec = S3Spec("bucket", endpoint="https://s3.example.com", path_style=True)
    assert from_environment(S3Spec("bucket"), environ) == spec
    other = S3Spec("bucket", endpoint="https://other")
    assert from_environment(other, environ) == other


def test_the_aws_endpoint_variables_are_custom_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    with captured(S3Spec("bucket", path_style=True)) as (store, requests):
        store.put("k", b"x", timestamp_ms=0)
    assert requests[0].url == "https://s3.example.com/bucket/k"
    assert checksum_headers(requests[0]) == {}


# Checksums


def checksum_headers(request: Request) -> dict[str, str]:
    parts = ("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer", "x-amz-decoded")
    found = {name: value for name, value in request.headers.items() if name.startswith(parts)}
    if "aws-chunked" in request.headers.get("content-encoding", ""):
        found["content-encoding"] = request.headers["content-encoding"]
    return found


def everything(spec: S3Spec) -> Iterator[Request]:
    """One request of every kind that a store sends, the big upload's parts included."""
    with captured(spec, lambda request: Answer(body=b"x") if request.operation == "GET" else friendly(request)) as (
        store,
        requests,
    ):
        store.put("k", b"small", timestamp_ms=0)
        store.put("k", io.BytesIO(bytes(9 << 20)), timestamp_ms=0)
        assert store.get("k") == b"x"
        list(store.list())
        store.delete(["k"])
    assert {request.operation for request in requests} == {
        "PUT",
        "MULTIPART",
        "PART",
        "COMPLETE",
        "GET",
        "LIST",
        "DELETE",
    }
    yield from requests


def test_a_custom_endpoint_gets_and_is_asked_for_no_checksum() -> None:
    for request in everything(S3Spec("bucket", endpoint="https://s3.example.com", path_style=True)):
        assert checksum_headers(request) == {}, request.url
        assert "x-amz-checksum-mode" not in request.headers
        assert ("content-md5" in request.headers) == (request.operation == "DELETE")
        if request.operation == "PUT":
            assert request.body == b"small"
            assert "expect" not in request.headers  # a small body does not wait
        if request.operation == "COMPLETE":
            assert b"Checksum" not in request.body


def test_aws_gets_checksums_and_is_asked_for_them() -> None:
    for request in everything(S3Spec("bucket", region="eu-west-1")):
        if request.operation in ("PUT", "PART"):
            assert checksum_headers(request)["x-amz-trailer"] == "x-amz-checksum-crc32"
        if request.operation == "DELETE":
            assert "x-amz-checksum-crc32" in request.headers
        if request.operation == "GET":
            assert request.headers["x-amz-checksum-mode"] == "ENABLED"
        if request.operation == "MULTIPART":
            assert request.headers["x-amz-checksum-algorithm"] == "CRC32"
        if request.operation == "COMPLETE":
            assert request.body.count(b"<ChecksumCRC32>AAAAAA==</ChecksumCRC32>") == 2


@pytest.mark.parametrize("size", [1, 9 << 20])
def test_the_storage_class_and_the_precondition_go_along(size: int) -> None:
    spec = S3Spec("bucket", endpoint="https://s3.example.com", storage_class="STANDARD_IA")
    with captured(spec) as (store, requests):
        store._honours = True
        store.put("k", bytes(size), timestamp_ms=0, if_absent=True)
        store.put("k", bytes(size), timestamp_ms=0)
    first, plain = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    for begun in (first[0], plain[0]):
        assert begun.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert [request.headers.get("if-none-match") for request in first] == [None] * (len(first) - 1) + ["*"]
    assert not any("if-none-match" in request.headers for request in plain)
    assert urlsplit(first[-1].url).path == "/k"


def test_a_specification_is_not_changed_by_what_prints_it() -> None:
    spec = S3Spec("bucket", "a b", endpoint="https://h", path_style=False, storage_class="X", skip_verify=True)
    assert s3(spec.url) == spec == replace(spec)
