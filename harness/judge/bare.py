"""A bare scenario: what its steps, QEMU's trace and the fault registers say, against what it expects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.fault import collapse, describe, parse_trace, reason_name
from harness.fault.pci import requester_name
from harness.fault.reasons import is_interrupt_reason
from harness.fault.trace import PAGE_SHIFT, page_of
from harness.judge.aspect import NOT_SAID, Aspect
from harness.judge.faults import paired_check
from harness.judge.registers import FaultRegister, Registers
from harness.judge.words import listed, value
from harness.results import Check, Evidence, FaultRecord, StepEvidence, Verdict
from harness.scenario.bare import BareScenario
from harness.scenario.bare_steps import BareExpect, BareFault, BareStep, FaultFields

_DELIVERED: Final = re.compile(r"apic_deliver_irq dest \d+ dest_mode \d+ delivery_mode \d+ vector (\d+) ")
_RECORDED: Final = re.compile(r"vtd_frr_new index \d+ high 0x([0-9a-f]{1,16}) low 0x([0-9a-f]{1,16})\b")
_INDEX_SHIFT: Final = 48


def judge_bare(scenario: BareScenario, evidence: Evidence) -> Verdict:
    """Judge one cell of the bare tier. It starts nothing, and odd evidence gives a failed check, not an exception.

    Args:
        scenario: the scenario as it is on the version of QEMU that it ran on (``BareScenario.on``).
        evidence: what the run left.
    """
    seen = {one.index: one for one in evidence.steps}
    checks = [_step_check(step, seen.get(index), index, evidence) for index, step in enumerate(scenario.steps)]
    single = {step.index: step_faults(step) for step in evidence.steps}
    trace = tuple(fault for faults in single.values() for fault in collapse(faults))
    checks.append(_faults_check(scenario, evidence, trace))
    register = FaultRegister()
    problems: list[str] = []
    for step in evidence.steps:
        problems += register.step(step, single[step.index])
    count = f"{len(register.recorded)} of {len(trace)} faults of the trace were in the fault recording register"
    checks.append(
        Check(
            name="witnesses",
            passed=not problems,
            message=f"expected what follows from the trace, observed {listed(problems)}"
            if problems
            else f"the fault registers say what follows from the trace: {count}",
            expected="after each step the fault registers say what follows from the trace",
            observed=listed(problems) or count,
        )
    )
    return Verdict(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        faults=(*trace, *register.recorded),
        notes=tuple(register.notes),
    )


def step_faults(step: StepEvidence) -> tuple[FaultRecord, ...]:
    """The faults of a step's trace, each by itself.

    Those of interrupts QEMU tells of only when it records them, as the two words of the register.
    """
    return (*parse_trace(step.trace, step.index), *_interrupts(step))


def _interrupts(step: StepEvidence) -> Iterator[FaultRecord]:
    for number, line in enumerate(step.trace, 1):
        match = _RECORDED.search(line)
        if match is None:
            continue
        high, low = int(match[1], 16), int(match[2], 16)
        reason = high >> 32 & 0xFF
        if is_interrupt_reason(reason):
            yield FaultRecord(
                witness="trace",
                requester=requester_name(high & 0xFFFF),
                access="interrupt",
                address=None,
                reason=reason,
                line=number,
                step=step.index,
                index=low >> _INDEX_SHIFT,
            )


# ---- steps


def _step_check(step: BareStep, seen: StepEvidence | None, index: int, evidence: Evidence) -> Check:
    name = f"step {index} ({step.kind})"
    if seen is None:
        message = "expected this step to run, observed that it did not"
        return Check(name=name, passed=False, message=message, expected="runs", observed="did not run", step=index)
    aspects = tuple(_aspects(step.kind, step.expect, seen, evidence))
    bad = [one for one in aspects if not one.good]
    expected, observed = (listed([getattr(one, part) for one in aspects]) for part in ("expected", "observed"))
    if bad:
        message = "; ".join(f"expected {one.expected}, observed {one.observed}" for one in bad)
    else:
        message = f"as expected: {observed}"
    return Check(name=name, passed=not bad, message=message, expected=expected, observed=observed, step=index)


def _aspects(kind: str, expect: BareExpect, seen: StepEvidence, evidence: Evidence) -> Iterator[Aspect]:
    values = seen.values
    if kind in ("dma_read", "dma_write"):
        yield _same("completed", values.get("completed"), expect.completed is not False)
        if "result" in values or expect.result is not None:
            yield _same("result", values.get("result"), expect.result or "ok")
    if kind == "check":
        yield _same("equal", values.get("equal"), expect.equal is not False)
    if kind == "registers":
        yield from _register_aspects(expect, Registers.of(seen), evidence)
    delivered = [int(match[1]) for line in seen.trace for match in _DELIVERED.finditer(line)]
    yield Aspect(
        delivered == list(expect.interrupts),
        f"interrupts {list(expect.interrupts)}" if expect.interrupts else "no interrupt",
        f"interrupts {delivered}" if delivered else "no interrupt",
    )


def _same(name: str, observed: Any, expected: Any) -> Aspect:
    said = NOT_SAID if observed is None else f"{name} {value(observed)}"
    return Aspect(observed == expected, f"{name} {value(expected)}", said)


def _register_aspects(expect: BareExpect, seen: Registers | None, evidence: Evidence) -> Iterator[Aspect]:
    if seen is None:
        yield Aspect(False, "fault registers", NOT_SAID)
        return
    for name in ("recorded", "overflow", "pending", "interrupt_pending"):
        wanted = getattr(expect, name)
        if wanted is not None:
            yield _same(name, getattr(seen, name), wanted)
    if expect.fault is not None:
        record = seen.fault()
        fault = Wanted(expect.fault, _requester(expect.fault, evidence))
        observed = "none" if record is None else describe(record.model_copy(update={"step": None}))
        matches = record is not None and fault.same(record)
        yield Aspect(matches, fault.describe(), f"in the register: {observed}")


# ---- faults


@dataclass(frozen=True)
class Wanted:
    """An expected fault with its names looked up.

    Args:
        expect: what the scenario says.
        requester: the requester ID that it means, or None for a device that is not there.
        step: index of the step, or None for any.
    """

    expect: FaultFields
    requester: str | None
    step: int | None = None

    def describe(self) -> str:
        """It in words."""
        expect = self.expect
        device = "" if expect.device is None else f"{expect.device} "
        requester = f"({self.requester or 'address not known'})" if device else self.requester
        place = f"index {expect.index:#x}" if expect.index is not None else f"{expect.address or 0:#x}"
        step = f", step {expect.step}" if isinstance(expect, BareFault) and expect.step is not None else ""
        reason = f"0x{expect.reason:02x} ({reason_name(expect.reason)})"
        return f"{device}{requester} {expect.access} {place}, reason {reason}{step}"

    def matches(self, fault: FaultRecord) -> bool:
        """Whether the trace's fault is the expected one."""
        return (self.step is None or fault.step == self.step) and self.same(fault, exact=True)

    def same(self, fault: FaultRecord, *, exact: bool = False) -> bool:
        """Whether a record says the same; without ``exact`` pages are compared, which is all that a register holds."""
        expect = self.expect
        if (fault.requester, fault.access, fault.reason) != (self.requester, expect.access, expect.reason):
            return False
        if expect.address is None:
            return fault.index == expect.index
        whole = not exact or expect.address % (1 << PAGE_SHIFT) == 0
        return page_of(fault.address) == page_of(expect.address) if whole else fault.address == expect.address


def _requester(fault: FaultFields, evidence: Evidence) -> str | None:
    return fault.requester if fault.device is None else evidence.devices.get(fault.device)


def _faults_check(scenario: BareScenario, evidence: Evidence, trace: Sequence[FaultRecord]) -> Check:
    steps = scenario.steps_by_id()
    wanted = [
        Wanted(one, _requester(one, evidence), None if one.step is None else steps.get(one.step, -1))
        for one in scenario.expect.faults
    ]
    return paired_check(wanted, trace, nothing="no fault happened: none in the trace")
