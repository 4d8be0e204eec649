"""No answer of an S3 server is read into memory without a bound: listings and errors are, and botocore has none.

Objects are not meant: they are read in pieces, by who asked for them. Nothing public of botocore stands between the
connection and the answer read whole, so its client's session is wrapped.
"""

from __future__ import annotations

from typing import Any

from walcast.errors import Unavailable

# A listing's page of 1000 keys, each as long as it may be and escaped, is some 7 MiB; as a tree it takes twenty times
# its bytes of memory, and a second of computing for each MiB.
ANSWER_MOST_BYTES = 8 << 20
ERROR_MOST_BYTES = 256 << 10
_PIECE_BYTES = 1 << 16


class BoundedSession:
    """A botocore HTTP session whose answers, other than objects, have at most ANSWER_MOST_BYTES, and errors
    ERROR_MOST_BYTES."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def send(self, request: Any) -> Any:
        """As botocore's own."""
        is_object, request.stream_output = request.stream_output, True
        answer = self._session.send(request)
        is_error = answer.status_code >= 300
        if not is_object or is_error:
            answer._content = _read(request.url, answer.raw, ERROR_MOST_BYTES if is_error else ANSWER_MOST_BYTES)
        return answer

    def close(self) -> None:
        """As botocore's own."""
        self._session.close()


def _read(url: str, raw: Any, most: int) -> bytes:
    from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
    from urllib3.exceptions import ProtocolError
    from urllib3.exceptions import ReadTimeoutError as NothingCame

    pieces: list[bytes] = []
    left = most
    try:
        for piece in raw.stream(_PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raw.close()
                raise Unavailable(f"{url.partition('?')[0]} answers with more than {most:,} bytes")
            pieces.append(piece)
    except NothingCame as error:
        raise ReadTimeoutError(endpoint_url=url, error=error) from error
    except ProtocolError as error:
        raise ConnectionClosedError(endpoint_url=url, error=error) from error
    return b"".join(pieces)
