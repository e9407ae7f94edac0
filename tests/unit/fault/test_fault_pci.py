from __future__ import annotations

import pytest

from harness.fault.pci import Pf, Requester


def requester(text: str) -> Requester:
    found = Requester.parse(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "rid", "parts"), [("02:01.2", 0x20A, (2, 1, 2)), ("0000:ff:1f.7", 0xFFFF, (255, 31, 7))]
)
def test_parts_of_a_requester(text, rid, parts):
    found = requester(text)
    assert (found.rid, (found.bus, found.device, found.function), str(found)) == (rid, parts, text)


@pytest.mark.parametrize("text", ["", "02:01", "02:20.0", "02:01.8", "100:00.0", "02:01.2 ", "00:0z.1", "x02:01.2"])
def test_what_is_no_requester(text):
    assert Requester.parse(text) is None


@pytest.mark.parametrize(
    ("vf", "pf", "offset", "stride", "number"),
    [
        ("02:01.2", "02:00.0", 1, 1, 10),  # nvme of QEMU
        ("02:10.0", "02:00.0", 0x80, 2, 1),  # igb
        ("02:10.2", "02:00.0", 0x80, 2, 2),
        ("02:10.1", "02:00.0", 0x80, 2, None),  # between two VFs
        ("03:00.0", "02:00.0", 0x100, 1, 1),  # on the next bus
        ("00:00.0", "ff:1f.7", 1, 1, 1),  # sixteen bits
        ("02:00.0", "02:00.0", 1, 1, None),  # the PF itself
        ("02:01.2", "02:00.0", 10, 0, 1),  # one VF, no stride
        ("02:01.3", "02:00.0", 10, 0, None),
        ("04:00.0", "02:00.0", 1, 1, None),  # too far behind for so many VFs
        ("0001:02:01.2", "0000:02:00.0", 1, 1, None),  # another PCI domain
        ("0001:02:01.2", "02:00.0", 1, 1, 10),
    ],
)
def test_which_vf_it_is(vf, pf, offset, stride, number):
    assert Pf(requester(pf), offset, stride, 64).vf_number(requester(vf)) == number
