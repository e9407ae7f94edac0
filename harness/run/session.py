"""One guest of a cell: started, its steps done one at a time, its evidence gathered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError
from harness.guest.bring import bring_library, load_module
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.results import Evidence, Oracle, OracleName, StepError, StepEvidence
from harness.run.cells import Cell, machine_spec
from harness.run.device_news import DeviceWatch
from harness.run.device_steps import do_step
from harness.run.jobs import StartKind
from harness.run.options import RunOptions
from harness.run.outcome import own_defect
from harness.run.resources import Resources
from harness.run.tables import add_tables
from harness.run.trace import TraceReader
from harness.scenario import Scenario, Step
from harness.scenario.args_device import HOST_KINDS

SETUP_SECONDS = 60.0
Side = Literal["usdm"] | OracleName
Told = Callable[[str], None]


@dataclass(slots=True)
class _Live:
    """What a session has while its guest runs."""

    guest: Guest
    trace: TraceReader
    watch: DeviceWatch
    began: float
    deadline: Deadline


class GuestSession:
    """One guest of a cell. What it has gathered stays when an error ends it. For one use.

    Args:
        cell: the cell, of a scenario with a guest.
        side: what the steps run on in this guest, one of ``cell.sides``.
        resources: what was prepared for the cell.
        options: deadlines, and whether the guest is cloned.
        folder: an existing folder for what it leaves.
        stage: told the name of each stage as it begins.
        say: told what else takes time: a template that has to be made.

    Attributes:
        cell, side, folder: as given.
        steps: the steps that were done.
        kernel_log: the guest's kernel log; empty before :meth:`end`.
        trace: what QEMU's trace had at :meth:`end` where no step was done.
        guest_python: version of the guest's Python.
        start: how the guest is started; empty before.
        template: key of the template that it is cloned from; empty without one.
        error: what ended it, where something did.
    """

    def __init__(
        self,
        cell: Cell,
        side: Side,
        resources: Resources,
        options: RunOptions,
        folder: Path,
        stage: Told,
        say: Told,
    ) -> None:
        self.cell = cell
        self.side = side
        self.folder = folder
        self.steps: list[StepEvidence] = []
        self.kernel_log: tuple[str, ...] = ()
        self.trace: tuple[str, ...] = ()
        self.guest_python = ""
        self.start: StartKind | Literal[""] = ""
        self.template = ""
        self.error: HarnessError | None = None
        self._resources = resources
        self._options = options
        self._stage = stage
        self._say = say
        self._before: dict[str, float] = {}
        self._stages: dict[str, float] = {}
        self._live: _Live | None = None

    @property
    def scenario(self) -> Scenario:
        """The cell's scenario."""
        assert isinstance(self.cell.scenario, Scenario)  # noqa: S101 - a bare one has no guest
        return self.cell.scenario

    @property
    def guest(self) -> Guest:
        """The running guest.

        Raises:
            InfrastructureError: it does not run.
        """
        return self._running.guest

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage until now."""
        return self._before | self._stages

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep the error that ends the session, and pass it on."""
        try:
            yield
        except HarnessError as caught:
            self._failed(caught)
            raise

    @contextmanager
    def running(self) -> Iterator[None]:
        """Clone or boot the guest, ready for its steps, and end it with the block.

        Raises:
            HarnessError: whatever can go wrong with a guest, also in the block; ``error`` has it too.
        """
        with self._kept():
            plan = self._resources.plan(machine_spec(self.scenario), self.cell.qemu, self.cell.kernel, self.folder)
            self.start = self._options.start if plan.can_be_cloned else "boot"
            if self.start == "clone":
                self._stage("template")
                began = time.monotonic()
                template = get_template(plan, self._options.boot_timeout, self._say)
                self._before["template"] = time.monotonic() - began
                self.template = template.key
                plan = replace(plan, template=template)
            with running_guest(plan, self._options.boot_timeout, self._stage) as guest:
                self._stages = guest.stages
                self._live = self._set_up(guest)
                try:
                    yield
                finally:
                    self._live = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Have what goes wrong in the block in ``error``, and nowhere else; a defect of the harness too."""
        try:
            yield
        except HarnessError as caught:
            self._failed(caught)
        except Exception:
            self.error = own_defect(self.folder)

    def do(self, step: Step) -> StepEvidence:
        """Do the next step.

        Args:
            step: the step.

        Returns:
            What it did, which is also the last of ``steps``.

        Raises:
            HarnessError: whatever can go wrong with a guest; an error that the step meets is in what is returned.
        """
        with self._kept():
            return self._do(self._running, step)

    def _do(self, live: _Live, step: Step) -> StepEvidence:
        index, args = len(self.steps), step.args_json()
        if step.kind in HOST_KINDS:
            answer = do_step(live.guest, step.kind, args, live.deadline)
        else:
            answer = live.guest.request(f"step {index} ({step.kind})", step.kind, args, live.deadline)
        add_tables(live.guest, step.kind, args, answer, live.deadline)
        # The devices first: QEMU writes a fault to the trace before a device hears of it.
        devices = live.watch.news(live.deadline)
        # What was refused before the first step is the first step's.
        before, self.trace = self.trace, ()
        seen = step_evidence(index, step.kind, args, answer, (*before, *live.trace.new_lines()))
        seen = seen.model_copy(update={"devices": devices})
        self.steps.append(seen)
        return seen

    def end(self) -> None:
        """Take the kernel's log, after the last step; again, where more was done since.

        Raises:
            HarnessError: whatever can go wrong with a guest.
        """
        with self._kept():
            self._end(self._running)

    def _end(self, live: _Live) -> None:
        self._stages["steps"] = time.monotonic() - live.began
        deadline = Deadline.after(SETUP_SECONDS)
        values = live.guest.ask("reading the kernel log", "_end", {}, deadline)
        self.kernel_log = tuple(str(line) for line in values["kernel_log"])
        # What was done or refused behind the last step's answer is the last step's.
        if self.steps:
            devices = live.watch.late(deadline, self.steps[-1].devices)
            self.steps[-1] = self.steps[-1].model_copy(update={"devices": devices})
        self._catch_up(live)
        self._keep_stderr(str(values["stderr"]))

    def catch_up(self) -> None:
        """Take what QEMU's trace has until now; nothing where the guest does not run."""
        if self._live is not None:
            self._catch_up(self._live)

    def _catch_up(self, live: _Live) -> None:
        late = live.trace.new_lines()
        if not self.steps:
            self.trace = (*self.trace, *late)
        elif late:
            self.steps[-1] = self.steps[-1].model_copy(update={"trace": (*self.steps[-1].trace, *late)})

    def evidence(self) -> Evidence:
        """What the guest has left, and its kernel log as a file."""
        (self.folder / "kernel.log").write_text("".join(f"{line}\n" for line in self.kernel_log), encoding="utf-8")
        return Evidence(
            steps=tuple(self.steps),
            kernel_log=self.kernel_log,
            trace=self.trace,
            devices=self.scenario.machine.addresses,
            oracle=self.evidence_oracle,
        )

    @property
    def evidence_oracle(self) -> Oracle | None:
        """What the steps of this guest run on; None for ``usdm``."""
        return None if self.side == "usdm" else oracle(self.cell, self._resources)

    @property
    def _running(self) -> _Live:
        if self._live is None:
            raise InfrastructureError("the guest does not run")
        return self._live

    def _set_up(self, guest: Guest) -> _Live:
        setup = Deadline.after(SETUP_SECONDS)
        self._stage("worker")
        self.guest_python = guest.start_worker(setup).python
        library = self._resources.library_of(self.cell.libusdm)
        if self.side == "libusdm" and library is not None:
            bring_library(guest, library, setup)
        if self.side == "kernel" and self.cell.kernel in self._resources.modules:
            load_module(guest, self._resources.modules[self.cell.kernel], setup)
        began = time.monotonic()
        guest.find_devices(setup, self.side)
        self._stages["devices"] = time.monotonic() - began
        self._stage("steps")
        return _Live(
            guest=guest,
            trace=TraceReader(guest.emulator.files.log),
            watch=DeviceWatch(guest),
            began=time.monotonic(),
            deadline=Deadline.after(self.scenario.timeout or self._options.timeout),
        )

    def _failed(self, error: HarnessError) -> None:
        self.error = error
        self._keep_stderr(error.context.get("worker", ""))

    def _keep_stderr(self, text: str) -> None:
        """What the worker printed beside its answers, where it did."""
        if text:
            (self.folder / "worker.stderr").write_text(text, encoding="utf-8")


def oracle(cell: Cell, resources: Resources) -> Oracle | None:
    """What a cell's steps run on instead of ``usdm``, or beside it, and its version."""
    match cell.oracle:
        case "kernel":
            return Oracle(name="kernel", version=resources.images[cell.kernel].kernel_release)
        case "libusdm":
            library = resources.library_of(cell.libusdm)
            return Oracle(name="libusdm", version=library.version if library else "")
        case None:
            return None


def step_evidence(
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
            step_evidence(number, str(step["kind"]), step["args"], child, ())
            for number, (step, child) in enumerate(zip(nested, answer.get("children", []), strict=False))
        ),
    )
