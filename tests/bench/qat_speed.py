"""How fast a guest gets the QAT-like device, how fast that copies, and how many mappings its model mirrors.

The program that measures inside the guest is ``qat_in_guest.py``.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from figures import Figure, Figures
from guests import KERNEL, QEMU
from qat_in_guest import PAGE, PAGES

from harness.deadline import Deadline
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.machine.device_server import DeviceServer
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

ATTACH = Figure("QAT: clone with one, minus clone with none", "s", 0.15)
MEMORY = Figure("QAT: memory of the process with four functions, one of them at work, at most", "MB", 100)
MAPPED, UNMAPPED = Figure("QAT: 65,000 mappings made", "s"), Figure("QAT: 65,000 mappings taken away", "s")
TARGETS = {"copies of 4 KiB, 32 at a time": 2000.0, "copies of 4 MiB": 100.0}
MAPPINGS = 65_000
_BOOT_SECONDS = 120.0
_SECONDS = 300.0
_ADDRESS = "02:00.0"
_NOTHING = MachineSpec()
_MACHINE = MachineSpec(devices=(DeviceSpec("qat", "qat", _ADDRESS),))
_FOUR = MachineSpec(devices=(*_MACHINE.devices, *(DeviceSpec(f"vf{n}", "qat_vf", f"02:00.{n}") for n in (1, 2, 3))))
_PROGRAM = Path(__file__).with_name("qat_in_guest.py")


class _Clones:
    """Makes guests, each with a folder of its own."""

    def __init__(self, resources: Resources, scratch: Path, say: Callable[[str], None]) -> None:
        self._resources, self._scratch, self._say = resources, scratch, say
        self._count = 0

    def use(self, machine: MachineSpec, work: Callable[[Guest], None]) -> float:
        """Start a clone and let something be done with it; gives the seconds until its devices were there."""
        self._count += 1
        folder = self._scratch / f"qat-{self._count}"
        folder.mkdir()
        plan = self._resources.plan(machine, QEMU, KERNEL, folder)
        plan = replace(plan, template=get_template(plan, _BOOT_SECONDS, self._say))
        started = time.monotonic()
        with running_guest(plan, _BOOT_SECONDS, lambda stage: None) as guest:
            deadline = Deadline.after(_SECONDS)
            guest.start_worker(deadline)
            guest.find_devices(deadline)
            seconds = time.monotonic() - started
            work(guest)
        return seconds


def measure(figures: Figures, resources: Resources, rounds: int, scratch: Path, say: Callable[[str], None]) -> None:
    """Take every figure of the QAT-like device.

    Args:
        figures: where they go.
        resources: build, image, accelerator.
        rounds: how many values each figure gets; twice as many clones.
        scratch: an existing folder, for the guests' run folders.
        say: told what goes on.

    Raises:
        RuntimeError: the program in the guest failed, or the model's mappings are not those that the guest made.
    """
    clones = _Clones(resources, scratch, say)
    say(f"QAT: {rounds} times a clone with one and a clone with none, {rounds} rounds in one guest")
    clones.use(_NOTHING, lambda guest: None)
    # Neighbours in time, so that a busy host hits both alike.
    differences = [
        clones.use(_MACHINE, lambda guest: None) - clones.use(_NOTHING, lambda guest: None) for _ in range(rounds)
    ]
    figures.add(ATTACH, statistics.median(differences))
    clones.use(_FOUR, lambda guest: _inside(figures, guest, rounds))


def _inside(figures: Figures, guest: Guest, rounds: int) -> None:
    deadline = Deadline.after(_SECONDS)
    server = guest.emulator.devices
    if server is None:
        raise RuntimeError("the machine has no process of device models")
    place = f"/run/{_PROGRAM.name}"
    guest.run(f"cat > {place}", deadline, stdin=_PROGRAM.read_bytes())
    options = json.dumps({"rounds": rounds, "address": _ADDRESS, "mappings": MAPPINGS})
    channel = guest.ssh.open(f"python3 -I {place} {shlex.quote(options)} 2>&1", deadline)
    channel.settimeout(_SECONDS)
    lines = channel.makefile("r")

    def told() -> Any:
        line = lines.readline()
        try:
            return json.loads(line)
        except ValueError:
            raise RuntimeError(f"{_PROGRAM.name} failed in the guest: {line}{lines.read()}") from None

    for row, values in told().items():
        name, unit = row.rsplit(", ", 1)
        for value in values:
            figures.add(Figure(f"QAT: {name}", unit, TARGETS.get(name), at_least=True), value)
    before = _ranges(server, deadline)
    made = [[PAGES + 2 * PAGE * number, PAGE, "rw"] for number in range(MAPPINGS)]
    channel.sendall(b"\n")
    figures.add(MAPPED, told())
    _expect(_ranges(server, deadline), sorted(before + made))
    channel.sendall(b"\n")
    figures.add(UNMAPPED, told())
    _expect(_ranges(server, deadline), before)
    channel.sendall(b"\n")
    channel.recv_exit_status()
    _expect(_ranges(server, deadline), [])
    figures.add(MEMORY, _most_memory(server.pid))


def _ranges(server: DeviceServer, deadline: Deadline) -> list[list[Any]]:
    """What the model can reach now, which has changed since it was asked: IOVA, bytes and access, ascending."""
    ranges: list[list[Any]] = server.ask("news", "qat", deadline)["ranges"]
    return ranges


def _expect(ranges: list[list[Any]], wanted: list[list[Any]]) -> None:
    if ranges != wanted:
        wrong = next(pair for pair in zip_longest(ranges, wanted) if pair[0] != pair[1])
        raise RuntimeError(
            f"the model has {len(ranges)} ranges, the guest made {len(wanted)}; the first that differs: {wrong}"
        )


def _most_memory(pid: int) -> float:
    """The most memory that a process had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel tells no memory of process {pid}")
