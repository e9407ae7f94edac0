from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agent import own_memory, patterns, registry
from harness.agent.context import Context
from harness.agent.outcome import NoMemory, NotAccessible, Outcome


def run(context: Context, kind: str, **args: object) -> Outcome:
    return registry.find(kind)(context, args)


@pytest.fixture
def context() -> Context:
    return Context()


def joined(pattern: str | int, seed: int, offset: int, size: int) -> bytes:
    return b"".join(data for _, data in patterns.chunks(pattern, seed, offset, size))


@given(
    st.sampled_from(["random", "counter", "zero", 0, 255]),
    st.integers(0, 3 * patterns.BLOCK),
    st.integers(0, 2 * patterns.BLOCK),
)
def test_a_byte_depends_on_its_place_only(pattern: str | int, offset: int, size: int) -> None:
    whole = joined(pattern, 9, 0, 5 * patterns.BLOCK)
    assert joined(pattern, 9, offset, size) == whole[offset : offset + size]


def test_patterns_are_what_they_are_called() -> None:
    assert joined("zero", 0, 3, 5) == bytes(5)
    assert joined(0xA5, 0, 3, 5) == b"\xa5" * 5
    assert joined("counter", 0, 8, 12) == b"\x02\0\0\0\0\0\0\0\x03\0\0\0"
    assert joined("random", 1, 0, 64) == joined("random", 1, 0, 64)
    assert joined("random", 1, 0, 64) != joined("random", 2, 0, 64)
    pages = [joined("random", 0, at, 4096) for at in range(0, 1 << 20, 4096)]
    assert len(set(pages)) == len(pages)


@pytest.mark.parametrize("pattern", ["ones", -1, 256])
def test_other_patterns_are_refused(pattern: str | int) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        joined(pattern, 0, 0, 1)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_first_difference(left: bytes, data: st.DataObject) -> None:
    right = data.draw(st.binary(min_size=len(left), max_size=len(left)))
    expected = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
    assert patterns.first_difference(left, right) == expected
    assert patterns.first_difference(left, left) is None


def test_fill_check_and_compare(context: Context) -> None:
    run(context, "buffer", **{"as": "a"}, size=200_000, backing="anonymous")
    run(context, "buffer", **{"as": "b"}, size=200_000, backing="anonymous")
    for name in "ab":
        run(context, "fill", buffer=name, offset=0, pattern="random", seed=4)
        assert run(context, "check", buffer=name, offset=0, pattern="random", seed=4).values["equal"] is True
    # A part of what was filled is a part of the pattern.
    assert run(context, "check", buffer="a", offset=70_001, size=3, pattern="random", seed=4).values["equal"] is True
    args = {"buffer": "a", "offset": 5, "with": "b", "with_offset": 5, "size": 199_995}
    assert run(context, "compare", **args).values == {"equal": True, "first_difference": None}
    at = context.buffer("a").own(150_000, 1)
    own_memory.write(at, bytes([own_memory.read(at, 1)[0] ^ 1]))
    different = {"equal": False, "first_difference": 150_000}
    assert run(context, "compare", **args).values == different
    assert run(context, "check", buffer="a", offset=10, pattern="random", seed=4).values == different
    for name in "ab":
        run(context, "release", buffer=name)


def test_fill_touches_its_range_only(context: Context) -> None:
    run(context, "buffer", **{"as": "a"}, size=8192, backing="anonymous")
    run(context, "fill", buffer="a", offset=4095, size=2, pattern=0xFF)
    assert run(context, "check", buffer="a", offset=0, size=4095, pattern="zero").values["equal"] is True
    assert run(context, "check", buffer="a", offset=4095, size=2, pattern=0xFF).values["equal"] is True
    assert run(context, "check", buffer="a", offset=4097, pattern="zero").values["equal"] is True
    run(context, "release", buffer="a")


@pytest.mark.parametrize("size", [1, own_memory.PIECE, 2 * own_memory.PIECE + 4096, (2 << 30) + 4096])
def test_repeated_memory_is_one_piece_again_and_again(size: int) -> None:
    address = own_memory.take(size, "repeated")
    try:
        own_memory.write(address, b"\x5a")
        for offset in range(0, size, own_memory.PIECE):
            assert own_memory.read(address + offset, 1) == b"\x5a"
        own_memory.write(address + size - 1, b"\xa5")
        assert own_memory.read(address + (size - 1) % own_memory.PIECE, 1) == b"\xa5"
    finally:
        own_memory.give_back(address, size)


def test_memory_that_the_kernel_does_not_give() -> None:
    with pytest.raises(NoMemory):
        own_memory.take(1 << 62, "anonymous")


def test_own_accesses_that_would_end_the_program_are_refused(context: Context) -> None:
    run(context, "buffer", **{"as": "fixed"}, size=4096, backing="read_only")
    run(context, "buffer", **{"as": "a"}, size=4096, backing="anonymous")
    with pytest.raises(NotAccessible, match="read-only"):
        run(context, "fill", buffer="fixed", pattern="zero")
    assert run(context, "check", buffer="fixed", pattern="zero").values["equal"] is True
    with pytest.raises(NotAccessible, match="4096 bytes"):
        run(context, "fill", buffer="a", offset=4095, size=2, pattern="zero")
    run(context, "release", buffer="a")
    for kind, args in (("fill", {"pattern": 1}), ("check", {"pattern": 1}), ("release", {})):
        with pytest.raises(NotAccessible):
            run(context, kind, buffer="a", **args)
    run(context, "release", buffer="fixed")
