"""Making a template, with a machine that only pretends: what is done in which order, and what every failure leaves."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import BootError, GuestLost, InfrastructureError
from harness.guest import freeze
from harness.guest.control import Identity, PortClosedError
from harness.guest.guest import GuestPlan
from harness.guest.payload import Payload
from harness.machine.argv import Boot, Ram
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.machine.template import list_templates

PAGE = 4096
MEMORY = 1 << 20
HELLO = "6.12.88 3.4"
CAPABILITIES = Capabilities(
    "pc-q35-11.1",
    True,
    {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits"})},
    frozenset({"x-ignore-shared"}),
)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usdm-harness"


def plan(tmp_path: Path, **more: Any) -> GuestPlan:
    behind, inside = DeviceSpec("a", "edu", "02:00.0"), DeviceSpec("b", "edu", "00:05.0")
    fields: dict[str, Any] = {
        "spec": MachineSpec(memory=MEMORY, devices=(behind, inside)),
        "boot": Boot(tmp_path / "vmlinux", tmp_path / "initrd", "image-key"),
        "build": QemuBuild("11.1", "11.1.3", "build-key", ("qemu",), {}, None),
        "capabilities": CAPABILITIES,
        "accelerator": "tcg",
        "payload": Payload(b"payload", "payload-key"),
        "folder": tmp_path / "run",
    }
    return GuestPlan(**{**fields, **more})


@dataclass
class Pretended:
    """A machine that notes what is done with it; `fails` is what goes wrong, by the name of what is done."""

    fails: dict[str, BaseException] = field(default_factory=dict)
    answer_error: dict[str, str] | None = None
    done: list[str] = field(default_factory=list)
    started: dict[str, Any] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    running: bool = True

    def note(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise self.fails[what]

    # Emulator

    def start(self, spec: MachineSpec, *more: object, ram: Ram | None) -> Pretended:
        self.started = {"spec": spec, "folder": more[4], "ram": ram}
        if ram is not None:
            assert ram.file.stat().st_size == spec.memory
        self.note("start")
        return self

    control = ssh = None

    @property
    def files(self) -> Any:
        return SimpleNamespace(console=Path(os.devnull))

    def wait(self, deadline: Deadline) -> None:
        raise TimeoutError

    def stop(self) -> None:
        self.note("stop")

    # ControlPort

    def port(self, sock: object) -> Pretended:
        return self

    def prepare(self, deadline: Deadline) -> None:
        self.note("prepare")

    def identify(self, hello: str, host_key: object, public: str, deadline: Deadline) -> Identity:
        self.note("identity")
        return Identity("nonce", "ssh-ed25519 HOST", hello)

    # what a guest is made with

    def boot(self, port: object, payload: Payload, deadline: Deadline, doing: Any) -> str:
        assert payload.data == b"payload"
        self.note("boot")
        return HELLO

    def connect(self, sock: object, key: object, host_key: str, deadline: Deadline) -> Pretended:
        assert host_key == "ssh-ed25519 HOST"
        self.note("login")
        return self

    def run(self, command: str, deadline: Deadline) -> None:
        self.note("command")

    def close(self) -> None:
        self.note("logout")

    def worker(self, ssh: object, nonce: str, deadline: Deadline) -> Pretended:
        assert nonce == "nonce"
        self.note("worker")
        return self

    def request(self, kind: str, args: dict[str, object], deadline: Deadline) -> dict[str, Any]:
        self.kinds.append(kind)
        return {"error": self.answer_error}

    def freeze(self, emulator: object, capabilities: object, method: Method, state: Path, deadline: Deadline) -> None:
        self.note("freeze")
        state.write_bytes(b"state")


@pytest.fixture
def machine(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    one = Pretended()
    monkeypatch.setattr(freeze, "Emulator", SimpleNamespace(start=one.start))
    monkeypatch.setattr(freeze, "ControlPort", one.port)
    monkeypatch.setattr(freeze, "boot", one.boot)
    monkeypatch.setattr(freeze, "SshConnection", one.connect)
    monkeypatch.setattr(freeze, "Worker", one.worker)
    monkeypatch.setattr(freeze, "freeze", one.freeze)
    return one


def folders(own_cache: Path) -> list[Path]:
    return [
        path for name in ("making", "template") if (own_cache / name).exists() for path in (own_cache / name).iterdir()
    ]


REHEARSAL = ["identity", "login", "command", "worker", "logout"]
WHOLE = ["start", "boot", "prepare", *REHEARSAL, "prepare", "freeze", "stop"]


def test_a_guest_is_rehearsed_between_two_rests_and_then_frozen(machine: Pretended, tmp_path: Path) -> None:
    said: list[str] = []
    template = freeze.get_template(plan(tmp_path), 60, said.append)
    assert machine.done == WHOLE
    assert (machine.kinds[0], machine.kinds[-1]) == ("_begin", "_end")
    assert template.hello == HELLO
    assert [text.split(" ")[0] for text in said] == ["making", "template"]
    assert said[0].startswith("making a template: QEMU 11.1, intel, 48 bits, ")
    assert template.key[:12] in said[1]
    assert template.folder.joinpath("boot").is_dir()
    assert template.state.stat().st_mode & 0o777 == 0o444
    assert template.ram is not None
    assert template.ram.file.stat().st_mode & 0o200, "QEMU opens it for writing, although a clone maps it privately"
    assert template.ram.file.stat().st_size == MEMORY
    assert used(template.ram.file) == 0 or not can_punch(tmp_path), "its guest has touched nothing"
    said.clear()
    assert freeze.get_template(plan(tmp_path), 60, said.append) == template
    assert (machine.done, said) == (WHOLE, [])


def test_it_has_no_devices_but_those_of_bus_0_and_its_ram_is_shared(machine: Pretended, tmp_path: Path) -> None:
    freeze.get_template(plan(tmp_path), 60, lambda text: None)
    assert [device.at for device in machine.started["spec"].devices] == ["00:05.0"]
    assert machine.started["folder"].name == "boot", "not the run folder of the cell that waits for it"
    assert (machine.started["ram"].file.name, machine.started["ram"].private) == ("ram", False)


def test_a_stream_needs_no_file_for_ram(machine: Pretended, tmp_path: Path) -> None:
    template = freeze.get_template(plan(tmp_path), 60, lambda text: None, Method.STREAM)
    assert (template.method, template.ram, machine.started["ram"]) == (Method.STREAM, None, None)
    older = plan(tmp_path, capabilities=Capabilities("pc-q35-7.2", True, CAPABILITIES.properties, frozenset()))
    assert freeze.ingredients(older).method is Method.STREAM


def test_a_damaged_one_is_made_anew(machine: Pretended, tmp_path: Path) -> None:
    said: list[str] = []
    template = freeze.get_template(plan(tmp_path), 60, said.append)
    template.state.chmod(0o644)
    template.state.write_bytes(b"other")
    said.clear()
    assert freeze.get_template(plan(tmp_path), 60, said.append).key == template.key
    assert machine.done == WHOLE + WHOLE
    assert "state was changed" in said[0]
    assert said[1].startswith("making a template")
    assert template.state.read_bytes() == b"state"


@pytest.mark.parametrize(
    ("what", "error", "expected", "message"),
    [
        ("start", InfrastructureError("QEMU did not start"), InfrastructureError, "did not start"),
        ("boot", TimeoutError(), BootError, "not ready in time while starting"),
        ("prepare", InfrastructureError("the worker ended"), InfrastructureError, "the worker ended"),
        ("prepare", TimeoutError(), BootError, "while loading the worker's modules"),
        ("identity", PortClosedError("closed"), BootError, "while rehearsing"),
        ("login", GuestLost("SSH failed"), BootError, "while rehearsing"),
        ("command", TimeoutError(), BootError, "while rehearsing"),
        ("freeze", InfrastructureError("QEMU could not write"), InfrastructureError, "could not write"),
        ("freeze", KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_ends_the_machine_and_leaves_nothing(
    machine: Pretended,
    tmp_path: Path,
    own_cache: Path,
    what: str,
    error: BaseException,
    expected: type[BaseException],
    message: str | None,
) -> None:
    machine.fails = {what: error}
    with pytest.raises(expected, match=message):
        freeze.get_template(plan(tmp_path), 60, lambda text: None)
    assert machine.done[-1] == ("start" if what == "start" else "stop")
    assert machine.done.count("login") - machine.done.count("logout") == (1 if what == "login" else 0)
    assert folders(own_cache) == []
    assert list_templates() == []


def test_a_worker_that_cannot_do_what_is_rehearsed_is_told(machine: Pretended, tmp_path: Path) -> None:
    machine.answer_error = {"type": "InternalError", "message": "no kernel log"}
    with pytest.raises(InfrastructureError, match="the worker could not do '_begin': no kernel log"):
        freeze.get_template(plan(tmp_path), 60, lambda text: None)
    assert machine.done[-2:] == ["logout", "stop"]


def test_a_disk_that_is_full_when_the_state_is_written_is_named(
    machine: Pretended, tmp_path: Path, own_cache: Path
) -> None:
    error = InfrastructureError("QEMU could not write its state")
    error.__cause__ = FULL
    machine.fails = {"freeze": error}
    with pytest.raises(InfrastructureError, match="the disk is full") as caught:
        freeze.get_template(plan(tmp_path), 60, lambda text: None)
    assert str(own_cache) in caught.value.message
    assert folders(own_cache) == []


def test_a_disk_that_is_too_small_for_ram_is_named_before_anything_is_started(
    machine: Pretended, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(freeze.shutil, "disk_usage", lambda folder: usage(MEMORY, 1, MEMORY - 1))
    with pytest.raises(InfrastructureError, match="the disk is full"):
        freeze.get_template(plan(tmp_path), 60, lambda text: None)
    assert machine.done == []
    assert folders(own_cache) == []


def test_a_plans_own_folder_and_devices_do_not_count(tmp_path: Path) -> None:
    one = freeze.ingredients(plan(tmp_path))
    other = plan(tmp_path, folder=tmp_path / "other", spec=MachineSpec(memory=MEMORY, devices=one.spec.devices))
    assert freeze.ingredients(other).key == one.key
    assert freeze.ingredients(plan(tmp_path, payload=Payload(b"", "other"))).key != one.key


# ---- the file for RAM


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def can_punch(folder: Path) -> bool:
    """Whether files here can have holes, asked of the system's own program."""
    file, program = folder / "punched", shutil.which("fallocate")
    if program is None:
        return False
    for options in ([], ["--punch-hole"]):
        subprocess.run([program, *options, "--length", str(MEMORY), str(file)], check=False, capture_output=True)
    return used(file) == 0


def test_the_space_for_ram_is_taken_whole(tmp_path: Path) -> None:
    freeze._allocate(tmp_path / "ram", MEMORY)
    assert (tmp_path / "ram").stat().st_size == MEMORY
    assert used(tmp_path / "ram") >= MEMORY


@pytest.mark.parametrize("touched", [[], [0], [255], [0, 255], [3, 4, 5, 100], range(256), range(0, 256, 2)], ids=str)
def test_only_what_was_never_touched_is_given_back(tmp_path: Path, touched: list[int]) -> None:
    ram = tmp_path / "ram"
    freeze._allocate(ram, MEMORY)
    expected = bytearray(MEMORY)
    with ram.open("r+b") as file:
        for page in touched:
            data = os.urandom(PAGE)
            expected[page * PAGE : page * PAGE + PAGE] = data
            file.seek(page * PAGE)
            file.write(data)
    before = used(ram)
    freeze._give_back(ram)
    assert ram.read_bytes() == expected
    assert used(ram) < before if can_punch(tmp_path) and len(touched) < 200 else used(ram) <= before


def test_a_file_system_that_cannot_give_back_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Punch:
        def __call__(self, *arguments: object) -> int:
            return -1

    monkeypatch.setattr(freeze.ctypes, "CDLL", lambda name, use_errno: SimpleNamespace(fallocate=Punch()))
    ram = tmp_path / "ram"
    freeze._allocate(ram, MEMORY)
    freeze._give_back(ram)
    assert ram.read_bytes() == bytes(MEMORY)
