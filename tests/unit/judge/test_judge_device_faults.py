"""A device's own log of its DMAs against the faults of the trace, with made-up evidence."""

from __future__ import annotations

from harness.judge.device_faults import check_device_faults
from harness.results import Belief, Check, DeviceNews, Evidence, StepError, StepEvidence, Transfer

FAULT = "vtd_dmar_fault sid 0x{:x} fault {} addr 0x{:x} write {:d}"
READ = FAULT.format(0x200, 6, 0x900000, 0)


def transfer(access="read", iova=0x900000, size=16, refused=None, **more) -> Transfer:
    pieces = ((iova, size),) if refused is None else refused
    return Transfer(access=access, iova=iova, size=size, refused=pieces, **{"bus_master": True, **more})


def step(*transfers, trace=(), index=0, kind="operate", values=None, args=None, other=(), **more) -> StepEvidence:
    devices = {"qat0": DeviceNews(connected=True, transfers=transfers, **more)}
    if other:
        devices["qat1"] = DeviceNews(connected=True, transfers=other)
    return StepEvidence(
        index=index, kind=kind, args=args or {}, trace=tuple(trace), values=values or {}, devices=devices
    )


def checked(*steps: StepEvidence) -> tuple[list[Check], tuple[str, ...]]:
    return check_device_faults(Evidence(steps=steps, devices={"qat0": "0000:02:00.0", "qat1": "02:00.1"}))


def problem(*steps: StepEvidence) -> str:
    found = checked(*steps)[0][0]
    return "" if found.passed else found.observed


def test_both_tell_of_it():
    assert problem(step(transfer(), trace=(READ, READ))) == ""
    assert problem(step(transfer(refused=()))) == ""
    assert problem(step()) == ""


def test_only_the_device_tells_of_it():
    assert problem(step(transfer())) == (
        "step 0 (operate): the device tells of a refused read of 16 bytes at 0x900000, the trace of no such fault"
    )
    for fault in (
        FAULT.format(0x200, 5, 0x900000, 1),  # another access
        FAULT.format(0x200, 6, 0x901000, 0),  # another page
        FAULT.format(0x201, 6, 0x900000, 0),  # another requester
    ):
        assert "the trace of no such fault" in problem(step(transfer(), trace=(fault,)))


def test_only_the_trace_tells_of_it():
    found = problem(step(trace=(READ,)))
    assert found.startswith("step 0: the trace tells of 02:00.0 read 0x900000, reason 0x06")
    assert found.endswith("the device of no such DMA")
    assert "the device of no such DMA" in problem(step(transfer(refused=()), trace=(READ,)))


def test_a_transfer_that_was_not_over_is_found_after_the_next_step_and_not_later():
    assert problem(step(trace=(READ,)), step(transfer(), index=1)) == ""
    late = problem(step(trace=(READ,)), step(index=1), step(transfer(), index=2))
    assert "the device of no such DMA" in late
    assert "step 2 (operate): the device tells of" in late
    # A fault comes before the device hears of it, never after.
    assert "the trace of no such fault" in problem(step(transfer()), step(trace=(READ,), index=1))


def test_a_piece_of_several_pages_needs_one_of_them():
    assert problem(step(transfer(size=8192), trace=(FAULT.format(0x200, 6, 0x901000, 0),))) == ""


def test_no_bus_master_is_refused_without_a_fault():
    found, notes = checked(step(transfer(bus_master=False)))
    assert found[0].passed
    assert "no bus master" in notes[0]
    assert "the device of no such DMA" in problem(step(transfer(bus_master=False), trace=(READ,)))


def test_without_translation_there_is_no_fault():
    free = Belief(translated=False, unknown="there is no IOMMU")
    found, notes = checked(step(transfer(), believed=free), step(transfer(), index=1))
    assert found[0].passed
    assert "did not translate" in notes[0]


def test_a_write_that_the_iotlb_refuses():
    ranges = ((0x900000, 0x2000, "r", 1, 0),)
    write = transfer("write")
    assert problem(step(transfer(refused=()), write, ranges=ranges)) == ""
    assert "2 writes" not in checked(step(transfer(refused=()), write, ranges=ranges))[1][0]
    assert "the trace of no such fault" in problem(step(write, ranges=ranges))  # nothing was read before
    assert "the trace of no such fault" in problem(step(transfer(refused=()), write))  # it is not mapped
    elsewhere = transfer(iova=0x901000, refused=())
    assert "the trace of no such fault" in problem(step(elsewhere, write, ranges=ranges))
    # The IOTLB forgets what is unmapped, and nothing else.
    read, late = step(transfer(refused=()), ranges=ranges), step(write, index=3)
    more = step(index=1, ranges=(*ranges, (0xA00000, 0x1000, "rw", 1, 0)))
    assert problem(read, more, late) == ""
    anew = (step(index=1, ranges=()), step(index=2, ranges=ranges))
    assert "the trace of no such fault" in problem(read, *anew, late)


def test_a_log_that_is_not_whole_is_compared_one_way():
    found, notes = checked(step(trace=(READ,), more=3))
    assert found[0].passed
    assert "lacks 3" in notes[0]
    assert "the trace of no such fault" in problem(step(transfer(), more=3))


def test_faults_of_interrupts_are_no_dma():
    found, notes = checked(step(trace=(FAULT.format(0x200, 0x22, 0xFEE00000, 1),)))
    assert found[0].passed
    assert "1 faults of interrupts" in notes[0]


def test_another_function_s_dma_is_that_function_s():
    stray = transfer(note="wrong_requester")
    fault = FAULT.format(0x201, 6, 0x900000, 0)
    found, _ = checked(step(transfer(refused=(), iova=0x1000), other=(stray,), trace=(fault,)))
    assert [check.passed for check in found] == [True, True]
    found, _ = checked(step(transfer(refused=(), iova=0x1000), other=(stray,), trace=(READ,)))
    assert [check.passed for check in found] == [False, False]


def dma(status, *transfers, **more) -> StepEvidence:
    values = {"iova": 0x900000} | ({"status": status} if status else {})
    trace = (READ,) if any(one.refused and one.access == "read" for one in (*transfers, *more.get("other", ()))) else ()
    if more.get("other"):
        trace = (FAULT.format(0x201, 6, 0x900000, 0),)
    args = {"device": "qat0", "size": 16}
    return step(*transfers, trace=trace, kind="dma_read", values=values, args=args, **more)


def test_the_driver_says_what_the_device_did():
    assert problem(dma("read_refused", transfer())) == ""
    assert problem(dma("done", transfer(refused=()))) == ""
    assert problem(dma(None, transfer())) == ""
    # Through another function.
    assert problem(dma("read_refused", other=(transfer(note="wrong_requester"),))) == ""


def test_a_driver_that_lies():
    assert "says done, the device tells of a refused read at 0x900000" in problem(dma("done", transfer()))
    assert "says done, the device made no read at 0x900000" in problem(dma("done"))
    assert "the device made no read that was refused" in problem(dma("read_refused", transfer(refused=())))
    assert "the device made no write that was refused" in problem(dma("write_refused", transfer()))


def operate(status, *transfers, index=0, **more) -> StepEvidence:
    trace = (READ,) if any(one.refused for one in transfers) else ()
    wait = more.pop("wait", True)
    return step(
        *transfers,
        index=index,
        trace=trace,
        args={"device": "qat0", "op": "crc32", "wait": wait},
        values={"status": status, **more} if wait else {},
    )


def collect(*statuses, transfers=(), index=1) -> StepEvidence:
    values = {"statuses": list(statuses)}
    trace = (READ,) if any(one.refused for one in transfers) else ()
    return step(*transfers, index=index, trace=trace, kind="collect", args={"device": "qat0"}, values=values)


def test_what_the_driver_says_of_an_operation():
    assert problem(operate("done", transfer(refused=()))) == ""
    assert problem(operate("invalid", transfer(refused=()))) == ""
    assert problem(operate("read_refused", transfer(), refused=0x900000)) == ""
    assert "says done, the device tells of a refused read at 0x900000" in problem(operate("done", transfer()))
    assert "says read_refused, the device made no read that was refused" in problem(
        operate("read_refused", transfer(refused=()))
    )
    assert "read_refused at 0x901000, the device made no read that was refused there" in problem(
        operate("read_refused", transfer(), refused=0x901000)
    )


def test_what_the_driver_says_of_requests_that_it_handed_over():
    handed = operate(None, wait=False)
    assert problem(handed, collect("read_refused", transfers=(transfer(),))) == ""
    assert problem(operate(None, transfer(), wait=False), collect("read_refused")) == ""
    assert problem(handed, collect("done", transfers=(transfer(refused=()),))) == ""
    assert "step 1 (collect): the driver says done, the device tells of a refused read" in problem(
        handed, collect("done", transfers=(transfer(),))
    )
    assert "says write_refused, the device made no write that was refused" in problem(
        handed, collect("write_refused", transfers=(transfer(),))
    )
    # What another request was refused is no word on one that has not been collected yet.
    both = (operate(None, wait=False), operate(None, transfer(), index=1, wait=False))
    assert problem(*both, collect("done", index=2), collect("read_refused", index=3)) == ""


def test_a_fault_of_a_dma_that_was_cut_short():
    cut = transfer(size=8192, refused=(), error="ECANCELED", cut=True)
    assert problem(step(cut, trace=(READ,))) == ""
    assert "1 faults are of DMAs that ended unfinished" in checked(step(cut, trace=(READ,)))[1][0]
    assert "the device of no such DMA" in problem(step(cut, trace=(FAULT.format(0x200, 6, 0x902000, 0),)))
    assert "the device of no such DMA" in problem(step(cut, trace=(FAULT.format(0x200, 6, 0x900000, 1),)))


def test_a_dma_that_was_cut_short_after_a_refusal():
    """Its other pieces may have been refused too, with a fault or, where bus mastering was off by then, without."""
    second = FAULT.format(0x200, 6, 0x901000, 0)
    cut = transfer(size=8192, refused=((0x900000, 4096),), error="ENODEV", cut=True)
    assert problem(step(cut, trace=(READ, second))) == ""
    assert problem(step(cut)) == ""
    assert "1 pieces without a fault are of DMAs that ended unfinished" in checked(step(cut))[1][0]
    assert "the device of no such DMA" in problem(step(cut, trace=(FAULT.format(0x200, 6, 0x902000, 0),)))
    whole = transfer(size=8192, refused=((0x900000, 4096),), error="ENODEV")
    assert "the device of no such DMA" in problem(step(whole, trace=(READ, second)))
    assert "the trace of no such fault" in problem(step(whole))


def timed_out(one):
    return one.model_copy(update={"error": StepError(type="DmaTimeout", message="no response")})


def test_a_driver_that_lies_after_requests_were_lost():
    handed, lie = operate(None, wait=False), operate("done", transfer(), index=2)
    assert "the driver says done" in problem(handed, timed_out(collect(index=1)), lie)
    assert "the driver says done" in problem(handed, timed_out(operate(None, index=1)), lie)
    parent = handed.model_copy(update={"kind": "fork", "args": {}, "children": (handed,)})
    assert "the driver says done" in problem(parent, lie)
    assert "the driver says done" not in problem(handed, lie), "it may be the DMA of the request that waits"


def test_a_request_that_was_lost_and_is_late_on_purpose_makes_no_driver_a_liar():
    handed, late = operate(None, wait=False), transfer(note="delay")
    assert "the driver says done" not in problem(handed, timed_out(collect(index=1)), operate("done", late, index=2))
    assert "the driver says done" in problem(operate("done", late, index=2))


def test_a_driver_that_lies_in_a_forked_child():
    child = dma("done", transfer())
    parent = child.model_copy(update={"kind": "fork", "args": {}, "values": {}, "children": (child,)})
    assert "step 0 (dma_read): the driver says done" in problem(parent)
