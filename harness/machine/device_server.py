"""The process with the device models of a machine (``harness.device``), as the harness starts and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine import loop
from harness.machine.launcher import guarded
from harness.machine.spec import SERVED, DeviceSpec

_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from harness.device.process import main; main()"
_END_SECONDS = 5.0
_SHORTEST = 0.001  # 0 would mean not to wait at all, which is another error


class RequestRefusedError(InfrastructureError):
    """The process is there, and will not do what it was asked for."""


class Sockets:
    """Listening sockets, one for each function, that only this user's processes reach and only QEMU is told of.

    They are files of the run folder. QEMU gets the folder as a descriptor, because the name of a unix socket has at
    most 107 bytes; and the names are removed as soon as it has connected.
    """

    def __init__(self, folder: Path, devices: Iterable[DeviceSpec]) -> None:
        """Make them; raises InfrastructureError."""
        self.listeners: dict[str, socket.socket] = {}
        self._folder = -1
        try:
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            for device in devices:
                self.listeners[device.name] = listener = _bound(self.path(device.name))
                Path(self.path(device.name)).chmod(0o600)
                listener.listen(1)
        except OSError as error:
            self.close()
            raise InfrastructureError(f"no socket for a device: {os.strerror(error.errno or 0)}") from error

    @property
    def descriptor(self) -> int:
        """The folder's descriptor, which QEMU must inherit."""
        return self._folder

    def path(self, name: str) -> str:
        """Where a process that has the descriptor finds a device's socket."""
        return f"/proc/self/fd/{self._folder}/{name}.vfio-user"

    def close(self) -> None:
        """Give up this process's own ends, and remove the names."""
        for name, listener in self.listeners.items():
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))  # noqa: PTH108 - a name below a descriptor
        self.listeners.clear()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


class DeviceServer:
    """The process; made by :meth:`start`. Any thread may ask it.

    Attributes:
        names: the devices that it serves.
    """

    def __init__(
        self, names: tuple[str, ...], process: asyncio.subprocess.Process, control: socket.socket, errors: Path
    ) -> None:
        self.names = names
        self._process = process
        self._control = control
        self._stream = control.makefile("rb")
        self._lock = threading.Lock()
        self._errors = errors
        self._broken = ""

    @classmethod
    def start(cls, devices: Sequence[DeviceSpec], sockets: Sockets, folder: Path, deadline: Deadline) -> DeviceServer:
        """Start it; it serves the sockets of the devices.

        Args:
            devices: the functions that it serves.
            sockets: a listening socket for each.
            folder: for what it prints.
            deadline: until when it must have been started.
        """
        ours, theirs = socket.socketpair()
        errors = folder / "devices.stderr"
        listeners = {device.name: sockets.listeners[device.name].fileno() for device in devices}
        functions = [{"name": one.name, "model": one.model, "fd": listeners[one.name]} for one in devices]
        wanted = json.dumps({"functions": functions, "control": theirs.fileno()})
        root = str(Path(harness.__file__).parents[1])
        argv = guarded([sys.executable, "-I", "-S", "-c", _PROGRAM, root, wanted])
        try:
            process = loop.call(_spawn(argv, [theirs.fileno(), *listeners.values()], errors), deadline)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(tuple(listeners), process, ours, errors)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, do: str, function: str, deadline: Deadline, **more: Any) -> dict[str, Any]:
        """Ask it something; see :mod:`harness.device.process`.

        Raises:
            RequestRefusedError: it refused.
            InfrastructureError: it has ended.
            TimeoutError: no answer in time.
        """
        request = json.dumps({"do": do, "function": function, **more}).encode() + b"\n"
        with self._lock:
            if self._broken:
                raise self._ended()
            try:
                self._control.settimeout(max(deadline.remaining, _SHORTEST))
                self._control.sendall(request)
                line = self._stream.readline()
            except TimeoutError:
                # Its answer may still come, and would be taken for that to the next request.
                self._broken = f"it did not answer {do} within {deadline.budget:g} s"
                raise
            except (OSError, ValueError) as error:  # ValueError: stop() has closed it
                raise self._ended() from error
        if not line.endswith(b"\n"):
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise RequestRefusedError(f"the device model refused {do}: {answer['error']}")
        return answer

    def _ended(self) -> InfrastructureError:
        if self._broken:
            return InfrastructureError(f"the process of the device models can be asked no more: {self._broken}")
        text = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        last = text.splitlines()[-1] if text else "it said nothing"
        return InfrastructureError(
            f"the process of the device models ended: {last}", hint=f"all that it said is in {self._errors}"
        )

    def hang_up(self) -> None:
        """Ask nothing more: who waits for an answer waits no longer, and the process ends by itself."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End it. May be called twice."""
        self.hang_up()
        with self._lock:
            self._stream.close()
            self._control.close()
        if self._process.returncode is None:
            try:
                loop.call(self._process.wait(), Deadline.after(_END_SECONDS))
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                loop.call(self._process.wait(), Deadline.after(_END_SECONDS))


@dataclass(frozen=True, slots=True)
class Served:
    """What QEMU is started with, and the process that serves it.

    Args:
        paths: name of each device to the path of its socket.
        descriptors: what QEMU must inherit for these paths.
        server: the process; None where no device needs it.
    """

    paths: Mapping[str, str]
    descriptors: tuple[int, ...]
    server: DeviceServer | None


@contextlib.contextmanager
def served(folder: Path, devices: Iterable[DeviceSpec], deadline: Deadline) -> Iterator[Served]:
    """Serve the devices of a machine whose models are no part of QEMU, while QEMU is started.

    The sockets' names are gone afterwards; the process goes on, unless the block fails.

    Args:
        folder: the run folder.
        devices: the machine's devices.
        deadline: until when the process must have been started.

    Raises:
        InfrastructureError: there is no socket, or the process cannot be started.
    """
    wanted = [device for device in devices if device.model in SERVED]
    if not wanted:
        yield Served({}, (), None)
        return
    sockets = Sockets(folder, wanted)
    try:
        server = DeviceServer.start(wanted, sockets, folder, deadline)
        try:
            yield Served({one.name: sockets.path(one.name) for one in wanted}, (sockets.descriptor,), server)
        except BaseException:
            server.stop()
            raise
    finally:
        sockets.close()


def _bound(path: str) -> socket.socket:
    """A socket that has made its name, which is nobody else's then; raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    return sock


async def _spawn(argv: list[str], pass_fds: list[int], output: Path) -> asyncio.subprocess.Process:
    with output.open("wb") as stderr:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
