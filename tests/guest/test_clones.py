"""Clones on real guests: clock, devices, every build and method, many at once, many in a row."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EDU, said

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest import control
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.machine.loop import call
from harness.machine.snapshot import Method
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import prepare

Clone = Callable[..., AbstractContextManager[Guest]]
MIB = 1 << 20


def test_the_clock_is_the_hosts(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    ahead, honest = 10_000_000, time.time
    monkeypatch.setattr(control.time, "time", lambda: honest() + ahead)
    with clone() as guest:
        assert abs(int(said(guest, "date +%s")) - (honest() + ahead)) < 600


@pytest.mark.parametrize("at", ["02:00.0", "00:05.0"])
def test_the_device_is_there_and_can_be_opened(clone: Clone, at: str):
    with clone(device=DeviceSpec("edu0", "edu", at)) as guest:
        deadline = Deadline.after(60)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        assert said(guest, f"ls /sys/bus/pci/devices/0000:{at}/iommu_group/devices") == f"0000:{at}"
        assert guest.ask("opening", "open", {"device": "edu0"}, deadline)["address"].endswith(at)


def test_a_device_that_is_not_there_is_an_error(clone: Clone):
    with clone() as guest:
        deadline = Deadline.after(60)
        guest.start_worker(deadline)
        guest.spec = replace(guest.spec, devices=(DeviceSpec("edu0", "edu", "03:00.0"),))
        with pytest.raises(InfrastructureError, match=r"no PCI function 0000:03:00\.0"):
            guest.find_devices(deadline)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("qemu", "method"), [("7.2", Method.FILE), ("10.0", Method.FILE), ("11.1", Method.STREAM)])
def test_other_builds_and_the_other_method(tmp_path: Path, qemu: str, method: Method):
    resources = prepare(RunOptions(qemu=(qemu,), fetch=True), print)
    plan = resources.plan(MachineSpec(devices=(EDU,)), qemu, "6.12", tmp_path)
    template = get_template(plan, 120, print, method)
    assert (template.method, template.ram is None) == (method, method is Method.STREAM)
    with running_guest(replace(plan, template=template), 120, lambda stage: None) as guest:
        assert said(guest, "cat /run/nonce") == guest.identity.nonce


def private(pid: int) -> int:
    """Bytes that go away with a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


@pytest.mark.timeout(600)
def test_twenty_clones_at_once(clone: Clone):
    together = threading.Barrier(20, timeout=400)

    def one(_: int) -> int:
        with clone() as guest:
            guest.start_worker(Deadline.after(300))
            guest.find_devices(Deadline.after(300))
            together.wait()  # all twenty are alive here
            taken = private(guest.emulator.pid)
            together.wait()
            return taken

    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(one, range(20)))
    print(f"20 clones: {sum(taken) // MIB} MiB in all, {max(taken) // MIB} MiB at most")
    assert max(taken) < 512 * MIB


@pytest.mark.timeout(3000)
def test_many_clones_one_after_another_leave_nothing_behind(clone: Clone, tmp_path: Path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))  # Python remembers the folder that it found first
    count = int(os.environ.get("HARNESS_LEAK_CLONES", "30"))

    def held() -> tuple[int, int]:
        # asyncio has a thread wait for each process. It may still be ending when the process's end is known.
        for thread in threading.enumerate():
            if "waitpid" in thread.name:
                thread.join(60)
        # A socket that was closed is given up when the loop comes round, and what is in a cycle by the collector.
        for _ in range(3):
            call(asyncio.sleep(0), Deadline.after(60))
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    early, memory = (0, 0), 0
    for number in range(count):
        with clone() as guest:
            assert said(guest, "cat /run/nonce") == guest.identity.nonce
        if number == 4:
            early, memory = held(), resident()
    growth = resident() - memory
    print(f"{count} clones: descriptors and threads {early} then {held()}, {growth / MIB:.1f} MiB more")
    assert held() == early
    assert growth < 64 * MIB
    assert list((tmp_path / "tmp").iterdir()) == []
