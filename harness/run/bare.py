"""One cell of the bare tier from its scenario to its result: QEMU, tables, steps, evidence, verdict."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import __version__
from harness.bare.argv import lacks
from harness.bare.machine import BareMachine
from harness.bare.process import BareEmulator
from harness.bare.qtest import QtestClosed
from harness.bare.spec import BareDeviceSpec, BareSpec
from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.judge import judge_bare
from harness.judge.registers import KEY
from harness.results import CellResult, Evidence, Outcome, StepEvidence, Versions
from harness.run.options import RunOptions
from harness.run.outcome import errored, judged, own_defect
from harness.run.resources import Emulation
from harness.run.trace import TraceReader
from harness.scenario import BareScenario
from harness.scenario.bare_machine import BareMachine as MachineModel
from harness.scenario.values import requester_id


def bare_spec(machine: MachineModel) -> BareSpec:
    """The scenario's machine as the part that starts machines takes it."""
    devices = tuple(
        BareDeviceSpec(
            name=name,
            model=device.model,
            source_id=requester_id(machine.address(name)),
            requester=requester_id(machine.requester(name)),
            bridge=device.bridge,
            vfs=device.vfs,
            of=device.of or "",
            number=device.number or 0,
        )
        for name, device in machine.devices.items()
    )
    return BareSpec(machine.aw_bits, machine.memory, devices, machine.scalable, machine.first_stage)


def bare_unmet(scenario: BareScenario, emulation: Emulation) -> str | None:
    """Why a scenario has to be skipped on this build, as one line; None when it can run."""
    reason = scenario.needs.unmet(emulation.build.version, scenario.machine)
    return reason or lacks(bare_spec(scenario.machine), emulation.capabilities)


def run_bare(
    scenario: BareScenario,
    emulation: Emulation,
    options: RunOptions,
    folder: Path,
    stage: Callable[[str], None],
    common: dict[str, Any],
) -> CellResult:
    """Run one cell. Never raises for what can go wrong with QEMU: that is in the result.

    Args:
        scenario: the scenario.
        emulation: the QEMU build.
        options: the deadline where the scenario has none.
        folder: the cell's run folder; made here.
        stage: told the name of each stage as it begins.
        common: what the result says of the cell itself.
    """
    began = time.monotonic()
    reason = bare_unmet(scenario, emulation)
    if reason:
        return CellResult(**common, outcome=Outcome.SKIP, message=reason)
    folder.mkdir(parents=True)
    scenario = scenario.on(emulation.build.version)
    steps: list[StepEvidence] = []
    stages: dict[str, float] = {}
    error: HarnessError | None = None
    try:
        _run_steps(scenario, emulation, options, folder, stage, steps, stages)
    except HarnessError as caught:
        error = caught
    except Exception:
        error = own_defect(folder)
    machine = scenario.machine
    evidence = Evidence(steps=tuple(steps), devices={name: machine.requester(name) for name in machine.devices})
    common = common | {
        "evidence": evidence,
        "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
        "folder": str(folder),
        "versions": _versions(emulation),
    }
    if error is not None:
        common |= {"seconds": round(time.monotonic() - began, 3)}
        return errored(error, common | {"console_tail": tuple(error.context.get("stderr", "").splitlines())})
    stage("judge")
    verdict = judge_bare(scenario, evidence)
    return judged(verdict, common | {"seconds": round(time.monotonic() - began, 3)})


def _run_steps(
    scenario: BareScenario,
    emulation: Emulation,
    options: RunOptions,
    folder: Path,
    stage: Callable[[str], None],
    steps: list[StepEvidence],
    stages: dict[str, float],
) -> None:
    """Start QEMU, do all steps, and end it; what was seen is appended to ``steps`` and ``stages``."""
    deadline = Deadline.after(scenario.timeout or options.timeout)
    began = time.monotonic()
    stage("start")
    spec = bare_spec(scenario.machine)
    emulator = BareEmulator.start(spec, emulation.build, emulation.capabilities, folder, deadline)
    try:
        trace = TraceReader(folder / "qemu.log")
        machine = BareMachine(emulator.qtest, spec, scenario.tables)
        stages["start"] = time.monotonic() - began
        stage("steps")
        for index, step in enumerate(scenario.steps):
            at = time.monotonic()
            values = machine.run(step.kind, step.args)
            values[KEY] = machine.fault_values()
            seconds = round(time.monotonic() - at, 6)
            args, lines = step.args_json(), trace.new_lines()
            steps.append(
                StepEvidence(index=index, kind=step.kind, args=args, values=values, seconds=seconds, trace=lines)
            )
        stages["steps"] = time.monotonic() - began - stages["start"]
    except QtestClosed as closed:
        raise emulator.ended(closed.message) from closed
    finally:
        emulator.stop()


def _versions(emulation: Emulation) -> Versions:
    return Versions(
        harness=__version__,
        python=platform.python_version(),
        qemu=emulation.build.version,
        qemu_build=f"{emulation.build.name} {emulation.build.key[:12]}",
        kernel="",
        image="",
        image_key="",
        accelerator="tcg",
        accelerator_reason="the processor is halted",
        payload="",
    )
