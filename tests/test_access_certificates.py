"""Whose a certificate is, and which authority may say so."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st
from support.certs import CLIENT, NODE, OPERATOR, Authority

from walcast.access import Kind
from walcast.access.certificates import (
    Trust,
    identity_of,
    identity_uri,
    parse_identity_uri,
)
from walcast.access.expiry import AGAIN, WARN_BEFORE, ExpiryWarnings
from walcast.access.names import NAME_CHARACTERS, is_name
from walcast.errors import CertificateRefused

KINDS = (NODE, CLIENT, OPERATOR)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("clients"))


def context(pem: bytes | Path) -> dict[str, list[bytes]]:
    """What gRPC knows of a peer."""
    return {"x509_pem_cert": [pem if isinstance(pem, bytes) else pem.read_bytes()], "transport_security_type": [b"ssl"]}


@given(st.sampled_from(KINDS), st.text(min_size=1, max_size=NAME_CHARACTERS).filter(is_name))
def test_every_name_comes_back_from_its_uri(kind: Kind, name: str) -> None:
    uri = identity_uri(kind, name)
    assert uri.isascii()
    assert parse_identity_uri(uri) == (kind, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_says_its_kind_and_name(peers: Authority, kind: Kind) -> None:
    found = identity_of(context(peers.files("one", kind)[0]))
    assert found is not None
    assert (found.kind, found.name) == (kind, "one")
    assert found.hosts == (("localhost", "127.0.0.1") if kind is NODE else ())


def test_nobody_has_shown_a_certificate_where_there_is_none() -> None:
    assert identity_of({"transport_security_type": [b"insecure"]}) is None
    assert identity_of({}) is None


@pytest.mark.parametrize(
    ("common", "dns", "name"),
    [("db-1", (), "db-1"), ("db-1", ("other.example",), "db-1"), ("", ("a.example", "b.example"), "a.example")],
)
def test_others_certificates_have_a_name_of_a_kind_of_its_own(
    peers: Authority, common: str, dns: tuple[str, ...], name: str
) -> None:
    found = identity_of(context(peers.foreign(common, dns)))
    assert found is not None
    assert (found.kind, found.name) == (Kind.OTHER, name)


@pytest.mark.parametrize(
    "uris",
    [
        ("walcast://king/x",),
        ("walcast://other/x",),
        ("walcast://user/0",),
        ("walcast://token/x",),
        ("walcast://nobody/x",),
        ("walcast://node/",),
        ("walcast://node",),
        ("walcast://node/a/b",),
        ("walcast://node/a?b",),
        ("walcast://node/a#b",),
        ("walcast://node/%00",),
        ("walcast://node/%1b%5b31m",),
        ("walcast://node/%ff",),
        ("walcast://Node/a",),
        ("walcast://node:1/a",),
        ("walcast://x@node/a",),
        ("WALCAST:node/a",),
        ("walcast://no\tde/a",),
        ("walcast://node/" + "x" * 201,),
        ("walcast://node/a", "walcast://operator/a"),
    ],
)
def test_an_identity_that_is_none_is_not_taken_for_another(peers: Authority, uris: tuple[str, ...]) -> None:
    with pytest.raises(CertificateRefused):
        identity_of(context(peers.foreign("edge-1", uris=uris)))


def test_a_certificate_without_any_name_is_nobodys(peers: Authority) -> None:
    for pem in (peers.foreign(), peers.foreign("a\x1b[31m"), b"-----BEGIN CERTIFICATE-----", b"x" * 1_000_000):
        with pytest.raises(CertificateRefused):
            identity_of(context(pem))


def test_a_certificate_counts_while_it_is_valid_also_on_a_connection_that_stays(peers: Authority) -> None:
    shown = context(peers.files("one")[0])
    now = datetime.now(UTC)
    trust = Trust()
    assert trust.identity_of(shown, now + timedelta(days=824)) is not None
    for moment in (now + timedelta(days=826), now - timedelta(days=1)):
        with pytest.raises(CertificateRefused) as caught:
            trust.identity_of(shown, moment)
        assert caught.value.name == "one"


def trust_of(peers: Authority, clients: Authority) -> Trust:
    return Trust((peers.pair[0],), (clients.pair[0],), separate=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_peers", [True, False])
def test_where_trust_is_separate_each_authority_speaks_for_its_own_alone(
    peers: Authority, clients: Authority, kind: Kind, by_peers: bool
) -> None:
    shown = context((peers if by_peers else clients).files("x", kind)[0])
    if (kind is NODE) is by_peers:
        found = trust_of(peers, clients).identity_of(shown)
        assert found is not None
        assert (found.by_peers, found.by_clients) == (by_peers, not by_peers)
    else:
        with pytest.raises(CertificateRefused):
            trust_of(peers, clients).identity_of(shown)


def test_of_others_certificates_it_is_told_which_authority_vouched(peers: Authority, clients: Authority) -> None:
    trust = trust_of(peers, clients)
    found = [trust.identity_of(context(one.foreign("x"))) for one in (peers, clients)]
    assert [(one.by_peers, one.by_clients) for one in found if one] == [(True, False), (False, True)]


def test_an_authority_of_the_same_name_vouches_for_nobody(peers: Authority, tmp_path: Path) -> None:
    impostor = Authority(tmp_path / "x")
    key, certificate = impostor.pair[1], impostor.pair[0]
    trusted = peers.pair[0]
    forged = x509.CertificateBuilder(
        trusted.subject, trusted.subject, key.public_key(), 1, None, None, list(certificate.extensions)
    )
    forged = forged.not_valid_before(trusted.not_valid_before_utc).not_valid_after(trusted.not_valid_after_utc)
    impostor.pair = forged.sign(key, hashes.SHA256()), key
    with pytest.raises(CertificateRefused):
        Trust((trusted,), (), separate=True).identity_of(context(impostor.files("x")[0]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of serial numbers that a certificate should not have
@given(st.data())
def test_a_damaged_certificate_is_refused_and_nothing_else(
    certificates: tuple[Authority, Trust], data: st.DataObject
) -> None:
    authority, trust = certificates
    der = bytearray(ssl.PEM_cert_to_DER_cert((authority.folder / "damaged.pem").read_text()))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
    try:
        found = trust.identity_of(context(pem))
    except CertificateRefused:
        return
    assert found is not None  # as it was before, since nobody could have signed another one
    assert (found.kind, found.name) == (NODE, "damaged")


@pytest.fixture(scope="module")
def certificates(peers: Authority, clients: Authority) -> tuple[Authority, Trust]:
    peers.files("damaged")
    return peers, trust_of(peers, clients)


def test_an_authority_that_was_taken_away_counts_no_more(peers: Authority, clients: Authority) -> None:
    both = (peers.pair[0], clients.pair[0])
    shown = context(peers.files("x")[0])
    assert Trust(both, both).identity_of(shown) is not None
    left = (clients.pair[0],)
    with pytest.raises(CertificateRefused):
        Trust(left, left, retired=(peers.pair[0],)).identity_of(shown)


def test_it_is_warned_thirty_days_before_the_end_and_each_day_from_then_on() -> None:
    end = datetime(2027, 3, 1, tzinfo=UTC)
    warnings = ExpiryWarnings()
    hours = [hour for hour in range(-40 * 24, 3 * 24) if warnings.due("x", end, end + timedelta(hours=hour))]
    assert hours == list(range(-30 * 24, 3 * 24, 24))
    assert (WARN_BEFORE.days, AGAIN.days) == (30, 1)
    # A clock that is set back does not keep it silent, nor does another certificate.
    assert warnings.due("x", end, end - timedelta(days=20))
    assert warnings.due("y", end, end - timedelta(days=20))
