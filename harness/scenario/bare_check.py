"""Checks between the parts of a bare scenario: names, places, ids, and expectations that fit what they stand at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.bare import BareScenario
from harness.scenario.bare_args import (
    BareDmaRead,
    BareDmaWrite,
    BareFill,
    Enable,
    Entry,
    Interrupt,
    InvalidateInterrupts,
    InvalidatePasids,
    IrteArgs,
)
from harness.scenario.bare_machine import EDU_BYTES, MAX_BUSES, NVME_BYTES
from harness.scenario.bare_steps import BareFault, BareStep, bare_expect_keys
from harness.scenario.problems import Problem, suggest
from harness.scenario.values import split_bdf
from harness.scenario.yaml_marks import Document, Path_

_TESTDEV_BYTES = 4096
_MOST = 1 << 20


def bare_problems(scenario: BareScenario, document: Document, file: Path) -> list[Problem]:
    """What is wrong between the parts of a bare scenario whose parts are well formed by themselves.

    Args:
        scenario: the scenario.
        document: the file's data and places.
        file: its name.
    """
    return _Check(scenario, document, file).run()


class _Check:
    def __init__(self, scenario: BareScenario, document: Document, file: Path) -> None:
        self._scenario = scenario
        self._machine = scenario.machine
        self._document = document
        self._file = file
        self._problems: list[Problem] = []
        self._ids: dict[str, BareStep] = {}

    def _add(self, path: Path_, message: str, hint: str | None = None, *, key: bool = False) -> None:
        self._problems.append(Problem(self._file, *self._document.place(path, key=key), message, hint))

    def run(self) -> list[Problem]:
        if not self._devices():
            return self._problems
        self._tables()
        for index, step in enumerate(self._scenario.steps):
            self._step(step, ("steps", index))
        for index, fault in enumerate(self._scenario.expect.faults):
            self._fault(fault, ("expect", "faults", index))
        return self._problems

    def _name(
        self, name: str | None, known: Mapping[str, object], what: str, path: Path_, *, key: bool = False
    ) -> bool:
        if name is None or name in known:
            return True
        hint = suggest(name, list(known), "there are")
        self._add(path, f"expected a {what}, found '{name}'", hint, key=key)
        return False

    def _device(self, name: str | None, path: Path_, *, key: bool = False) -> bool:
        return self._name(name, self._machine.devices, "device of the machine", path, key=key)

    def _domain(self, name: str | None, path: Path_) -> bool:
        return self._name(name, self._scenario.tables.domains, "domain of tables.domains", path)

    # ---- machine and tables

    def _devices(self) -> bool:
        """Check the devices; False when their addresses cannot be told."""
        taken: dict[str, str] = {}
        for name, device in self._machine.devices.items():
            path: Path_ = ("machine", "devices", name)
            if device.model == "vf":
                pf = self._machine.devices.get(str(device.of))
                if pf is None or not pf.vfs:
                    hint = "write vfs: 16 at an nvme"
                    self._add((*path, "of"), f"expected a PF with VFs, found '{device.of}'", hint)
                    return False
                if (device.number or 0) > pf.vfs:
                    message = f"expected a number from 1 to {pf.vfs}, found {device.number}"
                    self._add((*path, "number"), message, f"'{device.of}' offers {pf.vfs} VFs")
                    return False
            at = self._machine.address(name)
            if at in taken:
                message = f"expected an address of its own, found {at}, which is '{taken[at]}'"
                self._add((*path, "at" if device.at else "number"), message)
            taken.setdefault(at, name)
        self._bridges()
        if len(self._machine.buses) > MAX_BUSES:
            message = f"expected at most {MAX_BUSES} buses behind root ports, found {len(self._machine.buses)}"
            self._add(("machine", "devices"), message)
        return True

    def _bridges(self) -> None:
        """A bus behind a bridge has no devices beside those behind the bridge, nor has the bridge's own bus."""
        behind = {split_bdf(str(one.at))[0] for one in self._machine.devices.values() if one.bridge}
        for name, device in self._machine.devices.items():
            if device.at is None or device.bridge:
                continue
            bus = split_bdf(device.at)[0]
            if bus in behind or bus + 1 in behind:
                message = f"expected another bus, found {device.at}"
                hint = "the bus behind a bridge, and the one before, are the bridge's"
                self._add(("machine", "devices", name, "at"), message, hint)

    def _tables(self) -> None:
        tables, path = self._scenario.tables, ("tables",)
        if tables.mode == "scalable" and not self._machine.scalable:
            self._add((*path, "mode"), "expected a mode that the machine offers, found 'scalable'", "scalable: true")
        for name, domain in tables.domains.items():
            if domain.stage == "first" and not self._machine.first_stage:
                where = (*path, "domains", name, "stage")
                self._add(where, "expected a stage that the machine offers, found 'first'", "first_stage: true")
        for name in tables.roots:
            self._device(name, (*path, "roots", name), key=True)
        for name, context in tables.contexts.items():
            self._device(name, (*path, "contexts", name), key=True)
            self._domain(context.domain, (*path, "contexts", name, "domain"))
        for index, entry in enumerate(tables.interrupts.entry):
            self._device(entry.source, (*path, "interrupts", "entry", index, "source"))
            if entry.index >= tables.interrupts.entries:
                message = f"expected an index below {tables.interrupts.entries}, found {entry.index}"
                self._add((*path, "interrupts", "entry", index, "index"), message, "write a larger 'entries'")

    # ---- steps

    def _step(self, step: BareStep, path: Path_) -> None:
        if step.id is not None:
            if step.id in self._ids:
                self._add((*path, "id"), f"expected an id of its own, found '{step.id}' again")
            self._ids.setdefault(step.id, step)
        allowed = bare_expect_keys(step.kind)
        for key in step.expect.model_fields_set:
            if key not in allowed:
                message = f"expected a key that fits {step.kind}, found '{key}'"
                self._add((*path, "expect", key), message, f"these do: {', '.join(allowed)}", key=True)
        if step.expect.fault is not None:
            self._device(step.expect.fault.device, (*path, "expect", "fault", "device"))
        args, at = step.args, (*path, step.kind)
        device, domain = getattr(args, "device", None), getattr(args, "domain", None)
        known = self._device(device, (*at, "device"))
        if self._domain(domain, (*at, "domain")) and isinstance(args, Entry):
            self._entry(args, at)
        if isinstance(args, BareDmaRead | BareDmaWrite) and known:
            self._dma(args, at)
        if isinstance(args, Interrupt) and known and self._machine.devices[args.device].model != "edu":
            self._add((*at, "device"), f"expected an edu, found '{args.device}'", "only edu sends interrupts here")
        self._rest(args, at)

    def _rest(self, args: Args, at: Path_) -> None:
        if isinstance(args, IrteArgs):
            self._device(args.source, (*at, "source"))
            if args.index >= self._scenario.tables.interrupts.entries:
                self._add(
                    (*at, "index"), f"expected an index in the table, found {args.index}", "tables.interrupts.entries"
                )
        if isinstance(args, BareFill) and not 1 <= args.size <= _MOST:
            self._add((*at, "size"), f"expected a size from 1 to 1M, found {args.size}")
        if isinstance(args, InvalidatePasids) and not self._machine.scalable:
            self._add(at, "expected a machine with scalable mode, found none", "scalable: true", key=True)
        if isinstance(args, InvalidatePasids | InvalidateInterrupts) and not self._queued():
            self._add(at, "expected an invalidation queue, found none", "enable: {queue: true}", key=True)

    def _queued(self) -> bool:
        """Whether a step switches the queue on."""
        enables = [step.args for step in self._scenario.steps if isinstance(step.args, Enable)]
        scalable = self._scenario.tables.mode == "scalable"
        return any(one.queue or (one.queue is None and (scalable or one.interrupts)) for one in enables)

    def _entry(self, args: Entry, at: Path_) -> None:
        domain = self._scenario.tables.domains[args.domain]
        levels = domain.levels or (4 if domain.stage == "first" or self._machine.aw_bits == 48 else 3)
        if args.level > levels:
            self._add((*at, "level"), f"expected a level from 1 to {levels}, found {args.level}")

    def _dma(self, args: BareDmaRead | BareDmaWrite, at: Path_) -> None:
        model = self._machine.devices[args.device].model
        if model == "pci_testdev" or (isinstance(args, BareDmaRead) and model != "edu"):
            hint = "edu does both, nvme, vf and iommu_testdev write only, pci_testdev does none"
            self._add((*at, "device"), f"expected a device that does this, found '{args.device}' ({model})", hint)
            return
        if model == "edu" and not 1 <= args.size <= EDU_BYTES - args.device_offset:
            self._add((*at, "size"), f"expected at most {EDU_BYTES} bytes of edu's memory, found {args.size}")
        if model in ("nvme", "vf") and args.size != NVME_BYTES:
            self._add((*at, "size"), f"expected {NVME_BYTES}, found {args.size}", "Identify has as many bytes")
        if model == "iommu_testdev" and (args.size % 4 or not 4 <= args.size <= _TESTDEV_BYTES):
            self._add((*at, "size"), f"expected a multiple of 4 up to {_TESTDEV_BYTES}, found {args.size}")
        if model != "edu" and args.device_offset:
            self._add((*at, "device_offset"), f"expected none for {model}, found {args.device_offset}", key=True)
        if isinstance(args, BareDmaWrite) and args.to is not None and model != "iommu_testdev":
            self._add((*at, "to"), f"expected none for {model}, found one", "only iommu_testdev looks", key=True)

    # ---- faults

    def _fault(self, fault: BareFault, path: Path_) -> None:
        self._device(fault.device, (*path, "device"))
        if fault.step is None:
            return
        step = self._ids.get(fault.step)
        if step is None:
            hint = suggest(fault.step, list(self._ids), "the ids of steps are")
            self._add((*path, "step"), f"expected the id of a step, found '{fault.step}'", hint)
        elif not isinstance(step.args, DeviceArgs):
            self._add((*path, "step"), f"expected a step of a device, found '{fault.step}', a {step.kind}")
