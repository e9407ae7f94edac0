"""Why a wait on a guest ended, with a QEMU that only pretends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.deadline import Deadline
from harness.errors import BootError, EmulatorCrash, GuestHang, GuestLost, GuestPanic, HarnessError
from harness.guest.control import PortClosedError, WorkerEnd
from harness.guest.guest import Guest
from harness.guest.triage import Phase, diagnose, explained_boot
from harness.guest.worker import WorkerLostError
from harness.machine.emulator import Exit
from harness.machine.spec import MachineSpec

PANIC = "[    1.0] Kernel panic - not syncing: Attempted to kill init!"
ENDED = WorkerEnd(-11, "Fatal Python error: Segmentation fault\n")


@dataclass
class Qemu:
    """An emulator and a control port: `how` is how it has ended, or None while it runs."""

    folder: Path
    how: Exit | None = None
    dies: Exit | None = None
    answers: bool | Exception = True
    worker: WorkerEnd | Exception | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    waited: bool = False

    def __post_init__(self) -> None:
        (self.folder / "console").write_text("booting\nlast line\n")

    @property
    def files(self) -> Any:
        return SimpleNamespace(console=self.folder / "console")

    @property
    def running(self) -> bool:
        return self.how is None

    def wait(self, deadline: Deadline) -> None:
        """Its exit status comes a moment after its streams have ended."""
        self.waited = True
        self.how = self.how or self.dies
        if self.how is None:
            raise TimeoutError

    def stop(self) -> Exit:
        assert self.how is not None, "a guest that runs is not ended to find out what it does"
        return self.how

    def ping(self, deadline: Deadline) -> bool:
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def worker_end(self, deadline: Deadline) -> WorkerEnd | None:
        if isinstance(self.worker, Exception):
            raise self.worker
        return self.worker


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    return Qemu(tmp_path)


def ended(status: int, stderr: str = "", reason: str | None = None) -> Exit:
    return Exit(status, reason, False, False, stderr)


def why(qemu: Qemu, phase: Phase, cause: Exception) -> HarnessError:
    return diagnose(cast("Any", qemu), cast("Any", qemu), phase, "step 3 (map)", cause)


LOST = GuestLost("SSH to the guest failed")
CASES: dict[str, tuple[Exit | None, Phase, Exception, type[HarnessError], str]] = {
    "crash": (ended(-11, "one\nbad\n"), Phase.READY, LOST, EmulatorCrash, r"signal 11 while step 3 \(map\): bad$"),
    "status": (ended(1), Phase.BOOTING, LOST, EmulatorCrash, "status 1 while"),
    "off": (ended(0, reason="guest-shutdown"), Phase.READY, LOST, GuestLost, "switched itself off .*guest-shutdown"),
    "off in boot": (ended(0), Phase.BOOTING, TimeoutError(), BootError, "switched itself off .*no reason given"),
    "boot": (None, Phase.BOOTING, TimeoutError(), BootError, "not ready in time while step 3"),
    "boot lost": (None, Phase.BOOTING, PortClosedError("closed"), BootError, "not ready in time"),
    "lost": (None, Phase.READY, LOST, GuestLost, "connection to the guest ended .*: SSH to the guest failed"),
    "hang": (None, Phase.READY, TimeoutError(), GuestHang, "did not end in time; the guest itself still answers"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_it_was(qemu: Qemu, name: str) -> None:
    qemu.how, phase, cause, expected, message = CASES[name]
    error = why(qemu, phase, cause)
    assert type(error) is expected
    with pytest.raises(expected, match=message):
        raise error
    assert error.context["console"] == "booting\nlast line"


@pytest.mark.parametrize("answers", [False, PortClosedError("closed")])
def test_a_guest_that_does_not_answer_a_ping_hangs_itself(qemu: Qemu, answers: bool | Exception) -> None:
    qemu.answers = answers
    error = why(qemu, Phase.READY, TimeoutError())
    assert type(error) is GuestHang
    assert error.message == "the guest does not answer any more while step 3 (map)"


@pytest.mark.parametrize("how", [ended(0, reason="guest-reset"), ended(-6, "abort"), ended(1)])
@pytest.mark.parametrize("phase", Phase)
def test_a_panic_comes_before_all_that_it_leads_to(qemu: Qemu, how: Exit, phase: Phase) -> None:
    qemu.how = how
    qemu.files.console.write_text(f"booting\n{PANIC}\ntrace\n" + "after\n" * 100)
    error = why(qemu, phase, LOST)
    assert type(error) is GuestPanic
    assert error.message.endswith(PANIC)
    assert error.context["console"].splitlines()[:3] == [PANIC, "trace", "after"]
    assert len(error.context["console"].splitlines()) == 40


def test_a_panic_that_only_the_device_told(qemu: Qemu) -> None:
    qemu.how, qemu.events = ended(0), [{"event": "STOP"}, {"event": "GUEST_PANICKED"}]
    error = why(qemu, Phase.READY, LOST)
    assert type(error) is GuestPanic
    assert "pvpanic event" in error.message


def test_a_stream_that_ended_is_asked_whether_qemu_is_dying(qemu: Qemu) -> None:
    qemu.dies = ended(-9)
    assert type(why(qemu, Phase.READY, LOST)) is EmulatorCrash


def test_a_time_out_is_not_made_longer(qemu: Qemu) -> None:
    why(qemu, Phase.READY, TimeoutError())
    assert not qemu.waited


@pytest.mark.parametrize("cause", [TimeoutError(), PortClosedError("closed"), LOST])
def test_a_boot_says_what_was_waited_for(qemu: Qemu, cause: Exception) -> None:
    def boot() -> None:
        with explained_boot(cast("Any", qemu), cast("Any", qemu)) as doing:
            doing("booting")
            doing("loading it")
            raise cause

    with pytest.raises(BootError, match=r"while loading it$") as caught:
        boot()
    assert caught.value.__cause__ is cause


# ---- a worker that ended


def guest(qemu: Qemu) -> Guest:
    fields: Any = (MachineSpec(), True, qemu, qemu, None, None, {})
    one = Guest(*fields)

    class Lost:
        def request(self, *arguments: object) -> None:
            raise WorkerLostError("the worker's connection ended")

    one._worker = cast("Any", Lost())
    return one


def test_a_worker_that_ended_says_how(qemu: Qemu) -> None:
    qemu.worker = ENDED
    with pytest.raises(GuestLost, match="while step 1: the worker in the guest ended by signal 11: Fatal") as caught:
        guest(qemu).request("step 1", "map", {}, Deadline.after(5))
    assert caught.value.context == {"worker": ENDED.stderr, "console": "booting\nlast line"}


@pytest.mark.parametrize("worker", [None, TimeoutError(), PortClosedError("closed")], ids=["runs", "silent", "gone"])
def test_a_guest_that_cannot_say_how_its_worker_ended(qemu: Qemu, worker: Exception | None) -> None:
    qemu.worker = worker
    with pytest.raises(GuestLost, match=r"while step 1: the worker's connection ended$"):
        guest(qemu).request("step 1", "map", {}, Deadline.after(5))


def test_a_qemu_that_died_is_not_a_worker_that_ended(qemu: Qemu) -> None:
    qemu.worker, qemu.dies = PortClosedError("closed"), ended(-11)
    with pytest.raises(EmulatorCrash, match="signal 11 while step 1"):
        guest(qemu).request("step 1", "map", {}, Deadline.after(5))
