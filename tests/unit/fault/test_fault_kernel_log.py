"""The parser against recorded logs: one log a case, the expected records beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.fault import parse_kernel_log
from harness.fault.kernel_log import StatusLine
from harness.results import FaultRecord

GOLDEN = Path(__file__).parents[2] / "golden" / "dmar"
CASES = sorted(path.stem for path in GOLDEN.glob("*.log"))


def number(value: str | int | None) -> int | None:
    return int(value, 16) if isinstance(value, str) else value


def expected_record(data: dict[str, Any]) -> FaultRecord:
    numbers = {name: number(data.get(name)) for name in ("address", "reason", "pasid", "index")}
    return FaultRecord(witness="kernel", **{**data, **numbers})


def test_there_are_enough_cases():
    assert len(CASES) >= 30
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == CASES


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    with (GOLDEN / f"{name}.log").open(newline="", encoding="utf-8") as file:
        log = file.read()
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))

    faults = parse_kernel_log(log)

    assert faults.records == tuple(expected_record(r) for r in expected["records"])
    assert faults.suppressed == expected["suppressed"]
    assert faults.status == tuple(StatusLine(**s) for s in expected["status"])


@pytest.mark.parametrize("name", [c for c in CASES if not c.startswith("truncated")])
def test_lines_give_the_same_as_text(name):
    log = (GOLDEN / f"{name}.log").read_text(encoding="utf-8")
    assert parse_kernel_log(log.splitlines()).records == parse_kernel_log(log).records


def test_all_logs_one_after_the_other():
    logs = [(GOLDEN / f"{name}.log").read_text(encoding="utf-8") for name in CASES if not name.startswith("truncated")]
    # A reason without a head would be given to one that still waits in the log before it.
    single = [parse_kernel_log(log) for log in logs]
    joined = parse_kernel_log("".join(logs))
    assert [r.model_copy(update={"line": 0}) for r in joined.records] == [
        r.model_copy(update={"line": 0}) for faults in single for r in faults.records
    ]
    assert joined.suppressed == sum(faults.suppressed for faults in single)


def test_silent_only_without_any_sign_of_a_fault():
    assert parse_kernel_log("").silent
    assert parse_kernel_log("DMAR: IOMMU enabled\nDMAR: DRHD: handling fault status reg 10\n").silent
    assert not parse_kernel_log("DMAR: DRHD: handling fault status reg 2\n").silent
    assert not parse_kernel_log("DMAR: DRHD: handling fault status reg 1\n").silent
    assert not parse_kernel_log("dmar_fault: 1 callbacks suppressed\n").silent
    assert not parse_kernel_log("DMAR: [DMA Read] Request device [02:00.0]\n").silent


def test_unreported_counts_status_lines_without_a_record():
    assert parse_kernel_log("DRHD: handling fault status reg 2\n" * 3).unreported == 3
    rate_limited = (GOLDEN / "rate_limited.log").read_text(encoding="utf-8")
    assert parse_kernel_log(rate_limited).unreported == 1


def test_a_head_does_not_wait_for_ever():
    head = "DMAR:[DMA Read] Request device [02:00.0] fault addr 900000 \n"
    reason = "DMAR:[fault reason 06] PTE Read access is not set\n"
    assert parse_kernel_log(head + "other\n" * 60 + reason).records[0].reason == 6
    assert parse_kernel_log(head + "other\n" * 70 + reason).records[0].reason is None


def test_a_reason_of_interrupts_is_not_given_to_a_dma():
    head = "DMAR:[DMA Read] Request device [02:00.0] fault addr 900000 \n"
    assert parse_kernel_log(head + "INTR-REMAP:[fault reason 38] Blocked\n").records[0].reason is None
