"""The supervisor itself, in a process of its own, with the payload laid out as in the guest."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS = 60.0
"""Only ends a test that would hang."""

RUNNER = """
import json, os, sys
settings = json.loads(sys.argv[2])
os.dup2(settings["control"], 3)
if settings["control"] != 3:
    os.close(settings["control"])
sys.path.insert(0, settings["payload"])
import harness.agent.supervisor as supervisor
assert supervisor.PAYLOAD == settings["payload"]
supervisor.WORKER_STDERR, supervisor.NONCE = settings["stderr"], settings["nonce"]
supervisor.WORKER_PORT = settings["worker_port"]
supervisor._SSH = ("127.0.0.1", settings["ssh_port"])
supervisor._DROPBEAR = (settings["dropbear"],)
supervisor._DEATH_MILLISECONDS = settings["death"]
supervisor.settle = lambda: None
def adopt(*given):
    with open(settings["adopted"], "x") as file:
        json.dump([*given, os.path.exists(settings["nonce"])], file)
supervisor.adopt = adopt
start = supervisor.start_worker
def start_worker():
    started = start()
    with open(settings["worker"], "w") as file:
        file.write(str(started[0]))
    return started
supervisor.start_worker = start_worker
sys.exit(supervisor.main())
"""


class Supervisor:
    """The process, the host's end of its control port, and the SSH server that it finds."""

    def __init__(self, payload: Path, *, dropbear: str = "true", death: int = 100) -> None:
        self.folder = payload.parent
        self.sshd = socket.create_server(("127.0.0.1", 0))
        self.sshd.settimeout(SECONDS)
        self.master, self.ssh_port = pty.openpty()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.worker_port = free.getsockname()[1]
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(SECONDS)
        settings = {
            "control": theirs.fileno(),
            "payload": str(payload),
            "stderr": str(self.folder / "worker.stderr"),
            "nonce": str(self.folder / "nonce"),
            "worker": str(self.folder / "worker.pid"),
            "adopted": str(self.folder / "adopted"),
            "worker_port": self.worker_port,
            "ssh_port": self.sshd.getsockname()[1],
            "dropbear": dropbear,
            "death": death,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUNNER, os.ttyname(self.ssh_port), json.dumps(settings)],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self._buffer = b""

    def line(self) -> str:
        while b"\n" not in self._buffer:
            data = self.sock.recv(4096)
            if not data:
                assert self.process.stderr is not None
                pytest.fail(f"the supervisor ended: {self.process.stderr.read().decode()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def say(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\n")

    def ask(self, text: str) -> str:
        self.say(text)
        return self.line()

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait(self) -> tuple[int, str]:
        """Wait for its end; returns the exit status and what it wrote to standard error."""
        _, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, err.decode()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        # The guest ends with its supervisor, and so do its workers; here they would stay.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int((self.folder / "worker.pid").read_text())
            if str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        self.sock.close()
        self.sshd.close()
        os.close(self.master)
        os.close(self.ssh_port)


Start = Callable[..., Supervisor]


@pytest.fixture
def start(payload: Path) -> Iterator[Start]:
    made: list[Supervisor] = []

    def one(**options: object) -> Supervisor:
        made.append(Supervisor(payload, **options))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for supervisor in made:
        supervisor.end()


@pytest.fixture
def up(start: Start) -> Supervisor:
    one = start()
    assert one.line() == "up"
    return one


def stderr_of(answer: str) -> tuple[str, str]:
    """Everything but the last word, and the last one decoded."""
    head, _, said = answer.rpartition(" ")
    return head, base64.b64decode(said, validate=True).decode()


def test_a_ping_comes_back_with_its_token(up: Supervisor) -> None:
    assert up.ask("ping x") == "pong x"
    assert up.ask("ping 0a1b") == "pong 0a1b"


def test_half_lines_and_two_lines_at_once(up: Supervisor) -> None:
    up.sock.sendall(b"ping a\nping b\npi")
    assert [up.line(), up.line()] == ["pong a", "pong b"]
    up.sock.sendall(b"ng c")
    up.sock.sendall(b"\n")
    assert up.line() == "pong c"


def test_what_it_does_not_know_is_passed_over(up: Supervisor) -> None:
    up.sock.sendall(b"\nnonsense\nping\nping a b\nidentity x\n\xff\xfe\n")
    assert up.ask("ping x") == "pong x"


def test_prepared_as_often_as_it_is_asked(up: Supervisor) -> None:
    """A template asks twice: before and after the rehearsal."""
    assert [up.ask("prepare"), up.ask("prepare")] == ["prepared", "prepared"]
    assert up.ask("worker") == "worker running"


def test_the_worker_is_alive_then_killed(up: Supervisor) -> None:
    assert up.ask("prepare") == "prepared"
    assert up.ask("worker") == "worker running"
    (worker,) = up.children
    os.kill(worker, signal.SIGKILL)
    assert up.ask("worker") == "worker ended -9 "
    assert up.ask("worker") == "worker ended -9 ", "asked again, when its process is gone"
    assert up.children == []
    assert up.ask("ping x") == "pong x"


def test_a_worker_that_crashes_leaves_its_last_words(up: Supervisor) -> None:
    assert up.ask("prepare") == "prepared"
    (worker,) = up.children
    os.kill(worker, signal.SIGSEGV)
    head, said = stderr_of(up.ask("worker"))
    assert head == "worker ended -11"
    assert "Segmentation fault" in said
    assert "in run" in said, "faulthandler names the place"


def test_only_the_end_of_a_long_standard_error_is_sent(up: Supervisor) -> None:
    assert up.ask("prepare") == "prepared"
    (worker,) = up.children
    (up.folder / "worker.stderr").write_bytes(b"a" * 20_000 + b"the end")
    os.kill(worker, signal.SIGKILL)
    head, said = stderr_of(up.ask("worker"))
    assert head == "worker ended -9"
    assert len(said) == 16 * 1024
    assert said.endswith("aaathe end")


def test_a_syntax_error_in_usdm_is_told(payload: Path, start: Start) -> None:
    (payload / "usdm" / "iova.py").write_text("def broken(:\n")
    one = start(death=int(SECONDS * 1000))
    assert one.line() == "up"
    head, said = stderr_of(one.ask("prepare"))
    assert head == "worker ended 1"
    assert "SyntaxError" in said
    assert "iova.py" in said
    assert one.ask("ping x") == "pong x"


def test_a_missing_name_in_usdm_is_told_without_being_asked_to_prepare(payload: Path, start: Start) -> None:
    (payload / "usdm" / "iova.py").write_text("raise RuntimeError('no such luck')\n")
    one = start(death=int(SECONDS * 1000))
    assert one.line() == "up"
    head, said = stderr_of(one.ask("worker"))
    assert head == "worker ended 1"
    assert "RuntimeError: no such luck" in said


def identify(one: Supervisor, nonce: str = "00112233") -> socket.socket:
    assert one.ask(f"identity {nonce} 1.5 00 AAAA ssh-ed25519 KEY") == f"ready {nonce}"
    server, _ = one.sshd.accept()
    server.settimeout(SECONDS)
    return server


def test_an_identity_is_adopted_before_the_guest_is_ready(up: Supervisor) -> None:
    with identify(up):
        assert json.loads((up.folder / "adopted").read_text()) == ["1.5", "00", "AAAA", "ssh-ed25519 KEY", False]
        nonce = up.folder / "nonce"
        assert nonce.read_text() == "00112233"
        assert nonce.stat().st_mode & 0o777 == 0o600


def test_the_worker_greets_with_the_nonce(up: Supervisor) -> None:
    assert up.ask("prepare") == "prepared"
    worker = ("127.0.0.1", up.worker_port)
    with identify(up, "feedface"), socket.create_connection(worker, SECONDS) as client, client.makefile("rb") as lines:
        assert json.loads(lines.readline())["nonce"] == "feedface"


def test_the_port_and_the_ssh_server_are_connected(up: Supervisor) -> None:
    tty.setraw(up.ssh_port)
    with identify(up) as server:
        os.write(up.master, b"SSH-2.0-client")
        assert server.recv(100) == b"SSH-2.0-client"
        server.sendall(b"SSH-2.0-server")
        assert os.read(up.master, 100) == b"SSH-2.0-server"
        assert up.ask("ping x") == "pong x"


def test_prepare_waits_for_the_end_of_the_connection(up: Supervisor) -> None:
    server = identify(up)
    up.say("prepare")
    assert up.ask("ping x") == "pong x", "not prepared while somebody is logged in"
    server.close()
    assert up.line() == "prepared"
    (up.folder / "adopted").unlink()
    with identify(up, "22"):
        assert (up.folder / "nonce").read_text() == "22"


def test_it_ends_with_the_control_port(up: Supervisor) -> None:
    assert up.ask("ping x") == "pong x"
    up.sock.close()
    assert up.wait() == (0, "")


def test_without_an_ssh_server_it_says_so_and_ends(start: Start) -> None:
    one = start(dropbear="false")
    assert one.line() == "failed the SSH server did not start"
    assert one.wait()[0] == 1
