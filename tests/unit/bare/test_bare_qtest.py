"""The qtest client against the other end of its socket: answers, refusals, silence and a QEMU that ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from harness.bare.qtest import Qtest, QtestClosed
from harness.deadline import Deadline
from harness.errors import GuestHang, InfrastructureError


@pytest.fixture
def ends() -> Iterator[tuple[Qtest, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Qtest(ours, Deadline.after(20.0)), theirs


def test_answers_are_read_line_by_line(ends: tuple[Qtest, socket.socket]) -> None:
    qtest, qemu = ends
    qemu.sendall(b"OK 0x0000000000000010\nIRQ raise 5\nOK 0x0102\nOK\n")
    assert qtest.read32(0xFED90000) == 0x10
    assert qtest.read(0x1000, 2) == b"\x01\x02"
    qtest.write(0x1000, b"\xab\xcd")
    assert qemu.recv(4096) == b"readl 0xfed90000\nread 0x1000 0x2\nwrite 0x1000 0x2 0xabcd\n"


@pytest.mark.parametrize("answer", [b"FAIL Unknown command 'readl'\n", b"nonsense\n", b"OKAY\n"])
def test_a_refusal_is_an_error(ends: tuple[Qtest, socket.socket], answer: bytes) -> None:
    qtest, qemu = ends
    qemu.sendall(answer)
    with pytest.raises(InfrastructureError, match="QEMU refused 'readl 0x0'"):
        qtest.read32(0)


def test_the_end_of_qemu_ends_the_wait(ends: tuple[Qtest, socket.socket]) -> None:
    qtest, qemu = ends
    qemu.close()
    with pytest.raises(QtestClosed):
        qtest.read32(0)


def test_silence_ends_with_the_deadline(ends: tuple[Qtest, socket.socket]) -> None:
    qtest, _ = ends
    qtest.deadline = Deadline.after(0.01)
    with pytest.raises(GuestHang, match="did not answer 'readl 0x0'"):
        qtest.read32(0)
