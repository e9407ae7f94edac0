"""Devices that a process beside QEMU serves, when that process is killed or the run is: what scenarios cannot say."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BOOT_SECONDS, adopt_orphans, adopted

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.device_steps import do_step
from harness.run.resources import Resources

QAT = DeviceSpec("qat0", "qat", "02:00.0")
EDU = DeviceSpec("edu0", "edu", "03:00.0")
SPEC = MachineSpec(devices=(QAT, EDU))
COPY = {"device": "qat0", "op": "copy", "completion": "poll", "wait": False, "seconds": 30.0}


class Steps:
    """Steps in a guest, each with its answer."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.start_worker(Deadline.after(60))

    def error(self, kind: str, **args: Any) -> str:
        """What a step comes to: the type of its error, or nothing."""
        deadline = Deadline.after(30)
        if kind == "misbehave":
            answer = do_step(self.guest, kind, args, deadline)
        else:
            answer = self.guest.request(kind, kind, args, deadline)
        return str(answer["error"]["type"]) if answer.get("error") else ""

    def good(self, kind: str, **args: Any) -> None:
        assert self.error(kind, **args) == "", kind

    def begin(self) -> None:
        """The guest finds its devices: both open and bus masters, and a buffer of two pages that both reach."""
        self.guest.find_devices(Deadline.after(60))
        self.good("register", device="qat0")
        self.good("open", device="edu0")
        for device in ("qat0", "edu0"):
            self.good("bus_master", device=device, enabled=True)
        self.good("buffer", **{"as": "a"}, size=8192, backing="anonymous", align=4096)
        self.good("map", buffer="a", offset=0, size=8192)

    def wait_until_held(self) -> None:
        """The device has read the request, and every message: QEMU 11.1 aborts when one is lost with the server."""
        server = self.guest.emulator.devices
        assert server is not None
        deadline = Deadline.after(30)
        while not server.ask("news", "qat0", deadline)["transfers"]:
            assert not deadline.expired

    def edu_copies(self) -> None:
        """The guest lives, and so does a device that QEMU itself has."""
        self.good("fill", buffer="a", offset=0, size=1024, pattern="random", seed=3)
        self.good("dma_read", device="edu0", buffer="a", offset=0, size=1024, device_offset=0)
        self.good("dma_write", device="edu0", buffer="a", offset=4096, size=1024, device_offset=0)
        self.good("compare", buffer="a", **{"with": "a"}, with_offset=4096, offset=0, size=1024)


def kill_server(guest: Guest) -> None:
    """SIGKILL, and wait until it has ended."""
    server = guest.emulator.devices
    assert server is not None
    ended = os.pidfd_open(server.pid)
    try:
        os.kill(server.pid, signal.SIGKILL)
        assert select.select([ended], [], [], 10)[0]
    finally:
        os.close(ended)


@pytest.fixture
def steps(resources: Resources, tmp_path: Path) -> Callable[[], AbstractContextManager[Steps]]:
    @contextmanager
    def starter() -> Iterator[Steps]:
        folder = tmp_path / "run"
        folder.mkdir()
        plan = resources.plan(SPEC, "11.1", "6.12", folder)
        plan = replace(plan, template=get_template(plan, BOOT_SECONDS, print))
        with running_guest(plan, BOOT_SECONDS, lambda stage: None) as guest:
            yield Steps(guest)

    return starter


def test_the_server_is_killed_in_the_middle_of_a_copy(steps: Callable[[], AbstractContextManager[Steps]]) -> None:
    with steps() as here:
        here.begin()
        here.good("misbehave", device="qat0", how="hold", times=1)
        piece = {"buffer": "a", "offset": 0, "size": 4096}
        here.good("operate", **COPY, source=[piece], destination=[{**piece, "offset": 4096}])
        here.wait_until_held()
        kill_server(here.guest)
        # Its registers say so; nobody waits for the 30 s.
        assert here.error("collect", device="qat0", count=1, completion="poll", seconds=30.0) == "DmaTimeout"
        assert here.error("counters", device="qat0") == "NotQat"
        here.good("bus_master", device="qat0", enabled=False)
        here.edu_copies()
        here.good("unmap", buffer="a", offset=0, size=8192)
        with pytest.raises(InfrastructureError, match="the process of the device models ended"):
            here.error("misbehave", device="qat0", how="hold", times=1)


def test_the_server_is_dead_before_the_guests_first_access(steps: Callable[[], AbstractContextManager[Steps]]) -> None:
    """The guest's scan finds no function there, and that is told."""
    with steps() as here:
        kill_server(here.guest)
        with pytest.raises(InfrastructureError, match=r"the guest has no PCI function 0000:02:00\.0"):
            here.guest.find_devices(Deadline.after(60))
        assert here.guest.run("true", Deadline.after(30)).status == 0


def test_no_process_and_no_name_outlives_a_killed_harness(tmp_path: Path) -> None:
    """kill -9 of the harness, once QEMU has its devices, ends the process that serves them too."""
    out = tmp_path / "out"
    adopt_orphans()
    harness = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", "scenarios/misbehaviour/delay.yaml", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        give_up = Deadline.after(BOOT_SECONDS)
        while not list(out.rglob("devices.stderr")) or list(out.rglob("*.vfio-user")):
            assert not give_up.expired, "nothing serves a device"
            assert harness.poll() is None, "the harness ended by itself"
    finally:
        harness.kill()
        harness.wait()
    give_up = Deadline.after(10)
    while orphans := adopted():
        assert not give_up.expired, f"these outlived the harness: {orphans}"
    assert not list(out.rglob("*.vfio-user"))
