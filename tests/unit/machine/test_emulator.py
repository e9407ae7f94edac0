"""What the emulator makes of QEMU's events and of its end, without QEMU."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from harness.deadline import Deadline
from harness.errors import EmulatorCrash, InfrastructureError
from harness.machine import emulator as module
from harness.machine import loop
from harness.machine.argv import CONTROL_DEVICE, SSH_DEVICE
from harness.machine.emulator import Emulator, Exit, Files
from harness.machine.qmp import QmpLog

GIVE_UP = 30.0


def soon() -> Deadline:
    return Deadline.after(GIVE_UP)


class Process:
    """A process that ends when it is told to; its methods are those of asyncio's."""

    pid = 4711

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def end(self, status: int) -> None:
        self.returncode = status
        self._ended.set()

    def kill(self) -> None:
        asyncio.run_coroutine_threadsafe(self.end(-9), loop._running_loop())


class Monitor:
    """A monitor that does as it is told: what comes in is written to its log."""

    def __init__(self, log: QmpLog, process: Process) -> None:
        self.log, self.process = log, process
        self.refuses = False

    async def execute(self, command: str) -> object:
        if self.refuses:
            raise InfrastructureError("QEMU went away")
        assert command == "quit"
        await self.process.end(0)
        return {}

    async def drain(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Machine:
    """An emulator, and the ends that QEMU would have."""

    def __init__(self, folder: Path) -> None:
        self.process = Process()
        control, self.control = socket.socketpair()
        ssh, self.ssh = socket.socketpair()
        self.files = Files(folder)
        self.monitor = Monitor(QmpLog(self.files.qmp), self.process)
        process, monitor = cast("Any", self.process), cast("Any", self.monitor)
        self.emulator = Emulator(process, monitor, self.files, control, ssh)
        for sock in (self.control, self.ssh):
            sock.setblocking(False)

    def event(self, name: str, **data: object) -> None:
        self.monitor.log.write("in", cast("Any", {"event": name, "data": data}))

    def port(self, device: str, is_open: bool) -> None:
        self.event("VSERPORT_CHANGE", id=device, open=is_open)

    def ended(self, sock: socket.socket) -> bool:
        """Whether the emulator has ended the stream of which QEMU would have this end."""
        try:
            return sock.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path)
    yield one
    one.emulator.stop()
    one.control.close()
    one.ssh.close()


# ---- events

SIDES: list[tuple[str, Callable[[Machine], tuple[socket.socket, socket.socket]]]] = [
    (CONTROL_DEVICE, lambda machine: (machine.control, machine.ssh)),
    (SSH_DEVICE, lambda machine: (machine.ssh, machine.control)),
]
both_ports = pytest.mark.parametrize(("device", "sides"), SIDES, ids=["control", "ssh"])
Sides = Callable[[Machine], tuple[socket.socket, socket.socket]]


@both_ports
def test_a_close_after_an_open_ends_that_stream_and_no_other(machine: Machine, device: str, sides: Sides) -> None:
    own, other = sides(machine)
    machine.port(device, True)
    assert not machine.ended(own)
    machine.port(device, False)
    assert machine.ended(own)
    assert not machine.ended(other)


@both_ports
def test_a_close_before_an_open_is_no_end(machine: Machine, device: str, sides: Sides) -> None:
    """A clone says so of a port that was not open when its template was frozen."""
    own, _ = sides(machine)
    machine.port(device, False)
    assert not machine.ended(own)
    machine.port(device, True)
    machine.port(device, False)
    assert machine.ended(own)


@both_ports
def test_a_close_within_a_second_of_the_clones_start_is_an_end(machine: Machine, device: str, sides: Sides) -> None:
    """QEMU tells a port's changes once a second: the open between these two is never told."""
    own, other = sides(machine)
    machine.port(device, False)
    machine.port(device, False)
    assert machine.ended(own)
    assert not machine.ended(other)


def test_an_open_of_one_port_is_none_of_the_other(machine: Machine) -> None:
    machine.port(CONTROL_DEVICE, True)
    machine.port(SSH_DEVICE, False)
    assert not machine.ended(machine.ssh)
    assert not machine.ended(machine.control)


def test_what_the_guest_sent_before_it_closed_is_read_first(machine: Machine) -> None:
    machine.port(SSH_DEVICE, True)
    machine.ssh.sendall(b"last words")
    machine.port(SSH_DEVICE, False)
    assert [machine.emulator.ssh.recv(100) for _ in range(2)] == [b"last words", b""]


def test_a_wait_on_a_stream_ends_when_the_guest_closes_its_port(machine: Machine) -> None:
    machine.emulator.ssh.settimeout(GIVE_UP)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(machine.emulator.ssh.recv(1)))
    reader.start()
    machine.port(SSH_DEVICE, True)
    machine.port(SSH_DEVICE, False)
    reader.join(GIVE_UP)
    assert got == [b""]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("VSERPORT_CHANGE", {"id": "another", "open": False}),
        ("VSERPORT_CHANGE", {}),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}),
        ("STOP", {"id": SSH_DEVICE, "open": False}),
    ],
)
def test_other_events_end_nothing(machine: Machine, name: str, data: dict[str, object]) -> None:
    machine.port(SSH_DEVICE, True)
    machine.port("another", True)
    machine.event(name, **data)
    machine.monitor.log.write("in", cast("Any", {"event": name}))
    assert not machine.ended(machine.ssh)
    assert [event["event"] for event in machine.emulator.events][2:] == [name, name]


def test_a_port_that_closes_again_is_no_matter(machine: Machine) -> None:
    for _ in range(2):
        machine.port(SSH_DEVICE, True)
        machine.port(SSH_DEVICE, False)
    machine.emulator.stop()
    machine.port(SSH_DEVICE, False)
    assert len(machine.emulator.events) == 5


# ---- what is done on the loop while QEMU may end


async def answer() -> str:
    return "done"


async def refuse() -> str:
    raise InfrastructureError("QEMU refused it")


def test_what_is_done_gives_its_value_or_its_error(machine: Machine) -> None:
    assert machine.emulator.run(answer(), soon()) == "done"
    with pytest.raises(InfrastructureError, match="QEMU refused it"):
        machine.emulator.run(refuse(), soon())


@pytest.mark.parametrize(
    ("status", "error"), [(-11, EmulatorCrash), (1, InfrastructureError), (0, InfrastructureError)]
)
@pytest.mark.parametrize(("stderr", "said"), [("qemu: no\nqemu: bad state\n", "bad state$"), ("", "it said nothing$")])
def test_the_end_of_qemu_ends_what_waits_for_it(
    machine: Machine, status: int, error: type[Exception], stderr: str, said: str
) -> None:
    machine.files.stderr.write_text(stderr)
    cancelled = threading.Event()

    async def wait() -> None:
        asyncio.get_running_loop().create_task(machine.process.end(status))
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(error, match=said) as caught:
        machine.emulator.run(wait(), soon())
    assert isinstance(caught.value, EmulatorCrash) == (status < 0)
    assert cancelled.wait(GIVE_UP), "nothing goes on after the end"


def test_what_was_done_when_qemu_ended_counts(machine: Machine) -> None:
    async def last() -> str:
        await machine.process.end(0)
        return "done"

    assert machine.emulator.run(last(), soon()) == "done"


def test_what_is_not_done_in_time_is_cancelled(machine: Machine) -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        machine.emulator.run(wait(), Deadline.after(0.05))
    assert cancelled.wait(GIVE_UP)
    assert machine.emulator.running


# ---- end


def test_stop_asks_qemu_to_quit_and_closes_the_streams(machine: Machine) -> None:
    machine.event("GUEST_PANICKED", action="pause")
    machine.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
    machine.files.stderr.write_text("qemu: terminating\n")
    assert machine.emulator in module._running
    expected = Exit(0, reason="host-qmp-quit", panicked=True, asked=True, stderr="qemu: terminating")
    assert [machine.emulator.stop() for _ in range(2)] == [expected, expected]
    assert machine.ended(machine.control)
    assert machine.ended(machine.ssh)
    assert machine.emulator not in module._running


def test_a_qemu_that_does_not_quit_is_killed(machine: Machine) -> None:
    machine.monitor.refuses = True
    how = machine.emulator.stop()
    assert (how.status, how.asked, how.reason, how.panicked) == (-9, True, None, False)


def test_a_qemu_that_ended_by_itself_was_not_asked_to(machine: Machine) -> None:
    loop.call(machine.process.end(1), soon())
    assert machine.emulator.wait(soon()) == machine.emulator.stop() == Exit(1, None, False, False, "")


def test_every_qemu_is_killed_at_once(machine: Machine) -> None:
    module.stop_all()
    assert machine.emulator.wait(soon()).status == -9
