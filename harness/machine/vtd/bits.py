"""Fields of the VT-d structures: little-endian words of 64 bits, a field as its highest and lowest bit."""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
ADDRESS = (51, 12)
"""Where every structure has the address of the next one: whole pages, as wide as a host address can be."""


def get(word: int, high: int, low: int) -> int:
    """The field ``word[high:low]`` as a number."""
    return word >> low & (1 << high - low + 1) - 1


def put(value: int, high: int, low: int) -> int:
    """A word with a value in its field ``[high:low]``.

    Raises:
        ValueError: the value does not fit.
    """
    if not 0 <= value < 1 << high - low + 1:
        raise ValueError(f"{value:#x} does not fit in the bits {high}:{low}")
    return value << low


def get_address(word: int) -> int:
    """The address in a word: that of a page."""
    return word & put((1 << ADDRESS[0] - ADDRESS[1] + 1) - 1, *ADDRESS)


def put_address(address: int) -> int:
    """A word with an address.

    Raises:
        ValueError: it is not that of a page, or is wider than 52 bits.
    """
    if address % PAGE or address >> ADDRESS[0] + 1 or address < 0:
        raise ValueError(f"{address:#x} is not the address of a page of at most 52 bits")
    return address
