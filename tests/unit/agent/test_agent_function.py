"""Steps about PCI functions: no-IOMMU mode, SR-IOV, functions that are taken away while they are in use."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent import pci, sriov, steps_function
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.outcome import NoSriov, NotSet, NotTaken, TooManyVfs, VfsEnabled
from harness.agent.steps_function import noiommu


@pytest.mark.parametrize(("enabled", "written"), [(True, "Y"), (False, "N")])
def test_the_no_iommu_mode_is_the_modules_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, written: str
) -> None:
    parameter = tmp_path / "mode"
    parameter.touch()
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(parameter))
    assert noiommu(Context(), {"enabled": enabled}).returns is None
    assert parameter.read_text() == written


def test_a_kernel_without_the_no_iommu_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(tmp_path / "none"))
    with pytest.raises(NotSet, match="CONFIG_VFIO_NOIOMMU"):
        noiommu(Context(), {"enabled": True})
    monkeypatch.setattr(steps_function, "NOIOMMU_PARAMETER", str(tmp_path))
    with pytest.raises(NotSet, match="Is a directory"):
        noiommu(Context(), {"enabled": True})


# ---- SR-IOV


class Kernel:
    """A folder like /sys/bus/pci with a PF of 4 VFs, and what the kernel does with what is written there."""

    def __init__(self, root: Path) -> None:
        self.root, self.bus, self.parameter = root, root / "pci", root / "enable_sriov"
        self.folder = self.bus / "devices/0000:02:00.0"
        self.folder.mkdir(parents=True)
        for name, text in (("sriov_numvfs", "0"), ("sriov_totalvfs", "4"), ("sriov_drivers_autoprobe", "0")):
            (self.folder / name).write_text(f"{text}\n")
        (self.folder / "iommu_group").symlink_to("../../groups/8")
        self.parameter.write_text("N\n")
        self.writes: list[tuple[str, str]] = []

    def write(self, path: str, text: str) -> None:
        self.writes.append((Path(path).name, text))
        if not Path(path).exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if Path(path).name == "sriov_numvfs":
            if int(text) > 4:
                raise OSError(errno.ERANGE, "Numerical result out of range")
            for number in range(int(text)):
                vf = self.bus / f"devices/0000:02:00.{number + 1}"
                vf.mkdir()
                (vf / "iommu_group").symlink_to(f"../../groups/{9 + number // 2}")
                (self.folder / f"virtfn{number}").symlink_to(f"../{vf.name}")
        Path(path).write_text(text)

    def enable(self, wanted: int) -> None:
        sriov.enable("02:00.0", wanted, str(self.bus), str(self.parameter))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel(tmp_path)
    monkeypatch.setattr(pci, "write", one.write)
    return one


def test_vfs_are_allowed_then_bound_then_enabled(kernel: Kernel) -> None:
    kernel.enable(3)
    assert kernel.writes == [("enable_sriov", "Y"), ("sriov_drivers_autoprobe", "1"), ("sriov_numvfs", "3")]
    bus = str(kernel.bus)
    assert sriov.count("02:00.0", bus) == (3, 4)
    vfs = sriov.functions("02:00.0", bus)
    assert vfs == ["0000:02:00.1", "0000:02:00.2", "0000:02:00.3"]
    assert sriov.groups(["02:00.0", *vfs, "07:00.0"], bus) == {8, 9, 10}


def test_vfs_are_in_the_order_of_their_numbers(kernel: Kernel) -> None:
    for number in range(12):
        (kernel.folder / f"virtfn{number}").symlink_to(f"../0000:02:0{(number + 1) // 8}.{(number + 1) % 8}")
    assert sriov.functions("02:00.0", str(kernel.bus))[8:11] == ["0000:02:01.1", "0000:02:01.2", "0000:02:01.3"]


def test_more_vfs_than_there_are(kernel: Kernel) -> None:
    with pytest.raises(TooManyVfs, match="offers 4 VFs, asked for 5: Numerical result out of range"):
        kernel.enable(5)


def test_vfs_that_are_there_already(kernel: Kernel) -> None:
    kernel.enable(2)
    written = len(kernel.writes)
    with pytest.raises(VfsEnabled, match="has 2 VFs already"):
        kernel.enable(2)
    assert len(kernel.writes) == written


def test_a_device_without_sriov(kernel: Kernel) -> None:
    (kernel.bus / "devices/0000:03:00.0").mkdir()
    with pytest.raises(NoSriov, match=r"03:00\.0 has no SR-IOV"):
        sriov.enable("03:00.0", 1, str(kernel.bus), str(kernel.parameter))


def test_a_vfio_pci_without_sriov(kernel: Kernel) -> None:
    kernel.parameter.unlink()
    with pytest.raises(NotSet, match=r"vfio-pci has no SR-IOV: there is no .*/enable_sriov"):
        kernel.enable(1)


def test_another_refusal_of_the_kernel(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: str, text: str) -> None:
        if path.endswith("sriov_numvfs"):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(pci, "write", write)
    with pytest.raises(NotSet, match="asked for 4: Cannot allocate memory"):
        kernel.enable(4)


# ---- functions that are taken away


class Asked:
    """An open device that the kernel can ask for."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.calls: list[int] = []
        self.closed = threading.Event()

    def set_irqs(self, index: int, eventfds: Sequence[int] = ()) -> None:
        assert index == 4
        self.calls.append(len(eventfds))
        self.events = [os.dup(fd) for fd in eventfds]

    def ask(self) -> None:
        """Ask, and wait until it is closed, as the kernel does."""
        os.eventfd_write(self.events[0], 1)
        os.eventfd_write(self.events[0], 1)
        assert self.closed.wait(10)


def take(monkeypatch: pytest.MonkeyPatch, devices: dict[str, Asked], write: Any) -> tuple[list[str], list[str]]:
    monkeypatch.setattr(pci, "write", write)
    closed = []

    def let_go(name: str) -> None:
        closed.append(name)
        devices[name].closed.set()

    return sriov.take_away("/sys/x", "0", devices, let_go), closed  # type: ignore[arg-type]


def test_what_the_kernel_asks_for_is_closed_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"a": Asked(), "b": Asked(), "c": Asked()}
    written = []

    def write(path: str, text: str) -> None:
        written.append((path, text))
        devices["c"].ask()
        devices["a"].ask()

    assert take(monkeypatch, devices, write) == (["c", "a"], ["c", "a"])
    assert written == [("/sys/x", "0")]
    assert [devices[name].calls for name in "abc"] == [[1], [1, 0], [1]], "what stays open is not waited for any more"


def test_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(monkeypatch, {}, lambda path, text: None) == ([], [])


def test_a_refusal_after_a_device_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"a": Asked()}

    def write(path: str, text: str) -> None:
        devices["a"].ask()
        raise OSError(errno.EIO, "x")

    with pytest.raises(NotTaken, match="/sys/x: Input/output error"):
        take(monkeypatch, devices, write)
    assert devices["a"].closed.is_set()


def test_a_write_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sriov, "_SECONDS", 0.05)
    end = threading.Event()
    with pytest.raises(NotTaken, match=r"not done after 0\.05 s"):
        take(monkeypatch, {"a": Asked()}, lambda path, text: end.wait(10))
    end.set()


# ---- the steps


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    one = Context()
    one.addresses = {"pf": "02:00.0", "vf1": "02:00.1", "vf2": "02:00.2", "other": "03:00.0"}
    one.pf_of = {"vf1": "pf", "vf2": "pf"}
    for name in ("pf", "vf2", "other"):
        one.devices[name] = SimpleNamespace(device=name)  # type: ignore[assignment]
    return one


@pytest.mark.parametrize(
    ("kind", "device", "path", "text", "concerned"),
    [
        ("disable_vfs", "pf", "0000:02:00.0/sriov_numvfs", "0", ["vf2"]),
        ("unbind", "vf2", "0000:02:00.2/driver/unbind", "0000:02:00.2", ["vf2"]),
        ("unplug", "pf", "0000:02:00.0/remove", "1", ["pf", "vf2"]),
        ("unplug", "vf1", "0000:02:00.1/remove", "1", []),
    ],
)
def test_whom_a_step_takes_away(
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    device: str,
    path: str,
    text: str,
    concerned: list[str],
) -> None:
    context.vf_tokens["pf"] = bytes(16)

    def take_away(path_: str, text_: str, devices: dict[str, str], let_go: Any) -> list[str]:
        assert (path_, text_) == (f"/sys/bus/pci/devices/{path}", text)
        assert devices == {name: name for name in concerned}
        assert let_go == context.give_back
        return concerned

    monkeypatch.setattr(sriov, "take_away", take_away)
    monkeypatch.setattr(sriov, "count", lambda address: (0, 16))
    values = execute(context, kind, {"device": device})["values"]
    assert values["counts"] == {"closed": len(concerned)} | ({"vfs": 0} if kind == "disable_vfs" else {})
    assert values["asked"] == concerned
    assert bool(context.vf_tokens) is (kind != "disable_vfs")


def test_an_edu_has_no_vfs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sriov, "count", lambda address: (0, 16))
    error = execute(context, "enable_vfs", {"device": "other", "count": 1})["error"]
    assert error == {"type": "NoSriov", "message": "03:00.0 is no NVMe controller"}
