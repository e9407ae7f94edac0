from __future__ import annotations

from harness.fault import KernelFaults, StatusLine, compare, parse_kernel_log
from harness.results import FaultRecord


def seen(page, *, requester="02:00.0", access="read", reason=6, step=0, time=None, count=1):
    return FaultRecord(
        witness="trace", requester=requester, access=access, address=page << 12 | 0x10, reason=reason, step=step,
        time=time, count=count,
    )  # fmt: skip


def printed(page, *, requester="02:00.0", access="read", reason=6, time=None):
    return FaultRecord(
        witness="kernel", requester=requester, access=access, address=None if page is None else page << 12,
        reason=reason, time=time,
    )  # fmt: skip


def log(*records, suppressed=0, status=()):
    lines = tuple(StatusLine(value=v, overflow=bool(v & 1), pending=bool(v & 2), index=0, line=0) for v in status)
    return KernelFaults(records=records, suppressed=suppressed, status=lines)


def test_nothing_and_nothing_agree():
    assert compare((), log()).agrees


def test_the_same_faults_agree():
    result = compare([seen(0x900), seen(0xA00, access="write", reason=5, step=1)],
                     log(printed(0x900), printed(0xA00, access="write", reason=5)))  # fmt: skip
    assert result.agrees
    assert result.explanations == result.unexplained == ()


def test_a_log_with_a_domain_agrees_with_a_trace_without():
    assert compare([seen(0x900)], log(printed(0x900, requester="0000:02:00.0"))).agrees
    assert not compare([seen(0x900)], log(printed(0x900, requester="0001:02:00.0"))).agrees


def test_a_record_of_the_kernel_alone_is_a_disagreement_whatever_the_log_says():
    result = compare((), log(printed(0x900), suppressed=9, status=(3,)))
    assert not result.agrees
    assert result.unexplained == (
        "only the kernel's log has 02:00.0 read 0x900000, reason 0x06 (PTE read access is not set)",
    )


def test_each_field_must_be_equal():
    for other in (
        printed(0x901),
        printed(0x900, requester="02:00.1"),
        printed(0x900, access="write"),
        printed(0x900, reason=2),
    ):
        result = compare([seen(0x900)], log(other))
        assert not result.agrees
        assert len(result.unexplained) == 2


def test_the_kernel_may_print_a_fault_as_often_as_the_trace_has_it_and_no_more():
    assert compare([seen(0x900, count=3)], log(*[printed(0x900)] * 3)).agrees
    assert not compare([seen(0x900, count=3)], log(*[printed(0x900)] * 4)).agrees


def test_equal_faults_of_two_steps_share_the_records():
    faults = [seen(0x900, step=0, count=4), seen(0x900, step=1, count=4)]
    assert compare(faults, log(printed(0x900), printed(0x900))).explanations == ()
    assert not compare(faults, log(printed(0x900))).agrees


def test_a_record_cut_off_fits_what_it_says():
    assert compare([seen(0x900)], log(printed(None, reason=None))).agrees
    assert not compare([seen(0x900)], log(printed(None, access="write", reason=None))).agrees


def test_a_record_cut_off_does_not_take_the_place_of_a_whole_one():
    faults = [seen(0x900), seen(0xA00, step=1)]
    assert compare(faults, log(printed(None, reason=None), printed(0x900))).agrees


def test_a_fault_of_the_trace_alone_is_a_disagreement():
    result = compare([seen(0x900, step=4)], log())
    assert not result.agrees
    assert result.unexplained == (
        "only the trace has 02:00.0 read 0x900010, reason 0x06 (PTE read access is not set), step 4",
    )


def test_one_printed_report_does_not_excuse_a_missing_one():
    assert not compare([seen(0x900), seen(0xA00, step=1)], log(printed(0x900))).agrees
    two = [seen(0x900), seen(0xA00, step=1), seen(0xB00, step=2)]
    assert not compare(two, log(printed(0x900), printed(0xA00))).agrees


def test_suppressed_callbacks_explain_as_many_faults():
    faults = [seen(0x900 + i, step=i) for i in range(3)]
    result = compare(faults, log(suppressed=3))
    assert result.agrees
    assert result.explanations == (
        "only the trace has 3 faults, the first 02:00.0 read 0x900010, reason 0x06 (PTE read access is not set), "
        "step 0: the kernel's rate limit (3 callbacks suppressed)",
    )
    assert len(compare(faults, log(suppressed=2)).unexplained) == 1


def test_a_status_line_without_record_explains_one_fault():
    faults = [seen(0x900), seen(0xA00, step=1)]
    result = compare(faults, log(printed(0x900), status=(2, 2)))
    assert result.agrees
    assert "1 status lines without a record" in result.explanations[0]
    assert not compare(faults, log(printed(0x900), status=(2,))).agrees


def test_a_fault_after_three_printed_ones_is_explained():
    faults = [seen(0x900 + i, step=i) for i in range(4)]
    result = compare(faults, log(*[printed(0x900 + i) for i in range(3)]))
    assert result.agrees
    assert "three reports printed in the 5 s before" in result.explanations[0]


def test_a_fault_before_three_printed_ones_is_not():
    faults = [seen(0x900 + i, step=i) for i in range(4)]
    assert not compare(faults, log(*[printed(0x901 + i) for i in range(3)])).agrees


def test_the_interval_is_five_seconds_where_times_are_known():
    def faults(last):
        return [*(seen(0x900 + i, step=i, time=100.0 + i) for i in range(3)), seen(0x903, step=3, time=last)]

    kernel = log(*[printed(0x900 + i) for i in range(3)])
    assert compare(faults(104.9), kernel).agrees
    assert not compare(faults(105.1), kernel).agrees


def test_two_pages_of_one_dma_are_compressed():
    result = compare([seen(0x900), seen(0x901)], log(printed(0x900), status=(2,)))
    assert result.agrees
    assert "compression" in result.explanations[0]


def test_compression_needs_a_record_of_the_same_requester_step_and_time():
    assert not compare([seen(0x900), seen(0x901, requester="03:00.0")], log(printed(0x900))).agrees
    assert not compare([seen(0x900), seen(0x901, step=1)], log(printed(0x900))).agrees
    assert compare([seen(0x900, time=1.0), seen(0x901, time=1.01)], log(printed(0x900))).agrees
    assert not compare([seen(0x900, time=1.0), seen(0x901, time=1.5)], log(printed(0x900))).agrees
    assert not compare([seen(0x900), seen(0x901)], log()).agrees


def test_overflow_explains_a_fault_of_another_requester():
    faults = [seen(0x900), seen(0x901, requester="03:00.0")]
    result = compare(faults, log(printed(0x900), status=(3,)))
    assert result.agrees
    assert "overflow" in result.explanations[0]
    assert not compare(faults, log(printed(0x900), status=(2,))).agrees


def test_the_measured_case_of_four_faults():
    text = "\n".join(
        [
            "[   10.00] DMAR: DRHD: handling fault status reg 2",
            "[   10.01] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x900000 [fault reason 0x06] x",
            "[   10.50] DMAR: DRHD: handling fault status reg 2",
            "[   10.51] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x901000 [fault reason 0x06] x",
            "[   11.00] DMAR: DRHD: handling fault status reg 2",
            "[   11.01] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x902000 [fault reason 0x06] x",
            "[   11.50] DMAR: DRHD: handling fault status reg 2",
            "",
        ]
    )
    faults = [seen(0x900 + i, step=i, time=1.0 + i / 2) for i in range(5)]
    result = compare(faults, parse_kernel_log(text))
    assert result.agrees
    assert len(result.explanations) == 2


def test_many_faults_are_no_trouble():
    faults = [seen(0x900 + i, step=i, time=float(i)) for i in range(20000)]
    assert len(compare(faults, log()).unexplained) == 20000
