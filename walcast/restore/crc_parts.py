"""CRC-64/GO-ISO of a whole from those of its parts, which may be computed in any order and anywhere.

A CRC is a remainder of polynomials over GF(2). Appending n bytes multiplies what was there by x^(8n), so
crc(a ‖ b) = crc(a) · x^(8·len(b)) + crc(b) modulo the CRC's polynomial; the inversions at the beginning and the end of
this CRC cancel out. Bits are reflected: the top bit is x^0. The method is zlib's (`crc32_combine`), with 64 bits.
"""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0xD800000000000000
_ONE = 1 << 63


def crc64_of_parts(first: int, second: int, second_bytes: int) -> int:
    """crc(a ‖ b) from crc(a), crc(b) and the length of b in bytes."""
    return _multiply(_shift(second_bytes), first) ^ second


@cache
def _shift(size: int) -> int:
    """x^(8·size)."""
    power, exponent = _ONE, 3  # 8 = 2^3
    while size:
        if size & 1:
            power = _multiply(_square(exponent), power)
        size >>= 1
        exponent += 1
    return power


@cache
def _square(exponent: int) -> int:
    """x^(2^exponent)."""
    if exponent == 0:
        return _ONE >> 1
    root = _square(exponent - 1)
    return _multiply(root, root)


def _multiply(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
