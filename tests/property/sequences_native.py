"""Runs a sequence of steps in this process: USDM on simulated containers, and devices that reach memory through them.

The steps, and the judge, are the project's own; only the kernel's side and the devices are simulated.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sequences import Program
from sequences_memory import CONTAINERS, DEVICES, State

sys.path.append(str(Path(__file__).parents[1] / "unit" / "usdm"))
from usdm_fake_vfio import FakeVfio

from harness.agent.context import Buffer, Context
from harness.agent.execute import execute
from harness.judge import judge
from harness.results import Check, Evidence, StepError, StepEvidence, Verdict
from harness.scenario import Scenario
from usdm import container as container_calls
from usdm import qae_mem
from usdm.driver import Usdm
from usdm.vfio_uapi import IommuInfo

REASONS = {False: (6, "Read", "PTE Read access is not set"), True: (5, "Write", "PTE Write access is not set")}

Make = Callable[[FakeVfio], Usdm]
"""Makes the USDM under test on a simulated kernel."""


class Container:
    """An open container with its IOMMU type set, as `usdm.vfio.Container` is for the steps."""

    no_iommu = False

    def __init__(self, vfio: FakeVfio) -> None:
        self._vfio = vfio
        self.fd = vfio.open()

    def info(self) -> IommuInfo:
        return container_calls.get_info(self.fd, self._vfio.ioctl)

    @property
    def entries(self) -> dict[int, tuple[int, int]]:
        """What it has mapped: IOVA to virtual address and size."""
        entries: dict[int, tuple[int, int]] = self._vfio.of(self.fd).entries
        return entries

    def reaches(self, iova: int) -> int | None:
        """The virtual address of an IOVA, or None for a fault."""
        address: int | None = self._vfio.of(self.fd).device_view(iova)
        return address


class Device:
    """A device as edu is: 4096 bytes of its own; a refused read leaves them as they are. DMAs stay inside a page."""

    def __init__(self, name: str, container: Container) -> None:
        self._at = DEVICES[name]["at"]
        self._container = container
        self._own = bytearray(4096)
        self.trace: list[str] = []  # as QEMU writes it
        self.log: list[str] = []  # as the guest's kernel writes it

    def set_bus_master(self, enabled: bool) -> None:
        assert enabled

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool) -> None:
        first, last = self._container.reaches(iova), self._container.reaches(iova + size - 1)
        if first is None or last is None:
            reason, word, text = REASONS[write]
            place = iova if first is None else iova + size - 1
            sid = int(self._at[:2], 16) << 8
            self.trace.append(f"vtd_dmar_fault sid 0x{sid:x} fault {reason} addr 0x{place:x} write {int(write)}")
            head = f"DMAR: [DMA {word} NO_PASID] Request device [{self._at}] fault addr 0x{place & ~4095:x}"
            self.log += ["DMAR: DRHD: handling fault status reg 2", f"{head} [fault reason 0x{reason:02x}] {text}"]
        elif write:
            ctypes.memmove(first, bytes(self._own[device_offset : device_offset + size]), size)
        else:
            self._own[device_offset : device_offset + size] = ctypes.string_at(first, size)


class Process:
    """A process of the program: the worker's state, on a USDM of its own."""

    def __init__(self, vfio: FakeVfio) -> None:
        self.containers = {name: Container(vfio) for name in DEVICES}
        self.devices = {name: Device(name, container) for name, container in self.containers.items()}
        self.context = Context()
        self.context.addresses.update({name: device["at"] for name, device in DEVICES.items()})
        self.context.devices.update(self.devices)  # type: ignore[arg-type]
        for name, container in self.containers.items():
            where = CONTAINERS[name] or "default"
            self.context._containers[where] = container  # type: ignore[assignment]
            self.context._container_of[name] = where

    def step(self, index: int, kind: str, args: dict[str, Any]) -> StepEvidence:
        before = {name: len(device.trace) for name, device in self.devices.items()}
        answer = execute(self.context, kind, args)
        trace = [line for name, device in self.devices.items() for line in device.trace[before[name] :]]
        return _evidence(index, {"kind": kind, "args": args, **answer}, tuple(trace))

    def consistent(self, state: State) -> None:
        """What the containers have mapped is what the model says, and nothing else but memory that USDM owns."""
        for name, container in self.containers.items():
            if name != state.container:
                assert container.entries == {}, f"{name} is not registered"
                continue
            held = self.context.buffers
            users = {(_address(held[buffer]) + offset, size) for buffer, offset, size in state.mapped}
            found = set(container.entries.values())
            assert users <= found, "a mapping is not in the container"
            own = [(_address(held[buffer]), size) for buffer, size in state.allocated]
            for start, size in own:
                assert any(at <= start and start + size <= at + length for at, length in found - users)
            for at, length in found - users:
                for buffer in held.values():
                    if buffer.maker == "buffer" and not buffer.gone:
                        outside = at + length <= _address(buffer) or _address(buffer) + buffer.size <= at
                        assert outside, f"'{buffer.name}' is mapped besides"


def _address(buffer: Buffer) -> int:
    assert buffer.address is not None
    return buffer.address


def _evidence(index: int, answer: dict[str, Any], trace: tuple[str, ...] = ()) -> StepEvidence:
    error = answer["error"]
    return StepEvidence(
        index=index,
        kind=answer["kind"],
        args=answer["args"],
        returns=answer["returns"],
        error=StepError(**error) if error else None,
        values=answer["values"],
        trace=trace,
        children=tuple(_evidence(number, child) for number, child in enumerate(answer["children"])),
    )


@contextmanager
def process(make: Make) -> Iterator[Process]:
    """A process whose calls by the C names go to the USDM that `make` gives."""
    vfio = FakeVfio(check_memory=True)
    driver = make(vfio)
    running = Process(vfio)
    try:
        with mock.patch.object(qae_mem, "_driver", driver), mock.patch("usdm.vfio.iommu_group", return_value=1):
            yield running
    finally:
        for buffer in running.context.buffers.values():
            if buffer.maker == "buffer" and not buffer.gone:
                execute(running.context, "release", {"buffer": buffer.name})
        driver.close()
        vfio.close()


def run_steps(scenario: Scenario, make: Make, after: Callable[[Process, int], None] | None = None) -> Verdict:
    """Run the steps of a scenario and judge them.

    Args:
        scenario: its devices are edu0 and edu1.
        make: makes the USDM under test.
        after: called after each step with its position.
    """
    evidence = []
    with process(make) as running:
        for index, step in enumerate(scenario.steps):
            evidence.append(running.step(index, step.kind, step.args_json()))
            if after is not None:
                after(running, index)
        log = tuple(line for device in running.devices.values() for line in device.log)
    devices = {name: device["at"] for name, device in DEVICES.items()}
    return judge(scenario, Evidence(steps=tuple(evidence), kernel_log=log, devices=devices))


def failures(program: Program, make: Make) -> list[Check]:
    """Run a sequence and return the checks of the judge that failed.

    Raises:
        AssertionError: The steps were as they must be, but not what the containers have mapped after one of them.
    """
    wrong: list[AssertionError] = []

    def compare(running: Process, index: int) -> None:
        try:
            running.consistent(program.states[index])
        except AssertionError as error:
            wrong.append(error)

    verdict = run_steps(Scenario.model_validate(program.scenario()), make, compare)
    found = [check for check in verdict.checks if not check.passed]
    if wrong and not found:
        raise wrong[0]
    return found
