"""The measured things: boots, templates, clones, scenarios, the suite."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from figures import Figure, Figures

from harness.deadline import Deadline
from harness.guest.freeze import get_template, ingredients
from harness.guest.guest import GuestPlan, running_guest
from harness.image import cache
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.machine.template import KIND
from harness.results import Outcome, Progress, RunResult
from harness.run.cell import run_cell
from harness.run.cells import expand
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.run.schedule import run_scenarios

QEMU, KERNEL = "11.1", "6.12"
COLD_SSH = Figure("cold boot to first SSH command done", "s", 4.5)
TEMPLATE = Figure("template build", "s")
RUNNING = Figure("clone to QMP running", "s", 0.08)
SSH = Figure("clone to first SSH command done", "s", 0.3)
DEVICE = Figure("clone to device open in the worker (no command before)", "s")
MEMORY = Figure("memory of a further clone", "MB", 80)
VERDICT = Figure("scenario without device timers, start to verdict", "s", 0.8)
_SECONDS = 120.0
_MACHINE = MachineSpec(devices=(DeviceSpec("edu0", "edu", "02:00.0"),))
# No DMA, so none of the device's timers.
_SCENARIO = "scenarios/usdm/translate_every_page.yaml"


class Guests:
    """Starts guests one after another.

    Args:
        resources: build, image, accelerator.
        scratch: a folder for their run folders.
        say: told what a template takes.
    """

    def __init__(self, resources: Resources, scratch: Path, say: Callable[[str], None]) -> None:
        self._resources = resources
        self._scratch = scratch
        self._say = say
        self._count = 0

    def _folder(self) -> Path:
        self._count += 1
        return self._scratch / str(self._count)

    def _plan(self) -> GuestPlan:
        folder = self._folder()
        folder.mkdir()
        return self._resources.plan(_MACHINE, QEMU, KERNEL, folder)

    def _clone(self) -> GuestPlan:
        plan = self._plan()
        return replace(plan, template=get_template(plan, _SECONDS, self._say))

    def cold_boot(self, figures: Figures) -> None:
        """A booted guest up to the end of its first SSH command."""
        plan = self._plan()
        started = time.monotonic()
        with running_guest(plan, _SECONDS, lambda stage: None) as guest:
            guest.run("true", Deadline.after(_SECONDS))
            figures.add(COLD_SSH, time.monotonic() - started)

    def template(self, figures: Figures) -> None:
        """The template from nothing; it is there afterwards."""
        plan = self._plan()
        key = ingredients(plan).key
        for entry in cache.entries(KIND):
            if entry.key == key:
                cache.remove(entry)
        started = time.monotonic()
        get_template(plan, _SECONDS, lambda text: None)
        figures.add(TEMPLATE, time.monotonic() - started)

    def clone_to_ssh(self, figures: Figures) -> None:
        """A clone up to the end of its first SSH command, and its memory then."""
        plan = self._clone()
        started = time.monotonic()
        with running_guest(plan, _SECONDS, lambda stage: None) as guest:
            guest.run("true", Deadline.after(_SECONDS))
            figures.add(SSH, time.monotonic() - started)
            figures.add(RUNNING, guest.stages["start"] + guest.stages["restore"])

    def clone_to_device(self, figures: Figures) -> None:
        """A clone up to its device open by VFIO in the worker, and what it takes that no other process shares."""
        plan = self._clone()
        started = time.monotonic()
        with running_guest(plan, _SECONDS, lambda stage: None) as guest:
            deadline = Deadline.after(_SECONDS)
            guest.start_worker(deadline)
            guest.find_devices(deadline)
            guest.ask("opening the device", "open", {"device": "edu0"}, deadline)
            figures.add(DEVICE, time.monotonic() - started)
            figures.add(MEMORY, private_memory(guest.emulator.pid))

    def scenario(self, figures: Figures) -> None:
        """One scenario on a clone."""
        options = RunOptions(paths=(Path(_SCENARIO),))
        (cell,) = expand(options)
        started = time.monotonic()
        result = run_cell(cell, self._resources, options, self._folder(), lambda stage: None, self._say)
        if result.outcome is not Outcome.PASS:
            raise RuntimeError(f"{_SCENARIO}: {result.message}")
        figures.add(VERDICT, time.monotonic() - started)

    def suite(self, figures: Figures, jobs: int | None) -> None:
        """All scenarios; templates are there already."""
        out = self._folder()
        result: RunResult = run_scenarios(RunOptions(jobs=jobs, out=out), Progress())
        bad = [cell.scenario for cell in result.cells if cell.outcome is not Outcome.PASS]
        if bad:
            raise RuntimeError(f"not passed: {', '.join(bad)}")
        name = f"suite of {len(result.cells)} at -j {jobs or f'auto ({result.jobs})'}"
        target = None if jobs else 150.0
        figures.add(Figure(name, "/min", target, at_least=True), 60 * len(result.cells) / result.seconds)


def private_memory(pid: int) -> float:
    """Memory of a process that goes away with it, in MB: its own pages, not those of files."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel tells no memory of process {pid}")
