"""`/metrics`: what Prometheus is told, read by Prometheus' own parser."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.certs import Authority
from support.http_asked import code_of, get, headers_of, serving

from walcast.access.credentials import Credentials
from walcast.wire import Tls
from walcast_node.http.app import Sees
from walcast_node.http.routes import routes
from walcast_node.process.metrics import exposition

EXPIRY = "walcast_certificate_expiry_timestamp_seconds"


def samples(text: str, family: str) -> dict[str, float]:
    [found] = [one for one in text_string_to_metric_families(text) if one.name == family]
    return {sample.labels["certificate"]: sample.value for sample in found.samples}


def test_each_certificate_ends_when_its_file_says_also_after_it_was_replaced(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    cert, key = ca.ending("origin", timedelta(days=3))
    credentials = Credentials(Tls(ca=ca.ca, cert=cert, key=key))
    before = samples(exposition(credentials).decode(), EXPIRY)
    assert set(before) == {"tls-ca", "tls-cert"}
    assert credentials.not_after is not None
    assert before["tls-cert"] == credentials.not_after.timestamp()

    ca.ending("origin", timedelta(days=30))
    credentials.refresh()
    after = samples(exposition(credentials).decode(), EXPIRY)
    assert after["tls-cert"] - before["tls-cert"] > timedelta(days=26).total_seconds()
    assert after["tls-ca"] == before["tls-ca"]


def test_the_answer_is_of_the_type_that_prometheus_asks_for() -> None:
    text = exposition(Credentials(Tls()))

    async def nothing(_: Sees) -> None:
        return None

    table = routes(list, nothing, lambda: text)
    with serving(more={"/metrics": table["/metrics"]}) as server:
        answer = get(server, "/metrics")
    assert code_of(answer) == 200
    assert headers_of(answer)["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.endswith(text)
    assert next(one.name for one in text_string_to_metric_families(text.decode())) == "walcast_build_info"
