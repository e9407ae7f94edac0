"""The reader of logs: lines that are read in pieces, and faults that wait for their second half."""

from __future__ import annotations

import pytest

from harness.fault import parse_kernel_log, reader
from harness.fault.reader import LogReader
from harness.results import FaultRecord

FAULTS = [
    b"[   12.5] DMAR: [DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000 [fault reason 0x06] PTE words",
    b"vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT device=02:00.0 domain=0x0 address=0x900 flags=0x0020]",
    b"vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x900000 flags=0x0010]",
    b"virtio_iommu virtio0: page fault from EP 256 at 0x900000 [R]",
    b"DMAR0: em0: pci0:25:0 sid c8 fault acc 1 adt 0x0 reason 0x6 addr 5000",
    b"\x1b[1mDMAR: [DMA Write] Request device \x1b[31m[02:01.2]\x1b[0m fault addr \x1b[7m900000\x1b[0m"
    b" [fault reason 05] words",
]


def read(log: bytes) -> list[FaultRecord]:
    found: list[FaultRecord] = []
    one = LogReader(found.append, lambda status: None)
    one.feed(log)
    one.close()
    return found


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_across_the_border_of_two_pieces(number, monkeypatch):
    fault = FAULTS[number]
    alone = read(fault + b"\n")
    assert len(alone) == 1
    monkeypatch.setattr(reader, "PIECE", 64)
    for before in range(200):
        line = b"." * before + b" " + fault + b" " + b"." * 3000 + b" " + fault + b"\n"
        found = [record.model_copy(update={"reason_text": None, "time": None}) for record in read(line)]
        assert found == [alone[0].model_copy(update={"reason_text": None, "time": None})] * 2, before


def test_the_time_stamp_of_a_line_counts_for_its_later_pieces(monkeypatch):
    monkeypatch.setattr(reader, "PIECE", 64)
    line = b"[   12.5] callbacks " + b"." * 5000 + b" virtio_iommu virtio0: page fault from EP 256 at 0x900000 [R]\n"
    assert [record.time for record in read(line)] == [12.5]


def test_one_fault_that_waits_does_not_keep_a_whole_line_in_memory():
    given: list[FaultRecord] = []
    one = LogReader(given.append, lambda status: None)
    one.feed(b"[DMA Read] Request device [02:00.0] fault addr 1000 ")
    one.feed(b"[DMA Read] Request device [02:00.0] fault addr 2000 [fault reason 06] words " * 20_000)
    # The line has not ended, and neither the log.
    assert len(given) > 10_000
    assert [record.address for record in given[:2]] == [0x1000, 0x2000]


def test_words_of_another_event_are_not_taken():
    head = "arm-smmu-v3 x: event 0x10 received:\n"
    assert parse_kernel_log(head + "arm-smmu-v3 x: \t0x0000010000000013\n").records == ()
    assert len(parse_kernel_log(head + "arm-smmu-v3 x: \t0x0000010000000010\n").records) == 1


def test_a_reason_in_the_words_of_xen_says_whose_line_it_is():
    head = "DMAR:[DMA Write] Request device [0000:01:00.0] fault addr 3f000\n"
    assert parse_kernel_log(head + "DMAR: reason 0c - words\n").records[0].vendor == "xen"
    assert parse_kernel_log(head + "DMAR:[fault reason 12] words\n").records[0].vendor == "intel"


def test_what_waits_is_given_when_its_patience_is_over():
    given: list[FaultRecord] = []
    one = LogReader(given.append, lambda status: None)
    one.feed(b"DMAR:[DMA Read] Request device [02:00.0] fault addr 900000\n" + b"other\n" * 60)
    assert given == []
    one.feed(b"other\n" * 10)
    assert [record.reason for record in given] == [None]
