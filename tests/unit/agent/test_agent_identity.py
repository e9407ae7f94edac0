"""How a guest becomes a guest of its own: what is asked of the kernel, in which order, and what is written."""

from __future__ import annotations

import base64
import errno
import os
import stat
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent import identity

ENTROPY = bytes(range(32))
SECRET = b"a private key\0in dropbear's format"
CLIENT = "ssh-ed25519 AAAAC3Nz"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


class Kernel:
    """Records what is asked of the kernel; `refuses` is the request that fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuses: int | str | None = None
        self.keys: list[Path] = []

    def ioctl(self, fd: int, request: int, argument: bytes = b"") -> int:
        self._note(("ioctl", str(Path(f"/proc/self/fd/{fd}").readlink()), request, argument), request)
        return 0

    def clock_settime(self, clock: int, seconds: float) -> None:
        self._note(("clock", clock, seconds), "clock")

    def _note(self, call: tuple[Any, ...], what: int | str) -> None:
        assert not any(path.exists() for path in self.keys), "a key was written before"
        self.calls.append(call)
        if what == self.refuses:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel()
    host, client = tmp_path / "etc/dropbear/host_key", tmp_path / "root/.ssh/authorized_keys"
    one.keys = [host, client]
    monkeypatch.setattr(identity, "HOST_KEY", str(host))
    monkeypatch.setattr(identity, "AUTHORIZED_KEYS", str(client))
    monkeypatch.setattr(identity, "fcntl", SimpleNamespace(ioctl=one.ioctl))
    clock = SimpleNamespace(clock_settime=one.clock_settime, CLOCK_REALTIME=time.CLOCK_REALTIME)
    monkeypatch.setattr(identity, "time", clock)
    return one


def adopt() -> None:
    identity.adopt("1700000000.25", ENTROPY.hex(), base64.b64encode(SECRET).decode(), CLIENT)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_random_generator_then_clock_then_keys(kernel: Kernel) -> None:
    adopt()
    assert kernel.calls == [
        ("ioctl", "/dev/urandom", RNDADDENTROPY, struct.pack("ii", 256, 32) + ENTROPY),
        ("ioctl", "/dev/urandom", RNDRESEEDCRNG, b""),
        ("clock", time.CLOCK_REALTIME, 1700000000.25),
    ]
    assert [path.read_bytes() for path in kernel.keys] == [SECRET, CLIENT.encode() + b"\n"]


@pytest.mark.parametrize("length", [0, 1, 33])
def test_every_bit_is_credited(kernel: Kernel, length: int) -> None:
    identity.reseed(bytes(length))
    assert kernel.calls[0][3] == struct.pack("ii", 8 * length, length) + bytes(length)
    assert kernel.calls[1][2] == RNDRESEEDCRNG


def test_the_keys_are_roots_alone(kernel: Kernel) -> None:
    old = os.umask(0)
    try:
        adopt()
    finally:
        os.umask(old)
    assert [mode(path) for path in kernel.keys] == [0o600, 0o600]
    assert mode(kernel.keys[1].parent) == 0o700


@pytest.mark.parametrize("request_code", [RNDADDENTROPY, RNDRESEEDCRNG, "clock"])
def test_no_key_is_written_when_the_kernel_refuses(kernel: Kernel, request_code: int | str) -> None:
    kernel.refuses = request_code
    before = open_files()
    with pytest.raises(PermissionError):
        adopt()
    assert not any(path.exists() for path in kernel.keys)
    assert open_files() == before, "the generator's device was left open"


def test_a_secret_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "key"
    identity.write_secret(str(path), b"the rehearsal's key, longer")
    identity.write_secret(str(path), b"own")
    assert path.read_bytes() == b"own"
    assert mode(path) == 0o600


def test_entropy_that_is_none_is_refused_before_anything(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        identity.adopt("1.5", "zz", "AAAA", CLIENT)
    assert kernel.calls == []
