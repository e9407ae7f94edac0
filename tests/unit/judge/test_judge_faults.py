from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge import judge
from harness.results import Evidence, StepError, StepEvidence
from harness.scenario.model import Scenario

DMA = {"dma_read": {"device": "edu0", "iova": 0x900000, "size": 16}}
WRITE = {"dma_write": {"device": "edu0", "buffer": "b", "size": 16}}
FAULT = {"device": "edu0", "access": "read", "address": 0x900000, "reason": 6}


def scenario(steps, faults=(), kernel_log=()):
    return Scenario.model_validate(
        {
            "title": "t",
            "source": "s",
            "machine": {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}},
            "steps": list(steps),
            "expect": {"faults": list(faults), "kernel_log": list(kernel_log)},
        }
    )


def trace(address, *, words=4, sid=0x200, reason=6, write=0):
    return tuple(
        f"vtd_dmar_fault sid {sid:#x} fault {reason} addr {address + 4 * i:#x} write {write}" for i in range(words)
    )


def printed(address, *, requester="02:00.0", access="Read", reason=6):
    return (
        "[    9.000000] DMAR: DRHD: handling fault status reg 2",
        f"[    9.000001] DMAR: [DMA {access} NO_PASID] Request device [{requester}] fault addr {address & ~0xFFF:#x} "
        f"[fault reason {reason:#04x}] words",
    )


def ran(index, kind="dma_read", lines=(), args=None, **values):
    if kind.startswith("dma"):
        values.setdefault("completed", True)
    return StepEvidence(index=index, kind=kind, args=args or {}, values=values, trace=tuple(lines))


def evidence(*steps, log=()):
    return Evidence(steps=steps, kernel_log=tuple(log), devices={"edu0": "02:00.0"})


def check(verdict, name):
    (found,) = [one for one in verdict.checks if one.name == name]
    return found


def test_all_passes():
    verdict = judge(
        scenario([DMA, DMA], [FAULT], [r"DMAR: \[DMA Read"]),
        evidence(ran(0, lines=trace(0x900000)), ran(1), log=printed(0x900000)),
    )
    assert verdict.passed
    assert [one.name for one in verdict.checks] == [
        "step 0 (dma_read)",
        "step 1 (dma_read)",
        "faults",
        "witnesses",
        r"kernel log /DMAR: \[DMA Read/",
    ]
    assert check(verdict, "faults").message == (
        "1 fault as expected: edu0 (02:00.0) read 0x900000, reason 0x06 (PTE read access is not set), 4 times, step 0"
    )
    assert [(fault.witness, fault.count) for fault in verdict.faults] == [("trace", 4), ("kernel", 1)]
    assert verdict.notes == ()


def test_no_fault_is_expected_and_none_happens():
    verdict = judge(scenario([DMA]), evidence(ran(0), log=["[    1.0] DMAR: IOMMU enabled"]))
    assert verdict.passed
    assert check(verdict, "faults").message == "no fault happened: none in the trace, none in the kernel's log"


def test_a_fault_in_the_trace_that_nobody_expects():
    verdict = judge(scenario([DMA]), evidence(ran(0, lines=trace(0x900000)), log=printed(0x900000)))
    assert not verdict.passed
    assert check(verdict, "faults").message == (
        "expected no faults, observed 1; unexpected: edu0 (02:00.0) read 0x900000, "
        "reason 0x06 (PTE read access is not set), 4 times, step 0"
    )


@pytest.mark.parametrize(
    "log",
    [
        printed(0x900000),
        ["DMAR: DRHD: handling fault status reg 2"],
        ["DMAR: DRHD: handling fault status reg 1"],
        ["dmar_fault: 2 callbacks suppressed"],
        ["DMAR: [DMA Read NO_PASID] Request device [02:00.0] fau"],
    ],
)
def test_a_fault_in_the_kernel_log_alone_that_nobody_expects(log):
    verdict = judge(scenario([DMA]), evidence(ran(0), log=log))
    assert not check(verdict, "faults").passed
    assert "the kernel's log tells of faults that the trace does not have" in check(verdict, "faults").message


def test_a_missing_fault():
    verdict = judge(scenario([DMA], [FAULT]), evidence(ran(0)))
    assert check(verdict, "faults").message == (
        "expected 1 fault, observed 0; missing: edu0 (02:00.0) read 0x900000, reason 0x06 (PTE read access is not set)"
    )
    assert check(verdict, "witnesses").passed


def test_a_fault_in_the_kernel_log_alone_is_not_the_expected_one():
    verdict = judge(scenario([DMA], [FAULT]), evidence(ran(0), log=printed(0x900000)))
    assert not check(verdict, "faults").passed
    assert not check(verdict, "witnesses").passed


@pytest.mark.parametrize(
    "other",
    [
        {"requester": "02:00.1", "device": None},
        {"access": "write"},
        {"address": 0x901000},
        {"reason": 5},
        {"step": "second"},
    ],
)
def test_each_word_of_an_expected_fault_counts(other):
    wanted = {key: value for key, value in {**FAULT, **other}.items() if value is not None}
    verdict = judge(
        scenario([DMA, {**DMA, "id": "second"}], [wanted]),
        evidence(ran(0, lines=trace(0x900000)), ran(1), log=printed(0x900000)),
    )
    message = check(verdict, "faults").message
    assert not verdict.passed
    assert "missing: " in message
    assert "unexpected: " in message


def test_each_expected_fault_needs_a_fault_of_its_own():
    steps = evidence(ran(0, lines=trace(0x900000)), ran(1), log=printed(0x900000))
    verdict = judge(scenario([DMA, DMA], [FAULT, FAULT]), steps)
    assert check(verdict, "faults").message.startswith("expected 2 faults, observed 1; missing: ")
    both = evidence(ran(0, lines=trace(0x900000)), ran(1, lines=trace(0x900000)), log=printed(0x900000) * 2)
    assert judge(scenario([DMA, DMA], [FAULT, FAULT]), both).passed
    assert not judge(scenario([DMA, DMA], [FAULT]), both).passed


def test_a_loose_expectation_leaves_the_fault_to_the_one_that_needs_it():
    steps = [{**DMA, "id": "first"}, DMA]
    loose, tight = FAULT, {**FAULT, "step": "first"}
    both = evidence(ran(0, lines=trace(0x900000)), ran(1, lines=trace(0x900000)), log=printed(0x900000) * 2)
    assert judge(scenario(steps, [loose, tight]), both).passed
    assert judge(scenario(steps, [tight, loose]), both).passed
    exact = {**FAULT, "address": 0x900010}
    both = evidence(ran(0, lines=trace(0x900010)), ran(1, lines=trace(0x900020)), log=printed(0x900000) * 2)
    assert judge(scenario(steps, [loose, exact]), both).passed


def test_an_address_that_begins_a_page_means_the_page_and_any_other_is_exact():
    def passes(expected, first):
        wanted = [{**FAULT, "address": expected}]
        return judge(scenario([DMA], wanted), evidence(ran(0, lines=trace(first)), log=printed(first))).passed

    assert passes(0x900000, 0x900000)
    assert passes(0x900000, 0x900FF0)
    assert not passes(0x900000, 0x8FFFF0)
    assert passes(0x900010, 0x900010)
    assert not passes(0x900010, 0x900000)
    assert not passes(0x900010, 0x900014)


def test_two_pages_of_one_dma_are_two_faults():
    lines = [*trace(0x900FF8, words=2), *trace(0x901000, words=2)]
    wanted = [{**FAULT, "address": 0x900FF8}, {**FAULT, "address": 0x901000}]
    verdict = judge(scenario([DMA], wanted), evidence(ran(0, lines=lines), log=printed(0x900000)))
    assert verdict.passed
    assert len(verdict.notes) == 1
    assert "compression" in verdict.notes[0]
    assert check(verdict, "witnesses").message.endswith("the difference is explained")


def test_a_device_that_the_guest_does_not_have():
    verdict = judge(
        scenario([DMA], [FAULT]),
        Evidence(steps=(ran(0, lines=trace(0x900000)),), kernel_log=printed(0x900000)),
    )
    assert "edu0 (address not known) read 0x900000" in check(verdict, "faults").message


def test_a_device_named_with_its_domain():
    found = evidence(ran(0, lines=trace(0x900000)), log=printed(0x900000))
    assert judge(scenario([DMA], [FAULT]), found.model_copy(update={"devices": {"edu0": "0000:02:00.0"}})).passed


def alloc(index, iova, name="b"):
    return ran(index, "alloc", args={"as": name, "size": 4096}, iova=iova)


def buffer_fault(step=None, offset=0):
    return {"device": "edu0", "access": "write", "buffer": "b", "offset": offset, "reason": 5} | (
        {} if step is None else {"step": step}
    )


ALLOC = {"alloc": {"as": "b", "size": 4096}}
UNMAP = {"unmap": {"buffer": "b", "size": 4096}}
LATE = {**WRITE, "id": "late"}


def hit(address):
    return {"lines": trace(address, reason=5, write=1)}, printed(address, access="Write", reason=5)


@pytest.mark.parametrize("step", [None, "late"])
def test_a_buffer_keeps_its_address_after_unmap(step):
    lines, log = hit(0x100000)
    found = evidence(alloc(0, 0x100000), ran(1, "unmap"), ran(2, "dma_write", **lines), log=log)
    assert judge(scenario([ALLOC, UNMAP, LATE], [buffer_fault(step)]), found).passed


@pytest.mark.parametrize("step", [None, "late"])
def test_the_latest_address_before_the_fault_counts(step):
    lines, log = hit(0x200000)
    steps = [ALLOC, ALLOC, LATE, ALLOC]
    found = evidence(alloc(0, 0x100000), alloc(1, 0x200000), ran(2, "dma_write", **lines), alloc(3, 0x300000), log=log)
    assert judge(scenario(steps, [buffer_fault(step)]), found).passed
    other = evidence(alloc(0, 0x200000), alloc(1, 0x100000), ran(2, "dma_write", **lines), alloc(3, 0x200000), log=log)
    assert not judge(scenario(steps, [buffer_fault(step)]), other).passed


def test_an_offset_is_added_and_named():
    lines, log = hit(0x101010)
    found = evidence(alloc(0, 0x100000), ran(1, "dma_write", **lines), log=log)
    assert judge(scenario([ALLOC, LATE], [buffer_fault(offset=0x1010)]), found).passed
    verdict = judge(scenario([ALLOC, LATE], [buffer_fault("late", offset=-4096)]), found)
    assert "edu0 (02:00.0) write b-0x1000 (0xff000), reason 0x05" in check(verdict, "faults").message


def test_a_mapping_of_a_part_tells_where_the_whole_would_begin():
    mapping = {"map": {"buffer": "b", "offset": 0x1000, "size": 4096}}
    lines, log = hit(0x600000)
    bound = ran(0, "map", args={"buffer": "b", "offset": 0x1000, "size": 4096}, iova=0x600000)
    found = evidence(bound, ran(1, "dma_write", **lines), log=log)
    assert judge(scenario([mapping, LATE], [buffer_fault(offset=0x1000)]), found).passed
    assert not judge(scenario([mapping, LATE], [buffer_fault(offset=0)]), found).passed


def test_a_mapping_that_failed_binds_nothing():
    lines, log = hit(0x100000)
    mapping = {"map": {"buffer": "b", "size": 4096}}
    for failed in (
        ran(1, "map", args={"buffer": "b"}, iova=0),
        ran(1, "map", args={"buffer": "b"}),
        ran(1, "map", args={"buffer": "b"}, iova=0x7000).model_copy(update={"error": StepError(type="X", message="")}),
        ran(1, "map", args={"buffer": "other"}, iova=0x7000),
    ):
        found = evidence(alloc(0, 0x100000), failed, ran(2, "dma_write", **lines), log=log)
        assert check(judge(scenario([ALLOC, mapping, LATE], [buffer_fault()]), found), "faults").passed


def test_a_container_mapping_binds_even_at_zero():
    mapping = {"container_map": {"device": "edu0", "buffer": "b", "size": 4096, "iova": 0, "access": "read"}}
    lines, log = hit(0)
    found = evidence(ran(0, "container_map", args={"buffer": "b"}, iova=0), ran(1, "dma_write", **lines), log=log)
    assert judge(scenario([mapping, LATE], [buffer_fault()]), found).passed


def test_a_buffer_that_never_had_an_address():
    lines, log = hit(0x100000)
    found = evidence(ran(0, "alloc", args={"as": "b"}), ran(1, "dma_write", **lines), log=log)
    verdict = judge(scenario([ALLOC, LATE], [buffer_fault("late")]), found)
    assert "write b (no IOVA known)" in check(verdict, "faults").message


def fork(*steps):
    return {"fork": {"steps": list(steps)}}


def test_what_a_child_maps_counts_in_the_fork_only():
    lines, log = hit(0x200000)
    child = (alloc(0, 0x200000), ran(1, "dma_write"))
    parent = StepEvidence(index=1, kind="fork", args={}, children=child, trace=lines["lines"])
    steps = [ALLOC, fork(ALLOC, LATE)]
    assert judge(scenario(steps, [buffer_fault("late")]), evidence(alloc(0, 0x100000), parent, log=log)).passed
    quiet = parent.model_copy(update={"trace": ()})
    lines, log = hit(0x100000)
    after = evidence(alloc(0, 0x100000), quiet, ran(2, "dma_write", **lines), log=log)
    assert judge(scenario([ALLOC, fork(ALLOC, WRITE), LATE], [buffer_fault("late")]), after).passed


def test_a_child_finds_what_was_mapped_before_it():
    lines, log = hit(0x200000)
    child = (alloc(0, 0x200000), ran(1, "dma_write"), alloc(2, 0x300000))
    parent = StepEvidence(index=0, kind="fork", args={}, children=child, trace=lines["lines"])
    assert judge(scenario([fork(ALLOC, LATE, ALLOC)], [buffer_fault("late")]), evidence(parent, log=log)).passed


def test_witnesses_that_do_not_agree():
    verdict = judge(scenario([DMA], [FAULT]), evidence(ran(0, lines=trace(0x900000)), log=printed(0xA00000)))
    assert check(verdict, "faults").passed
    assert not check(verdict, "witnesses").passed
    message = check(verdict, "witnesses").message
    assert message.startswith("expected witnesses that agree, observed 1 in the trace, 1 in the kernel's log; ")
    assert "only the kernel's log has 02:00.0 read 0xa00000" in message
    assert "only the trace has 02:00.0 read 0x900000" in message
    assert not verdict.passed


def test_a_clamped_address_fails_the_step_that_did_it():
    line = "EDU: clamping DMA 0x0000001234567000 to 0x0000000004567000!"
    verdict = judge(scenario([DMA]), evidence(ran(0, lines=[line])))
    assert not verdict.passed
    assert line in check(verdict, "device in step 0 (dma_read)").message


@pytest.mark.parametrize(
    ("pattern", "passes"), [("IOMMU ena", True), (r"^\[ +1\.0\].*enabled$", True), ("disabled", False)]
)
def test_kernel_log(pattern, passes):
    log = ["[    1.0] DMAR: IOMMU enabled", "[    2.0] other"]
    found = check(judge(scenario([DMA], kernel_log=[pattern]), evidence(ran(0), log=log)), f"kernel log /{pattern}/")
    assert found.passed is passes
    if not passes:
        assert found.message == "expected a line with disabled, observed no such line among 2"


def test_each_kernel_log_expression_is_a_check():
    verdict = judge(scenario([DMA], kernel_log=["one", "two"]), evidence(ran(0), log=["one"]))
    assert [one.passed for one in verdict.checks] == [True, True, True, True, False]


def test_no_evidence_at_all():
    verdict = judge(scenario([DMA], [FAULT], ["x"]), Evidence())
    assert [one.passed for one in verdict.checks] == [False, False, True, False]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NUMBERS = ["iova", "present", "absent", "first_difference", "offset"]
names = st.sampled_from([*NUMBERS, "equal", "same", "contiguous", "completed", "found", "buffer", "as"])
kinds = st.sampled_from(["alloc", "map", "fork", "check", "dma_write", "translate", "translate_back", "nonsense"])
lines = st.text(max_size=30) | st.sampled_from(
    [
        *trace(0x100000),
        "vtd_dmar_fault sid 0xfffff fault",
        "EDU: clamping DMA",
        *printed(0x1000),
        "dmar_fault: 9 callbacks suppressed",
    ]
)
odd_steps = st.recursive(
    st.builds(
        StepEvidence,
        index=st.integers(-2, 5) | st.integers(),
        kind=kinds,
        args=st.dictionaries(names, json_values | st.just("b"), max_size=3),
        returns=st.none() | st.integers(),
        error=st.none() | st.builds(StepError, type=st.text(max_size=5), message=st.text(max_size=5)),
        values=st.dictionaries(names, json_values, max_size=4),
        trace=st.lists(lines, max_size=3).map(tuple),
    ),
    lambda inner: st.builds(
        StepEvidence, index=st.integers(-1, 5), kind=st.just("fork"), args=st.just({}),
        children=st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=4,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(odd_steps, max_size=5), st.lists(lines, max_size=5), st.dictionaries(st.just("edu0"), st.text(max_size=8))
)
def test_odd_evidence_gives_a_verdict(steps, log, devices):
    wanted = scenario(
        [ALLOC, {"translate": {"buffer": "b"}, "expect": {"translation": "absent"}}, fork(ALLOC, LATE),
         {"check": {"buffer": "b", "pattern": 0}}],
        [buffer_fault("late", offset=-1), buffer_fault(), FAULT],
        ["DMAR"],
    )  # fmt: skip
    verdict = judge(wanted, Evidence(steps=tuple(steps), kernel_log=tuple(log), devices=devices))
    assert verdict.checks
    assert verdict.passed == all(one.passed for one in verdict.checks)
