"""QMP: qemu.qmp's asyncio client on a socket pair, with every message recorded as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, Message, QMPClient, QMPError

from harness.errors import InfrastructureError


@dataclass(slots=True)
class QmpLog:
    """Writes ``qmp.log``: one JSON object a line, ``{"t": seconds since start, "in"|"out": message}``.

    Args:
        path: the file.
        started: zero of its times.
        events: all events so far.
        on_event: told each event, on the loop thread.
    """

    path: Path
    started: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)
    on_event: Callable[[dict[str, Any]], None] | None = None

    def write(self, direction: str, message: Message) -> None:
        """Record one message and keep it when it is an event."""
        data = dict(message)
        if direction == "in" and "event" in data:
            self.events.append(data)
            if self.on_event is not None:
                self.on_event(data)
        line = json.dumps({"t": round(time.monotonic() - self.started, 6), direction: data})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class RecordingClient(QMPClient):
    """A QMP client whose messages all go to a log, events included, from the first byte on."""

    def __init__(self, name: str, log: QmpLog) -> None:
        super().__init__(name)
        self._log = log

    def _cb_inbound(self, msg: Message) -> Message:
        self._log.write("in", msg)
        return super()._cb_inbound(msg)

    def _cb_outbound(self, msg: Message) -> Message:
        self._log.write("out", msg)
        return super()._cb_outbound(msg)


class Qmp:
    """One QMP connection. All methods are coroutines of the loop thread.

    Args:
        name: for the log messages of the library.
        log: where every message is recorded.
    """

    def __init__(self, name: str, log: QmpLog) -> None:
        self.log = log
        self._client = RecordingClient(name, log)

    async def connect(self, sock: socket.socket) -> None:
        """Take the greeting and negotiate.

        Raises:
            InfrastructureError: the other end is no QMP server or went away.
        """
        try:
            await self._client.connect(sock)
        except (QMPError, OSError) as error:
            raise InfrastructureError(f"QEMU did not answer on QMP: {error}") from error

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Run one command and give its return value.

        Raises:
            InfrastructureError: QEMU refused the command, or ended meanwhile.
        """
        try:
            return await self._client.execute(command, arguments)
        except (QMPError, OSError) as error:
            raise InfrastructureError(f"QMP command '{command}' failed: {error}") from error

    async def hand_over(self, name: str, file: int) -> None:
        """Give QEMU an open file under a name, for arguments of the form ``fd:NAME``.

        Raises:
            InfrastructureError: QEMU did not take it.
        """
        try:
            self._client.send_fd_scm(file)
        except (QMPError, OSError) as error:
            raise InfrastructureError(f"QEMU did not take an open file: {error}") from error
        await self.execute("getfd", {"fdname": name})

    async def add_file(self, file: int) -> tuple[int, int]:
        """Give QEMU an open file as its own descriptor.

        Returns:
            The descriptor's number in QEMU, and the set that ``remove-fd`` closes it by.

        Raises:
            InfrastructureError: QEMU did not take it.
        """
        try:
            self._client.send_fd_scm(file)
        except (QMPError, OSError) as error:
            raise InfrastructureError(f"QEMU did not take an open file: {error}") from error
        added = await self.execute("add-fd")
        if not isinstance(added, dict):
            raise InfrastructureError(f"QEMU answered add-fd with {added!r}")
        return int(added["fd"]), int(added["fdset-id"])

    @contextlib.contextmanager
    def listen(self, event: str) -> Iterator[EventListener]:
        """The events of one name from now on."""
        with self._client.listener(event) as listener:
            yield listener

    async def drain(self) -> None:
        """Wait until the connection has ended, so that every event that QEMU sent is recorded."""
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection; an error that QEMU's end left behind is of no interest any more."""
        try:
            async with asyncio.timeout(2):
                await self._client.disconnect()
        except (QMPError, EOFError, OSError, TimeoutError) as error:
            self.log.write("in", Message({"closed": str(error) or type(error).__name__}))
