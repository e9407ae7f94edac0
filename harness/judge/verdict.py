"""All checks of one cell, in the order of the scenario, and the verdict."""

from __future__ import annotations

import re

from harness.fault import KernelFaults, clamped_lines, compare, evidence_faults, parse_kernel_log
from harness.fault.trace import step_trace
from harness.judge.device_faults import check_device_faults
from harness.judge.device_mappings import check_mappings
from harness.judge.device_presence import check_presence
from harness.judge.dma_iova import check_recordings
from harness.judge.dma_iova_replay import check_replays
from harness.judge.faults import check_faults, other_faults
from harness.judge.implementations import compare_implementations, oracle_name
from harness.judge.steps import check_steps
from harness.judge.words import listed
from harness.results import Check, Evidence, FaultRecord, Finding, Verdict
from harness.scenario.defects import DEFECTS, OTHER
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES
from harness.scenario.model import Scenario

_MEANINGS = {**DEFECTS, **OTHER, **KERNEL_DIFFERENCES}


def judge(scenario: Scenario, evidence: Evidence) -> Verdict:
    """Judge one cell: the evidence against what the scenario expects.

    It starts nothing, and odd evidence gives a failed check, not an exception.

    Args:
        scenario: the scenario that ran.
        evidence: what the run left. Of an oracle, what is known of it is expected instead of what should be.
    """
    trace = evidence_faults(evidence)
    kernel = parse_kernel_log(evidence.kernel_log)
    checks = [*check_steps(scenario.steps, evidence.steps, evidence.oracle)]
    checks += _check_clamping(evidence)
    checks.append(check_faults(scenario, evidence, trace, kernel))
    witnesses, notes = _check_witnesses(trace, kernel)
    checks.append(witnesses)
    known = other_faults(scenario, evidence)
    mappings = check_mappings(scenario.steps, evidence, known.id if known else "")
    checks += check_presence(evidence)
    checks += [*check_recordings(scenario.steps, evidence), *check_replays(evidence)]
    for devices, more in (mappings, check_device_faults(evidence)):
        checks += devices
        notes = (*notes, *more)
    checks += [_check_log(pattern, evidence.kernel_log) for pattern in scenario.expect.kernel_log]
    # In the order of the steps, what is about all of them last: the first that failed is usually the cause.
    checks.sort(key=lambda check: (check.step is None, check.step or 0))
    return Verdict(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        faults=(*trace, *kernel.records),
        notes=notes,
        findings=tuple(
            Finding(
                defect=check.known, step=check.step, observed=check.observed, meaning=_MEANINGS.get(check.known, "")
            )
            for check in checks
            if check.known and check.passed
        ),
    )


def judge_both(scenario: Scenario, ours: Evidence, theirs: Evidence) -> Verdict:
    """Judge a cell that ran on ``usdm`` and on its oracle: each by itself, and one against the other.

    Args:
        scenario: the scenario that ran.
        ours: what ``usdm`` left.
        theirs: what the oracle left.
    """
    other = oracle_name(theirs)
    verdicts = {"usdm": judge(scenario, ours), other: judge(scenario, theirs)}
    checks = [
        check.model_copy(update={"name": f"{name}: {check.name}"})
        for name, verdict in verdicts.items()
        for check in verdict.checks
    ]
    checks += compare_implementations(scenario, ours, theirs)
    return Verdict(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        faults=verdicts["usdm"].faults,
        notes=tuple(f"{name}: {note}" for name, verdict in verdicts.items() for note in verdict.notes),
        findings=verdicts[other].findings,
    )


def _check_clamping(evidence: Evidence) -> list[Check]:
    """A failed check for each step in which the device cut an address; none when it never did."""
    checks = []
    for seen in evidence.steps:
        lines = clamped_lines(step_trace(seen))
        if lines:
            checks.append(
                Check(
                    name=f"device in step {seen.index} ({seen.kind})",
                    passed=False,
                    message=f"expected the device to use the whole address, observed that it cut it: {lines[0]}",
                    expected="a DMA to the address that the step names",
                    observed=listed(lines),
                    step=seen.index,
                )
            )
    return checks


def _check_witnesses(trace: tuple[FaultRecord, ...], kernel: KernelFaults) -> tuple[Check, tuple[str, ...]]:
    comparison = compare(trace, kernel)
    counts = f"{len(trace)} in the trace, {len(kernel.records)} in the kernel's log"
    message = f"the witnesses agree: {counts}"
    if comparison.explanations:
        message += ", the difference is explained"
    if not comparison.agrees:
        message = f"expected witnesses that agree, observed {counts}; {listed(comparison.unexplained)}"
    check = Check(
        name="witnesses",
        passed=comparison.agrees,
        message=message,
        expected="the trace and the kernel's log tell of the same faults",
        observed=listed(comparison.unexplained) or counts,
    )
    return check, comparison.explanations


def _check_log(pattern: str, log: tuple[str, ...]) -> Check:
    """Whether a regular expression is found in a line of the kernel's log."""
    found: str | None = None
    problem = f"no such line among {len(log)}"
    try:
        compiled = re.compile(pattern)
        found = next((line for line in log if compiled.search(line)), None)
    except (re.error, OverflowError, RecursionError) as error:
        problem = f"no regular expression: {error}"
    return Check(
        name=f"kernel log /{pattern}/",
        passed=found is not None,
        message=f"found: {found}" if found is not None else f"expected a line with {pattern}, observed {problem}",
        expected=f"a line with {pattern}",
        observed=problem if found is None else found,
    )
