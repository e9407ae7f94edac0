"""The control port over a socket pair."""

from __future__ import annotations

import base64
import socket
import threading

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.control import ControlPort, HostKey, PortClosedError, WorkerEnd

HOST_KEY = HostKey(public="ssh-ed25519 AAAA", secret="c2VjcmV0")  # noqa: S106


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ControlPort(ours), theirs


def guest_answers(theirs: socket.socket, answer: str) -> threading.Thread:
    """A guest that reads one line and answers with ``answer`` in which WORD2 is the line's second word."""

    def serve() -> None:
        line = theirs.makefile().readline().split()
        theirs.sendall(answer.replace("WORD2", line[1]).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_hello_is_awaited_among_other_lines(ends):
    control, theirs = ends
    theirs.sendall(b"noise\nhello 6.12.1 2.5\n")
    assert control.wait_hello(Deadline.after(5)) == "6.12.1 2.5"


def test_a_guest_that_knows_the_nonce_is_ours(ends):
    control, theirs = ends
    thread = guest_answers(theirs, "noise\nready WORD2\n")
    identity = control.identify("6.12.1 2.5", HOST_KEY, "ssh-ed25519 KEY", Deadline.after(5))
    thread.join()
    assert identity.host_key == "ssh-ed25519 AAAA"
    assert len(identity.nonce) == 32


def test_a_guest_with_another_nonce_is_refused(ends):
    control, theirs = ends
    thread = guest_answers(theirs, "ready other\n")
    with pytest.raises(InfrastructureError, match="nonce"):
        control.identify("", HOST_KEY, "ssh-ed25519 KEY", Deadline.after(5))
    thread.join()


def test_a_line_in_pieces_survives_a_timeout(ends):
    control, theirs = ends
    theirs.sendall(b"half")
    with pytest.raises(TimeoutError):
        control.read_line(Deadline.after(0.05))
    theirs.sendall(b" whole\n")
    assert control.read_line(Deadline.after(5)) == "half whole"


def test_the_end_of_qemu_ends_the_wait(ends):
    control, theirs = ends
    theirs.close()
    with pytest.raises(PortClosedError):
        control.read_line(Deadline.after(60))
    with pytest.raises(PortClosedError):
        control.ping(Deadline.after(60))


def test_an_endless_line_is_refused(ends):
    control, theirs = ends
    thread = threading.Thread(target=theirs.sendall, args=(b"x" * 70_000,))
    thread.start()
    with pytest.raises(InfrastructureError, match="endless"):
        control.read_line(Deadline.after(5))
    thread.join()


def test_ping_wants_its_own_answer(ends):
    control, theirs = ends
    thread = guest_answers(theirs, "pong stale\npong WORD2\n")
    assert control.ping(Deadline.after(5))
    thread.join()
    assert not control.ping(Deadline.after(0.05))


def test_the_identity_that_is_sent_is_whole(ends):
    control, theirs = ends
    seen: list[list[str]] = []

    def serve() -> None:
        words = theirs.makefile().readline().split()
        seen.append(words)
        theirs.sendall(f"ready {words[1]}\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    control.identify("", HOST_KEY, "ssh-ed25519 KEY", Deadline.after(5))
    thread.join()
    ((word, _, epoch, entropy, secret, *key),) = seen
    assert (word, secret, key) == ("identity", HOST_KEY.secret, ["ssh-ed25519", "KEY"])
    assert float(epoch) > 1.7e9
    assert len(bytes.fromhex(entropy)) == 32


def test_the_payload_is_sent_whole_and_up_is_awaited(ends):
    control, theirs = ends
    data = bytes(range(256)) * 4096
    got = bytearray()

    def serve() -> None:
        file = theirs.makefile("rb")
        assert file.readline() == f"payload {len(data)}\n".encode()
        got.extend(file.read(len(data)))
        theirs.sendall(b"noise\nup\n")

    thread = threading.Thread(target=serve)
    thread.start()
    control.send_payload(data, Deadline.after(10))
    thread.join()
    assert got == data


def test_a_guest_that_takes_nothing_ends_in_time(ends):
    control, _ = ends
    with pytest.raises(TimeoutError):
        control.send_payload(bytes(8 << 20), Deadline.after(0.1))


@pytest.mark.parametrize(
    ("answer", "message", "context"),
    [
        ("failed the SSH server did not start", "the SSH server did not start", {}),
        (
            "worker ended 1 " + base64.b64encode(b"Traceback\nSyntaxError: no").decode(),
            "ended with exit status 1: SyntaxError: no",
            {"worker": "Traceback\nSyntaxError: no"},
        ),
        ("worker ended -9 ", "ended by signal 9$", {"worker": ""}),
    ],
)
def test_a_guest_that_cannot_be_prepared_says_why(ends, answer: str, message: str, context: dict[str, str]):
    control, theirs = ends
    theirs.sendall(f"{answer}\n".encode())
    with pytest.raises(InfrastructureError, match=message) as caught:
        control.prepare(Deadline.after(5))
    assert caught.value.context == context


def test_how_the_worker_ended(ends):
    control, theirs = ends
    theirs.sendall(b"pong stale\nworker running\n")
    assert control.worker_end(Deadline.after(5)) is None
    theirs.sendall(b"worker ended -11 " + base64.b64encode(b"Fatal\n") + b"\n")
    assert control.worker_end(Deadline.after(5)) == WorkerEnd(-11, "Fatal\n")


def test_no_two_guests_have_the_same_nonce_or_entropy(ends):
    control, theirs = ends
    lines = theirs.makefile()
    seen: list[str] = []

    def serve() -> None:
        for _ in range(2):
            words = lines.readline().split()
            seen.extend((words[1], words[3]))
            theirs.sendall(f"ready {words[1]}\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    identities = [control.identify("hello", HOST_KEY, "ssh-ed25519 KEY", Deadline.after(5)) for _ in range(2)]
    thread.join()
    assert len(set(seen)) == 4
    assert [identity.nonce for identity in identities] == seen[::2]
    assert identities[0].hello == "hello"


@pytest.mark.parametrize("wait", ["wait_hello", "prepare", "worker_end"])
def test_a_qemu_that_ends_without_having_read_what_was_sent_is_gone(ends, wait: str):
    control, theirs = ends
    control.write_line("ping x")
    theirs.close()
    with pytest.raises(PortClosedError):
        getattr(control, wait)(Deadline.after(60))


def test_a_guest_that_says_something_all_the_time_ends_no_later():
    class Chatter:
        def settimeout(self, seconds: float) -> None:
            pass

        def recv(self, size: int) -> bytes:
            return b"x"

    with pytest.raises(TimeoutError):
        ControlPort(Chatter()).read_line(Deadline.after(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "stderr", "message"),
    [
        (1, "one\ntwo\n", "with exit status 1: two"),
        (0, " \n", "with exit status 0"),
        (-6, "", "by signal 6"),
    ],
)
def test_how_the_worker_ended_in_one_line(status: int, stderr: str, message: str):
    assert WorkerEnd(status, stderr).message == f"the worker in the guest ended {message}"
