"""A virtual machine inside the guest: QEMU as a child of the worker, and a worker of its own in it.

It is started once, before the guest is frozen, so that in every clone it is up already. Its QEMU, kernel and root file
system are in the guest's image (`harness/machine/vm_image.py`); in it runs this same package, from a copy of the
payload.
The worker talks to QEMU (QMP) and to the worker inside over two socket pairs, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time

from harness.agent.outcome import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

BUNDLE = "/opt/vm"
"""Where the image has `qemu/`, `vmlinux` and `initrd.img`."""
FOLDER = "/run/vm"
PORT = "org.usdm-harness.vm"
"""Name of the virtio-serial port of the worker inside."""
PORTS = 4
"""Root ports of the machine: device N of those passed through gets the address 0N:00.0 there."""

_PAYLOAD = __file__.rsplit("/", 3)[0]
_LIBRARIES = "lib"
_INIT = """#!/bin/sh
# First program of a virtual machine inside the guest: mounts, then the worker, which finds its port by itself.
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -a
echo vm >/proc/sys/kernel/hostname
exec python3 -I -S {payload}/harness/agent/inner.py
"""
_BOOT_SECONDS = 600.0
_ANSWER_SECONDS = 300.0
_CHUNK = 64 * 1024


class NoVm(StepError):
    """The guest's image has no virtual machine, or it was not started."""


class VmLost(StepError):
    """The virtual machine ended, or does not answer."""


class VmRefused(StepError):
    """QEMU in the guest refused a command."""


class Lines:
    """JSON objects, one a line, over a socket."""

    def __init__(self, sock: socket.socket, what: str) -> None:
        """Talk over `sock`; `what` is the other end, for messages."""
        self._socket = sock
        self._what = what
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one object; raises `VmLost`."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise VmLost(f"{self._what} is gone: {error}") from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the next object; raises `VmLost` when none comes in time, or the other end is gone."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise VmLost(f"{self._what} did not answer in {seconds:g} s{_console()}")
            data = self._socket.recv(_CHUNK)
            if not data:
                raise VmLost(f"{self._what} has ended{_console()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Vm:
    """The virtual machine. `start` makes the one that the worker has."""

    def __init__(self, megabytes: int) -> None:
        """Start QEMU and wait until the worker inside has loaded everything.

        Args:
            megabytes: The machine's memory.

        Raises:
            NoVm: The image has none.
            VmLost: It did not come up.
        """
        if not os.access(f"{BUNDLE}/vmlinux", os.R_OK):
            raise NoVm(f"the guest's image has no {BUNDLE}")
        os.makedirs(FOLDER, exist_ok=True)  # noqa: PTH103 - pathlib costs the guest time
        _write_initrd(f"{FOLDER}/initrd.img")
        qmp, qmp_end = socket.socketpair()
        port, port_end = socket.socketpair()
        with qmp_end, port_end:
            argv = arguments(megabytes, qmp_end.fileno(), port_end.fileno())
            self.pid = _spawn(argv, (qmp_end.fileno(), port_end.fileno()))
        self._qmp = Lines(qmp, "QEMU in the guest")
        self._worker = Lines(port, "the worker in the virtual machine")
        self._passed: dict[str, str] = {}
        self._qmp.receive(_BOOT_SECONDS)
        self.command("qmp_capabilities")
        self._worker.receive(_BOOT_SECONDS)

    def command(self, name: str, **arguments: object) -> Any:
        """Have QEMU do something and return its answer; raises `VmRefused`, `VmLost`."""
        self._qmp.send({"execute": name, "arguments": arguments})
        while True:
            answer = self._qmp.receive(_ANSWER_SECONDS)
            if "error" in answer:
                raise VmRefused(f"{name}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]

    def request(self, kind: str, args: dict[str, Any]) -> dict[str, Any]:
        """Have the worker inside do a step and return its answer; raises `VmLost`."""
        self._worker.send({"kind": kind, "args": args})
        return self._worker.receive(_ANSWER_SECONDS)

    def pass_through(self, name: str, address: str, **properties: object) -> str:
        """Give a function of the guest, bound to vfio-pci, to the machine.

        Args:
            name: The device's name in the scenario.
            address: Its address in the guest, with its domain.
            properties: Further ones of QEMU's `vfio-pci`.

        Returns:
            Its address in the machine.

        Raises:
            VmRefused: QEMU refused the device, or no port is left.
        """
        number = len(self._passed) + 1
        if number > PORTS:
            raise VmRefused(f"the virtual machine has {PORTS} ports, and all are taken")
        bus = f"port{number}"
        self.command("device_add", driver="vfio-pci", id=name, bus=bus, host=address, **properties)
        inner = self._passed[name] = f"{number:02x}:00.0"
        answer = self.request("_begin", {"devices": {name: inner}, "replaced": []})
        if answer["error"]:
            raise VmRefused(f"'{name}' was not found in the virtual machine: {answer['error']['message']}")
        return inner


def arguments(megabytes: int, qmp: int, port: int) -> list[str]:
    """Return QEMU's command line.

    No IOMMU in it, no firmware but qboot, no network. `qmp` and `port` are descriptors that QEMU inherits.
    """
    root = f"{BUNDLE}/qemu"
    words = [f"{root}/{_LIBRARIES}/ld-linux-x86-64.so.2", "--library-path", f"{root}/{_LIBRARIES}"]
    words += [f"{root}/qemu-system-x86_64", "-L", f"{root}/firmware"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-machine", "microvm,pcie=on,usb=off,rtc=on", "-bios", "qboot.rom", "-accel", "tcg", "-cpu", "qemu64"]
    # Time goes by with the instructions (32 ns each) while the machine does something: emulated twice, it would else do
    # nothing but serve the interrupts of its own timer.
    words += ["-icount", "shift=5,align=off,sleep=on"]
    words += ["-m", f"{megabytes}M", "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]
    for number in range(1, PORTS + 1):
        # Without a power controller a device that is added later is visible to a scan, without an interrupt.
        place = f"id=port{number},bus=pcie.0,addr={number:x}.0,chassis={number},slot={number}"
        words += ["-device", f"pcie-root-port,{place},power_controller_present=off"]
    words += ["-chardev", f"socket,id=worker,fd={port}", "-device", "virtio-serial-pci,bus=pcie.0,addr=10.0"]
    words += ["-device", f"virtserialport,chardev=worker,name={PORT},nr=1"]
    words += ["-chardev", f"file,id=console,path={FOLDER}/console", "-serial", "chardev:console"]
    words += ["-kernel", f"{BUNDLE}/vmlinux", "-initrd", f"{FOLDER}/initrd.img"]
    return [*words, "-append", "console=ttyS0 quiet panic=-1 oops=panic no_timer_check rdinit=/vm-init"]


_machines: list[Vm] = []


def start(megabytes: int) -> Vm:
    """Start the worker's virtual machine; raises as `Vm`. There is one, for all clients of the worker."""
    if not _machines:
        _machines.append(Vm(megabytes))
    return _machines[0]


def machine() -> Vm:
    """Return the virtual machine that runs; raises `NoVm`."""
    if not _machines:
        raise NoVm("no virtual machine runs in this guest: write vm: true in machine")
    return _machines[0]


def _console() -> str:
    """Return the end of the machine's console for a message."""
    try:
        with open(f"{FOLDER}/console", "rb") as file:
            said = file.read()[-600:].decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f"; its console ends: {said}" if said else ""


def _spawn(argv: list[str], descriptors: tuple[int, ...]) -> int:
    log = os.open(f"{FOLDER}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd in descriptors:
        os.set_inheritable(fd, True)
    actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    os.close(log)
    return pid


def _write_initrd(path: str) -> None:
    """The root file system with the payload and a first program behind it: a kernel takes archives in a row."""
    with open(path, "wb") as out:
        with open(f"{BUNDLE}/initrd.img", "rb") as base:
            while data := base.read(1 << 20):
                out.write(data)
        out.write(b"\0" * (-out.tell() % 512))
        for number, (name, mode, content) in enumerate(_files(), 1):
            label = name.encode() + b"\0"
            fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
            head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
            out.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))


def _compiled(folder: str, name: str) -> Iterator[tuple[str, int, bytes]]:
    """A source compiled here: in the machine it would take thirty times as long."""
    import importlib.util
    import py_compile

    target = f"{FOLDER}/compiled"
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(f"{folder}/{name}", target, doraise=True, invalidation_mode=unchecked)
    with open(target, "rb") as file:
        yield importlib.util.cache_from_source(f"{folder}/{name}").strip("/"), 0o100644, file.read()


def _files() -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of what the machine has beside its root file system."""
    yield "vm-init", 0o100755, _INIT.format(payload=_PAYLOAD).encode()
    place = ""
    for part in _PAYLOAD.strip("/").split("/"):
        place = f"{place}/{part}".strip("/")
        yield place, 0o040755, b""
    for folder, _, names in os.walk(_PAYLOAD):
        if "__pycache__" in folder:
            continue
        if folder != _PAYLOAD:
            yield folder.strip("/"), 0o040755, b""
        for name in names:
            with open(f"{folder}/{name}", "rb") as file:
                yield f"{folder}/{name}".strip("/"), 0o100644, file.read()
        sources = [name for name in names if name.endswith(".py")]
        if sources:
            yield f"{folder}/__pycache__".strip("/"), 0o040755, b""
            for name in sources:
                yield from _compiled(folder, name)
    yield "TRAILER!!!", 0, b""
