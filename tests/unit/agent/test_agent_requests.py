"""The harness's own requests to the worker: `_begin` and `_end`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.agent import requests
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.kernel_log import KernelLog
from harness.agent.outcome import StepError

STDERR = 64 * 1024


class Log(KernelLog):
    """A log that has the lines that are told to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.marks: dict[str, int] = {}

    def mark(self) -> str:
        name = f"mark {len(self.marks)}"
        self.marks[name] = len(self.lines)
        return name

    def since(self, marker: str | None) -> list[str]:
        assert marker is not None
        return self.lines[self.marks[marker] :]


class Kernel:
    """What `_begin` asks of the guest, in its order."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.calls: list[tuple[object, ...]] = []
        self.missing = ""

    def scan(self, address: str, replaced: bool) -> None:
        self.calls.append(("scan", address, replaced))
        self.log.lines.append(f"pci {address}: found")
        if address == self.missing:
            raise StepError(f"the guest has no PCI function {address}")

    def open(self) -> KernelLog:
        self.calls.append(("open",))
        return self.log


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel(Log())
    monkeypatch.setattr(requests.pci, "scan", one.scan)
    monkeypatch.setattr(requests.KernelLog, "open", one.open)
    monkeypatch.setattr(requests, "_stderr", lambda: "said")
    return one


def test_begin_takes_in_the_devices_and_then_marks_the_log(kernel: Kernel) -> None:
    context = Context()
    answer = execute(context, "_begin", {"devices": {"a": "00:05.0", "b": "02:00.0"}, "replaced": ["00:05.0"]})
    assert answer["error"] is None
    assert kernel.calls == [("scan", "00:05.0", True), ("scan", "02:00.0", False), ("open",)]
    assert context.addresses == {"a": "00:05.0", "b": "02:00.0"}
    kernel.log.lines.append("DMAR: fault")
    answer = execute(context, "_end", {})
    assert answer["values"] == {"kernel_log": ["DMAR: fault"], "stderr": "said"}


def test_begin_does_not_look_for_vfs_and_remembers_their_pfs(kernel: Kernel) -> None:
    context = Context()
    devices = {"pf": "02:00.0", "vf": "02:01.2"}
    assert execute(context, "_begin", {"devices": devices, "vfs": {"vf": "pf"}, "replaced": []})["error"] is None
    assert kernel.calls == [("scan", "02:00.0", False), ("open",)]
    assert (context.addresses, context.pf_of) == (devices, {"vf": "pf"})


def test_begin_without_devices_looks_for_none(kernel: Kernel) -> None:
    """As in the rehearsal of a template."""
    assert execute(Context(), "_begin", {"devices": {}, "replaced": []})["error"] is None
    assert kernel.calls == [("open",)]


def test_a_missing_device_is_told_and_nothing_begins(kernel: Kernel) -> None:
    context, kernel.missing = Context(), "02:00.0"
    answer = execute(context, "_begin", {"devices": {"edu0": "02:00.0"}, "replaced": []})
    assert answer["error"] == {"type": "StepError", "message": "the guest has no PCI function 02:00.0"}
    assert execute(context, "_end", {})["error"] == {"type": "StepError", "message": "_end without _begin"}


def test_end_may_be_asked_again_for_more(kernel: Kernel) -> None:
    context = Context()
    execute(context, "_begin", {"devices": {}, "replaced": []})
    for number in range(2):
        kernel.log.lines.append(f"line {number}")
        assert len(execute(context, "_end", {})["values"]["kernel_log"]) == number + 1


# ---- standard error, of a process of its own

CODE = """
import json, sys
from harness.agent import requests
from harness.agent.context import Context
from harness.agent.kernel_log import KernelLog
context = Context()
context.kernel_log = KernelLog(0, lambda text: None)
context.log_start = context.kernel_log.mark()
sys.stderr.write(sys.argv[1] * int(sys.argv[2]))
print(json.dumps(requests.end(context, {}).values["stderr"]))
"""


def stderr_of(stderr: object, text: str = "", times: int = 1) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE, text, str(times)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,  # type: ignore[call-overload]
        text=True,
        check=True,
    ).stdout.strip()


def test_what_the_worker_said_is_read_from_its_file(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        assert stderr_of(file, "said without end of line") == '"said without end of line"'
    with (tmp_path / "stderr").open("ab") as file:
        assert stderr_of(file, " and more").endswith('without end of line and more"')
    assert (tmp_path / "stderr").read_text().endswith("line and more"), "reading moves nothing"


def test_only_the_end_of_much_is_read(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        file.write(b"first")
        file.flush()
        assert stderr_of(file, "x", STDERR - 3) == f'"rst{"x" * (STDERR - 3)}"'


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        file.write(b"\xff!")
        file.flush()
        assert stderr_of(file) == '"\\ufffd!"'


@pytest.mark.parametrize("stderr", [subprocess.DEVNULL, subprocess.PIPE])
def test_where_standard_error_is_no_file_there_is_nothing_to_read(stderr: int) -> None:
    assert stderr_of(stderr, "said") == '""'


def test_a_worker_that_said_nothing(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        assert stderr_of(file) == '""'
