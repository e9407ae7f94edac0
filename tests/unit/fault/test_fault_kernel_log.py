"""The parser against recorded logs: one log a case, the expected records beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.fault import KernelFaults, parse_kernel_log
from harness.fault.kernel_log import StatusLine
from harness.fault.reader import LogReader
from harness.results import FaultRecord

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = ("dmar", "xen", "freebsd", "amd", "virtio", "arm")
CASES = sorted(f"{folder}/{path.stem}" for folder in FOLDERS for path in (GOLDEN / folder).glob("*.log"))
WHOLE = [case for case in CASES if (GOLDEN / f"{case}.log").read_bytes()[-1:] in (b"\n", b"")]


def read(name: str) -> str:
    return (GOLDEN / f"{name}.log").read_bytes().decode("utf-8", "surrogateescape")


def read_bytes(log: bytes, chunk: int) -> tuple[list[FaultRecord], list[StatusLine], int]:
    records: list[FaultRecord] = []
    status: list[StatusLine] = []
    reader = LogReader(records.append, status.append)
    for start in range(0, len(log), chunk):
        reader.feed(log[start : start + chunk])
    reader.close()
    return records, status, reader.suppressed


def number(value: str | int | None) -> int | None:
    return int(value, 16) if isinstance(value, str) else value


def expected_record(data: dict[str, Any]) -> FaultRecord:
    numbers = {name: number(data.get(name)) for name in ("address", "reason", "pasid", "index", "flags")}
    return FaultRecord(witness="kernel", **{**data, **numbers})


def test_there_are_enough_cases():
    assert len(CASES) >= 60
    assert sorted(f"{folder}/{path.stem}" for folder in FOLDERS for path in (GOLDEN / folder).glob("*.json")) == CASES
    vendors = {record.get("vendor", "intel") for name in CASES for record in expected(name)["records"]}
    assert vendors == {"intel", "xen", "freebsd", "amd", "virtio", "arm"}


def expected(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("chunk", [1 << 20, 7, 1])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, chunk):
    records, status, suppressed = read_bytes((GOLDEN / f"{name}.log").read_bytes(), chunk)
    want = expected(name)
    assert records == [expected_record(r) for r in want["records"]]
    assert suppressed == want["suppressed"]
    assert status == [StatusLine(**s) for s in want["status"]]


@pytest.mark.parametrize("name", [name for name in CASES if name != "dmar/not_utf8"])
def test_text_gives_the_same_as_bytes(name):
    faults = parse_kernel_log((GOLDEN / f"{name}.log").read_bytes().decode("utf-8"))
    records, status, suppressed = read_bytes((GOLDEN / f"{name}.log").read_bytes(), 1 << 20)
    assert faults == KernelFaults(records=tuple(records), suppressed=suppressed, status=tuple(status))


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "dmar/not_utf8"])
def test_lines_give_the_same_as_text(name):
    log = read(name)
    assert parse_kernel_log(log.split("\n")).records == parse_kernel_log(log).records


def test_all_logs_one_after_the_other():
    # A half of a fault would be given to another one that still waits in the log before it.
    alone = ("dmar/reason_without_head", "arm/raw_cut", "arm/raw_no_words")
    # Lines between two logs end what still waits; NUL bytes are a hole in any log.
    logs = [(GOLDEN / f"{name}.log").read_bytes() for name in WHOLE if name not in alone]
    single = [read_bytes(log, 1 << 20) for log in logs]
    joined = read_bytes((b"other\n" * 70).join(logs), 1 << 20)
    assert [r.model_copy(update={"line": 0}) for r in joined[0]] == [
        r.model_copy(update={"line": 0}) for records, _, _ in single for r in records
    ]
    assert joined[2] == sum(suppressed for _, _, suppressed in single)


def test_silent_only_without_any_sign_of_a_fault():
    assert parse_kernel_log("").silent
    assert parse_kernel_log("DMAR: IOMMU enabled\nDMAR: DRHD: handling fault status reg 10\n").silent
    assert not parse_kernel_log("DMAR: DRHD: handling fault status reg 2\n").silent
    assert not parse_kernel_log("DMAR: DRHD: handling fault status reg 1\n").silent
    assert not parse_kernel_log("dmar_fault: 1 callbacks suppressed\n").silent
    assert not parse_kernel_log("DMAR: [DMA Read] Request device [02:00.0]\n").silent


def test_unreported_counts_status_lines_without_a_record():
    assert parse_kernel_log("DRHD: handling fault status reg 2\n" * 3).unreported == 3
    assert parse_kernel_log(read("dmar/rate_limited")).unreported == 1


def test_a_head_does_not_wait_for_ever():
    head = "DMAR:[DMA Read] Request device [02:00.0] fault addr 900000 \n"
    reason = "DMAR:[fault reason 06] PTE Read access is not set\n"
    assert parse_kernel_log(head + "other\n" * 60 + reason).records[0].reason == 6
    assert parse_kernel_log(head + "other\n" * 70 + reason).records[0].reason is None


def test_a_reason_of_interrupts_is_not_given_to_a_dma():
    head = "DMAR:[DMA Read] Request device [02:00.0] fault addr 900000 \n"
    assert parse_kernel_log(head + "INTR-REMAP:[fault reason 38] Blocked\n").records[0].reason is None
