"""The process beside QEMU, as the harness starts and asks it; and the lines that it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from client import CONFIG, Client, connected, listening, within
from sample import Sample

from harness.deadline import Deadline
from harness.device import wire
from harness.device.process import MODELS, Process
from harness.device.wire import Command
from harness.errors import InfrastructureError
from harness.machine.device_server import DeviceServer, Sockets, served
from harness.machine.emulator import Emulator
from harness.machine.spec import DeviceSpec

DEVICES = (DeviceSpec("qat0", "qat", "02:00.0"), DeviceSpec("qat1", "qat_vf", "02:00.1"))


def soon() -> Deadline:
    return Deadline.after(20)


# ---- the lines


async def asked(process: Process, **request: Any) -> dict[str, Any]:
    return await process.answer(json.dumps(request).encode())


def test_news_of_a_function_before_with_and_after_a_client() -> None:
    async def whole() -> None:
        with listening() as listener:
            functions = [{"name": "qat0", "model": "qat", "fd": os.dup(listener.fileno())}]
            process = Process(functions, asyncio.get_running_loop())
            first = await asked(process, do="news", function="qat0")
            assert first == {
                "ok": True,
                "connected": False,
                "clients": [],
                "transfers": [],
                "more": 0,
                "mappings": 0,
                "generation": 0,
                "failure": "",
                "ranges": [],
            }
            client = await connected(listener)
            await client.hello()
            await client.map(0x1000, 0x2000)
            news = await asked(process, do="news", function="qat0")
            assert (news["connected"], news["mappings"], news["ranges"]) == (True, 1, [[0x1000, 0x2000, "rw"]])
            assert "ranges" not in await asked(process, do="news", function="qat0"), "only where they have changed"
            lost = asyncio.Event()
            process.servers["qat0"].on_lost = lost.set
            await client.close()
            await within(lost.wait())
            news = await asked(process, do="news", function="qat0")
            assert (news["connected"], news["ranges"]) == (False, [])
            assert news["clients"] == ["the client closed the connection"]
            process.servers["qat0"].close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"\xff",
        b"{}",
        b'{"function": "nobody", "do": "news"}',
        b'{"function": "qat0"}',
        b'{"function": ["qat0"], "do": "news"}',
        b'{"function": "qat0", "do": "dance"}',
        b'{"function": "qat0", "do": "misbehave"}',
        b'{"function": "qat0", "do": "misbehave", "how": "badly"}',
        b'{"function": "qat0", "do": "misbehave", "how": "wrong_requester", "through": "nobody"}',
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_a_line(line: bytes) -> None:
    async def whole() -> None:
        with listening() as listener:
            functions = [{"name": "qat0", "model": "qat", "fd": os.dup(listener.fileno())}]
            process = Process(functions, asyncio.get_running_loop())
            answer = await process.answer(line)
            assert (answer["ok"], bool(answer["error"])) == (False, True)
            process.servers["qat0"].close()

    asyncio.run(whole())


def test_a_model_that_does_nothing_wrong_cannot_be_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        with listening() as listener:
            functions = [{"name": "s", "model": "sample", "fd": os.dup(listener.fileno())}]
            process = Process(functions, asyncio.get_running_loop())
            assert (await asked(process, do="news", function="s"))["ok"]
            for request in ({"do": "release"}, {"do": "misbehave", "how": "hold"}):
                assert not (await asked(process, function="s", **request))["ok"]
            process.servers["s"].close()

    monkeypatch.setitem(MODELS, "sample", Sample)
    asyncio.run(whole())


# ---- the process


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[DeviceServer, dict[str, socket.socket]]]:
    """The process, and a client's socket for each function, connected as QEMU is: while the names are there."""
    clients = {}
    with served(tmp_path, DEVICES, soon()) as started:
        for name, path in started.paths.items():
            assert len(path) < 60, "whatever the run folder is called"
            clients[name] = socket.socket(socket.AF_UNIX)
            clients[name].connect(path)
    assert started.server is not None
    assert not list(tmp_path.glob("*.vfio-user")), "the names are gone"
    yield started.server, clients
    for sock in clients.values():
        sock.close()
    started.server.stop()


def test_every_function_has_a_client_of_its_own(
    running: tuple[DeviceServer, dict[str, socket.socket]], tmp_path: Path
) -> None:
    server, sockets = running

    async def whole() -> list[bytes]:
        found = []
        for sock in sockets.values():
            client = Client(sock)
            await client.hello()
            found.append(await client.read(CONFIG, 0, 4))
        return found

    assert asyncio.run(whole()) == [struct.pack("<HH", 0x8086, number) for number in (0x4940, 0x4941)]
    server.stop()
    server.stop()
    assert not Path(f"/proc/{server.pid}").exists()
    assert (tmp_path / "devices.stderr").exists()


def test_a_function_that_vanishes_leaves_the_other(
    running: tuple[DeviceServer, dict[str, socket.socket]],
) -> None:
    server, sockets = running
    for sock in sockets.values():
        sock.sendall(wire.message(1, Command.VERSION, bytes(4)))
        assert wire.header(sock.recv(4096)[:16]).id == 1
    server.ask("vanish", "qat0", soon())
    assert sockets["qat0"].recv(1) == b""
    assert server.ask("news", "qat0", soon())["connected"] is False
    assert server.ask("news", "qat1", soon())["connected"] is True
    with pytest.raises(InfrastructureError, match="refused dance: ValueError: nothing is known of 'dance'"):
        server.ask("dance", "qat1", soon())


def test_a_process_that_was_killed_is_named(running: tuple[DeviceServer, dict[str, socket.socket]]) -> None:
    server, sockets = running
    os.kill(server.pid, signal.SIGKILL)
    with contextlib.suppress(ConnectionResetError):  # where it had not been accepted
        assert sockets["qat0"].recv(1) == b""
    with pytest.raises(InfrastructureError, match="the process of the device models ended: it said nothing"):
        server.ask("news", "qat0", soon())


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(
    running: tuple[DeviceServer, dict[str, socket.socket]],
) -> None:
    server, _ = running
    assert server.ask("news", "qat0", soon())["mappings"] == 0
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        server.ask("news", "qat0", Deadline.after(0))
    os.kill(server.pid, signal.SIGCONT)
    with pytest.raises(InfrastructureError, match="can be asked no more: it did not answer news"):
        server.ask("news", "qat0", soon())


def waiting(server: DeviceServer) -> tuple[threading.Thread, list[Exception]]:
    """Who asks a process that stands still, and what came of it."""
    os.kill(server.pid, signal.SIGSTOP)
    problems: list[Exception] = []
    asking = threading.Event()

    def ask() -> None:
        asking.set()
        try:
            server.ask("news", "qat0", soon())
        except InfrastructureError as error:
            problems.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asking.wait(10)
    return thread, problems


def test_who_waits_for_an_answer_waits_no_longer_when_it_is_stopped(
    running: tuple[DeviceServer, dict[str, socket.socket]],
) -> None:
    server, _ = running
    server.ask("news", "qat0", soon())
    thread, problems = waiting(server)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    thread.join(15)
    os.kill(server.pid, signal.SIGCONT)
    stopping.join(15)
    assert not thread.is_alive()
    assert not stopping.is_alive()
    assert len(problems) == 1


def test_who_waits_for_an_answer_waits_no_longer_when_all_is_killed(
    running: tuple[DeviceServer, dict[str, socket.socket]], tmp_path: Path
) -> None:
    """By Ctrl-C, which kills QEMU and waits for nothing."""
    server, _ = running
    server.ask("news", "qat0", soon())
    thread, problems = waiting(server)
    Emulator.kill(cast("Emulator", Dead(server)))
    thread.join(15)
    os.kill(server.pid, signal.SIGCONT)
    assert not thread.is_alive()
    assert len(problems) == 1


class Dead:
    """An emulator whose QEMU has ended."""

    running = False

    def __init__(self, devices: DeviceServer) -> None:
        self.devices = devices


def test_the_socket_of_another_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    theirs = tmp_path / "qat1.vfio-user"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(theirs.name)
        with pytest.raises(InfrastructureError, match="no socket for a device: Address already in use"):
            Sockets(tmp_path, DEVICES)
        assert theirs.is_socket()
    assert list(tmp_path.iterdir()) == [theirs], "what was made before is taken away"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no socket for a device: No such file"):
        Sockets(tmp_path / "none", DEVICES)
