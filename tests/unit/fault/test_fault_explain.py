"""Decoding, advice, groups: what is said of a record."""

from __future__ import annotations

import pytest

from harness.fault.advice import advise
from harness.fault.decode import MSI_WINDOW, Context, facts, status_sentence
from harness.fault.explain import explain_text
from harness.fault.groups import Groups
from harness.fault.known import find_range, known_ranges
from harness.fault.pci import Pf, Requester
from harness.fault.reasons import REASONS, reason_name
from harness.fault.vendors import (
    AMD_EVENT_WORDS,
    AMD_EVENTS,
    AMD_FLAG_BITS,
    AMD_FLAG_WORDS,
    SMMU_EVENT_WORDS,
    SMMU_EVENTS,
    VIRTIO_REASON_WORDS,
    VIRTIO_REASONS,
)
from harness.paths import scenarios_dir
from harness.results import CellResult, Evidence, FaultRecord, Outcome, StatusLine, StepError, StepEvidence

NOTHING = Context()
LINE = "DMAR: [DMA {} NO_PASID] Request device [02:01.2] fault addr {:#x} [fault reason {:#04x}] words"


def fault(**fields) -> FaultRecord:
    known = {"witness": "kernel", "requester": "02:01.2", "access": "read", "address": 0x900000, "reason": 6}
    return FaultRecord(**{**known, **fields})


def every_code() -> list[FaultRecord]:
    codes = {"intel": REASONS, "amd": AMD_EVENT_WORDS, "arm": SMMU_EVENTS, "virtio": VIRTIO_REASON_WORDS}
    return [
        fault(vendor=vendor, reason=code, access=access)
        for vendor, known in codes.items()
        for code in known
        for access in ("read", "write", "interrupt", None)
    ]


def test_every_code_has_a_name_and_advice():
    for one in every_code():
        assert not reason_name(one.reason, one.vendor).startswith("reason not")
        advice = advise(one, NOTHING)
        assert advice.causes, one
        assert advice.checks, one
    assert set(AMD_EVENTS.values()) == set(AMD_EVENT_WORDS)
    assert set(AMD_FLAG_BITS) == set(AMD_FLAG_WORDS)
    assert set(SMMU_EVENTS) == set(SMMU_EVENT_WORDS)
    assert set(VIRTIO_REASONS.values()) == set(VIRTIO_REASON_WORDS)


def test_every_scenario_that_is_named_is_there():
    contexts = (NOTHING, Context(aw_bits=20, ranges=known_ranges([cell()])))
    named = {name for one in every_code() for context in contexts for name in advise(one, context).scenarios}
    named |= set(advise(fault(address=0xFEE00000), NOTHING).scenarios)
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (scenarios_dir() / f"{name}.yaml").is_file()] == []


def test_no_check_has_a_placeholder_left():
    for one in every_code():
        assert not [text for text in advise(one, NOTHING).checks if "{" in text]
    assert any("0000:02:01.2" in text for text in advise(fault(), NOTHING).checks)
    assert any("0003:02:01.2" in text for text in advise(fault(requester="0003:02:01.2"), NOTHING).checks)


def test_a_code_that_nobody_defines_is_said_to_be_so():
    assert reason_name(0xEE) == "reason not defined by VT-d"
    assert reason_name(0xEE, "arm") == "reason not defined by arm"
    assert advise(fault(reason=0xEE), NOTHING).causes


def test_facts_of_a_requester():
    pf = Requester.parse("02:00.0")
    other = Requester.parse("01:00.0")
    assert pf is not None
    assert other is not None
    pfs = (Pf(other, 1, 1, 4096), Pf(pf, 1, 1, 64))
    said = facts(fault(), Context(pfs=pfs))
    assert said[0] == "requester 02:01.2: bus 0x02, device 0x01, function 2, requester ID 0x020a"
    # Both arithmetics fit; the nearer PF is meant.
    assert said[1] == "VF 10 (virtfn9) of the PF 02:00.0, at offset 1, stride 1"
    assert facts(fault(requester="02:00.0"), Context(pfs=pfs[1:]))[1] == "the PF itself"
    assert facts(fault(requester="05:00.0"), Context(pfs=pfs[1:]))[1] == "no VF of 02:00.0"


def test_facts_of_an_address():
    def said(**fields) -> str:
        context = Context(aw_bits=39, ranges=())
        return "; ".join(facts(fault(**fields), context))

    assert "page aligned" in said()
    assert "in no mapping that the run knows" in said()
    assert "0x10 bytes into a page" in said(address=0x900010, vendor="amd")
    assert "MSI window" in said(address=MSI_WINDOW[-1])
    assert "MSI window" not in said(address=MSI_WINDOW[-1] + 1)
    assert "within the 39 bits" in said(address=(1 << 39) - 1)
    assert "above the width of the IOMMU: 39 bits" in said(address=1 << 39)
    assert "does not say the address" in said(address=None)
    assert "index 0x1f" in said(address=None, access="interrupt", index=0x1F)
    assert "PASID 0x5" in said(pasid=5)


def test_flags_of_amd():
    said = facts(fault(vendor="amd", reason=2, flags=0x70), NOTHING)[-1]
    assert said == "flags 0x0070: PR (the page is present), RW (a write), PE (the rights do not allow it)"
    assert "the page was not present" in facts(fault(vendor="amd", reason=2, flags=0), NOTHING)[-1]


def test_the_address_comes_before_the_code():
    context = Context(aw_bits=39)
    assert "above the width" in advise(fault(address=1 << 45), context).causes[0]
    assert "MSI window" in advise(fault(address=0xFEE00000), context).causes[0]
    assert "never mapped" in advise(fault(), context).causes[0]
    assert "translation was kept" in advise(fault(address=0x400000), Context(ranges=known_ranges([cell()]))).causes[0]


def test_reads_and_writes_have_their_own_advice():
    assert advise(fault(reason=0x71, access="read"), NOTHING).scenarios[0] == "dma/unmapped_read"
    assert advise(fault(reason=0x71, access="write"), NOTHING).scenarios[0] == "dma/unmapped_write"
    assert advise(fault(vendor="virtio", reason=2, access="write"), NOTHING).scenarios[0] == "dma/unmapped_write"


def cell() -> CellResult:
    def step(index: int, kind: str, args: dict, values: dict | None = None, **more) -> StepEvidence:
        return StepEvidence(index=index, kind=kind, args=args, values=values or {}, **more)

    steps = (
        step(0, "alloc", {"as": "kept", "size": 8192}, {"iova": 0x200000}),
        step(1, "map", {"buffer": "a", "size": 4096}, {"iova": 0x400000}),
        step(2, "map", {"buffer": "failed", "size": 4096}, {"iova": 0}),
        step(3, "map", {"buffer": "refused", "size": 4096}, {}, error=StepError(type="X", message="")),
        step(4, "container_map", {"buffer": "r", "size": 4096, "iova": 0x800000, "access": "read"}, {"iova": 0x800000}),
        step(5, "unmap", {"buffer": "a", "size": 4096}, returns=0),
        step(6, "unmap", {"buffer": "kept", "size": 4096}, returns=1),
        step(7, "map", {"buffer": "b", "size": 4096}, {"iova": 0x600000}),
        step(8, "unregister", {"device": "edu0"}, returns=0),
        step(9, "map", {"buffer": "c", "size": 4096}, {"iova": 0xA00000}),
        step(10, "unmap", {"buffer": "c", "size": 4096}, returns=1),
        step(11, "iova_alloc", {"as": "r0", "buffer": "a", "offset": 16, "size": 8192}, {"iova": 0xC00010}, returns=1),
        step(12, "iova_alloc", {"as": "none", "buffer": "a", "size": 0}, error=StepError(type="BadSize", message="")),
        step(13, "stream_map", {"buffer": "a", "size": 100, "direction": "to_device"}, {"iova": 0xE00000}),
        step(14, "stream_unmap", {"buffer": "a", "size": 100}, {"iova": 0xE00000}),
        step(15, "iova_free", {"range": "r0"}, error=StepError(type="StillLinked", message="")),
        step(16, "iova_destroy", {"range": "r0", "size": 8192}),
        step(17, "iova_alloc", {"as": "r1", "buffer": "a", "size": 4096}, {"iova": 0xD00000}, returns=1),
    )
    evidence = Evidence(steps=steps)
    return CellResult(scenario="dma/x", title="t", source="s", file="f", outcome=Outcome.PASS, evidence=evidence)


def test_mappings_that_a_run_knows():
    ranges = known_ranges([cell()])
    words = {
        0x200000: "inside kept+0x0 of dma/x: mapped by step 0 (alloc), never ended",
        0x201FFF: "inside kept+0x1fff of dma/x: mapped by step 0 (alloc), never ended",
        0x400010: "inside a+0x10 of dma/x: mapped by step 1 (map), ended by step 5",
        0x600000: "inside b+0x0 of dma/x: mapped by step 7 (map), ended by step 8",
        0xA00000: "inside c+0x0 of dma/x: mapped by step 9 (map), never ended",
        0x800000: "inside r+0x0 of dma/x: mapped for read only by step 4 (container_map), never ended",
        0xC00018: "inside r0+0x8 of dma/x: reserved by step 11 (iova_alloc), ended by step 16",
        0xE00063: "inside a+0x63 of dma/x: mapped for read only by step 13 (stream_map), ended by step 14",
        0xD00000: "inside r1+0x0 of dma/x: reserved by step 17 (iova_alloc), never ended",
    }
    for address, text in words.items():
        known = find_range(ranges, address)
        assert known is not None
        assert known.describe(address) == text
    assert [find_range(ranges, address) for address in (0x0, 0x1FFFFF, 0x202000, 0x401000)] == [None] * 4


def test_status_registers_bit_by_bit():
    said = status_sentence(StatusLine(value=0x3F3, overflow=True, pending=True, index=3, line=1))
    assert said.startswith("fault status register 0x3f3: PFO (")
    assert [name for name in ("PFO", "PPF", "AFO", "APF", "IQE", "ICE", "ITE", "PRO") if f"{name} (" in said] == [
        "PFO",
        "PPF",
        "IQE",
        "ICE",
        "ITE",
        "PRO",
    ]
    assert "FRI 3" in said


def test_equal_faults_are_counted_and_the_order_is_kept():
    lines = [LINE.format(*words) for words in [("Read", 0x1000, 6), ("Write", 0x1000, 5), ("Read", 0x1000, 6)]]
    log = explain_text("\n".join([*lines, LINE.format("Read", 0x2000, 6), "dmar_fault: 7 callbacks suppressed"]))
    found = [(one.fault.access, one.fault.address, one.fault.count, one.fault.line) for one in log.explanations]
    assert found == [("read", 0x1000, 2, 1), ("write", 0x1000, 1, 2), ("read", 0x2000, 1, 4)]
    assert log.suppressed == 7


def test_one_page_is_one_fault_but_another_requester_or_vendor_is_not():
    groups = Groups()
    for fields in ({"address": 0x1010}, {"address": 0x1020}, {"requester": "02:01.3"}, {"vendor": "xen"}):
        groups.add(fault(**fields))
    assert [record.count for record in groups.records()] == [2, 1, 1]


def test_kinds_beyond_the_limit_are_counted_and_told():
    groups = Groups(limit=2)
    for page in (1, 2, 3, 1, 4):
        groups.add(fault(address=page << 12))
    assert [record.count for record in groups.records()] == [2, 1]
    assert groups.dropped == 2


def test_a_whole_text_may_end_without_a_newline():
    assert (
        explain_text("[DMA Read] Request device [02:00.0] fault addr 900000").explanations[0].fault.address == 0x900000
    )


@pytest.mark.parametrize("text", ["", "DMAR: IOMMU enabled", "hello \udc80"])
def test_text_without_a_fault(text):
    assert explain_text(text).explanations == ()
