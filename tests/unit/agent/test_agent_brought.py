"""What the host brings into a running guest: the C library as a file, the test module into the kernel."""

from __future__ import annotations

import base64
import ctypes
import errno
from pathlib import Path
from typing import Any

import pytest

from harness.agent import brought, libusdm
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.kernel_log import KernelLog

DATA = bytes(range(256))


class Kernel:
    """A kernel that takes a module, or says why not in its log."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.error = 0
        self.log: list[str] = []

    def syscall(self, number: int, data: bytes, size: Any, parameters: bytes) -> int:
        assert (number, size.value, parameters) == (175, len(data), b"")
        self.taken.append(data)
        ctypes.set_errno(self.error)
        return -1 if self.error else 0

    def open(self) -> Kernel:
        return self

    def mark(self) -> str:
        return "mark"

    def since(self, marker: str) -> list[str]:
        assert marker == "mark"
        return self.log


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(brought, "_libc", kernel)
    monkeypatch.setattr(KernelLog, "open", kernel.open)
    return kernel


def ask(kind: str, **args: str) -> dict[str, Any]:
    return execute(Context(), kind, {**args, "data": base64.b64encode(DATA).decode()})


def test_the_library_is_where_the_implementation_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(libusdm, "FILE", str(tmp_path / "libusdm.so"))
    assert ask("_library")["error"] is None
    assert (tmp_path / "libusdm.so").read_bytes() == DATA


def test_the_module_is_given_to_the_kernel(kernel: Kernel):
    assert ask("_module", name="test_module")["error"] is None
    assert kernel.taken == [DATA]


def test_why_the_kernel_does_not_take_it_is_in_its_log(kernel: Kernel):
    kernel.error = errno.ENOEXEC
    kernel.log = ["[    1.0] usb: new device", "[    1.0] test_module: version magic '1' should be '2'"]
    assert ask("_module", name="test_module")["error"] == {
        "type": "ModuleRefused",
        "message": "Exec format error; [    1.0] test_module: version magic '1' should be '2'",
    }


def test_a_kernel_that_says_nothing_leaves_the_error(kernel: Kernel):
    kernel.error = errno.EPERM
    assert ask("_module", name="test_module")["error"] == {
        "type": "ModuleRefused",
        "message": "Operation not permitted",
    }
