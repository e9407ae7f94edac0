"""Verdicts on bare scenarios: each check fails when the evidence says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.judge import judge_bare
from harness.results import Evidence, StepEvidence, Verdict
from harness.scenario import BareScenario, parse_scenario

TEXT = """
tier: bare
title: t
source: s
machine: {devices: {a: {model: edu, at: "02:00.0"}, b: {model: edu, at: "03:00.0"}}}
tables:
  domains: {d: {}}
  contexts: {a: {domain: d}, b: {domain: d}}
steps:
  - enable: {}
  - dma_read: {device: a, iova: 0x900010, size: 8}
    id: one
  - dma_read: {device: b, iova: 0xa00000, size: 8}
    id: two
  - registers: {}
    expect:
      fault: {device: a, access: read, address: 0x900000, reason: 6}
      overflow: true
      pending: true
  - clear_fault: {}
expect:
  faults:
    - {device: a, access: read, address: 0x900000, reason: 6, step: one}
    - {device: b, access: read, address: 0xa00000, reason: 6, step: two}
"""
NOTHING = {
    "recorded": False,
    "overflow": False,
    "pending": False,
    "interrupt_pending": False,
    "source_id": 0,
    "reason": 0,
    "read": False,
    "info": 0,
}
HELD = NOTHING | {"recorded": True, "pending": True, "source_id": 0x200, "reason": 6, "read": True, "info": 0x900000}
INTERRUPT = "apic_deliver_irq dest 0 dest_mode 0 delivery_mode 0 vector 64 trigger_mode 0"
LOST = HELD | {"overflow": True}


def scenario(text: str = TEXT) -> BareScenario:
    loaded = parse_scenario(text, Path("x.yaml"))
    assert isinstance(loaded, BareScenario)
    return loaded


def line(sid: int, address: int, reason: int = 6, write: int = 0) -> str:
    return f"vtd_dmar_fault sid {sid:#x} fault {reason} addr {address:#x} write {write}"


def step(index: int, kind: str, registers: dict[str, Any], *trace: str, **values: Any) -> StepEvidence:
    return StepEvidence(index=index, kind=kind, args={}, values={"registers": registers, **values}, trace=trace)


def evidence(**changes: StepEvidence) -> Evidence:
    steps = {
        "enable": step(0, "enable", NOTHING),
        "one": step(1, "dma_read", HELD, line(0x200, 0x900010), line(0x200, 0x900014), completed=True),
        "two": step(2, "dma_read", LOST, line(0x300, 0xA00000), completed=True),
        "registers": step(3, "registers", LOST),
        "clear": step(4, "clear_fault", NOTHING),
    }
    return Evidence(steps=tuple((steps | changes).values()), devices={"a": "02:00.0", "b": "03:00.0"})


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_what_is_expected_passes_and_what_was_lost_is_said() -> None:
    verdict = judge_bare(scenario(), evidence())
    assert verdict.passed, failed(verdict)
    assert [(fault.witness, fault.requester) for fault in verdict.faults] == [
        ("trace", "02:00.0"),
        ("trace", "03:00.0"),
        ("registers", "02:00.0"),
    ]
    (note,) = verdict.notes
    assert "overflow" in note
    assert "03:00.0" in note


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"one": step(1, "dma_read", HELD, line(0x200, 0x900010), completed=False)}, ["step 1 (dma_read)"]),
        ({"one": step(1, "dma_read", HELD, line(0x200, 0x900010))}, ["step 1 (dma_read)"]),
        ({"one": step(1, "dma_read", NOTHING, line(0x200, 0x900010), completed=True)}, ["witnesses"]),
        ({"one": step(1, "dma_read", HELD, line(0x200, 0x800010), completed=True)}, ["faults", "witnesses"]),
        ({"one": step(1, "dma_read", HELD, line(0x200, 0x900010, 5), completed=True)}, ["faults", "witnesses"]),
        ({"one": step(1, "dma_read", HELD, line(0x201, 0x900010), completed=True)}, ["faults", "witnesses"]),
        ({"one": step(1, "dma_read", HELD, completed=True)}, ["faults", "witnesses"]),
        ({"two": step(2, "dma_read", HELD, line(0x300, 0xA00000), completed=True)}, ["witnesses"]),
        ({"two": step(2, "dma_read", HELD | {"pending": False}, line(0x300, 0xA00000), completed=True)}, ["witnesses"]),
        ({"two": step(2, "dma_read", HELD, completed=True)}, ["faults", "witnesses"]),
        ({"registers": step(3, "registers", HELD)}, ["step 3 (registers)", "witnesses"]),
        ({"registers": step(3, "registers", LOST | {"source_id": 0x300})}, ["step 3 (registers)", "witnesses"]),
        ({"registers": step(3, "registers", {"recorded": 1})}, ["step 3 (registers)", "witnesses"]),
        ({"clear": step(4, "clear_fault", LOST)}, ["witnesses"]),
        (
            {"enable": step(0, "enable", NOTHING, INTERRUPT)},
            ["step 0 (enable)"],
        ),
    ],
)  # fmt: skip
def test_each_difference_fails_the_check_that_it_belongs_to(changes: dict[str, StepEvidence], names: list[str]) -> None:
    verdict = judge_bare(scenario(), evidence(**changes))
    assert failed(verdict) == names
    assert not verdict.passed


def test_a_step_that_did_not_run_fails() -> None:
    seen = evidence()
    assert "step 4 (clear_fault)" in failed(
        judge_bare(scenario(), Evidence(steps=seen.steps[:4], devices=seen.devices))
    )


def test_a_fault_of_an_interrupt_is_one_of_the_register_only() -> None:
    text = """
tier: bare
title: t
source: s
machine: {devices: {a: {model: edu, at: "02:00.0"}}}
steps:
  - interrupt: {device: a, index: 3}
    id: sent
expect:
  faults: [{device: a, access: interrupt, index: 3, reason: 0x22, step: sent}]
"""
    trace = "vtd_frr_new index 0 high 0x8000002200000200 low 0x3000000000000"
    held = HELD | {"reason": 0x22, "read": False, "info": 3 << 48}
    seen = Evidence(steps=(step(0, "interrupt", held, trace),), devices={"a": "02:00.0"})
    assert judge_bare(scenario(text), seen).passed
    assert failed(judge_bare(scenario(text.replace("index: 3, reason", "index: 4, reason")), seen)) == ["faults"]


def test_versions_choose_steps_and_faults() -> None:
    text = TEXT.replace("step: two}", 'step: two, qemu: ">=10.0"}')
    text = text.replace("  - clear_fault: {}", '  - clear_fault: {}\n    qemu: "<10.0"')
    assert [len(scenario(text).on(version).steps) for version in ("7.2.22", "11.1.3")] == [5, 4]
    assert [len(scenario(text).on(version).expect.faults) for version in ("7.2.22", "11.1.3")] == [1, 2]
