"""A card pulled out of its slot, on a monitor that stands for QEMU's: a root port's registers behind two I/O ports."""

from __future__ import annotations

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.removal import pull_out
from harness.machine.spec import DeviceSpec, MachineSpec

SPEC = MachineSpec(devices=(DeviceSpec("dut", "edu", "02:00.0"),), hot_plug=(2,))
QAT = MachineSpec(
    devices=(
        DeviceSpec("pf", "qat", "02:00.0"),
        DeviceSpec("vf", "qat_vf", "02:00.1"),
        DeviceSpec("e", "qat", "03:00.0"),
    ),
    hot_plug=(2,),
)
CAPABILITY = 0x54
CONTROL, STATUS = CAPABILITY + 0x18, CAPABILITY + 0x1A


class Server:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def ask(self, do: str, function: str, _deadline: Deadline) -> dict[str, object]:
        self.log.append(f"{do} {function}")
        return {}


class Monitor:
    """The port at 00:11.0 whose card goes when power and indicator are off; everything else reads as all ones."""

    def __init__(self, *, present: bool = True, stuck: bool = False, says: str = "") -> None:
        self.config = bytearray(256)
        self.config[0x34] = 0x40
        self.config[0x40:0x42] = bytes((0x05, CAPABILITY))  # another capability first
        self.config[CAPABILITY] = 0x10
        self.config[CONTROL : CONTROL + 2] = (0x01F1).to_bytes(2, "little")
        self.config[STATUS] = 0x40 if present else 0
        self.address = 0x8000_1234  # what the guest last wrote there
        self.stuck, self.says = stuck, says
        self.log: list[str] = []
        self.devices = Server(self.log)

    def execute(self, command: str, arguments: dict[str, object] | None = None, *, deadline: Deadline) -> object:
        if command != "human-monitor-command":
            self.log.append(command if arguments is None else f"{command} {arguments['path']}")
            return {}
        words = str((arguments or {})["command-line"]).split()
        size = {"b": 1, "h": 2, "w": 4}[words[0][-1]]
        port = int(words[1], 16)
        if words[0].startswith("o"):
            self._write(port, int(words[2], 16), size)
            return self.says
        return f"port{words[0][-1]}[{port:#06x}] = {self._read(port, size):#x}\r\n" if not self.says else self.says

    def _place(self, port: int) -> int | None:
        here = self.address & ~0xFF == 0x8000_0000 | 0x11 << 11
        return (self.address & 0xFC) + port - 0xCFC if here else None

    def _read(self, port: int, size: int) -> int:
        if port == 0xCF8:
            return self.address
        place = self._place(port)
        return (1 << 8 * size) - 1 if place is None else int.from_bytes(self.config[place : place + size], "little")

    def _write(self, port: int, value: int, size: int) -> None:
        if port == 0xCF8:
            self.address = value
            return
        place = self._place(port)
        assert place == CONTROL
        self.config[place : place + size] = value.to_bytes(size, "little")
        self.log.append(f"control {value:#x}")
        if value & 0x400 and value & 0x300 == 0x300 and not self.stuck:
            self.config[STATUS] &= ~0x40


def pull(monitor: Monitor, spec: MachineSpec = SPEC) -> None:
    pull_out(monitor, spec, 2, Deadline.after(5))  # type: ignore[arg-type]


def test_power_is_cut_and_given_back_while_the_guest_stands_still():
    monitor = Monitor()
    pull(monitor)
    assert monitor.log == ["stop", "control 0x7f1", "control 0x1f1", "cont"]
    assert monitor.address == 0x8000_1234, "the guest finds its own half of an access"


def test_served_functions_lose_their_server_and_leave_the_bus_before_the_last_ones_first():
    monitor = Monitor()
    pull(monitor, QAT)
    assert monitor.log[1:-3] == [
        "vanish vf",
        "qom-set /machine/peripheral/vf",
        "vanish pf",
        "qom-set /machine/peripheral/pf",
    ]


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (Monitor(present=False), "there is no card in the slot of the root port 00:11.0"),
        (Monitor(stuck=True), "QEMU left the card in the slot of the root port 00:11.0"),
        (Monitor(says="unknown command: 'i'"), "QEMU's monitor said of the I/O port 0xcf8: unknown command"),
    ],
)
def test_what_fails_is_told_and_the_guest_goes_on(monitor: Monitor, message: str):
    with pytest.raises(InfrastructureError, match=message):
        pull(monitor)
    assert monitor.log[-1] == "cont"


def test_a_machine_with_another_port_has_none_there():
    monitor = Monitor()
    with pytest.raises(InfrastructureError, match="there is no card"):
        pull_out(
            monitor, MachineSpec(devices=(DeviceSpec("d", "edu", "03:00.0"),), hot_plug=(3,)), 3, Deadline.after(5)
        )  # type: ignore[arg-type]
