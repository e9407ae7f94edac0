from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent.kernel_log import LOST, KernelLog, decode, parse

DMAR = b"3,512,4123456,-;DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0x900000\n SUBSYSTEM=pci\n"


class FakeLog:
    """A socket that keeps records apart, as /dev/kmsg does."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.theirs = theirs
        self.log = KernelLog(theirs.fileno(), self.write)

    def write(self, text: str) -> None:
        self.record(f"14,600,5000000,-;{text}\n".encode())

    def record(self, record: bytes) -> None:
        self.ours.sendall(record)


@pytest.fixture
def fake() -> Iterator[FakeLog]:
    one = FakeLog()
    yield one
    one.ours.close()
    one.theirs.close()


def test_a_record_is_read() -> None:
    text = "DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0x900000"
    assert parse(DMAR) == ("    4.123456", [text])


def test_time_is_written_as_the_kernel_does() -> None:
    assert parse(b"6,1,0,-;x\n")[0] == "    0.000000"
    assert parse(b"6,1,123456000007,-,caller=T1;x;y\n") == ("123456.000007", ["x;y"])


def test_escapes() -> None:
    assert decode(rb"a\x0ab\x5cx41 \xc3\xa4") == "a\nb\\x41 ä"
    assert decode(rb"\xzz \x") == "\\xzz \\x"
    assert parse(rb"6,1,1000000,-;one\x0atwo")[1] == ["one", "two"]


def test_lines_since_the_mark_without_our_own(fake: FakeLog) -> None:
    fake.record(b"6,1,1,-;boot noise\n")
    marker = fake.log.mark()
    fake.record(DMAR)
    fake.record(rb"6,1,5000001,-;one\x0atwo" + b"\n")
    lines = fake.log.since(marker)
    assert lines == [
        "[    4.123456] DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0x900000",
        "[    5.000001] one",
        "[    5.000001] two",
    ]
    assert fake.log.since(marker) == lines
    assert fake.log.since(None) == ["[    0.000001] boot noise", *lines]


def test_an_unknown_mark_is_a_defect(fake: FakeLog) -> None:
    with pytest.raises(KeyError):
        fake.log.since("other")


def test_an_overrun_is_told(fake: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = fake.log.mark()
    fake.record(DMAR)
    read, failures = os.read, [BrokenPipeError()]

    def overrun(fd: int, size: int) -> bytes:
        if failures:
            raise failures.pop()
        return read(fd, size)

    monkeypatch.setattr(os, "read", overrun)
    assert fake.log.since(marker)[0] == f"[    5.000000] {LOST}"
    assert len(fake.log.since(marker)) == 2


def test_a_mark_that_the_kernel_dropped_does_not_hang(fake: FakeLog) -> None:
    marker = fake.log.mark()
    fake.record(DMAR)
    silent = KernelLog(fake.theirs.fileno(), lambda text: None)
    assert len(silent.since(None)) == 1
    assert fake.log.since(marker) == []


def test_the_log_is_opened_at_its_end(tmp_path: Path) -> None:
    """A file takes the place of /dev/kmsg; what is written there goes to its start."""
    path = tmp_path / "kmsg"
    boot = b"6,1,1,-;boot noise\n" * 20
    path.write_bytes(boot)
    log = KernelLog.open(str(path))
    with path.open("ab") as file:
        file.write(DMAR)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert log.since(None) == ["[    4.123456] DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0x900000"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "the mark was written through a descriptor of its own"
    assert path.read_bytes().startswith(f"<6>harness: mark {os.getpid()}.1\n".encode())
    os.close(log._fd)


def test_the_log_is_opened_so_that_no_read_waits(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.touch()
    log = KernelLog.open(str(path))
    assert not os.get_blocking(log._fd)
    assert not os.get_inheritable(log._fd)
    os.close(log._fd)


def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KernelLog.open(str(tmp_path / "none"))
