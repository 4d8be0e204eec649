"""The host of an `s3://` URL: a bucket, or a bucket and the server that has it.

`s3://bucket.s3.us-west-002.backblazeb2.com/app` names bucket, region and endpoint at once. Litestream reads such hosts
(`ParseHost` in `s3/replica_client.go`), so they mean the same here:

    bucket.s3.amazonaws.com, bucket.s3.REGION.amazonaws.com   AWS
    bucket.REGION.digitaloceanspaces.com                      https://REGION.digitaloceanspaces.com, virtual-host style
    bucket.s3.REGION.backblazeb2.com                          https://s3.REGION.backblazeb2.com, path style
    bucket.s3.filebase.com                                    https://s3.filebase.com, path style
    bucket.s3.REGION.scw.cloud                                https://s3.REGION.scw.cloud, virtual-host style
    bucket.HOST:PORT, no ".com" in it (MinIO)                 http://HOST:PORT, path style, us-east-1
    anything else                                             the bucket's name; it may have dots

A host that can only be a server's (`s3.us-west-002.backblazeb2.com`, `localhost:9000`) is refused with the URL to write
instead. Litestream takes some of these for a bucket, which does not exist then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from walcast.errors import ConfigError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_ACCESS_POINT = re.compile(r"arn:[a-z0-9-]+:s3:(?P<region>[a-z0-9-]+):\d+:accesspoint")
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+")

# host → endpoint, path style
_PROVIDERS: tuple[tuple[str, str | None, bool], ...] = (
    (r"(?P<bucket>.+)\.s3(?:\.(?P<region>[^.]+))?\.amazonaws\.com", None, False),
    (r"(?P<bucket>.+)\.(?P<region>[^.]+)\.digitaloceanspaces\.com", "https://{region}.digitaloceanspaces.com", False),
    (r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.backblazeb2\.com", "https://s3.{region}.backblazeb2.com", True),
    (r"(?P<bucket>.+)\.s3\.filebase\.com", "https://s3.filebase.com", True),
    (r"(?P<bucket>.+)\.s3\.(?P<region>[^.]+)\.scw\.cloud", "https://s3.{region}.scw.cloud", False),
)

# Domains of servers, after which nobody names a bucket.
_SERVERS = re.compile(
    r"(?:.*\.)?(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|cloudflarestorage\.com|contabostorage\.com|digitaloceanspaces\.com"
    r"|exo\.io|filebase\.com|googleapis\.com|idrivee2[0-9-]*\.com|linodeobjects\.com|ovh\.(?:net|us)|scw\.cloud|storage\.dev"
    r"|supabase\.co|tigris\.dev|upcloudobjects\.com|vultrobjects\.com|wasabisys\.com|your-objectstorage\.com)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a host says; None where it says nothing. `prefix` is what remains of the URL's path."""

    bucket: str
    prefix: str
    region: str | None = None
    endpoint: str | None = None
    path_style: bool = False


def place_of(host: str, path: str) -> Place:
    """The place that a URL's host and path name. Raises ConfigError when the host is no bucket's."""
    prefix = "/".join(part for part in path.split("/") if part)
    if found := _ACCESS_POINT.fullmatch(host):
        name, _, prefix = prefix.partition("/")
        return Place(f"{host}/{name}", prefix, found["region"])
    place = _with_port(host, prefix) if ":" in host else _of_provider(host, prefix) or Place(host, prefix)
    if _IPV4.fullmatch(host) or _SERVERS.fullmatch(place.bucket):
        raise _no_bucket(host, prefix)
    if not _BUCKET.fullmatch(place.bucket):
        raise ConfigError(
            f"{place.bucket!r} is not a bucket name: write s3://bucket/prefix; a server's address goes into ?endpoint=…"
        )
    return place


def _with_port(host: str, prefix: str) -> Place:
    bucket, _, server = host.partition(".")
    name, _, port = server.rpartition(":")
    # Buckets have three characters at least, so `s3.example.net:9000` is a server.
    if ".com" in host or not name or not port.isdigit() or len(bucket) < 3 or _IPV4.fullmatch(host.rpartition(":")[0]):
        raise _no_bucket(host, prefix)
    return Place(bucket, prefix, "us-east-1", f"http://{server}", True)


def _of_provider(host: str, prefix: str) -> Place | None:
    for pattern, endpoint, path_style in _PROVIDERS:
        if found := re.fullmatch(pattern, host):
            facts = found.groupdict()
            where = endpoint and endpoint.format(**facts)
            return Place(facts["bucket"], prefix, facts.get("region"), where, path_style)
    return None


def _no_bucket(host: str, prefix: str) -> ConfigError:
    bucket, _, rest = prefix.partition("/")
    scheme = "http" if ":" in host and ".com" not in host else "https"
    write = f"s3://{bucket or 'BUCKET'}/{rest or 'PREFIX'}?endpoint={scheme}://{host}"
    if not re.match(r"s3[.-]", host) and _SERVERS.fullmatch(host):
        write = f"s3://BUCKET/PREFIX?endpoint={scheme}://SERVER, where SERVER is this host less a bucket's name"
    return ConfigError(f"{host!r} is not a bucket name but a server's: write {write}")
