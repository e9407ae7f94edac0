"""Freezing and restoring, as QEMU is told it: with a monitor that answers as QEMU does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine import snapshot
from harness.machine.emulator import Emulator
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method, best_method, freeze, restore
from harness.machine.spec import DeviceSpec, MachineSpec

NO_SPACE = "Unable to write to file: " + os.strerror(errno.ENOSPC)


class Monitor:
    """Records commands; `ends` are the states that the migration goes through once it was asked for."""

    def __init__(self, ends: tuple[object, ...], reason: object) -> None:
        self.ends, self.reason = ends, reason
        self.calls: list[tuple[str, Any]] = []
        self.listening = False

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        self.calls.append((command, arguments))
        if command in ("migrate", "migrate-incoming"):
            assert self.listening, "its end would be missed"
        return self.reason if command == "query-migrate" else {}

    async def hand_over(self, name: str, file: int) -> None:
        os.fstat(file)
        self.calls.append(("hand_over", (name, Path(f"/proc/self/fd/{file}").readlink().name)))

    @contextlib.contextmanager
    def listen(self, event: str) -> Iterator[AsyncIterator[dict[str, object]]]:
        assert event == "MIGRATION"
        self.listening = True
        yield self._events()
        self.listening = False

    async def _events(self) -> AsyncIterator[dict[str, object]]:
        for end in self.ends:
            yield {"event": "MIGRATION", "data": {"status": end} if isinstance(end, str) else end}
        raise AssertionError("QEMU says nothing any more, and it is waited for")


class Machine:
    """What a snapshot uses of an emulator."""

    def __init__(self, *ends: object, reason: object = None) -> None:
        self.qmp = Monitor(ends or ("setup", "active", "completed"), reason)

    def run(self, coroutine: Coroutine[Any, Any, object], deadline: Deadline) -> object:
        return asyncio.run(coroutine)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.qmp.calls]

    def argument(self, command: str) -> Any:
        (found,) = [arguments for name, arguments in self.qmp.calls if name == command]
        return found


def build(machine_type: str = "pc-q35-11.1", *migration: str) -> Capabilities:
    return Capabilities(machine_type, True, {}, frozenset(migration))


Act = Callable[[Emulator, Capabilities, Method, Path, Deadline], None]


def act(how: Act, machine: Machine, capabilities: Capabilities, method: Method, state: Path) -> None:
    how(cast("Emulator", machine), capabilities, method, state, Deadline.after(60))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.write_bytes(b"frozen")
    return path


def test_ram_stays_in_its_file_where_the_build_can_leave_it() -> None:
    assert best_method(build("pc-q35-11.1", "events", "x-ignore-shared")) is Method.FILE
    assert best_method(build("pc-q35-11.1", "events", "ignore-shared")) is Method.STREAM
    assert best_method(build()) is Method.STREAM


@pytest.mark.parametrize("how", [freeze, restore])
@pytest.mark.parametrize("machine_type", ["pc-q35-8.2", "pc-q35-9.0", "pc-q35-10.0", "pc-q35-11.1"])
def test_a_build_that_knows_files_opens_it_itself(how: Act, machine_type: str, state: Path) -> None:
    machine = Machine()
    act(how, machine, build(machine_type), Method.FILE, state)
    assert "hand_over" not in machine.names
    command = "migrate" if how is freeze else "migrate-incoming"
    assert machine.argument(command) == {"uri": f"file:{state}"}


@pytest.mark.parametrize("how", [freeze, restore])
@pytest.mark.parametrize("machine_type", ["pc-q35-8.1", "pc-q35-7.2"])
def test_an_older_build_is_handed_an_open_file(how: Act, machine_type: str, state: Path) -> None:
    machine = Machine()
    act(how, machine, build(machine_type), Method.FILE, state)
    command = "migrate" if how is freeze else "migrate-incoming"
    assert machine.argument("hand_over") == ("state", "state")
    assert machine.argument(command) == {"uri": "fd:state"}
    assert machine.names.index("hand_over") < machine.names.index(command)


def test_a_machine_is_stopped_before_it_is_written(tmp_path: Path) -> None:
    machine = Machine()
    act(freeze, machine, build(), Method.FILE, tmp_path / "new")
    assert machine.names == ["stop", "migrate-set-capabilities", "migrate"]
    assert (tmp_path / "new").is_file()


def test_a_machine_runs_once_its_state_was_loaded(state: Path) -> None:
    machine = Machine()
    act(restore, machine, build(), Method.FILE, state)
    assert machine.names == ["migrate-set-capabilities", "migrate-incoming", "cont"]
    assert state.read_bytes() == b"frozen"


@pytest.mark.parametrize("how", [freeze, restore])
@pytest.mark.parametrize(
    ("method", "expected"), [(Method.FILE, ["events", "x-ignore-shared"]), (Method.STREAM, ["events"])]
)
def test_shared_ram_is_left_out_only_where_it_is_in_a_file(
    how: Act, method: Method, expected: list[str], state: Path
) -> None:
    machine = Machine()
    act(how, machine, build(), method, state)
    wanted = machine.argument("migrate-set-capabilities")["capabilities"]
    assert wanted == [{"capability": name, "state": True} for name in expected]


@pytest.mark.parametrize(("how", "verb"), [(freeze, "write"), (restore, "load")])
def test_a_failure_has_the_reason_that_qemu_gives(how: Act, verb: str, state: Path) -> None:
    machine = Machine("setup", "failed", reason={"status": "failed", "error-desc": "edu is not migratable"})
    with pytest.raises(InfrastructureError, match=f"could not {verb} its state: edu is not migratable") as caught:
        act(how, machine, build(), Method.FILE, state)
    assert caught.value.__cause__ is None
    assert "cont" not in machine.names


@pytest.mark.parametrize("reason", [None, {}, {"status": "failed"}, {"error-desc": ""}, "failed"])
def test_a_failure_without_a_reason(reason: object, state: Path) -> None:
    with pytest.raises(InfrastructureError, match="no reason given"):
        act(freeze, Machine("failed", reason=reason), build(), Method.FILE, state)


def test_a_full_disk_is_the_cause_of_a_failure(state: Path) -> None:
    machine = Machine("active", "failed", reason={"status": "failed", "error-desc": NO_SPACE})
    with pytest.raises(InfrastructureError, match="No space left on device") as caught:
        act(freeze, machine, build(), Method.STREAM, state)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC


def test_events_that_tell_no_end_are_passed_over(state: Path) -> None:
    machine = Machine("setup", None, "active", "device", "completed", "failed")
    act(restore, machine, build(), Method.FILE, state)
    assert machine.names[-1] == "cont"


def test_a_state_that_is_not_there_is_not_loaded(tmp_path: Path) -> None:
    machine = Machine()
    with pytest.raises(FileNotFoundError):
        act(restore, machine, build(), Method.FILE, tmp_path / "none")
    assert "migrate-incoming" not in machine.names


def test_versions_are_compared_as_numbers() -> None:
    assert build("pc-q35-10.0").version > build("pc-q35-8.2").version == snapshot._FILE_ADDRESS


@pytest.mark.parametrize(
    ("machine_type", "model", "can"),
    [
        *(("pc-q35-7.2", "edu", True), ("pc-q35-7.2", "nvme", False), ("pc-q35-10.0", "nvme", False)),
        *(("pc-q35-11.1", "nvme", True), ("pc-q35-12.0", "nvme", True)),
    ],
)
def test_which_builds_can_clone_a_machine_with_an_nvme(machine_type: str, model: str, can: bool) -> None:
    found = Capabilities(machine_type, True, {}, frozenset())
    spec = MachineSpec(devices=(DeviceSpec("edu0", "edu", "01:00.0"), DeviceSpec("a", model, "02:00.0")))  # type: ignore[arg-type]
    assert snapshot.can_load(found, spec) is can


def test_a_machine_with_amd_iommu_is_no_clone() -> None:
    found = Capabilities("pc-q35-11.1", True, {}, frozenset())
    assert snapshot.can_load(found, MachineSpec(iommu="virtio"))
    assert not snapshot.can_load(found, MachineSpec(iommu="amd"))
