"""One cell from its scenario to its result: boot, steps, evidence, verdict."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness import __version__
from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.guest.module import load_module
from harness.image.module import Module
from harness.judge import judge, judge_both
from harness.machine.emulator import tail
from harness.results import CellResult, Evidence, Oracle, Outcome, StepError, StepEvidence, Versions
from harness.run.bare import run_bare
from harness.run.cells import Cell, machine_spec, unmet
from harness.run.device_news import DeviceWatch
from harness.run.device_steps import do_step
from harness.run.jobs import StartKind
from harness.run.options import RunOptions
from harness.run.outcome import judged, own_defect
from harness.run.resources import Resources
from harness.run.tables import add_tables
from harness.run.trace import TraceReader
from harness.scenario import BareScenario, Scenario
from harness.scenario.args_device import HOST_KINDS

SETUP_SECONDS = 60.0


@dataclass(slots=True)
class _Collected:
    """What a cell has gathered of one guest so far; kept when an error ends it."""

    implementation: str
    folder: Path
    steps: list[StepEvidence] = field(default_factory=list)
    kernel_log: tuple[str, ...] = ()
    waited: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    guest_python: str = ""
    start: StartKind | Literal[""] = ""
    template: str = ""
    error: HarnessError | None = None


def run_cell(
    cell: Cell,
    resources: Resources,
    options: RunOptions,
    folder: Path,
    stage: Callable[[str], None],
    say: Callable[[str], None],
) -> CellResult:
    """Run one cell. Never raises for what can go wrong with a guest: that is in the result.

    Args:
        cell: the scenario and its point of the matrix.
        resources: what was prepared for the run.
        options: deadlines.
        folder: the cell's run folder; made here. A cell that runs on usdm and its oracle has one for each in it.
        stage: told the name of each stage as it begins.
        say: told what else takes time: a template that has to be made.
    """
    started = time.monotonic()
    scenario = cell.scenario
    common: dict[str, Any] = {
        "scenario": cell.name,
        "title": scenario.title,
        "source": scenario.source,
        "file": str(scenario.file),
        "rerun": cell.rerun,
        "implementation": cell.implementation,
    }
    if isinstance(scenario, BareScenario):
        return run_bare(scenario, resources.emulations[cell.qemu], options, folder, stage, common)
    reason = unmet(cell, resources)
    if reason:
        return CellResult(**common, outcome=Outcome.SKIP, message=reason)
    folder.mkdir(parents=True)
    sides = []
    for implementation in cell.sides:
        where = folder / implementation if cell.implementation == "both" else folder
        where.mkdir(exist_ok=True)
        side = _Collected(implementation, where)
        sides.append(side)
        _run_guest(side, cell, scenario, resources, options, stage, say)
        if side.error is not None:
            break
    evidence = [_side_evidence(side, cell, scenario, resources) for side in sides]
    last = sides[-1]
    common |= {
        "evidence": evidence[0],
        "reference": evidence[1] if len(evidence) > 1 else None,
        "seconds": round(time.monotonic() - started, 3),
        "stages": _stages(sides),
        "start": last.start,
        "folder": str(folder),
        "versions": _versions(cell, resources, last),
    }
    if last.error is not None:
        on = f"on {last.implementation}: " if cell.implementation == "both" else ""
        return CellResult(
            **common,
            outcome=Outcome.ERROR,
            failure_class=last.error.failure_class,
            message=on + last.error.message,
            hint=last.error.hint,
            console_tail=tuple(last.error.context.get("console", tail(last.folder / "console.log")).splitlines()),
        )
    stage("judge")
    verdict = judge(scenario, evidence[0]) if len(evidence) == 1 else judge_both(scenario, *evidence)
    return judged(verdict, common)


def _run_guest(
    side: _Collected,
    cell: Cell,
    scenario: Scenario,
    resources: Resources,
    options: RunOptions,
    stage: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """The steps in one guest; what went wrong with it is in ``side.error``."""
    try:
        plan = resources.plan(machine_spec(scenario), cell.qemu, cell.kernel, side.folder)
        side.start = options.start if plan.can_be_cloned else "boot"
        if side.start == "clone":
            stage("template")
            began = time.monotonic()
            template = get_template(plan, options.boot_timeout, say)
            side.waited["template"] = time.monotonic() - began
            side.template = template.key
            plan = replace(plan, template=template)
        with running_guest(plan, options.boot_timeout, stage) as guest:
            side.stages = guest.stages
            module = resources.modules.get(cell.kernel) if side.implementation == "kernel" else None
            _run_steps(guest, scenario, options, stage, side, module)
    except HarnessError as caught:
        side.error = caught
        _keep_stderr(side.folder, caught.context.get("worker", ""))
    except Exception:
        side.error = own_defect(side.folder)


def _side_evidence(side: _Collected, cell: Cell, scenario: Scenario, resources: Resources) -> Evidence:
    """What one guest left, and its kernel log as a file."""
    (side.folder / "kernel.log").write_text("".join(f"{line}\n" for line in side.kernel_log), encoding="utf-8")
    return Evidence(
        steps=tuple(side.steps),
        kernel_log=side.kernel_log,
        devices=scenario.machine.addresses,
        oracle=None if side.implementation == "usdm" else _oracle(cell, resources),
    )


def _oracle(cell: Cell, resources: Resources) -> Oracle | None:
    """What a cell's steps run on instead of ``usdm``, or beside it, and its version."""
    match cell.oracle:
        case "kernel":
            return Oracle(name="kernel", version=resources.images[cell.kernel].kernel_release)
        case "libusdm":
            return Oracle(name="libusdm", version=resources.library.version if resources.library else "")
        case None:
            return None


def _stages(sides: list[_Collected]) -> dict[str, float]:
    """Seconds of each stage, summed over the guests."""
    total: dict[str, float] = {}
    for side in sides:
        for name, seconds in (side.waited | side.stages).items():
            total[name] = total.get(name, 0.0) + seconds
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _run_steps(
    guest: Guest,
    scenario: Scenario,
    options: RunOptions,
    stage: Callable[[str], None],
    collected: _Collected,
    module: Module | None,
) -> None:
    setup = Deadline.after(SETUP_SECONDS)
    stage("worker")
    worker = guest.start_worker(setup)
    collected.guest_python = worker.python
    if module is not None:
        load_module(guest, module, setup)
    began = time.monotonic()
    guest.find_devices(setup, collected.implementation)
    collected.stages["devices"] = time.monotonic() - began
    stage("steps")
    began = time.monotonic()
    deadline = Deadline.after(scenario.timeout or options.timeout)
    trace = TraceReader(guest.emulator.files.log)
    watch = DeviceWatch(guest)
    for index, step in enumerate(scenario.steps):
        args = step.args_json()
        if step.kind in HOST_KINDS:
            answer = do_step(guest, step.kind, args, deadline)
        else:
            answer = guest.request(f"step {index} ({step.kind})", step.kind, args, deadline)
        add_tables(guest, step.kind, args, answer, deadline)
        # The devices first: QEMU writes a fault to the trace before a device hears of it.
        devices = watch.news(deadline)
        seen = _evidence(index, step.kind, args, answer, trace.new_lines())
        collected.steps.append(seen.model_copy(update={"devices": devices}))
    collected.stages["steps"] = time.monotonic() - began
    values = guest.ask("reading the kernel log", "_end", {}, Deadline.after(SETUP_SECONDS))
    collected.kernel_log = tuple(str(line) for line in values["kernel_log"])
    _keep_stderr(collected.folder, str(values["stderr"]))


def _keep_stderr(folder: Path, text: str) -> None:
    """What the worker printed beside its answers, where it did."""
    if text:
        (folder / "worker.stderr").write_text(text, encoding="utf-8")


def _evidence(
    index: int, kind: str, args: dict[str, Any], answer: dict[str, Any], trace: tuple[str, ...]
) -> StepEvidence:
    """A worker's answer as evidence; nested steps too."""
    error = answer.get("error")
    nested = args.get("steps", [])
    return StepEvidence(
        index=index,
        kind=kind,
        args=args,
        returns=answer.get("returns"),
        error=StepError(type=str(error["type"]), message=str(error["message"])) if error else None,
        values=answer.get("values", {}),
        seconds=float(answer.get("seconds", 0.0)),
        trace=trace,
        children=tuple(
            _evidence(number, str(step["kind"]), step["args"], child, ())
            for number, (step, child) in enumerate(zip(nested, answer.get("children", []), strict=False))
        ),
    )


def _versions(cell: Cell, resources: Resources, collected: _Collected) -> Versions:
    emulation, image = resources.emulations[cell.qemu], resources.images[cell.kernel]
    return Versions(
        harness=__version__,
        python=platform.python_version(),
        qemu=emulation.build.version,
        qemu_build=f"{emulation.build.name} {emulation.build.key[:12]}",
        kernel=image.kernel_release,
        image=image.name,
        image_key=image.key,
        accelerator=emulation.accelerator.accelerator,
        accelerator_reason=emulation.accelerator.reason,
        payload=resources.payload.key,
        guest_python=collected.guest_python,
        template=collected.template,
        oracle=_oracle(cell, resources),
    )
