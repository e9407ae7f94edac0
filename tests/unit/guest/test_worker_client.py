"""The host's end of the worker, over a real SSH connection to a server in this process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest

from harness.agent import supervisor
from harness.deadline import Deadline
from harness.errors import GuestLost, InfrastructureError
from harness.guest import worker as module
from harness.guest.ssh import SshConnection, make_key, public_line
from harness.guest.worker import Worker, WorkerLostError

GIVE_UP = 30.0
NONCE = "0" * 32
GREETING = {"nonce": NONCE, "python": "3.13.5", "kinds": ["map", "unmap"]}


def soon() -> Deadline:
    return Deadline.after(GIVE_UP)


class Server(paramiko.ServerInterface):
    """Lets one key in, and forwards to one port or to none."""

    def __init__(self, key: paramiko.PKey, port: int) -> None:
        self._key, self._port = key, port

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL if (username, key) == ("root", self._key) else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        if destination == ("127.0.0.1", self._port):
            return paramiko.OPEN_SUCCEEDED
        return paramiko.OPEN_FAILED_CONNECT_FAILED


class Guest:
    """An SSH server behind a socket pair, and the host's connection to it."""

    def __init__(self, port: int = module.WORKER_PORT) -> None:
        ours, theirs = socket.socketpair()
        key, host_key = make_key(), make_key()
        self.transport = paramiko.Transport(theirs)
        self.transport.add_server_key(host_key)
        self.transport.start_server(threading.Event(), Server(key, port))
        self.ssh = SshConnection(ours, key, public_line(host_key), soon())

    def accept(self) -> paramiko.Channel:
        """The worker's end of its connection."""
        channel = self.transport.accept(GIVE_UP)
        assert channel is not None
        channel.settimeout(GIVE_UP)
        return channel

    def connected(self, first: bytes, nonce: str = NONCE) -> tuple[Worker, paramiko.Channel]:
        """A worker whose first words are these."""
        ends: list[paramiko.Channel] = []

        def greet() -> None:
            ends.append(self.accept())
            ends[0].sendall(first)

        with meanwhile(greet):
            worker = Worker(self.ssh, nonce, soon())
        return worker, ends[0]

    def end(self) -> None:
        self.ssh.close()
        self.transport.close()


@contextlib.contextmanager
def meanwhile(what: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while the block runs; its error is the test's."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(GIVE_UP)
    assert not errors, errors


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    one.end()


def line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def test_both_sides_mean_the_same_port() -> None:
    assert module.WORKER_PORT == supervisor.WORKER_PORT


def test_the_greeting_tells_python_and_the_kinds_of_steps(guest: Guest) -> None:
    worker, _ = guest.connected(line(GREETING))
    assert (worker.python, worker.kinds) == ("3.13.5", {"map", "unmap"})


@pytest.mark.parametrize("greeting", [{**GREETING, "nonce": "1" * 32}, {}, {"nonce": None}])
def test_a_worker_with_another_nonce_is_refused(guest: Guest, greeting: dict[str, Any]) -> None:
    with pytest.raises(InfrastructureError, match="another run's nonce"):
        guest.connected(line(greeting))


def test_a_request_and_its_answer_are_a_line_each(guest: Guest) -> None:
    worker, end = guest.connected(line(GREETING))
    asked: list[dict[str, Any]] = []

    def answer() -> None:
        lines = end.makefile("rb")
        for number in range(2):
            asked.append(json.loads(lines.readline()))
            end.sendall(line({"returns": number, "values": {"text": "ä\n"}}))

    with meanwhile(answer):
        answers = [worker.request("fill", {"buffer": "ü"}, soon()), worker.request("_end", {}, soon())]
    assert asked == [{"kind": "fill", "args": {"buffer": "ü"}}, {"kind": "_end", "args": {}}]
    assert answers == [{"returns": number, "values": {"text": "ä\n"}} for number in range(2)]


def test_an_answer_in_pieces_and_larger_than_a_window(guest: Guest) -> None:
    worker, end = guest.connected(line(GREETING))
    large = {"values": {"kernel_log": ["x" * 100] * 50_000}}

    def answer() -> None:
        end.recv(1000)
        data = line(large)
        end.sendall(data[:1])
        end.sendall(data[1:-1])
        end.sendall(data[-1:])

    with meanwhile(answer):
        assert worker.request("_end", {}, soon()) == large


def test_what_comes_with_the_greeting_is_the_next_answer(guest: Guest) -> None:
    worker, _ = guest.connected(line(GREETING) + line({"returns": 1}))
    assert worker.request("map", {}, soon()) == {"returns": 1}


# ---- a worker that is not there any more


def test_nobody_listens() -> None:
    guest = Guest(port=module.WORKER_PORT + 1)
    with pytest.raises(WorkerLostError, match="SSH to the guest failed") as caught:
        Worker(guest.ssh, NONCE, soon())
    assert isinstance(caught.value.__cause__, GuestLost)
    assert guest.ssh.alive, "the guest itself is there, and can say why"
    guest.end()


@pytest.mark.parametrize("said", [b"", b'{"nonce": '])
def test_it_ends_before_its_greeting(guest: Guest, said: bytes) -> None:
    def leave() -> None:
        with guest.accept() as end:
            end.sendall(said)

    with meanwhile(leave), pytest.raises(WorkerLostError):
        Worker(guest.ssh, NONCE, soon())


def test_it_ends_instead_of_an_answer(guest: Guest) -> None:
    worker, end = guest.connected(line(GREETING))

    def leave() -> None:
        end.recv(1000)
        end.sendall(b'{"returns"')
        end.close()

    with meanwhile(leave), pytest.raises(WorkerLostError, match="connection ended"):
        worker.request("map", {}, soon())
    with pytest.raises(WorkerLostError, match="connection ended"):
        worker.request("map", {}, soon())
    assert guest.ssh.alive


def test_the_end_of_the_whole_connection_is_also_its_end(guest: Guest) -> None:
    worker, end = guest.connected(line(GREETING))

    def leave() -> None:
        end.recv(1000)
        guest.transport.close()

    with meanwhile(leave), pytest.raises(WorkerLostError):
        worker.request("map", {}, soon())


# ---- a worker that does not answer, or not as it should


def test_no_greeting_in_time(guest: Guest) -> None:
    with pytest.raises(TimeoutError):
        Worker(guest.ssh, NONCE, Deadline.after(0.1))


def test_a_worker_that_says_something_all_the_time_ends_no_later(guest: Guest) -> None:
    worker, _ = guest.connected(line(GREETING))

    class Chatter:
        def settimeout(self, seconds: float) -> None:
            pass

        def sendall(self, data: bytes) -> None:
            pass

        def recv(self, size: int) -> bytes:
            return b"x" * size

    worker._channel.close()
    worker._channel = Chatter()  # type: ignore[assignment]
    with pytest.raises(TimeoutError):
        worker.request("map", {}, Deadline.after(0))


def test_half_an_answer_in_time_and_the_rest_later(guest: Guest) -> None:
    worker, end = guest.connected(line(GREETING))
    end.sendall(b'{"returns": ')
    with pytest.raises(TimeoutError):
        worker.request("map", {}, Deadline.after(0.1))
    end.sendall(b"7}\n")
    assert worker._read(soon()) == {"returns": 7}


def test_a_request_that_is_not_taken_in_time(guest: Guest) -> None:
    worker, _ = guest.connected(line(GREETING))
    with pytest.raises(TimeoutError):
        worker.request("fill", {"pattern": "x" * (8 << 20)}, Deadline.after(0.1))


@pytest.mark.parametrize(
    ("said", "message"),
    [(b"Traceback\n", "no JSON: b'Traceback'"), (b"\xff\n", "no JSON"), (b"[1]\n", "no JSON object")],
)
def test_an_answer_that_is_none_is_quoted(guest: Guest, said: bytes, message: str) -> None:
    worker, end = guest.connected(line(GREETING))
    end.sendall(said)
    with pytest.raises(InfrastructureError, match=message):
        worker.request("map", {}, soon())


def test_an_endless_answer_is_refused(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 100_000)
    worker, end = guest.connected(line(GREETING))
    end.sendall(b"x" * 100_001)
    with pytest.raises(InfrastructureError, match="endless"):
        worker.request("map", {}, soon())
