from __future__ import annotations

import pytest

from harness.fault import describe, reason_name
from harness.fault.reasons import REASONS, reason_access
from harness.results import FaultRecord


def test_every_family_of_codes_is_there():
    assert set(range(0x01, 0x0F)) <= set(REASONS)
    assert set(range(0x20, 0x27)) <= set(REASONS)
    for codes in (range(0x30, 0x33), range(0x40, 0x49), range(0x58, 0x5E), range(0x70, 0x7D), range(0x80, 0x88)):
        assert set(codes) <= set(REASONS)
    assert {0x38, 0x39, 0x3A, 0x50, 0x51, 0x52, 0x90} <= set(REASONS)


def test_names():
    assert reason_name(0x06) == "PTE read access is not set"
    assert reason_name(0x71) == "present bit in first-level paging entry is clear"
    assert reason_name(0xEE) == "reason not defined by VT-d"
    assert reason_name(None) == "reason not said"


@pytest.mark.parametrize(
    ("code", "access"), [(5, "write"), (6, "read"), (0x85, "write"), (0x86, "read"), (0x26, "interrupt"), (2, None)]
)
def test_what_a_reason_says_of_the_access(code, access):
    assert reason_access(code) == access


def test_a_fault_in_words():
    fault = FaultRecord(
        witness="trace", requester="02:00.0", access="read", address=0x900000, reason=6, count=4, step=2
    )
    assert describe(fault) == "02:00.0 read 0x900000, reason 0x06 (PTE read access is not set), 4 times, step 2"
    fault = FaultRecord(witness="kernel", requester="02:00.0", access=None, address=None, reason=None, pasid=0)
    assert describe(fault) == "02:00.0 access not said address not said PASID 0x0 (reason not said)"
    fault = FaultRecord(witness="kernel", requester="00:1f.0", access="interrupt", address=None, reason=0x22, index=31)
    assert describe(fault) == "00:1f.0 interrupt index 0x1f, reason 0x22 (present bit in IRTE is clear)"
