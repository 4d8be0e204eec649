"""Certificates and tokens over real connections, and files that change while a process runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certs import CLIENT, HOSTS, NODE, OPERATOR, Authority, token_file, token_of

from walcast import wire
from walcast.access.credentials import Credentials
from walcast.access.issuing import issue
from walcast.access.tokens import bearer, new_token, token_line
from walcast.errors import CertificateRefused, ConfigError, Unavailable
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast_follower.subscribe.primary_client import Client

LISTEN = wire.Address("127.0.0.1", 0)


class Asked(rpc.ReplicationServicer):
    """Answers Status with whom it takes the caller for."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    def _who(self, context: Any) -> str:
        shown = dict(context.invocation_metadata())
        token = self.credentials.token_identity(shown.get("authorization"))
        try:
            certificate = self.credentials.certificate_identity(context.auth_context())
        except CertificateRefused as refused:
            return f"refused {refused.name}"
        return f"{certificate or 'nobody'}, {token or 'no token'}"

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802
        return pb.StatusReply(role=self._who(context))

    async def Stream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        await anext(aiter(requests))
        yield pb.PrimaryMessage(refusal=pb.Refusal(detail=self._who(context)))


def serving(credentials: Credentials, use: Callable[[wire.Address], Awaitable[None]]) -> None:
    """Run `use` with the address of a server that shows and trusts what `credentials` say."""

    async def run() -> None:
        server = grpc.aio.server()
        rpc.add_ReplicationServicer_to_server(Asked(credentials), server)
        encrypted = credentials.server(LISTEN)
        add = server.add_insecure_port if encrypted is None else lambda at: server.add_secure_port(at, encrypted)
        port = add(str(LISTEN))
        await server.start()
        try:
            await use(wire.Address("127.0.0.1", port))
        finally:
            await server.stop(None)

    asyncio.run(run())


async def who(address: wire.Address, credentials: wire.Tls | Credentials) -> str | None:
    """What the server takes for who asks with these; None when there is no connection."""

    def ask() -> str | None:
        with wire.open_channel(address, credentials) as channel:
            try:
                reply: pb.StatusReply = rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=5.0)
            except grpc.RpcError:
                return None
        return reply.role

    return await asyncio.to_thread(ask)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls(ca: Authority, name: str, kind: Any = NODE, **more: Any) -> wire.Tls:
    cert, key = ca.files(name, kind)
    return wire.Tls(ca.ca, cert, key, **more)


def test_a_peer_is_whom_its_certificate_names(ca: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other")
    expired = wire.Tls(ca.ca, *ca.ending("expired", timedelta(seconds=-1)))

    async def use(address: wire.Address) -> None:
        for kind in (NODE, CLIENT, OPERATOR):
            assert await who(address, tls(ca, "one", kind)) == f"{kind}/one, no token"
        assert await who(address, wire.Tls(ca.ca)) is None
        assert await who(address, wire.Tls(ca.ca, *stranger.files("one"))) is None
        assert await who(address, expired) is None
        assert await who(address, wire.Tls()) is None

    serving(Credentials(tls(ca, "server")), use)


def test_peers_and_clients_may_be_trusted_separately(ca: Authority, tmp_path: Path) -> None:
    clients = Authority(tmp_path / "clients", "clients")
    cert, key = ca.files("server")
    both = wire.Tls(cert=cert, key=key, peer_ca=ca.ca, client_ca=clients.ca)

    async def use(address: wire.Address) -> None:
        for authority, kind, answer in (
            (ca, NODE, "node/x, no token"),
            (clients, CLIENT, "client/x, no token"),
            (clients, OPERATOR, "operator/x, no token"),
            (clients, NODE, "refused x"),
            (ca, OPERATOR, "refused x"),
        ):
            shown = wire.Tls(ca.ca, *authority.files("x", kind))
            assert await who(address, shown) == answer
        # Nobody whom clients are trusted by can be taken for a node that is connected to.
        assert await who(address, wire.Tls(peer_ca=clients.ca, cert=cert, key=key)) is None

    serving(Credentials(both), use)


@pytest.mark.parametrize("kind", [CLIENT, OPERATOR])
def test_nobody_serves_with_a_clients_certificate(ca: Authority, kind: Any) -> None:
    cert, key = ca.write("x", issue(ca.pair, kind, "x", HOSTS))  # not even where it names the host

    async def use(address: wire.Address) -> None:
        assert await who(address, tls(ca, "node")) is None

    serving(Credentials(wire.Tls(ca.ca, cert, key)), use)


def test_tokens_tell_who_it_is_where_no_certificates_are_asked_for(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walcast.access.credentials.LOOK_S", 0.0)
    (token, line), (other, _) = token_of("edge-1"), token_of("edge-1")
    accepted = token_file(tmp_path / "accepted", line)
    mine = token_file(tmp_path / "mine", other)
    shown = Credentials(wire.Tls(ca.ca, token_file=mine))

    async def use(address: wire.Address) -> None:
        assert await who(address, Credentials(wire.Tls(ca.ca), token)) == "nobody, edge-1"
        assert await who(address, wire.Tls(ca.ca)) == "nobody, no token"
        assert await who(address, shown) == "nobody, no token"
        token_file(mine, token)  # the next call shows the new one
        assert await who(address, shown) == "nobody, edge-1"
        client = Client(address, Credentials(wire.Tls(ca.ca), token), database="app", follower_id="f")
        with pytest.raises(Unavailable, match="nobody, edge-1"):
            async with client.stream(wire.Position(), 0):
                pass
        await client.close()

    serving(Credentials(tls(ca, "server", token_file=accepted, client_auth=False)), use)


def test_new_connections_are_shown_the_certificate_that_was_read_last(ca: Authority, tmp_path: Path) -> None:
    new = Authority(tmp_path / "new")
    credentials = Credentials(tls(ca, "server"))
    by_old, by_new = tls(ca, "one"), tls(new, "one")

    async def use(address: wire.Address) -> None:
        assert await who(address, by_old) == "node/one, no token"
        assert await who(address, by_new) is None
        old_files = {path: path.read_bytes() for path in ca.folder.iterdir()}

        # One file after the other: what fits together no longer is not taken.
        ca.ca.write_bytes(new.ca.read_bytes())
        (ca.folder / "server.key").write_bytes((new.files("server")[1]).read_bytes())
        assert credentials.refresh().error is not None
        assert credentials.refresh().error is None  # said once
        assert credentials.refresh(force=True).error is not None
        assert credentials.trouble is not None
        by_old_ca = wire.Tls(tmp_path / "old.pem", by_old.cert, by_old.key)
        (tmp_path / "old.pem").write_bytes(old_files[ca.ca])
        assert await who(address, by_old_ca) == "node/one, no token"

        (ca.folder / "server.pem").write_bytes((new.folder / "server.pem").read_bytes())
        reload = credentials.refresh()
        assert (reload.error, reload.mended, credentials.trouble) == (None, True, None)
        assert set(reload.changed) == {ca.ca, ca.folder / "server.key", ca.folder / "server.pem"}
        assert await who(address, by_new) == "node/one, no token"
        assert await who(address, by_old_ca) is None

    serving(credentials, use)


def test_a_connection_that_stays_is_worth_nothing_once_its_authority_is_not_trusted(
    ca: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    both = tmp_path / "both.pem"
    both.write_bytes(ca.ca.read_bytes() + other.ca.read_bytes())
    cert, key = ca.files("server")
    credentials = Credentials(wire.Tls(both, cert, key))

    async def use(address: wire.Address) -> None:
        shown = Credentials(wire.Tls(ca.ca, *other.files("x"))).channel(address)
        async with grpc.aio.secure_channel(str(address), shown) as channel:
            stub: Any = rpc.ReplicationStub(channel)
            assert (await stub.Status(pb.StatusRequest())).role == "node/x, no token"
            both.write_bytes(ca.ca.read_bytes())
            assert credentials.refresh().changed
            assert (await stub.Status(pb.StatusRequest())).role == "refused x"

    serving(credentials, use)


def test_a_token_file_that_is_being_written_withdraws_nothing(tmp_path: Path) -> None:
    lines = [token_line(name, new_token()) for name in ("edge-1", "edge-2")]
    file = token_file(tmp_path / "tokens", *lines)
    credentials = Credentials(wire.Tls(token_file=file))
    assert credentials.loaded.tokens.names == ["edge-1", "edge-2"]
    file.write_text(lines[0] + "\n")  # whole, as far as one can see
    assert credentials.refresh(settled=True).waits
    assert credentials.loaded.tokens.names == ["edge-1", "edge-2"]
    token_file(file, *lines, "# changed")
    assert credentials.refresh(settled=True).waits
    assert not credentials.refresh(settled=True).waits
    assert credentials.loaded.tokens.names == ["edge-1", "edge-2"]
    file.write_text(lines[1] + "\n")
    assert credentials.refresh(settled=True).waits
    assert credentials.refresh(settled=True).changed == (file,)
    assert credentials.loaded.tokens.names == ["edge-2"]


def test_a_channel_that_is_kept_is_outdated_once_its_certificate_has_been_changed(ca: Authority) -> None:
    credentials = Credentials(tls(ca, "one"))

    async def use() -> None:
        client = Client(wire.Address("127.0.0.1", 1), credentials, database="app", follower_id="f")
        assert not client.is_outdated
        os.utime(ca.ca)  # a file that was only touched says nothing new
        assert not credentials.refresh().changed
        assert not client.is_outdated
        ca.files("one")
        assert credentials.refresh().changed
        assert client.is_outdated
        await client.close()

    asyncio.run(use())


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "other key", "encrypted", "fifo", "large"])
def test_files_that_are_wrong_at_the_start_are_a_configuration_error(
    ca: Authority, tmp_path: Path, damage: str
) -> None:
    cert, key = ca.files("one")
    other = ca.files("two")[1].read_bytes()
    key.unlink()
    contents = {
        "empty": b"",
        "text": b"-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----\n",
        "other key": other,
        "encrypted": other.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"),
        "large": other + b"\n" * (5 << 20),
    }
    if damage == "fifo":
        os.mkfifo(key)
    elif damage in contents:
        key.write_bytes(contents[damage])
    credentials = Credentials(wire.Tls(ca.ca, cert, key))
    for use in (credentials.server, credentials.channel):
        with pytest.raises(ConfigError) as caught:
            use(LISTEN)
        assert str(key) in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"insecure": True, "ca": Path("a")},
        {"insecure": True, "cert": Path("a"), "key": Path("b")},
        {"insecure": True, "peer_ca": Path("a")},
        {"insecure": True, "client_ca": Path("a")},
        {"ca": Path("a"), "peer_ca": Path("b")},
        {"ca": Path("a"), "client_ca": Path("b")},
        {"client_ca": Path("a"), "client_auth": False},
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        wire.Tls(**given)


def test_a_token_goes_in_plain_text_beyond_this_machine_only_when_asked_for(tmp_path: Path) -> None:
    far = wire.Address("192.0.2.1", 7420)
    file = token_file(tmp_path / "t", token_of("x")[0])
    for side in (Credentials(wire.Tls(token_file=file)).channel, Credentials(wire.Tls(token_file=file)).server):
        with pytest.raises(ConfigError):
            side(far)
    with pytest.raises(ConfigError):
        Credentials(wire.Tls(token_file=file)).present(far)
    assert Credentials(wire.Tls(token_file=file, insecure=True)).present(far)
    assert Credentials(wire.Tls(token_file=file, insecure=True)).channel(far) is None
    # Nor can a node listen with a token file that others can read.
    file.chmod(0o644)
    with pytest.raises(ConfigError):
        Credentials(wire.Tls(token_file=file)).server(LISTEN)


@pytest.mark.parametrize("damage", ["readable by others", "a link", "gone", "damaged"])
def test_a_token_file_that_cannot_be_used_leaves_the_last_one_in_force_and_says_so(tmp_path: Path, damage: str) -> None:
    token, line = token_of("edge-1")
    file = token_file(tmp_path / "accepted", line)
    credentials = Credentials(wire.Tls(token_file=file))
    assert credentials.token_identity(bearer(token)) == "edge-1"
    match damage:
        case "readable by others":
            file.chmod(0o644)
        case "a link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "gone":
            file.rename(tmp_path / "elsewhere")
        case "damaged":
            file.write_text("edge-1 sha256:00\n")
    assert credentials.refresh().error is not None
    assert str(file) in (credentials.trouble or "")
    assert credentials.token_identity(bearer(token)) == "edge-1"
    file.unlink(missing_ok=True)
    token_file(file, line)
    reload = credentials.refresh()
    assert (reload.error, reload.mended, credentials.trouble) == (None, True, None)


def test_what_a_watcher_reads_again_nobody_else_does(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walcast.access.credentials.LOOK_S", 0.0)
    credentials = Credentials(tls(ca, "one"))
    before = credentials.loaded
    credentials.is_watched = True
    ca.files("one")
    credentials.look_again()
    assert credentials.loaded is before
    assert credentials.refresh().changed
