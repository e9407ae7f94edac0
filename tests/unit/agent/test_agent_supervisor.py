"""The supervisor in a process of its own, with the host's real end of the control port, an SSH port that is a terminal,
and the test in the place of the SSH server."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import supervisor
from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.control import ControlPort, PortClosedError
from harness.guest.ssh import make_host_key

GIVE_UP = 60.0
CLIENT_KEY = "ssh-ed25519 AAAAC3Nz"

# Stands for the guest: no path, port or request to the kernel is that of the machine on which the test runs. What
# happens is written down in the order in which it does, by whichever process does it.
RUNNER = """
import json, os, select, socket, sys
payload, control, folder, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
if control != 3:
    os.dup2(control, 3)
    os.close(control)
sys.path.insert(0, payload)
from types import SimpleNamespace
from harness.agent import identity, supervisor

def note(text):
    fd = os.open(folder + "/noted", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)

def asked(what):
    note(what)
    if settings["refused"] == what:
        raise PermissionError(what)

def create_server(address, real=socket.create_server):
    assert address == ("127.0.0.1", 1), address
    server = real(("127.0.0.1", 0))
    note("listens %d" % server.getsockname()[1])
    return server

def create_connection(address, real=socket.create_connection):
    assert address == ("127.0.0.1", 22), address
    note("connects")
    return real(("127.0.0.1", settings["sshd"]))

class Poll:
    def __init__(self):
        self.real = select.poll()
        self.register = self.real.register

    def poll(self, *timeout):
        ready = self.real.poll(*timeout)
        for _ in ready:
            note("wakes")
        return ready

def start_worker(real=supervisor.start_worker):
    worker = real()
    note("worker %d" % worker[0])
    return worker

def write_secret(path, data, real=identity.write_secret):
    note("writes " + path.rpartition("/")[2])
    real(path, data)

names = {0x40085203: "entropy", 0x5207: "reseed"}
identity.fcntl = SimpleNamespace(ioctl=lambda fd, request, argument=b"": asked(names[request]))
identity.time = SimpleNamespace(CLOCK_REALTIME=0, clock_settime=lambda clock, seconds: asked("clock"))
identity.HOST_KEY, identity.AUTHORIZED_KEYS = folder + "/etc/host_key", folder + "/root/client_key"
identity.write_secret = supervisor.write_secret = write_secret
supervisor.NONCE, supervisor.WORKER_STDERR = folder + "/run/nonce", folder + "/worker.stderr"
supervisor.socket = SimpleNamespace(**{**vars(socket), "create_server": create_server,
                                       "create_connection": create_connection})
supervisor.select = SimpleNamespace(**{**vars(select), "poll": Poll})
supervisor.start_worker = start_worker
supervisor.set_priority = lambda nice: note("nice %d" % nice)
supervisor.settle = lambda: note("settles")
supervisor._DEATH_MILLISECONDS = settings["death"]
sys.argv = ["supervisor.py", settings["port"]]
sys.exit(supervisor.main())
"""


def soon() -> Deadline:
    return Deadline.after(GIVE_UP)


class Guest:
    """The supervisor's process, and all that is around it."""

    def __init__(self, payload: Path, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.sshd = socket.create_server(("127.0.0.1", 0))
        self.sshd.settimeout(GIVE_UP)
        self.sock, theirs = socket.socketpair()
        self.control = ControlPort(self.sock)
        programs = folder / "bin"
        programs.mkdir()
        dropbear = f'#!/bin/sh\necho "$@" > {folder}/dropbear\nexit {settings.pop("dropbear", 0)}\n'
        (programs / "dropbear").write_text(dropbear)
        (programs / "dropbear").chmod(0o755)
        all_settings = {"refused": "", "death": 30_000, "sshd": self.sshd.getsockname()[1], "port": os.ttyname(slave)}
        arguments = [str(payload), str(theirs.fileno()), str(folder), json.dumps({**all_settings, **settings})]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUNNER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": f"{programs}:/usr/bin:/bin"},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        os.close(slave)

    def line(self) -> str:
        return self.control.read_line(soon())

    def noted(self, word: str = "") -> list[str]:
        """What has happened so far, or the rest of the notes that begin with a word."""
        lines = (self.folder / "noted").read_text().splitlines()
        return [line.removeprefix(word).strip() for line in lines if line.startswith(word)]

    @property
    def worker(self) -> int:
        return int(self.noted("worker")[0])

    def answers_at_once(self) -> bool:
        """Whether what it says next is the answer to what it is asked now, for which it wakes up once."""
        wakes = []
        for number in range(4):
            self.control.write_line(f"ping {number}")
            if self.line() != f"pong {number}":
                return False
            wakes.append(len(self.noted("wakes")))
        return wakes[-1] == wakes[0] + 3

    def become(self) -> tuple[str, socket.socket]:
        """Give it an identity; returns the nonce and the SSH server's end of its connection."""
        identity = self.control.identify("", make_host_key(), CLIENT_KEY, soon())
        server, _ = self.sshd.accept()
        server.settimeout(GIVE_UP)
        return identity.nonce, server

    def host_reads(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(self.master, size - len(data))
        return data

    def wait(self) -> tuple[int, str]:
        """Wait for its end; returns its status and what it said beside the control port."""
        said, _ = self.process.communicate(timeout=GIVE_UP)
        return self.process.returncode, said.decode()

    def end(self) -> None:
        self.process.kill()
        self.wait()
        for pid in self.noted("worker") if (self.folder / "noted").exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.sock.close()
        self.sshd.close()
        with contextlib.suppress(OSError):
            os.close(self.master)


class Guests:
    """Starts guests."""

    def __init__(self, payload: Path, folder: Path) -> None:
        self.payload, self.folder = payload, folder
        self.started: list[Guest] = []

    def __call__(self, **settings: Any) -> Guest:
        self.started.append(Guest(self.payload, self.folder, **settings))
        return self.started[-1]


@pytest.fixture
def start(payload: Path, tmp_path: Path) -> Iterator[Guests]:
    guests = Guests(payload, tmp_path)
    yield guests
    for one in guests.started:
        one.end()


@pytest.fixture
def guest(start: Guests) -> Guest:
    one = start()
    assert one.line() == "up"
    return one


# ---- start


def test_the_ssh_server_lets_in_keys_only_and_listens_on_the_loopback(guest: Guest) -> None:
    words = (guest.folder / "dropbear").read_text().split()
    assert {"-R", "-s", "-k"} < set(words)
    assert words[words.index("-p") + 1] == "127.0.0.1:22"
    assert not (guest.folder / "etc").exists(), "no key is made before the identity"


def test_an_ssh_server_that_does_not_start_is_told(start: Guests) -> None:
    guest = start(dropbear=1)
    assert guest.line() == "failed the SSH server did not start"
    assert guest.wait() == (1, "")


def test_the_end_of_the_control_port_ends_it(guest: Guest) -> None:
    guest.sock.close()
    assert guest.wait() == (0, "")


def test_the_end_of_the_control_port_ends_it_in_the_middle_of_a_line(guest: Guest) -> None:
    guest.sock.sendall(b"ping hal")
    guest.sock.close()
    assert guest.wait() == (0, "")


def test_the_worker_does_not_keep_the_control_port_open(guest: Guest) -> None:
    guest.control.prepare(soon())
    guest.process.kill()
    with pytest.raises(PortClosedError):
        guest.line()
    os.kill(guest.worker, 0)


def test_the_worker_is_in_a_session_of_its_own(guest: Guest) -> None:
    guest.control.prepare(soon())
    assert os.getsid(guest.worker) == guest.worker


# ---- prepare


def test_prepared_is_said_when_the_worker_has_loaded_everything(guest: Guest) -> None:
    guest.control.prepare(soon())
    notes = guest.noted()
    assert [note for note in notes if note.startswith("nice")] == ["nice 19", "nice 0"]
    assert notes.index("nice 0") < notes.index("settles")
    assert guest.answers_at_once(), "it said so once, and has nothing to do any more"
    guest.control.prepare(soon())
    assert guest.noted().count("settles") == 2


def test_a_worker_that_cannot_load_is_told_by_prepare(start: Guests) -> None:
    (start.payload / "usdm/driver.py").write_text("def broken(:\n")
    guest = start()
    assert guest.line() == "up"
    with pytest.raises(InfrastructureError, match="ended with exit status 1: SyntaxError") as caught:
        guest.control.prepare(soon())
    assert "driver.py" in caught.value.context["worker"]


def test_prepare_waits_for_the_end_of_the_ssh_connection(guest: Guest) -> None:
    guest.control.prepare(soon())
    _, server = guest.become()
    guest.control.write_line("prepare")
    assert guest.answers_at_once()
    server.close()
    assert guest.line() == "prepared"
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.read(guest.master, 1)


# ---- ping and worker


def test_a_worker_that_hangs_hinders_no_answer(start: Guests) -> None:
    """It hangs while it loads, before `prepare` could be answered."""
    (start.payload / "usdm/driver.py").write_text("import signal\nwhile True: signal.pause()\n")
    guest = start(death=1)
    assert guest.line() == "up"
    guest.control.write_line("prepare")
    guest.sock.sendall(b"ping a\nping b\n")
    assert [guest.line(), guest.line()] == ["pong a", "pong b"]
    assert guest.control.worker_end(soon()) is None
    server = guest.become()[1]
    assert guest.control.ping(soon())
    server.close()


def test_how_the_worker_ended_is_told_again_and_again(guest: Guest) -> None:
    guest.control.prepare(soon())
    (guest.folder / "worker.stderr").write_bytes(b"first\n" + b"x" * 20_000 + b"\xff\nlast\n")
    os.kill(guest.worker, signal.SIGKILL)
    for _ in range(2):
        end = guest.control.worker_end(soon())
        assert end is not None
        assert end.status == -signal.SIGKILL
        assert end.stderr.endswith("x\ufffd\nlast\n")
        assert end.stderr.count("x") == 16 * 1024 - len(b"\xff\nlast\n")
    assert guest.control.ping(soon())
    with pytest.raises(ProcessLookupError):
        os.kill(guest.worker, 0)


def test_a_worker_that_crashes_leaves_its_last_words(guest: Guest) -> None:
    guest.control.prepare(soon())
    os.kill(guest.worker, signal.SIGSEGV)
    end = guest.control.worker_end(soon())
    assert end is not None
    assert end.status == -signal.SIGSEGV
    assert "Segmentation fault" in end.stderr
    assert "in run" in end.stderr, "faulthandler names the place"


def test_a_worker_that_cannot_load_is_told_without_prepare(start: Guests) -> None:
    (start.payload / "usdm/iova.py").write_text("raise RuntimeError('no such luck')\n")
    guest = start()
    assert guest.line() == "up"
    end = guest.control.worker_end(soon())
    assert end is not None
    assert end.message == "the worker in the guest ended with exit status 1: RuntimeError: no such luck"


def test_a_worker_that_said_nothing_has_an_empty_word(guest: Guest) -> None:
    guest.control.prepare(soon())
    os.kill(guest.worker, signal.SIGTERM)
    guest.sock.sendall(b"worker\n")
    end = guest.control.worker_end(soon())
    assert end is not None
    assert (end.status, end.stderr) == (-signal.SIGTERM, "")


def test_a_worker_that_has_ended_since_it_was_loaded_is_told_by_prepare(guest: Guest) -> None:
    guest.control.prepare(soon())
    os.kill(guest.worker, signal.SIGKILL)
    assert guest.control.worker_end(soon()) is not None
    with pytest.raises(InfrastructureError, match="by signal 9"):
        guest.control.prepare(soon())
    assert guest.answers_at_once(), "the end of its pipe is seen once"


@pytest.mark.parametrize(
    "noise", [b"\n", b"dance\n", b"ping\n", b"ping a b\n", b"identity x\n", b"\xff\xfe\0\n", b" \n"]
)
def test_a_line_that_is_no_request_is_left_out(guest: Guest, noise: bytes) -> None:
    guest.sock.sendall(noise + b"ping a\n")
    assert guest.line() == "pong a"


def test_lines_come_in_pieces_and_several_at_once(guest: Guest) -> None:
    guest.sock.sendall(b"pi")
    guest.sock.sendall(b"ng a\nping")
    assert guest.line() == "pong a"
    guest.sock.sendall(b" b\nping c\nping " + b"d" * 10_000)
    assert [guest.line(), guest.line()] == ["pong b", "pong c"]
    guest.sock.sendall(b"\n")
    assert guest.line() == "pong " + "d" * 10_000


# ---- identity


def test_the_identity_is_taken_on_in_order_before_ready(guest: Guest) -> None:
    host_key = make_host_key()
    before = len(guest.noted())
    identity = guest.control.identify("hello", host_key, CLIENT_KEY, soon())
    notes = [note for note in guest.noted()[before:] if not note.startswith(("nice", "wakes"))]
    assert notes == ["entropy", "reseed", "clock", "writes host_key", "writes client_key", "writes nonce", "connects"]
    folder = guest.folder
    assert (folder / "etc/host_key").read_bytes() == base64.b64decode(host_key.secret)
    assert (folder / "root/client_key").read_text() == CLIENT_KEY + "\n"
    assert (folder / "run/nonce").read_text() == identity.nonce
    assert (folder / "run/nonce").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("refused", ["entropy", "reseed", "clock"])
def test_a_guest_that_cannot_be_of_its_own_is_none(start: Guests, refused: str) -> None:
    guest = start(refused=refused)
    assert guest.line() == "up"
    with pytest.raises(PortClosedError):
        guest.control.identify("", make_host_key(), CLIENT_KEY, soon())
    status, said = guest.wait()
    assert status == 1
    assert said.splitlines()[-1] == f"PermissionError: {refused}"
    assert guest.noted("writes") == guest.noted("connects") == []


def test_a_guest_without_its_ssh_server_is_not_ready(guest: Guest) -> None:
    guest.sshd.close()
    with pytest.raises(PortClosedError):
        guest.control.identify("", make_host_key(), CLIENT_KEY, soon())
    assert "ConnectionRefusedError" in guest.wait()[1]


def test_bytes_go_both_ways_between_the_port_and_the_ssh_server(guest: Guest) -> None:
    _, server = guest.become()
    os.write(guest.master, b"SSH-2.0-host\r\n\0\xff\x03\x04")
    assert server.recv(100) == b"SSH-2.0-host\r\n\0\xff\x03\x04"
    server.sendall(b"SSH-2.0-guest\r\n\0\xff\x13")
    assert guest.host_reads(18) == b"SSH-2.0-guest\r\n\0\xff\x13"
    assert guest.control.ping(soon())
    server.close()


def test_the_ssh_server_is_told_when_the_host_is_gone(guest: Guest) -> None:
    guest.control.prepare(soon())
    _, server = guest.become()
    os.close(guest.master)
    assert server.recv(1) == b""
    guest.control.write_line("prepare")
    assert guest.answers_at_once(), "a port without a host is not waited for over and over"
    server.close()
    assert guest.line() == "prepared"


def test_a_rehearsal_leaves_nothing_to_the_guests_after_it(guest: Guest) -> None:
    """First identity, worker used, end of the connection, `prepare`; then another identity, as in each clone."""
    port = int(guest.noted("listens")[0])
    nonces = []
    for _ in range(2):
        guest.control.prepare(soon())
        nonce, server = guest.become()
        nonces.append(nonce)
        with socket.create_connection(("127.0.0.1", port), GIVE_UP) as client:
            assert json.loads(client.makefile().readline())["nonce"] == nonce
        os.write(guest.master, b"hello")
        assert server.recv(5) == b"hello"
        server.close()
    assert nonces[0] != nonces[1]
    assert guest.noted("entropy") == ["", ""]


# ---- what is replaced above


def test_priority_is_that_of_the_process_and_of_its_session() -> None:
    code = (
        "import os; from harness.agent.supervisor import set_priority; set_priority(7); "
        "print(os.getpriority(os.PRIO_PROCESS, 0)); path = '/proc/self/autogroup'; "
        "print(open(path).read().split()[-1] if os.path.exists(path) else 7)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, start_new_session=True
    ).stdout
    assert out.split() == ["7", "7"]


class Clock:
    """A guest's idle time as it goes on with each wait."""

    def __init__(self, waits: list[int]) -> None:
        self.waits, self.idle, self.done = waits, 1000, 0

    def sleep(self, seconds: float) -> None:
        self.idle += self.waits[min(self.done, len(self.waits) - 1)]
        self.done += 1


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ([5], 6),
        ([4, 0, 5], 8),
        ([5, 5, 5, 5, 5, 4, 6], 12),
        ([0], 40),
    ],
    ids=["idle", "soon idle", "not idle for long enough", "never idle"],
)
def test_the_guest_settles_when_it_was_idle_for_a_while(
    monkeypatch: pytest.MonkeyPatch, waits: list[int], expected: int
) -> None:
    clock = Clock(waits)
    monkeypatch.setattr(supervisor, "_idle", lambda: clock.idle)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    supervisor.settle()
    assert clock.done == expected


def test_idle_time_is_read_from_the_kernel() -> None:
    ticks = int(Path("/proc/stat").read_text().split()[4])
    assert supervisor._idle() >= ticks
