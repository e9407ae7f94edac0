"""Faults of virtio-iommu and AMD-Vi: QEMU's trace, the kernel's log, and both compared. Lines as real runs had them."""

from __future__ import annotations

import pytest

from harness.fault import KernelFaults, compare, describe, parse_kernel_log, parse_trace, without_translations
from harness.fault.trace import collapse

STAMP = "2026-11-21T17:18:37.521193Z "


def report(
    address: int, *, rid: int = 512, flags: int = 256, reason: int = 2, flag: int = 1, stamp: str = STAMP
) -> list[str]:
    return [
        f"{stamp}virtio_iommu_translate mr=virtio-iommu-memory-region-8-232 rid={rid} addr={address:#x} flag={flag}",
        f"{stamp}virtio_iommu_report_fault FAULT reason={reason} flags={flags} endpoint={rid} address ={address:#x}",
    ]


def refused(address: int, devid: str = "02:00.0", stamp: str = STAMP) -> list[str]:
    return [
        f"{stamp}amdvi_page_fault error: page fault accessing guest physical address {address:#x}",
        f"{stamp}amdvi_translation_result devid: {devid} gpa {address:#x} hpa 0x0",
    ]


def page_fault(address: int, ep: int = 512, access: str = "", at: float = 6.0) -> str:
    return f"[{at:12.6f}] virtio_iommu virtio0: page fault from EP {ep} at {address:#x} [{access}]"


def event(name: str = "pci 0000:00:00.0", *, address: int = 0, flags: int = 9, at: float = 5.0) -> str:
    words = f"IO_PAGE_FAULT domain=0x0000 address={address:#x} flags=0x{flags:04x}"
    return f"[{at:12.6f}] {name}: AMD-Vi: Event logged [{words}]"


def read(*lines: str) -> KernelFaults:
    return parse_kernel_log(lines)


# ---- QEMU's trace


@pytest.mark.parametrize(("flag", "access"), [(1, "read"), (2, "write"), (3, None), (0, None)])
def test_the_translation_says_whether_it_was_a_read(flag: int, access: str | None) -> None:
    (fault,) = parse_trace(report(0x900010, rid=0x3D0A, flag=flag), step=3)
    assert (fault.vendor, fault.requester, fault.access, fault.address, fault.reason, fault.step, fault.line) == (
        "virtio",
        "3d:01.2",
        access,
        0x900010,
        2,
        3,
        2,
    )


@pytest.mark.parametrize(("flags", "access"), [(257, "read"), (258, "write")])
def test_a_report_that_says_it_is_believed(flags: int, access: str) -> None:
    (fault,) = parse_trace(report(0x900010, flags=flags, flag=0))
    assert fault.access == access


def test_a_translation_of_another_access_says_nothing() -> None:
    before = report(0x900000, flag=2)[0]
    for lines in ([report(0x900000)[1]], [before, report(0x900004)[1]], [before, report(0x900000, rid=513)[1]]):
        (fault,) = parse_trace(lines)
        assert fault.access is None


@pytest.mark.parametrize(
    ("stamp", "time"),
    [("26811@1795282110.577895:", 1795282110.577895), ("2026-11-21T17:18:37.500000Z ", 1795281517.5), ("", None),
     ("2026-13-41T17:18:37.500000Z ", None)],
)  # fmt: skip
def test_every_build_writes_the_time_its_own_way(stamp: str, time: float | None) -> None:
    for lines in (report(0x900000, stamp=stamp), refused(0x900000, stamp=stamp)):
        (fault,) = parse_trace(lines)
        assert fault.time == time


def test_amds_two_events_are_one_fault_whose_access_nobody_says() -> None:
    (fault,) = parse_trace(refused(0x900004, "01:00.0"), step=2)
    assert (fault.vendor, fault.requester, fault.access, fault.address, fault.reason, fault.line) == (
        "amd",
        "01:00.0",
        None,
        0x900004,
        2,
        1,
    )


def test_a_page_fault_without_its_second_event_is_nobodys_and_not_lost() -> None:
    first, second = refused(0x900000)
    assert [fault.requester for fault in parse_trace([first])] == ["??:??.?"]
    assert [fault.requester for fault in parse_trace([first, first, second])] == ["??:??.?", "02:00.0"]
    assert [fault.requester for fault in parse_trace([first, refused(0x901000)[1]])] == ["??:??.?"]


def test_what_was_translated_is_no_fault() -> None:
    assert parse_trace([report(0x900000)[0], refused(0x900000)[1], "virtio_iommu_map x", "amdvi_mmio_write x"]) == ()


def test_the_words_of_one_dma_are_one_fault() -> None:
    lines = [line for word in range(4) for line in report(0x900000 + 4 * word)]
    (fault,) = collapse(parse_trace(lines))
    assert fault.count == 4
    assert describe(fault) == "02:00.0 read 0x900000, reason 0x02 (no mapping that allows the access), 4 times"


def test_translations_without_a_fault_are_left_out() -> None:
    """Each message-signalled interrupt is one: evidence of a long step would be full of them."""
    noise = [report(0xFEE00000, rid=232)[0], refused(0x200000)[1]]
    kept = [*report(0x900000), "edu: something", *refused(0x901000), report(0x902000)[1]]
    mixed = [*noise, *kept[:2], *noise, kept[2], noise[0], *kept[3:5], noise[1], kept[5], *noise]
    assert without_translations(mixed) == tuple(kept)
    assert without_translations(noise) == ()
    assert parse_trace(without_translations(mixed))[0] == parse_trace(kept)[0]


# ---- the kernel's log


def test_virtio_iommus_line() -> None:
    (record,) = read(page_fault(0x900004, ep=15626, access="W", at=6.25)).records
    assert (record.witness, record.vendor, record.requester, record.access, record.address, record.reason) == (
        "kernel",
        "virtio",
        "3d:01.2",
        "write",
        0x900004,
        2,
    )
    assert record.time == 6.25
    assert [one.access for one in read(page_fault(0), page_fault(0, access="R")).records] == [None, "read"]


def test_amds_line() -> None:
    known, unknown = read(
        event("vfio-pci 0000:00:05.0", address=0x1000, flags=0x20),
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:01.2 domain=0x0000 address=0x0 flags=0x0000]",
    ).records
    assert (known.vendor, known.requester, known.access, known.address, known.reason) == (
        "amd",
        "0000:00:05.0",
        "write",
        0x1000,
        2,
    )
    assert (unknown.requester, unknown.access) == ("0000:00:01.2", None)


def test_what_talks_of_them_is_no_fault() -> None:
    assert read("virtio_iommu virtio0: input address: 64 bits", "AMD-Vi: Interrupt remapping enabled").silent


# ---- both


def trace_of(*lines: list[str], step: int = 0):
    return collapse(parse_trace([line for some in lines for line in some], step))


def test_virtio_the_witnesses_agree_although_the_kernel_does_not_say_the_access() -> None:
    trace = trace_of(report(0x900000, flag=2), report(0x900004, flag=2))
    assert compare(trace, read(page_fault(0x900000), page_fault(0x900004))).agrees
    assert compare(trace, read(page_fault(0x900000, access="W"))).agrees


@pytest.mark.parametrize("line", [page_fault(0x901000), page_fault(0x900000, ep=256), page_fault(0x900000, access="R")])
def test_virtio_a_line_that_says_something_else_is_a_disagreement(line: str) -> None:
    found = compare(trace_of(report(0x900000, flag=2)), read(line))
    assert len(found.unexplained) == 2


def test_virtio_the_kernel_prints_no_fault_more_often_than_it_happened() -> None:
    found = compare(trace_of(report(0x900000)), read(page_fault(0x900000), page_fault(0x900000)))
    assert not found.agrees


def many(first: int, pages: int, seconds: float = 0.0) -> list[list[str]]:
    """Pages that were refused, each at so many seconds after the one before."""
    return [report((first + n) << 12, stamp=f"1@{1000 + n * seconds:.6f}:") for n in range(pages)]


def test_virtio_what_is_not_printed_after_ten_lines_is_explained() -> None:
    trace = trace_of(*many(0x900, 12))
    log = [page_fault((0x900 + n) << 12) for n in range(12)]
    found = compare(trace, read(*log[:10]))
    assert found.agrees
    assert found.explanations == (
        "only the trace has 2 faults, the first 02:00.0 read 0x90a000, reason 0x02 "
        "(no mapping that allows the access), step 0: the kernel's rate limit (10 lines printed in the 5 s before)",
    )
    assert not compare(trace, read(*log[:9])).agrees, "nine lines are below the limit"
    assert not compare(trace, read(*log[:9], log[11])).agrees, "the tenth was not printed, and the twelfth was"
    assert not compare(trace, KernelFaults()).agrees


def test_virtio_the_limit_is_for_five_seconds() -> None:
    log = [page_fault((0x900 + n) << 12) for n in range(10)]
    assert compare(trace_of(*many(0x900, 11, 0.5)), read(*log)).agrees
    assert not compare(trace_of(*many(0x900, 11, 1.0)), read(*log)).agrees


def test_amd_only_what_is_right_is_compared_and_a_note_says_so() -> None:
    trace = trace_of(refused(0x900000), refused(0x900004), refused(0x901000, "00:05.0"))
    found = compare(trace, read(event(), event(flags=10), event("vfio-pci 0000:00:05.0")))
    assert found.agrees
    (note,) = found.explanations
    assert "the bus of a requester (00:00.0 for 02:00.0) nor the address" in note
    assert compare((), KernelFaults()).explanations == ()


@pytest.mark.parametrize(
    "line",
    [event("pci 0000:00:01.0"), event("pci 0000:03:00.0"), event(address=0x901000), event("pci 0000:00:05.0")],
)
def test_amd_a_line_of_another_function_or_place_is_a_disagreement(line: str) -> None:
    assert not compare(trace_of(refused(0x900000)), read(line)).agrees


def test_amd_a_line_that_is_right_agrees_too() -> None:
    assert compare(trace_of(refused(0x900000)), read(event("vfio-pci 0000:02:00.0", address=0x900000))).agrees


def test_amd_the_limit_is_ten_lines_of_each_device() -> None:
    lines = [line for word in range(11) for line in refused(word << 12)]
    assert compare(trace_of(lines), read(*[event()] * 10)).agrees
    other = trace_of(lines, refused(0x900000, "00:05.0"))
    assert not compare(other, read(*[event()] * 10)).agrees, "the other device has ten lines of its own"
    assert compare(other, read(*[event()] * 10, event("vfio-pci 0000:00:05.0"))).agrees


def test_a_fault_that_only_the_kernel_has_is_a_disagreement() -> None:
    assert not compare((), read(page_fault(0x900000))).agrees
    assert not compare((), read(event())).agrees
