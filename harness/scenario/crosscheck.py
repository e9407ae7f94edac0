"""Checks between the parts of a scenario: names, addresses, ids, and expectations that fit what they stand at.

The parts that are well formed by themselves are looked at even when others are not, so that one reading of a file
tells everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness.scenario.args import Args, Compare, ContainerMap, DmaArgs, Fill, Map, Open, RegisterFd
from harness.scenario.args_device import HOST_KINDS, Operate
from harness.scenario.args_function import PhysicalAddress, Remap
from harness.scenario.args_iova import IovaAlloc, StreamMap, StreamUnmap
from harness.scenario.base import Model
from harness.scenario.device_check import DeviceCheck
from harness.scenario.engines import dma_problem
from harness.scenario.expect import OTHER_REASONS, FaultExpect, StepExpect
from harness.scenario.expect_check import Found, check_expectations, check_faults_differ
from harness.scenario.machine import Machine
from harness.scenario.names import Names
from harness.scenario.problems import Problem, suggest
from harness.scenario.range_check import (
    OPTIONS,
    options_missing,
    outside_buffer,
    range_as_buffer,
    unknown_range,
    unknown_ranges,
    without_container,
)
from harness.scenario.steps import KINDS, NESTED, ORACLES, expect_keys
from harness.scenario.trace_check import TraceCheck
from harness.scenario.values import is_name
from harness.scenario.yaml_marks import Document, Path_

_M = TypeVar("_M", bound=Model)
_ON_CLOSED_DEVICES = (
    *("open", "register", "pass_through", "mappings", "unbind", "unplug"),
    *("vanish", "surprise_removal", "kernel_driver", "disk_io"),
)
# The vIOMMUs whose tables are not read: what they are called, and why.
_NO_TABLES = {
    "virtio": ("virtio-iommu", "virtio-iommu has no tables in the guest's memory: use iommu: intel"),
    "amd": ("amd-iommu", "only VT-d's tables are read: use iommu: intel"),
}
_OUTSIDE = 3  # parts of the path of a step's arguments that is in no other step


def cross_check(document: Document, file: Path) -> list[Problem]:
    """What is wrong between the parts of a scenario.

    Args:
        document: a file's data and places.
        file: its name.
    """
    if not isinstance(document.data, dict):
        return []
    return CrossCheck(document, file).run(document.data)


def _try(model: type[_M], data: Any) -> _M | None:
    try:
        return model.model_validate(data)
    except ValidationError:
        return None


def _kind_of(raw: Any) -> str | None:
    kinds = [key for key in raw if key in KINDS] if isinstance(raw, Mapping) else []
    return kinds[0] if len(kinds) == 1 else None


class CrossCheck:
    """The checks of one scenario, whose problems grow. For one use."""

    def __init__(self, document: Document, file: Path, *, others: bool = False) -> None:
        """Begin.

        Args:
            document: the file's content and places.
            file: its name.
            others: programs of somebody else may have devices open, too.
        """
        self._document = document
        self._others = others
        self._file = file
        self.problems: list[Problem] = []
        self._vm = False
        self._devices: dict[str, Mapping[str, Any]] = {}
        self._iommu: str | None = None
        self._no_iommufd = False
        self._ids: dict[str, tuple[int, str | None]] = {}  # id: line, kind
        self._doings = DeviceCheck(self._add)
        self._traces = TraceCheck(self._add)

    def _add(self, path: Path_, message: str, hint: str | None = None, *, key: bool = False) -> None:
        self.problems.append(Problem(self._file, *self._document.place(path, key=key), message, hint))

    def _found(self, found: Iterable[Found]) -> None:
        for path, message, hint, key in found:
            self._add(path, message, hint, key=key)

    def run(self, data: Mapping[str, Any]) -> list[Problem]:
        """All of it at once."""
        names = self.begin(data)
        steps = data.get("steps")
        if isinstance(steps, tuple):
            self.steps(steps, ("steps",), names)
        self.end(data, names)
        return self.problems

    def begin(self, data: Mapping[str, Any]) -> Names:
        """Look at the machine; gives the names that steps can use."""
        machine = _try(Machine, data.get("machine"))
        if machine is not None:
            self._machine(machine)
            self._vm = machine.vm
            self._iommu = machine.iommu
        self._no_iommufd = options_missing(data)
        self._traces.needs = data.get("needs")
        raw = data.get("machine")
        devices = raw.get("devices", {}) if isinstance(raw, dict) else None
        known = {name: one for name, one in devices.items() if is_name(name)} if isinstance(devices, dict) else None
        models = {
            name: str(one["model"]) for name, one in (known or {}).items() if isinstance(one, dict) and "model" in one
        }
        self._devices = {name: one for name, one in (known or {}).items() if isinstance(one, dict)}
        return Names(None if known is None else list(known), models)

    def end(self, data: Mapping[str, Any], names: Names) -> None:
        """Look at what was left when all steps were done, and at what is expected of the whole."""
        self._doings.finish()
        self._traces.finish()
        expect = data.get("expect")
        if isinstance(expect, dict):
            self._faults(expect, ("expect",), names)
            self._found(check_faults_differ(expect, ("expect",)))
            for oracle in ORACLES:
                if isinstance(expect.get(oracle), dict):
                    self._faults(expect[oracle], ("expect", oracle), names)

    def _faults(self, expect: Mapping[str, Any], path: Path_, names: Names) -> None:
        faults = expect.get("faults")
        for index, raw in enumerate(faults if isinstance(faults, tuple) else ()):
            fault = _try(FaultExpect, raw)
            if fault is not None:
                self._fault(fault, (*path, "faults", index), names)

    def _machine(self, machine: Machine) -> None:
        taken: dict[str, str] = {}
        for name, device in machine.devices.items():
            path: Path_ = ("machine", "devices", name)
            if device.model == "vf":
                pf = machine.devices.get(str(device.of))
                if pf is None or pf.model != "nvme" or not pf.vfs:
                    offer = [one for one, other in machine.devices.items() if other.vfs]
                    hint = suggest(str(device.of), offer, "these have VFs:") if offer else "write vfs: 16 at an nvme"
                    self._add((*path, "of"), f"expected a PF with VFs, found '{device.of}'", hint)
                    continue
                if (device.number or 0) > pf.vfs:
                    message = f"expected a number from 1 to {pf.vfs}, found {device.number}"
                    self._add((*path, "number"), message, f"'{device.of}' offers {pf.vfs} VFs")
                    continue
            at = machine.address(name)
            if at in taken:
                message = f"expected an address of its own, found {at}, which is '{taken[at]}'"
                where: Path_ = (*path, "at" if device.model != "vf" else "number")
                self._add(where, message, "another bus is always free: 01:00.0 to fe:00.0")
            taken.setdefault(at, name)

    def steps(self, steps: tuple[Any, ...], at: Path_, names: Names, first: int = 0) -> None:
        """Look at steps, the first of which has this position."""
        for index, raw in enumerate(steps, first):
            path = (*at, index)
            kind = _kind_of(raw)
            if kind is None:
                continue
            if kind == "mappings" and self._iommu in _NO_TABLES:
                what, hint = _NO_TABLES[self._iommu]
                self._add((*path, kind), f"expected no mappings behind {what}, found {kind}", hint, key=True)
            self._id(raw.get("id"), path, kind)
            self._expect(raw.get("expect"), (*path, "expect"), kind)
            for oracle in ORACLES:
                other = raw.get(oracle)
                if isinstance(other, dict):
                    self._expect(other.get("expect"), (*path, oracle, "expect"), kind)
            self._found(check_expectations(raw, kind, path))
            args = _try(KINDS[kind], raw[kind])
            if kind in NESTED:
                self._nested(raw[kind], kind, (*path, kind), names)
            elif args is None:
                self._broken(raw[kind], kind, (*path, kind), names)
            else:
                expect = raw.get("expect")
                fails = isinstance(expect, dict) and expect.get("error") is not None
                self._use(args, kind, (*path, kind), names, fails=fails)
                theirs = self._others and getattr(args, "device", None) not in names.opened
                self._doings.step(args, kind, (*path, kind), self._devices, fails=fails, theirs=theirs)
                self._traces.step(args, kind, (*path, kind), self._devices, names.opened)
                self._bind(args, kind, (*path, kind), names)

    def _nested(self, raw: Any, kind: str, path: Path_, names: Names) -> None:
        outer = next(part for part in path if part in NESTED)
        if len([part for part in path if part in NESTED]) > 1:
            article = "an" if outer == "in_vm" else "a"
            message = f"expected no {kind} inside {article} {outer}, found one"
            self._add(path, message, f"write the steps into the outer {outer}", key=True)
        elif kind == "in_vm" and not self._vm:
            message = f"expected a machine with a virtual machine before {kind}, found none"
            self._add(path, message, "write vm: true in machine", key=True)
        steps = raw.get("steps") if isinstance(raw, dict) else None
        if not isinstance(steps, tuple):
            return
        if kind == "fork":
            self.steps(steps, (*path, "steps"), names.child())
            return
        if names.inside is None:
            names.inside = Names(names.devices, names.models)
        self.steps(steps, (*path, "steps"), names.inside)

    def _id(self, step_id: Any, path: Path_, kind: str) -> None:
        if not is_name(step_id):
            return
        if step_id in self._ids:
            message = f"expected an id of its own, found '{step_id}' again"
            self._add((*path, "id"), message, f"the first one is in line {self._ids[step_id][0]}")
            return
        self._ids[step_id] = self._document.place((*path, "id"))[0], kind

    def _expect(self, raw: Any, path: Path_, kind: str) -> None:
        if not isinstance(raw, dict):
            return
        allowed = expect_keys(kind)
        for key in raw:
            if key in StepExpect.model_fields and key not in allowed:
                fits = ", ".join(allowed)
                hint = f"these do: {fits}" if allowed else "the child's steps have their own"
                message = f"expected a key that fits {kind}, found '{key}'"
                self._add((*path, key), message, hint, key=True)
        if raw.get("error") is not None:
            for key in ("equal", "same", "translation"):
                if key in raw and key in allowed:
                    message = f"expected either error or {key}, found both"
                    self._add((*path, key), message, "a step that fails observes nothing", key=True)
        if (
            "returns" in raw
            and raw["returns"] is None
            and kind not in ("alloc", "alloc_plain")
            and "returns" in allowed
        ):
            self._add((*path, "returns"), "expected an integer or nonzero, found null", "it returns no pointer")

    # ---- names

    def _use(self, args: Args, kind: str, path: Path_, names: Names, *, fails: bool) -> None:
        """Check the names and the places that a step uses."""
        device = getattr(args, "device", None)
        known = device is not None and self._device(device, (*path, "device"), names)
        needs_open = kind not in _ON_CLOSED_DEVICES and not (self._others and kind in HOST_KINDS)
        if known and needs_open and device not in names.opened:
            self._add((*path, "device"), f"expected an open device, found '{device}'", "open or register it before")
        if isinstance(args, DmaArgs):
            self._dma(args, path, names)
        for place_at, message, hint in unknown_ranges(args, path, names.ranges, names.buffers):
            self._add(place_at, message, hint)
        self._container(args, kind, path, names)
        if isinstance(args, Operate):
            for where, place in args.places():
                if place.buffer is not None and self._buffer(place.buffer, (*path, *where, "buffer"), names, kind):
                    self._has_iova(place.buffer, (*path, *where, "buffer"), names)
        if isinstance(args, RegisterFd) and args.fd in ("device", "group") and not names.opened:
            self._add((*path, "fd"), f"expected an open device before fd: {args.fd}, found none", "open one before")
        if kind == "mappings" and len(path) > _OUTSIDE:
            hint = "the tables are read when the whole step is done: write it behind that one"
            self._add(path, "expected no mappings inside another step, found one", hint, key=True)
        for key in ("buffer", "with"):
            name = getattr(args, "with_" if key == "with" else key, None)
            if name is not None and self._buffer(name, (*path, key), names, kind):
                self._buffer_use(args, kind, key, name, path, names, fails=fails)

    def _dma(self, args: DmaArgs, path: Path_, names: Names) -> None:
        found = dma_problem(names.models.get(args.device, ""), args)
        if found is not None:
            key, message, hint = found
            self._add((*path, key), message, hint)

    def _device(self, name: str, path: Path_, names: Names) -> bool:
        if names.devices is None or name in names.devices:
            return True
        hint = suggest(name, names.devices, "the machine's devices are")
        self._add(path, f"expected a device of the machine, found '{name}'", hint)
        return False

    def _container(self, args: Args, kind: str, path: Path_, names: Names) -> None:
        """Check what a step wants of the way in which its device was opened."""
        name = getattr(args, "device", None)
        found = without_container(kind, name) if name in names.iommufd else None
        if found is not None:
            self._add((*path, "device"), *found)
        if isinstance(args, Open) and args.through == "iommufd" and name in names.vfio:
            message = f"expected a device that is not open for through: iommufd, found '{name}', opened through vfio"
            self._add((*path, "device"), message, "the kernel says EBUSY: close it before")
        if isinstance(args, Open) and args.through == "iommufd" and self._no_iommufd:
            options = ", ".join(f"{option}: true" for option in OPTIONS)
            message = f"expected needs.kernel_options {{{options}}} beside through: iommufd, found none"
            self._add((*path, "through"), message, "no stock kernel has both; with them the lab kernel is taken")

    def _buffer(self, name: str, path: Path_, names: Names, kind: str) -> bool:
        if name in names.buffers:
            return True
        if name in names.ranges:
            self._add(path, *range_as_buffer(name, kind))
            return False
        hint = suggest(name, list(names.buffers), "the buffers so far are")
        self._add(path, f"expected a buffer that an earlier step made, found '{name}'", hint)
        return False

    def _buffer_use(
        self, args: Args, kind: str, key: str, name: str, path: Path_, names: Names, *, fails: bool
    ) -> None:
        maker, size = names.buffers[name]
        wanted = {"free": "alloc", "free_plain": "alloc_plain", "release": "buffer"}.get(kind)
        if wanted is not None and maker not in (wanted, "?"):
            other = {"alloc": "free", "alloc_plain": "free_plain", "buffer": "release"}[maker]
            if kind != "free":
                self._add((*path, key), f"expected a buffer of {wanted}, found '{name}' of {maker}", f"use {other}")
        if isinstance(args, DmaArgs):
            self._has_iova(name, (*path, key), names)
        if isinstance(args, Fill | Compare) and size is not None:
            offset = getattr(args, "with_offset" if key == "with" else "offset")
            if offset + (args.size or 0) > size or offset >= size:
                found = f"offset {offset}" + (f" + size {args.size}" if args.size is not None else "")
                self._add((*path, key), f"expected bytes inside '{name}' of {size} bytes, found {found}")
        outside = None if size is None else outside_buffer(args, name, size, fails=fails)
        if outside is not None:
            self._add((*path, key), outside)
        if isinstance(args, StreamUnmap) and name not in names.streamed and not fails:
            hint = "write a stream_map of it before, or expect the error that it meets"
            self._add((*path, key), f"expected a buffer that a stream_map mapped, found '{name}'", hint)

    def _has_iova(self, name: str, path: Path_, names: Names) -> None:
        if names.buffers[name][0] in ("buffer", "alloc_plain") and name not in names.mapped:
            self._add(path, f"expected a buffer with an IOVA, found '{name}'", "map it before, or write an iova")

    def _bind(self, args: Args, kind: str, path: Path_, names: Names) -> None:
        """Note what a step makes known to later ones."""
        name = getattr(args, "as_", None)
        if isinstance(args, IovaAlloc) and name not in names.buffers:
            names.ranges.add(args.as_)
        elif name is not None:
            if name in names.buffers or name in names.ranges:
                hint = "a name keeps standing for the same memory, so that its use after free can be written down"
                self._add((*path, "as"), f"expected a new name, found '{name}' again", hint)
            # A range that is refused for its name has not become the buffer of that name.
            if not isinstance(args, IovaAlloc):
                names.buffers[name] = kind, getattr(args, "size", None)
        device = getattr(args, "device", None)
        if kind in ("open", "register"):
            names.opened.add(str(device))
            (names.iommufd.add if getattr(args, "through", "") == "iommufd" else names.vfio.add)(str(device))
        elif kind == "close":
            names.opened.discard(str(device))
            names.iommufd.discard(str(device))
            names.vfio.discard(str(device))
        if isinstance(args, Map | ContainerMap | PhysicalAddress | Remap | StreamMap) and args.buffer is not None:
            names.mapped.add(args.buffer)
        if isinstance(args, StreamMap):
            names.streamed.add(args.buffer)

    def _broken(self, raw: Any, kind: str, path: Path_, names: Names) -> None:
        """Check the names in a step with a mistake, and note what it would have made known, to tell of it once."""
        given = {key: name for key, name in raw.items() if is_name(name)} if isinstance(raw, dict) else {}
        fields = [field.alias or name for name, field in KINDS[kind].model_fields.items()]
        if "device" in given and "device" in fields:
            self._device(given["device"], (*path, "device"), names)
            self._doings.unclear(given["device"])
            names.opened.add(given["device"])
        for key in ("buffer", "with"):
            if key in given and key in fields:
                self._buffer(given[key], (*path, key), names, kind)
        if "as" in given and kind == "iova_alloc":
            names.ranges.add(given["as"])
        elif "as" in given:
            names.buffers.setdefault(given["as"], ("?", None))
        names.mapped.add(given.get("buffer", ""))
        names.streamed.add(given.get("buffer", ""))

    # ---- expectations of the scenario

    def _fault(self, fault: FaultExpect, path: Path_, names: Names) -> None:
        if fault.device is not None:
            self._device(fault.device, (*path, "device"), names)
        if fault.buffer is not None:
            self._buffer(fault.buffer, (*path, "buffer"), names, "expect")
        if fault.range is not None:
            found = unknown_range(fault.range, (*path, "range"), names.ranges, names.buffers)
            if found is not None:
                self._add(*found)
        self._reason(fault, (*path, "reason"))
        if fault.step is None:
            return
        if fault.step not in self._ids:
            hint = suggest(fault.step, list(self._ids), "the ids of steps are")
            self._add((*path, "step"), f"expected the id of a step, found '{fault.step}'", hint)
            return
        line, kind = self._ids[fault.step]
        if kind not in (f"dma_{fault.access}", "operate", "collect", "resume"):
            message = f"expected a step of kind dma_{fault.access}, found '{fault.step}', a {kind}"
            self._add((*path, "step"), message, f"the step is in line {line}")

    def _reason(self, fault: FaultExpect, path: Path_) -> None:
        """Refuse a reason that the machine's vIOMMU does not have."""
        if self._iommu is None or self._iommu == fault.vendor:
            return
        if self._iommu == "none":
            self._add(path, "expected no fault of a machine without a vIOMMU, found one", "take it away")
            return
        names = [name for name, (vendor, _) in OTHER_REASONS.items() if vendor == self._iommu]
        wanted = " or ".join(names) or "a number"
        found = f"0x{fault.code:02x}" if fault.vendor == "intel" else f"'{fault.reason}'"
        message = f"expected a reason of iommu: {self._iommu} ({wanted}), found {found}"
        self._add(path, message, f"it is one of iommu: {fault.vendor}")
