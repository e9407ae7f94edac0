"""Registers and BARs."""

from __future__ import annotations

import pytest

from harness.device.registers import Bar, Register


def test_a_register_is_read_and_written_whole_or_by_words() -> None:
    seen: list[int] = []
    bar = Bar(4096)
    bar.add(8, Register("WIDE", 8, reset=0x1122334455667788, write=seen.append))
    assert bar.read(8, 8) == bytes.fromhex("8877665544332211")
    assert bar.read(12, 4) == bytes.fromhex("44332211")
    assert bar.read(10, 1) == b"\x66"
    assert bar.read(6, 4) == b"\0\0\x88\x77"
    bar.write(12, b"\1\0\0\0")
    bar.write(8, bytes(range(8)))
    assert seen == [0x1_55667788, 0x0706050403020100]


def test_what_is_no_register_reads_as_0_and_takes_nothing() -> None:
    bar = Bar(4096)
    read_only = bar.add(0, Register("R", reset=7))
    bar.write(0, b"\xff" * 16)
    bar.write(4090, b"\xff" * 4)
    assert (read_only.value, bar.read(0, 12), bar.read(4092, 4)) == (7, b"\7" + bytes(11), bytes(4))


@pytest.mark.parametrize(("offset", "data"), [(0, b"\xff"), (0, b"\xff\xff"), (2, b"\xff\xff"), (0, b"\xff" * 6)])
def test_parts_of_words_are_not_written(offset: int, data: bytes) -> None:
    bar = Bar(4096)
    register = bar.add(0, Register("R", writable=True))
    bar.write(offset, data)
    assert register.value == 0


def test_a_counter_runs_over_as_in_hardware() -> None:
    bar = Bar(4096)
    bar.add(0, Register("C", read=lambda: (1 << 32) + 5))
    bar.add(8, Register("N", read=lambda: -1))
    assert bar.read(0, 4) == b"\5\0\0\0"
    assert bar.read(8, 4) == b"\xff" * 4


def test_a_reset_sets_each_register_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar(4096)
    wide = bar.add(0, Register("W", 8, reset=3, writable=True))
    bar.write(0, b"\xff" * 8)
    seen: list[str] = []
    whole = Register.reset
    monkeypatch.setattr(Register, "reset", lambda self: (seen.append(self.name), whole(self)))
    bar.reset()
    assert (wide.value, seen) == (3, ["W"])


@pytest.mark.parametrize("size", [0, 4, 2048, 4097, 0x3000])
def test_a_bar_has_a_power_of_two(size: int) -> None:
    with pytest.raises(ValueError, match="a power of two"):
        Bar(size)


def test_registers_have_places() -> None:
    bar = Bar(4096)
    bar.add(0, Register("A", 8))
    for offset, size in ((4, 8), (4096, 4), (-4, 4), (2, 4)):
        with pytest.raises(ValueError, match="cannot be at"):
            bar.add(offset, Register("B", size))
    with pytest.raises(ValueError, match="meets A"):
        bar.add(4, Register("B"))
    with pytest.raises(ValueError, match="a register has 4 or 8"):
        Register("C", 2)
