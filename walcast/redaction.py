"""What may be shown of a text from outside: URLs without what opens something, whatever is wrong with them.

`shown_url` is for a value that was meant to be a URL, `shown_origin` for one whose path is a secret too (those that
monitors give out), `redact` for a message that may quote one, as those of libraries and of servers do.

All three rather hide too much than too little. A URL that is mistyped is what an error is about, so nothing here relies
on its being right: not on the slashes after the scheme, the order of its parts, or what is percent-encoded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

from walcast.secret import HIDDEN, Secret

LEAST_CHARS = 6  # shorter values are no secrets, and would be found in any text
MOST_ROUNDS = 4

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):[/\\]+")
_IN_TEXT = re.compile(
    r"(?<=')[A-Za-z][A-Za-z0-9+.-]{0,30}:[/\\][^'\n]*(?=')"  # in quotes a URL may have blanks
    r'|(?<=")[A-Za-z][A-Za-z0-9+.-]{0,30}:[/\\][^"\n]*(?=")'
    r"|[^\s'\"<>`]+"
)
_ENCODED = re.compile(r"%(?:25)*(?:2f|3a|3b|3d|3f|40|23|26)", re.IGNORECASE)
_PAIR = re.compile(r"(?P<before>^|[?&;/#,])(?P<name>[^?&;#/=,]*)=(?P<value>[^?&;#]*)")
_PORT = re.compile(r"\d{1,5}|PORT|[0-9A-Fa-f]{0,4}\]")  # of a host in brackets: what follows its last colon
_SECRET_NAME = re.compile(
    r"secret|token|passw|pwd|credential|signature|authori[sz]ation|(?:api|access|customer|account)[-_.]?key",
    re.IGNORECASE,
)

# Options of an archive URL, and of requests to S3, that say nothing which opens anything.
_SHOWN = frozenset(
    re.split(
        r"\s+",
        "endpoint region path-style force-path-style forcepathstyle skip-verify skipverify ca-bundle storage-class "
        "storageclass list-type prefix delimiter encoding-type max-keys partnumber sse sse-customer-algorithm "
        "ssecustomeralgorithm",
    )
)
_SHOWN_VALUES = {
    "sse": ("AES256", "aws:kms"),
    "sse-customer-algorithm": ("AES256",),
    "ssecustomeralgorithm": ("AES256",),
}

# In messages: headers, and the values of what is called a secret in JSON or in a settings file.
_HEADER = re.compile(
    r"((?:authorization|x-amz-security-token|x-amz-server-side-encryption-customer-key|cookie)\b['\"]?\s*[:=]\s*).+",
    re.IGNORECASE,
)
_HEADER_VALUE = re.compile(
    r"((?:header|status) (?:name|value|line|block)\S* )(?:bytearray\()?b?(['\"]).*\2\)?", re.IGNORECASE | re.DOTALL
)
_SIGNED = re.compile(r"(AWS4-HMAC-SHA256)\s.+", re.DOTALL)
_QUOTED = re.compile(
    r"(['\"][\w.-]{0,40}(?:secret|token|passw|signature|credential)[\w.-]{0,40}['\"]\s*:\s*)(['\"]).*?\2", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"([\w.-]{0,40}(?:secret|token|passw|signature|credential)[\w.-]{0,40} ?= ?)[^\s,&'\"]+", re.IGNORECASE
)
_IN_ENVIRONMENT = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LITESTREAM_SECRET_ACCESS_KEY",
    "WALCAST_SSE_CUSTOMER_KEY",
)


def shown_url(text: str) -> str:
    """In quotes, a value that was meant to be a URL, without what may be secret in it."""
    return repr(_hidden(text, whole=True))


def shown_origin(text: str) -> str:
    """In quotes, to whom a URL leads; all else of it is hidden, and all of one that cannot be understood."""
    found = re.match(
        r"([A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?)([/?#]|$)", text
    )
    if found is None or "@" in text:
        scheme = _SCHEME.match(text)
        return repr(f"{scheme[0] if scheme else ''}{HIDDEN}")
    return repr(f"{found[1]}/{HIDDEN}" if len(text) > len(found[1]) + 1 else text)


def redact(text: str, secrets: Iterable[Secret | None] = ()) -> str:
    """A message, without the values of `secrets`, what the environment has of them, and whatever looks like one."""
    known = [os.environ.get(name, "") for name in _IN_ENVIRONMENT]
    known += [secret.reveal() for secret in secrets if secret is not None]
    for value in known:
        text = hide_value(text, value, HIDDEN)
    if _SCHEME.search(text) or any(mark in text for mark in "=@%"):
        text = _IN_TEXT.sub(_hidden_word, text)
    lowered = text.lower()
    if "header" in lowered or "status line" in lowered:
        text = _HEADER_VALUE.sub(rf"\1{HIDDEN}", text)
    if "aws4" in lowered:
        text = _SIGNED.sub(rf"\1 {HIDDEN}", text)
    if ":" in text or "=" in text:
        text = _HEADER.sub(rf"\1{HIDDEN}", text)
        text = _QUOTED.sub(rf"\1{HIDDEN}", text)
        text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return text


def hide_value(text: str, value: str, instead: str) -> str:
    """`text` with `instead` for every `value`, also where that is quoted as `repr` does, or stripped."""
    for form in {value, value.strip(), repr(value)[1:-1], repr(value.strip())[1:-1]}:
        if len(form) >= LEAST_CHARS:
            text = text.replace(form, instead)
    return text


def _hidden_word(found: re.Match[str]) -> str:
    word = found[0].rstrip(",.;:)]}")
    return _hidden(word, whole=False) + found[0][len(word) :]


def _hidden(text: str, *, whole: bool) -> str:
    """`whole`: it is a URL, and nothing but that; else a word of a text, which may be one."""
    plain = text
    for _ in range(MOST_ROUNDS):
        if not _ENCODED.search(plain):
            break
        plain = unquote(plain)
    else:
        return HIDDEN
    hidden = _url(plain, MOST_ROUNDS) if whole or _SCHEME.match(plain) else _word(plain)
    if hidden == plain:  # nothing in it: as it was written
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in hidden)


def _word(text: str) -> str:
    before, at, _ = text.rpartition("@")
    if at and ":" in before:
        scheme = _SCHEME.search(text)
        return (text[: scheme.end()] if scheme else "") + HIDDEN
    found = re.search(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:[/\\]", text)
    if found is not None:  # behind a bracket, an equals sign, a comma
        return text[: found.start()] + _url(text[found.start() :], MOST_ROUNDS)
    return _PAIR.sub(_pair_by_name, text)


def _url(text: str, rounds: int) -> str:
    found = _SCHEME.match(text)
    scheme = found[0] if found else ""
    rest = text[len(scheme) :]
    if found and found[1].lower() == "file" and "@" not in rest and not re.search(r"[?#&;]", rest):
        return text
    before, at, _ = rest.rpartition("@")
    if at and (":" in before or not re.search(r"[/\\]", before)):
        return scheme + HIDDEN
    server = re.match(r"[^/\\?#&;]*", rest)
    host, colon, port = (server[0] if server else "").rpartition(":")
    if scheme and colon and not host.startswith("arn:") and not _PORT.fullmatch(port):
        return scheme + HIDDEN  # no port: as if the host had been forgotten behind user:password
    return scheme + _options(rest, rounds)


def _options(rest: str, rounds: int) -> str:
    """Host and path as they are; of the options the values that are known to be harmless."""
    rest, fragment, _ = rest.partition("#")
    end = f"#{HIDDEN}" if fragment else ""
    path, question, query = rest.partition("?")
    first = re.search(r"[&;][^/]*=", path)
    if first is not None:  # options without their question mark
        query, question, path = path[first.start() + 1 :] + question + query, path[first.start()], path[: first.start()]
    parts = re.split(r"([&;?])", query)
    shown = [part if index % 2 else _option(part, rounds) for index, part in enumerate(parts)]
    return _PAIR.sub(_pair_by_name, path) + question + "".join(shown) + end


def _option(text: str, rounds: int) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return HIDDEN if text else ""
    key = name.lower()
    if key not in _SHOWN or value not in _SHOWN_VALUES.get(key, (value,)) or not rounds:
        return f"{name}={HIDDEN}"
    return f"{name}={_url(value, rounds - 1) if _SCHEME.match(value) else value}"


def _pair_by_name(found: re.Match[str]) -> str:
    if not found["value"] or not _SECRET_NAME.search(found["name"]):
        return found[0]
    return f"{found['before']}{found['name']}={HIDDEN}"
