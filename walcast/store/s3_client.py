"""A specification and this host's environment → a botocore client that behaves alike with all S3 servers.

What S3-compatible servers get wrong shapes it. On a custom endpoint checksums are sent and asked for only when the
protocol requires them: botocore's default ones come as a trailer in `aws-chunked` encoding that many servers store as
if it were the object, and checking them breaks ranged reads on some. Deletes carry the Content-MD5 that they always
had to. No request waits for a server's leave to send a small body: some never give it.

Keys: those of the specification, else AWS's environment variables, else Litestream's
(`LITESTREAM_ACCESS_KEY_ID`, `LITESTREAM_SECRET_ACCESS_KEY`), else boto3's chain: profile, shared files, instance role.
`LITESTREAM_S3_ENDPOINT` is the endpoint of a specification that has none, `WALCAST_SSE_CUSTOMER_KEY` its key.
"""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from walcast.errors import ConfigError
from walcast.redaction import redact
from walcast.secret import Secret
from walcast.store.s3_bounded import BoundedSession
from walcast.store.s3_paced import pace
from walcast.store.s3_retry import Bounds, Retries
from walcast.store.s3_rotation import Rotation
from walcast.store.s3_spec import S3Spec
from walcast.store.url import normal_endpoint

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_EXPECT_BYTES = 64 << 10


def from_environment(spec: S3Spec, environ: Mapping[str, str]) -> S3Spec:
    """The specification with what the environment adds to it."""
    if spec.endpoint is None and (endpoint := environ.get("LITESTREAM_S3_ENDPOINT")):
        spec = replace(spec, endpoint=normal_endpoint(endpoint), path_style=True)
    if spec.sse_customer_key is None and (key := environ.get("WALCAST_SSE_CUSTOMER_KEY")):
        spec = replace(spec, sse_customer_key=Secret(key))
    if spec.sse_customer_algorithm and not spec.sse_customer_key:
        raise ConfigError(
            "sse-customer-algorithm without a key: set sse-customer-key in the configuration file, "
            "or WALCAST_SSE_CUSTOMER_KEY"
        )
    return spec


def make_client(spec: S3Spec, bounds: Bounds, retries: Retries) -> S3Client:
    """Opens no connection yet. Raises ConfigError, or what botocore raises about its own configuration files."""
    from botocore.config import Config
    from botocore.session import get_session
    from urllib3 import disable_warnings
    from urllib3.exceptions import InsecureRequestWarning

    environ = os.environ
    if spec.ca_bundle and not spec.skip_verify:
        _check_ca_bundle(spec.ca_bundle)
    if spec.skip_verify:
        # It was asked for; a warning with every request would hide the rest.
        disable_warnings(InsecureRequestWarning)
    session = get_session()
    session.register_component("data_loader", _descriptions())
    # botocore reads the two variables by itself
    custom = bool(spec.endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"))
    checksums: dict[str, Any] = {}
    if custom:
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(
        connect_timeout=bounds.connect_s,
        read_timeout=bounds.read_s,
        retries={"mode": "standard", "total_max_attempts": 1},  # `retries` repeats instead
        max_pool_connections=bounds.connections,
        tcp_keepalive=True,
        # "auto" is path style on a custom endpoint, so it has to be told.
        s3={"addressing_style": "path" if spec.path_style else "virtual" if spec.endpoint else "auto"},
        **checksums,
    )
    key_id, secret = _keys(spec, environ)
    try:
        client: Any = session.create_client(
            "s3",
            region_name=spec.region
            or session.get_config_variable("region")
            or environ.get("AWS_REGION")
            or "us-east-1",
            endpoint_url=spec.endpoint,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            verify=False if spec.skip_verify else spec.ca_bundle,
            config=config,
        )
    except ValueError as error:  # what botocore says of a host it cannot use, such as one with an underscore
        raise ConfigError(
            f"{redact(str(error))}: a host consists of letters, digits, dots and dashes; correct it"
        ) from None
    pace(client._endpoint.http_session, bounds.read_s)
    client._endpoint.http_session = BoundedSession(client._endpoint.http_session)
    client.meta.events.register("needs-retry.s3", retries.needs_retry)
    if key_id is None:
        Rotation(client, spec.url)
    if custom:
        client.meta.events.register("before-parameter-build.s3", _stay_here)
        client.meta.events.register("before-call.s3", _send_small_bodies_at_once)
        client.meta.events.register("before-sign.s3.DeleteObjects", _digest_as_ever)
    return cast("S3Client", client)


def has_credentials(client: S3Client) -> bool:
    """Did it find any when it was made? A file may have come since."""
    found: Any = client
    return found._request_signer._credentials is not None


@cache
def _descriptions() -> Any:
    """botocore's description of S3, read once for all clients of this process: 150 ms and some megabytes each."""
    from botocore.session import get_session

    return get_session().get_component("data_loader")


def _keys(spec: S3Spec, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Key and secret, or None twice: botocore finds them."""
    if spec.access_key_id and spec.secret_access_key:
        return spec.access_key_id.reveal(), spec.secret_access_key.reveal()
    if not (environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_PROFILE")):
        key_id, secret = environ.get("LITESTREAM_ACCESS_KEY_ID"), environ.get("LITESTREAM_SECRET_ACCESS_KEY")
        if key_id and secret:
            return key_id, secret
    return None, None


def _check_ca_bundle(path: str) -> None:
    """botocore would find out with the first request, and call it a lost connection."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        reason = "no PEM file" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"the ca-bundle {path} cannot be used ({reason}): give a file of PEM certificates") from error


def _stay_here(context: dict[str, Any], **_: Any) -> None:
    """botocore asks whoever redirects for the bucket's region; a web server that redirects all makes that endless."""
    if redirect := context.get("s3_redirect"):
        redirect["redirected"] = True


def _send_small_bodies_at_once(params: dict[str, Any], **_: Any) -> None:
    body: Any = params.get("body")
    if params["headers"].get("Expect") and hasattr(body, "getbuffer") and body.getbuffer().nbytes <= _EXPECT_BYTES:
        del params["headers"]["Expect"]


def _digest_as_ever(request: Any, **_: Any) -> None:
    """Content-MD5 instead of a newer checksum. Not a security measure, so it may be MD5 everywhere."""
    for name in [
        name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum"))
    ]:
        del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()
