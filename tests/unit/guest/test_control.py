"""The control port over a socket pair."""

from __future__ import annotations

import socket
import threading

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.control import ControlPort, PortClosedError


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
    thread = guest_answers(theirs, "ready WORD2 ssh-ed25519 AAAA\n")
    identity = control.identify("6.12.1 2.5", "ssh-ed25519 KEY", Deadline.after(5))
    thread.join()
    assert identity.host_key == "ssh-ed25519 AAAA"
    assert len(identity.nonce) == 32


def test_a_guest_with_another_nonce_is_refused(ends):
    control, theirs = ends
    thread = guest_answers(theirs, "ready other ssh-ed25519 AAAA\n")
    with pytest.raises(InfrastructureError, match="nonce"):
        control.identify("", "ssh-ed25519 KEY", Deadline.after(5))
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
