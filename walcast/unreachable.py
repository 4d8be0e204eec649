"""Why a call to another node failed, in words for people: what is wrong there or here, and what to do.

gRPC says it in its own: "failed to connect to all addresses; last error: UNKNOWN: ipv4:…". Its texts are no interface,
so what is not recognised is shown as it is, without what gRPC puts in front of it. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from walcast.identifiers import printable

DETAIL_CHARACTERS = 200

_IN_FRONT = re.compile(r"^failed to connect to all addresses; last error: (?:[A-Z_]+: )?(?:(?:ipv[46]|unix):\S+: )?")
_NOT_REACHED = ("No route to host", "unreachable", "timed out", "FD Shutdown", "Timeout occurred")
_NAME_UNKNOWN = ("hostname lookup error", "DNS", "Domain name not found", "address lookup failed")
_HUNG_UP = ("Socket closed", "Connection reset", "GOAWAY", "Broken pipe", "Stream removed", "Endpoint closing")
_NO_NODE = ("Failed parsing HTTP/2", "Expected SETTINGS frame", "Received http2 header with status", "SETTINGS frame")
_OTHER_HOST = ("is not in peer certificate", "Hostname Verification Check failed", "Peer name")
_LOST = "the connection was lost: the node has ended, or the network between is interrupted"
_NO_TLS = ("WRONG_VERSION_NUMBER", "Tls handshake failed", "TSI_PROTOCOL_FAILURE", "Ssl handshake failed")


@dataclass(frozen=True, slots=True)
class Spoken:
    """How this side has called: `encrypted` with TLS or in plain text; has it shown a `certificate`?"""

    encrypted: bool = False
    certificate: bool = False


def failure_words(code: str, details: str | None, spoken: Spoken, timeout_s: float | None = None) -> str:
    """Of a call that ended with that status code, by its name."""
    said = printable(" ".join(_IN_FRONT.sub("", details or "").split()), DETAIL_CHARACTERS)
    match code:
        case "UNAVAILABLE":
            return _unavailable(details or "", said, spoken)
        case "DEADLINE_EXCEEDED":
            within = f" within {timeout_s:.3g} s" if timeout_s is not None else " in time"
            return f"no answer{within}: the node there hangs, or the network lets nothing through"
        case "UNIMPLEMENTED":
            return "not a walcast node, or one of another version"
        case "CANCELLED":
            return "the call was ended: the node is stopping, or this process is"
        case "UNKNOWN" | "INTERNAL":
            return f"the node failed to answer; its log says more ({said or 'it gave no reason'})"
    return said or f"the node refused the call ({code.lower().replace('_', ' ')})"


def _unavailable(details: str, said: str, spoken: Spoken) -> str:
    def has(texts: tuple[str, ...]) -> bool:
        return any(text in details for text in texts)

    if "Connection refused" in details:
        return "cannot be reached: nobody listens there; start the node, or give the address where it listens"
    if has(_NAME_UNKNOWN):
        return "cannot be reached: the name of the host is not known; correct it, or give its IP address"
    if has(_OTHER_HOST):
        return (
            "its certificate is not for that host: connect by a name or address that it has, or make it one with "
            "`walcast certs node … --host`"
        )
    if "CERTIFICATE_VERIFY_FAILED" in details:
        if "expired" in details:
            return "its certificate has expired: make a new one with `walcast certs node`, and move it over the old"
        return "its certificate was made by an authority that is not trusted here: give that one with --tls-ca"
    if has(_NO_NODE):
        return "what answers there is not a walcast node" + ("" if spoken.encrypted else ", or one that wants TLS")
    if has(_NO_TLS):
        return "does not speak TLS as expected: see that a walcast node listens there, and that it has --tls"
    if has(_HUNG_UP):
        return _hung_up(spoken) if "failed to connect" in details else _LOST
    if has(_NOT_REACHED):
        return "cannot be reached over the network: see that the address is right, and what firewalls let through"
    return f"cannot be reached: {said or 'no reason was given'}"


def _hung_up(spoken: Spoken) -> str:
    if not spoken.encrypted:
        return "hung up: it may want TLS (--tls), or is stopping"
    if not spoken.certificate:
        return "hung up: it may want a certificate (--tls), or is stopping"
    return "hung up: it does not accept the certificate that was shown, or is stopping"
