"""New inputs from old ones: a few small changes of bytes and numbers, words of the format, two inputs spliced."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MOST_BYTES = 64 << 10
_SIZES = (1, 2, 4, 8)
_NUMBERS = (0, 1, 2, 7, 16, 63, 64, 100, 127, 128, 255, 256, 511, 512, 4096, 32767, 32768, 65535, 65536)
_NUMBERS += tuple(value for bits in (24, 31, 32, 40, 47, 62, 63, 64) for value in ((1 << bits) - 1, 1 << bits))

Change = Callable[[random.Random, bytearray], None]


def _flip(chance: random.Random, data: bytearray) -> None:
    data[int(chance.random() * len(data))] ^= 1 << int(chance.random() * 8)


def _set(chance: random.Random, data: bytearray) -> None:
    data[int(chance.random() * len(data))] = int(chance.random() * 256)


def _number(chance: random.Random, data: bytearray) -> None:
    """One that is at an edge, in either byte order."""
    size = chance.choice(_SIZES)
    at = int(chance.random() * len(data))
    value = chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, "big" if chance.random() < 0.5 else "little")


def _add(chance: random.Random, data: bytearray) -> None:
    size = chance.choice(_SIZES)
    at = int(chance.random() * len(data))
    order = "big" if chance.random() < 0.5 else "little"
    value = int.from_bytes(data[at : at + size], order) + int(chance.random() * 33) - 16  # type: ignore[arg-type]
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)  # type: ignore[arg-type]


def _delete(chance: random.Random, data: bytearray) -> None:
    at = int(chance.random() * len(data))
    del data[at : at + 1 + int(chance.random() ** 4 * len(data))]


def _repeat(chance: random.Random, data: bytearray) -> None:
    at = int(chance.random() * len(data))
    part = data[at : at + 1 + int(chance.random() ** 3 * 256)]
    data[at:at] = part * (1 + int(chance.random() ** 6 * 64))


def _insert(chance: random.Random, data: bytearray) -> None:
    at = int(chance.random() * (len(data) + 1))
    data[at:at] = chance.randbytes(1 + int(chance.random() ** 3 * 32))


def _digits(chance: random.Random, data: bytearray) -> None:
    """A number that is written in digits becomes another one."""
    found = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if found:
        at = chance.choice(found)
        text = str(chance.choice(_NUMBERS) * chance.choice((1, 1, -1, 10**20)))
        data[at : at + 1 + int(chance.random() * 4)] = text.encode()


_CHANGES: tuple[Change, ...] = (_flip, _flip, _set, _set, _number, _number, _add, _delete, _repeat, _insert, _digits)


class Mutations:
    """With words of the format, and a corpus to splice with."""

    def __init__(self, chance: random.Random, tokens: Sequence[bytes]) -> None:
        self._chance = chance
        self._tokens = tokens

    def next(self, corpus: Sequence[bytes]) -> bytes:
        """From one of the corpus."""
        chance = self._chance
        data = bytearray(chance.choice(corpus))
        if chance.random() < 0.05:
            other = chance.choice(corpus)
            data[int(chance.random() * (len(data) + 1)) :] = other[int(chance.random() * (len(other) + 1)) :]
        for _ in range(1 << int(chance.random() * 4)):
            if not data:
                data += chance.randbytes(1 + int(chance.random() * 16))
            if self._tokens and chance.random() < 0.2:
                at = int(chance.random() * (len(data) + 1))
                token = chance.choice(self._tokens)
                data[at : at + (len(token) if chance.random() < 0.5 else 0)] = token
            else:
                chance.choice(_CHANGES)(chance, data)
        return bytes(data[:MOST_BYTES])
