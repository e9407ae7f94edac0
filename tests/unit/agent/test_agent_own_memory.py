"""Memory that the program takes for itself: where it is, and that nothing else is taken or left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.agent import own_memory, registry
from harness.agent.context import Context
from harness.agent.outcome import NoMemory

KIB, MIB = 1 << 10, 1 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def areas() -> dict[tuple[int, int], tuple[str, str]]:
    """Anonymous areas and those of memfds in this process: start and end to permissions and name."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        name = line[73:]
        if not name.startswith("/") or "memfd" in name:
            start, end = (int(part, 16) for part in span.split("-"))
            found[start, end] = rights, name
    return found


def permissions(start: int, size: int) -> set[str]:
    """The permissions of all pages of a range; `none` where a page is not mapped."""
    found = set()
    mapped = areas()
    for page in range(start, start + size, 4096):
        found.add(next((rights for (low, high), (rights, _) in mapped.items() if low <= page < high), "none"))
    return found


def total() -> int:
    """Bytes of all areas, without the heap and the stack."""
    return sum(high - low for (low, high), (_, name) in areas().items() if name not in ("[heap]", "[stack]"))


def left_by(action: Callable[[], object]) -> set[int]:
    """How many bytes more there are after an action, at several tries: what Python takes for itself comes now and then,
    what the action leaves behind comes each time.
    """
    found = set()
    for _ in range(5):
        before = total()
        action()
        found.add(total() - before)
    return found


@pytest.mark.parametrize("backing", ["anonymous", "read_only", "repeated"])
@pytest.mark.parametrize("align", [4096, 64 * KIB, 2 * MIB, 1 << 30])
@pytest.mark.parametrize("size", [1, 4096, 4097, 3 * MIB + 5])
def test_memory_is_aligned_and_exactly_as_large_as_asked_for(backing: str, align: int, size: int) -> None:
    taken = []
    whole = -(-size // 4096) * 4096
    assert whole in left_by(lambda: taken.append(own_memory.take(size, backing, align))), "and no reserve around it"
    rights = {"anonymous": "rw-p", "read_only": "r--p", "repeated": "rw-s"}[backing]
    for address in taken:
        assert address % align == 0
        assert permissions(address, whole) == {rights}
        if backing != "read_only":
            own_memory.write(address + size - 1, b"\x5a")
        assert own_memory.read(address + size - 1, 1) == (b"\0" if backing == "read_only" else b"\x5a")
    assert -whole in left_by(lambda: own_memory.give_back(taken.pop(), size))


def test_memory_beside_it_stays_as_it_is() -> None:
    held = [own_memory.take(4096, "anonymous") for _ in range(20)]
    for number, address in enumerate(held):
        own_memory.write(address, bytes([number]) * 4096)
    taken = [own_memory.take(4096, "anonymous", 2 * MIB) for _ in range(20)]
    assert len(set(taken)) == 20
    assert not set(taken) & set(held)
    assert [own_memory.read(address, 4096) for address in held] == [bytes([n]) * 4096 for n in range(20)]
    for address in (*held, *taken):
        own_memory.give_back(address, 4096)


def test_repeated_memory_is_one_piece_again_and_again() -> None:
    address = own_memory.take(5 * MIB, "repeated", 2 * MIB)
    own_memory.write(address + 7, b"here")
    assert own_memory.read(address + 2 * MIB + 7, 4) == own_memory.read(address + 4 * MIB + 7, 4) == b"here"
    own_memory.give_back(address, 5 * MIB)


@pytest.mark.parametrize(("size", "asked"), [(2 * MIB - 1, []), (2 * MIB, [2 * MIB]), (5 * MIB, [2 * MIB])])
def test_a_kernel_without_large_pages_repeats_small_ones(
    size: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole piece is asked for as a large page, which nobody needs; what is contiguous by name does need it."""
    pieces = []

    def without(address: int, size: int, advice: int) -> None:
        pieces.append(size)
        raise NoMemory("madvise")

    monkeypatch.setattr(own_memory, "_madvise", without)
    address = own_memory.take(size, "repeated")
    assert pieces == asked
    assert address % (2 * MIB) == 0 or not asked
    own_memory.write(address + size - 1, b"\x5a")
    own_memory.give_back(address, size)

    def contiguous() -> None:
        with pytest.raises(NoMemory):
            own_memory.take(size, "contiguous")

    assert 0 in left_by(contiguous)


@pytest.mark.parametrize("backing", ["anonymous", "read_only", "repeated"])
@pytest.mark.parametrize("align", [4096, 2 * MIB])
def test_too_much_is_refused_and_leaves_nothing(backing: str, align: int) -> None:
    def take() -> None:
        with pytest.raises(NoMemory, match="Cannot allocate memory"):
            own_memory.take(1 << 47, backing, align)

    assert 0 in left_by(take)


@pytest.mark.parametrize("backing", ["anonymous", "read_only", "repeated"])
@pytest.mark.parametrize("passing", [1, 2, 3])
def test_a_kernel_that_refuses_midway_leaves_nothing(
    backing: str, passing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve has been made then, and a part of the pieces of repeated memory."""
    real, calls = own_memory._mmap, []

    def refusing(*arguments: object) -> int | None:
        calls.append(arguments)
        found: int | None = own_memory._FAILED if len(calls) > passing else real(*arguments)
        return found

    def attempt() -> None:
        calls.clear()
        try:
            address = own_memory.take(6 * MIB, backing, 2 * MIB)
        except NoMemory:
            assert passing == 1 or backing == "repeated"
        else:
            assert passing > 1
            assert backing != "repeated"
            own_memory.give_back(address, 6 * MIB)

    monkeypatch.setattr(own_memory, "_mmap", refusing)
    files = len(list(Path("/proc/self/fd").iterdir()))
    assert 0 in left_by(attempt)
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_hugepages_come_from_the_kernels_pool() -> None:
    free = int(POOL.read_text()) if POOL.exists() else 0
    if free == 0:
        with pytest.raises(NoMemory, match="mmap of 2097152 bytes"):
            own_memory.take(1, "huge")
        return
    address = own_memory.take(1, "huge")
    assert address % (2 * MIB) == 0
    own_memory.give_back(address, own_memory.extent(1, "huge"))


def test_what_must_be_given_back() -> None:
    assert own_memory.extent(5000, "anonymous") == 5000
    assert own_memory.extent(5000, "repeated") == 5000
    assert [own_memory.extent(size, "huge") for size in (1, 2 * MIB, 2 * MIB + 1)] == [2 * MIB, 2 * MIB, 4 * MIB]


def test_the_steps_take_it_and_give_all_of_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    context = Context()
    take, release = registry.find("buffer"), registry.find("release")
    take(context, {"as": "a", "size": 5000, "align": 2 * MIB})
    address = context.buffer("a").address
    assert address is not None
    assert address % (2 * MIB) == 0

    def take_and_release() -> None:
        take(context, {"as": "b", "size": 64 * MIB, "backing": "repeated"})
        release(context, {"buffer": "b"})

    assert 0 in left_by(take_and_release)
    release(context, {"buffer": "a"})
    # As much as the kernel gave, where hugepages are larger than what was asked for.
    monkeypatch.setattr(own_memory, "take", lambda size, backing, align: 2 * MIB)
    monkeypatch.setattr(own_memory, "give_back", lambda address, size: given.append((address, size)))
    take(context, {"as": "h", "size": 5000, "backing": "huge"})
    release(context, {"buffer": "h"})
    assert given == [(2 * MIB, 2 * MIB)]
