"""Configuration space as lspci and Linux read it, and what a driver's writes do to it."""

from __future__ import annotations

import struct

import pytest
from client import decode

from harness.device.config import Acs, ConfigSpace, Identity, Msix, Pcie

WHOLE = Identity(0x8086, 0x4940, 0x0B4000, revision=0x40, capabilities=(Pcie(), Msix(5, 0, 0x1000, 0x1800), Acs()))


def space(identity: Identity = WHOLE, bars: dict[int, int] | None = None) -> ConfigSpace:
    return ConfigSpace(identity, {0: 0x4000} if bars is None else bars)


def word(config: ConfigSpace, at: int, size: int = 4) -> int:
    return int.from_bytes(config.read(at, size), "little")


def test_the_header() -> None:
    config = space()
    assert (word(config, 0x00, 2), word(config, 0x02, 2)) == (0x8086, 0x4940)
    assert word(config, 0x04, 2) == 0, "nothing is switched on"
    assert word(config, 0x06, 2) == 0x0010, "status: there are capabilities, and nothing is wrong"
    assert word(config, 0x08) == 0x0B4000_40
    assert word(config, 0x0C) == 0, "header type 0, one function as far as it knows"
    assert [word(config, at) for at in range(0x10, 0x28, 4)] == [0x4, 0, 0, 0, 0, 0]
    assert (word(config, 0x2C, 2), word(config, 0x2E, 2)) == (0x8086, 0x4940)
    assert (word(config, 0x30), word(config, 0x3D, 1)) == (0, 0), "no ROM, no INTx"


def test_the_pci_express_capability() -> None:
    config = space()
    at = decode(config)[0x10]
    kind = word(config, at + 2, 2)
    assert (kind & 0xF, kind >> 4 & 0xF) == (2, 0), "version 2, endpoint"
    can = word(config, at + 4)
    assert (can & 7, bool(can & 1 << 5), bool(can & 1 << 15), bool(can & 1 << 28)) == (1, True, True, True)
    assert not can & ~(7 | 1 << 5 | 1 << 15 | 1 << 28), "and nothing else, reserved bits included"
    control = word(config, at + 8, 2)
    assert control == 0x2810
    assert word(config, at + 0x0A, 2) == 0, "no error, nothing pending"
    link, now = word(config, at + 0x0C), word(config, at + 0x12, 2)
    assert (link & 0xF, link >> 4 & 0x3F) == (now & 0xF, now >> 4 & 0x3F) == (1, 1), "as wide and fast as it can be"
    assert config.read(at + 0x14, 0x3C - 0x14) == bytes(0x3C - 0x14)


def test_the_msix_capability() -> None:
    config = space()
    at = decode(config)[0x11]
    control, table, pending = struct.unpack("<HII", config.read(at + 2, 10))
    assert (control & 0x7FF, control & 0xC000) == (4, 0), "5 vectors, off"
    assert (table & 7, table & ~7, pending & 7, pending & ~7) == (0, 0x1000, 0, 0x1800)
    config.write(at + 2, b"\xff\xff")
    assert word(config, at + 2, 2) == 0xC004


def test_acs_is_first_in_the_extended_list() -> None:
    config = space()
    head = word(config, 0x100)
    assert (head & 0xFFFF, head >> 16 & 0xF, head >> 20) == (0x000D, 1, 0)
    assert config.read(0x104, 4) == bytes(4)
    assert word(space(Identity(1, 2, 3, capabilities=(Pcie(),))), 0x100) == 0, "without any, the list is empty"


def test_extended_capabilities_follow_each_other() -> None:
    config = space(Identity(1, 2, 3, capabilities=(Acs(), Pcie(), Acs())))
    assert word(config, 0x100) == 0x1080_000D | 1 << 16
    assert word(config, 0x108) == 0x0001_000D


def test_a_function_without_capabilities() -> None:
    config = space(Identity(1, 2, 3, capabilities=()))
    assert (word(config, 0x06, 2), word(config, 0x34, 1)) == (0, 0)


@pytest.mark.parametrize("size", [0x1000, 0x4000, 1 << 32])
def test_a_bar_says_its_size(size: int) -> None:
    config = space(Identity(1, 2, 3), {2: size})
    config.write(0x18, b"\xff" * 8)
    value = word(config, 0x18, 8)
    assert value & 0xF == 0x4
    assert -(value & ~0xF) & (1 << 64) - 1 == size
    config.write(0x18, struct.pack("<Q", 0x12_3400_0000_0000))
    assert word(config, 0x18, 8) == 0x12_3400_0000_0000 | 4


def test_bus_master_is_one_bit() -> None:
    config = space()
    config.write(0x04, b"\x02\x04")
    assert not config.bus_master
    config.write(0x04, b"\x04")
    assert config.bus_master
    config.write(0x04, b"\xff\xff\xff\xff")
    assert word(config, 0x04) == 0x0010_0406, "nothing else can be switched on, and status stays"


@pytest.mark.parametrize(("offset", "data"), [(8, b"\x10\xa8"), (9, b"\x80"), (8, b"\x10\xa8\0\0"), (6, b"\0\0\0\x80")])
def test_one_bit_starts_a_reset(offset: int, data: bytes) -> None:
    config = space()
    seen: list[bool] = []
    config.on_flr = lambda: seen.append(True)
    at = decode(config)[0x10]
    config.write(at + offset, data)
    assert seen == [True]
    assert not word(config, at + 8, 2) & 0x8000, "it reads as 0 always"
    config.write(at + 8, b"\x10\x28")
    config.write(at + 7, b"\x80")
    assert seen == [True]


def test_without_flr_the_bit_does_nothing() -> None:
    config = space(Identity(1, 2, 3, capabilities=(Pcie(flr=False),)))
    config.on_flr = lambda: pytest.fail("a reset")
    config.write(0x48, b"\xff\xff")
    assert not word(config, 0x44) & 1 << 28


def test_a_reset_undoes_every_write() -> None:
    config = space()
    before = config.read(0, 4096)
    config.write(0, b"\xff" * 0x48)
    config.write(0x7E, b"\xff" * 100)
    assert config.read(0, 4096) != before
    config.reset()
    assert config.read(0, 4096) == before


@pytest.mark.parametrize(
    ("msix", "why"),
    [
        (Msix(0), "0 MSI-X vectors"),
        (Msix(2049), "2049 MSI-X vectors"),
        (Msix(4, bar=2), "which has 0x0 bytes"),
        (Msix(4, table=0x4000), "the MSI-X table cannot be"),
        (Msix(4, table=0x2004), "the MSI-X table cannot be"),
        (Msix(4, pending=0x4000), "pending bits cannot be"),
        (Msix(300, table=0x2000, pending=0x3000), "meets the pending bits"),
    ],
)
def test_msix_where_it_cannot_be(msix: Msix, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        space(Identity(1, 2, 3, capabilities=(msix,)))


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        (Identity(0x10000, 2, 3), "vendor 0x10000: it has 16 bits"),
        (Identity(1, -1, 3), "device -0x1: it has 16 bits"),
        (Identity(1, 2, 0x1000000), "class_code 0x1000000: it has 24 bits"),
        (Identity(1, 2, 3, revision=256), "revision 0x100: it has 8 bits"),
        (Identity(1, 2, 3, capabilities=(Pcie(), Acs(), Pcie())), "the capability Pcie is there twice"),
    ],
)
def test_an_identity_that_cannot_be(identity: Identity, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ConfigSpace(identity, {})
