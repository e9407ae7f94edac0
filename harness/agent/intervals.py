"""Address ranges of which those that meet another range are found without looking at all."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Interval = tuple[int, int, int]
    """First address, bytes, and what belongs to it."""

_SHIFT = 16  # small ranges are found by the units of 64 KiB that they touch
_SMALL = 1 << _SHIFT


class Intervals:
    """Ranges, which may overlap, each with a number. Large ones are thought to be few."""

    def __init__(self) -> None:
        self._units: dict[int, dict[Interval, None]] = {}
        self._large: dict[Interval, None] = {}
        self._small: dict[Interval, None] = {}

    def __iter__(self) -> Iterator[Interval]:
        """All of them, in the order in which they came, small ones first."""
        return iter((*self._small, *self._large))

    def add(self, first: int, size: int, number: int) -> None:
        """Take one in; `size` in bytes, >= 1."""
        one = first, size, number
        if size > _SMALL:
            self._large[one] = None
            return
        self._small[one] = None
        for unit in _units(first, size):
            self._units.setdefault(unit, {})[one] = None

    def take(self, first: int, size: int) -> list[Interval]:
        """Remove and return those that have an address in common with a range."""
        units = _units(first, size)
        # Of a very large range it is less to look at all.
        near = self._small if len(units) > len(self._units) else (one for u in units for one in self._units.get(u, ()))
        found = {one: None for place in (near, self._large) for one in place if _meet(one, first, size)}
        for one in found:
            self._large.pop(one, None)
            if one in self._small:
                del self._small[one]
                for unit in _units(one[0], one[1]):
                    left = self._units[unit]
                    del left[one]
                    if not left:
                        del self._units[unit]
        return list(found)

    def clear(self) -> None:
        """Remove all."""
        self._units.clear()
        self._large.clear()
        self._small.clear()


def _units(first: int, size: int) -> range:
    return range(first >> _SHIFT, (first + size - 1 >> _SHIFT) + 1)


def _meet(one: Interval, first: int, size: int) -> bool:
    return one[0] < first + size and first < one[0] + one[1]
