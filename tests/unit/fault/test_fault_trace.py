from __future__ import annotations

from harness.fault import clamped_lines, collapse, evidence_faults, parse_trace
from harness.fault.pci import requester_name
from harness.results import Evidence, FaultRecord, StepEvidence

LINE = "vtd_dmar_fault sid 0x200 fault 5 addr 0x10025000 write 1"


def test_a_line_as_qemu_prints_it():
    assert parse_trace([LINE], step=3) == (
        FaultRecord(witness="trace", requester="02:00.0", access="write", address=0x10025000, reason=5, line=1, step=3),
    )


def test_a_line_with_process_and_time():
    (fault,) = parse_trace(["qemu started", "4242@1700000000.250000:vtd_dmar_fault sid 0x20a fault 6 addr 0x0 write 0"])
    assert (fault.requester, fault.access, fault.address, fault.reason) == ("02:01.2", "read", 0, 6)
    assert (fault.time, fault.line) == (1700000000.25, 2)


def test_the_reason_is_decimal():
    (fault,) = parse_trace(["vtd_dmar_fault sid 0x100 fault 113 addr 0x1000 write 0"])
    assert fault.reason == 0x71


def test_other_events_are_no_faults():
    assert parse_trace(["vtd_frr_new index 0 hi 0x80000005 lo 0x1000", "vtd_dmar_enable enable 1", ""]) == ()


def test_a_line_cut_off_gives_no_wrong_number():
    cuts = [parse_trace([LINE[:end]]) for end in range(len(LINE) + 1)]
    for faults in cuts[:-1]:
        for fault in faults:
            assert fault.requester == "02:00.0"
            assert fault.access is None
            assert fault.reason in (None, 5)
            assert fault.address in (None, 0x10025000)
    assert cuts[-1][0].access == "write"
    assert len(parse_trace([LINE.removesuffix(" write 1")])) == 1


def test_requester_names():
    assert requester_name(0x0000) == "00:00.0"
    assert requester_name(0x020A) == "02:01.2"
    assert requester_name(0xFFFF) == "ff:1f.7"


def test_words_of_one_dma_are_one_fault_with_the_first_address():
    lines = [f"vtd_dmar_fault sid 0x200 fault 6 addr {0x900010 + 4 * i:#x} write 0" for i in range(4)]
    (fault,) = collapse(parse_trace(lines, 1))
    assert (fault.address, fault.count, fault.line, fault.step) == (0x900010, 4, 1, 1)


def test_collapse_keeps_apart_what_differs():
    lines = [
        "vtd_dmar_fault sid 0x200 fault 6 addr 0x900ffc write 0",
        "vtd_dmar_fault sid 0x200 fault 6 addr 0x901000 write 0",  # next page
        "vtd_dmar_fault sid 0x200 fault 5 addr 0x901000 write 1",  # access and reason
        "vtd_dmar_fault sid 0x200 fault 2 addr 0x901000 write 1",  # reason
        "vtd_dmar_fault sid 0x300 fault 6 addr 0x901000 write 0",  # requester
        "vtd_dmar_fault sid 0x200 fault 6 addr 0x900000 write 0",  # the first page again
    ]
    faults = collapse(parse_trace(lines, 0))
    assert [(f.requester, f.access, f.reason, f.address, f.count) for f in faults] == [
        ("02:00.0", "read", 6, 0x900FFC, 2),
        ("02:00.0", "read", 6, 0x901000, 1),
        ("02:00.0", "write", 5, 0x901000, 1),
        ("02:00.0", "write", 2, 0x901000, 1),
        ("03:00.0", "read", 6, 0x901000, 1),
    ]
    assert collapse(faults) == faults


def test_equal_faults_of_two_steps_are_two():
    steps = tuple(StepEvidence(index=i, kind="dma_write", args={}, trace=(LINE, LINE)) for i in range(2))
    faults = evidence_faults(Evidence(steps=steps))
    assert [(f.step, f.count) for f in faults] == [(0, 2), (1, 2)]


def test_faults_of_a_fork_are_not_counted_twice():
    child = StepEvidence(index=0, kind="dma_write", args={}, trace=(LINE,))
    parent = StepEvidence(index=2, kind="fork", args={}, trace=(LINE,), children=(child,))
    assert [(f.step, f.count) for f in evidence_faults(Evidence(steps=(parent,)))] == [(2, 1)]
    parent = StepEvidence(index=2, kind="fork", args={}, children=(child,))
    assert [(f.step, f.count) for f in evidence_faults(Evidence(steps=(parent,)))] == [(2, 1)]


def test_clamping_is_found():
    line = "EDU: clamping DMA 0x0000001234567000 to 0x0000000004567000!"
    assert clamped_lines([LINE, line]) == (line,)
