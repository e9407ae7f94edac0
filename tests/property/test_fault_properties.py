"""Properties of the fault parsers: no text makes them fail, and what is printed in any form is read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_cases import CORPUS, read, same_or_less, same_whatever_the_chunks

from harness.fault import clamped_lines, collapse, compare, parse_kernel_log, parse_trace
from harness.fault.forms.vtd import VtdForm
from harness.fault.reasons import REASONS

LOGS = [log.decode("utf-8", "replace") for log in CORPUS]
PIECES = sorted({piece for log in LOGS for piece in re.split(r"(\W)", log) if piece})

buses = st.integers(0, 255)
devices = st.integers(0, 31)
functions = st.integers(0, 7)
pages = st.integers(0, 2**52 - 1)
dma_reasons = st.sampled_from([code for code in REASONS if not 0x20 <= code < 0x30])
accesses = st.sampled_from(["Read", "Write"])
prefixes = st.sampled_from(
    ["", "<3>", "[    1.234567] ", "<3>[12345.000001][  T99] ", "Apr 26 13:19:37 desk kernel: ", "3,7,1234567,-;"]
)
noise = st.sampled_from(
    ["", "DMAR: IOMMU enabled", "usb 1-1: new device", "DMAR: DRHD: handling fault status reg 2", "vfio-pci: x [1.2]"]
)


def old(prefix, bdf, access, address, reason, pasid):
    return (
        f"{prefix}DMAR:[DMA {access}] Request device [{bdf}] fault addr {address:x} \n"
        f"{prefix}DMAR:[fault reason {reason:02d}] words"
    )


def one_line(prefix, bdf, access, address, reason, pasid):
    return (
        f"{prefix}DMAR: [DMA {access}] Request device [{bdf}] fault addr {address:x} [fault reason {reason:02d}] words"
    )


def old_pasid(prefix, bdf, access, address, reason, pasid):
    number = 0xFFFFFFFF if pasid is None else pasid
    return (
        f"{prefix}DMAR: [DMA {access}] Request device [{bdf}] PASID {number:x} fault addr {address:x}"
        f" [fault reason {reason:02d}] words"
    )


def new(prefix, bdf, access, address, reason, pasid):
    who = "NO_PASID" if pasid is None else f"PASID {pasid:#x}"
    return (
        f"{prefix}DMAR: [DMA {access} {who}] Request device [{bdf}] fault addr {address:#x}"
        f" [fault reason {reason:#04x}] words"
    )


def new_0x(prefix, bdf, access, address, reason, pasid):
    bus, rest = bdf.split(":")
    return new(prefix, f"0x{bus}:0x{rest}", access, address, reason, pasid)


FORMS = [old, one_line, old_pasid, new, new_0x]


@st.composite
def faults(draw):
    bdf = f"{draw(buses):02x}:{draw(devices):02x}.{draw(functions)}"
    return bdf, draw(accesses), draw(pages) << 12, draw(dma_reasons)


@settings(deadline=None)
@given(
    st.lists(st.tuples(faults(), st.sampled_from(FORMS), prefixes, noise), max_size=8),
    st.none() | st.integers(0, 2**20 - 1),
)
def test_what_is_printed_in_any_form_is_read_back(items, pasid):
    text = "".join(
        f"{between}\n{form(prefix, bdf, access, address, reason, pasid)}\n"
        for (bdf, access, address, reason), form, prefix, between in items
    )
    records = parse_kernel_log(text).records
    assert [(r.requester, r.access, r.address, r.reason, r.reason_text) for r in records] == [
        (bdf, access.lower(), address, reason, "words") for (bdf, access, address, reason), *_ in items
    ]
    with_pasid = [form in (old_pasid, new, new_0x) for _, form, *_ in items]
    assert [r.pasid for r in records] == [pasid if has else None for has in with_pasid]


@settings(deadline=None)
@given(st.text() | st.lists(st.text()))
def test_no_text_makes_the_parsers_fail(text):
    parse_kernel_log(text)
    parse_trace(text if isinstance(text, list) else [text])
    clamped_lines(text if isinstance(text, list) else [text])


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=200))
def test_no_shuffle_of_real_logs_makes_the_parser_fail(pieces):
    faults = parse_kernel_log("".join(pieces))
    assert all(record.requester for record in faults.records)


@settings(deadline=None)
@given(st.sampled_from(CORPUS), st.integers(0, 2000))
def test_a_log_cut_off_anywhere_gives_no_wrong_record(log, end):
    same_or_less(log[:end], log)


@settings(deadline=None, max_examples=300)
@given(st.binary() | st.lists(st.sampled_from(CORPUS), max_size=4).map(b"".join), st.lists(st.integers(1, 400)))
def test_the_ends_of_chunks_do_not_matter(log, sizes):
    same_whatever_the_chunks(log, sizes)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*CORPUS, b" ", b"\x1b[31m", b"\0", b"\r"]), min_size=1, max_size=6),
    st.integers(0, 70_000),
    st.lists(st.integers(1, 90_000), max_size=8),
)
def test_a_line_of_any_length_is_read_the_same_whatever_the_chunks(pieces, padding, sizes):
    # One line, longer than the pieces in which long lines are read: the faults lie at and across their borders.
    line = (b"x" * padding + b" ".join(pieces)).replace(b"\n", b" ") * 3
    same_whatever_the_chunks(line + b"\n" + pieces[0], sizes)


@settings(deadline=None)
@given(st.sampled_from(CORPUS), st.integers(0, 140_000), st.sampled_from([b" ", b"\x1b[1m "]))
def test_a_fault_is_found_wherever_it_stands_in_an_endless_line(log, padding, filler):
    fault = b"DMAR: [DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000 [fault reason 0x06] words"
    before = (filler * (padding // len(filler) + 1))[:padding].rpartition(b" ")[0]
    records = read(before + b" " + fault + b" " * padding + b"\n" + log)
    assert [(r.requester, r.address, r.reason, r.reason_text) for r in records[:1]] == [
        ("02:01.2", 0x900000, 6, "words")
    ]


START = "[fault reason 06] "
HEAD = "[DMA Read NO_PASID] Request device [02:00.0] "


@pytest.mark.parametrize("start", ["", START, HEAD])
@pytest.mark.parametrize(
    "unit", ["[", "DMA Read", HEAD, START, " ", "\t", "[ 1.5] ", "DMAR: [", "1,", "reg ", "a", "0x"]
)
def test_no_repetition_costs_more_than_linear_time(start, unit):
    # No time is asserted, it depends on the machine. But a quadratic step over so long a line would not end before
    # the suite's time-out.
    text = start + unit * (1_000_000 // len(unit)) + "x"
    parse_kernel_log(text)
    parse_trace([text])


def test_work_per_line_is_bounded(monkeypatch):
    # Heads that never get a reason must not pile up: each reason looks through a bounded number of them.
    looked = []
    original = VtdForm._reason

    def counting(self, *args):
        looked.append(len(self._waiting))
        original(self, *args)

    monkeypatch.setattr(VtdForm, "_reason", counting)
    parse_kernel_log("DMA Read] Request device [02:00.0] " * 5000 + "\n" + "[fault reason 06]\n" * 100)
    assert max(looked) <= 65


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), dma_reasons, st.integers(0, 2**64 - 1), st.booleans()), max_size=30))
def test_trace_lines_are_read_back_and_collapse_loses_nothing(events):
    lines = [
        f"vtd_dmar_fault sid {sid:#x} fault {reason} addr {address:#x} write {write:d}"
        for sid, reason, address, write in events
    ]
    records = parse_trace(lines, 1)
    assert [(r.reason, r.address, r.access) for r in records] == [
        (reason, address, "write" if write else "read") for _, reason, address, write in events
    ]
    collapsed = collapse(records)
    assert sum(r.count for r in collapsed) == len(events)
    assert collapse(collapsed) == collapsed
    assert {r.address for r in collapsed} <= {r.address for r in records}


@settings(deadline=None)
@given(st.lists(faults(), max_size=12))
def test_a_log_that_has_all_faults_agrees_and_one_more_does_not(items):
    lines = []
    for bdf, access, address, reason in items:
        bus, device, function = re.split("[:.]", bdf)
        sid = int(bus, 16) << 8 | int(device, 16) << 3 | int(function)
        lines.append(f"vtd_dmar_fault sid {sid:#x} fault {reason} addr {address:#x} write {int(access == 'Write')}")
    text = "".join(new("", *item, None) + "\n" for item in items)
    trace = parse_trace(lines, 0)
    result = compare(trace, parse_kernel_log(text))
    assert result.agrees
    assert result.explanations == ()
    more = text + new("", "fe:1f.7", "Read", 0xFFFF_F000, 0x87, None) + "\n"
    if ("fe:1f.7", "Read", 0xFFFF_F000, 0x87) not in items:
        assert not compare(trace, parse_kernel_log(more)).agrees
