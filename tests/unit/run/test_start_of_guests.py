"""How a cell's guest and a shell's come to be, with a guest that only pretends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import BootError, GuestHang, InfrastructureError
from harness.guest.guest import Guest, GuestPlan
from harness.guest.payload import Payload
from harness.image.build import Image
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.template import Template
from harness.paths import scenarios_dir
from harness.results import CellResult, Outcome
from harness.run import cell, schedule, session, shell, templates
from harness.run.cells import Cell
from harness.run.options import RunOptions
from harness.run.resources import Emulation, Resources
from harness.scenario import load_scenario

PLAIN = scenarios_dir() / "dma" / "unmapped_read.yaml"
FIXED = scenarios_dir() / "dma" / "device_on_bus_0.yaml"
WITH_VFS = scenarios_dir() / "sriov" / "requester.yaml"
INTEL = {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits"})}
KEY = "60c2e5460d0f" + "e" * 52


@dataclass
class Pretended:
    """Stands for everything that would start a guest, and notes what was asked of it."""

    tmp_path: Path
    said: list[str] = field(default_factory=list)
    plans: list[GuestPlan] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    template_error: Exception | None = None
    answer_error: dict[str, str] | None = None
    deadlines: list[Deadline] = field(default_factory=list)
    hangs: bool = False
    machine_type: str = "pc-q35-11.1"

    def get_template(self, plan: GuestPlan, boot_seconds: float, say: Any) -> Template:
        if self.template_error is not None:
            raise self.template_error
        say("making a template")
        return Template(KEY, self.tmp_path, Method.FILE, "6.12.88 3.4", "2026", {})

    @contextlib.contextmanager
    def running_guest(self, plan: GuestPlan, boot_seconds: float, stage: Any) -> Iterator[Any]:
        self.plans.append(plan)
        log = plan.folder / "qemu.log"
        log.write_text("")
        yield PretendedGuest(self, plan, SimpleNamespace(files=SimpleNamespace(log=log)))

    def start_worker(self, deadline: Deadline) -> Any:
        self.deadlines.append(deadline)
        return SimpleNamespace(python="3.13.5")

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        self.asked.append((kind, args))
        self.deadlines.append(deadline)
        if self.hangs:
            raise GuestHang(f"the guest does not answer any more while {doing}")
        return {"values": {"kernel_log": [], "stderr": ""}, "error": self.answer_error}

    def resources(self, options: RunOptions | None = None, say: Any = None) -> Resources:
        build = QemuBuild("11.1", "11.1.3", "b", ("qemu",), {}, None)
        image = Image("trixie", "i", self.tmp_path, self.tmp_path, self.tmp_path, "6.12.88", {}, "2026", 1)
        emulation = Emulation(
            build, Capabilities(self.machine_type, True, INTEL, frozenset()), Decision("tcg", "no KVM")
        )
        return Resources({"11.1": emulation}, {"6.12": image}, Payload(b"", "p"))

    def shell(self, scenario: Path | None = None, **options: Any) -> int:
        return shell.open_shell(
            RunOptions(out=self.tmp_path / f"out{len(self.plans)}", **options), scenario, "true", self.said.append
        )

    def cell(self, file: Path, **options: Any) -> CellResult:
        one = Cell(load_scenario(file), "11.1", "6.12", "dma/one")
        folder = self.tmp_path / f"cell{len(self.plans)}"
        return cell.run_cell(one, self.resources(), RunOptions(**options), folder, lambda name: None, self.said.append)


class PretendedGuest(Guest):
    """A guest whose worker is the one above."""

    def __init__(self, pretended: Pretended, plan: GuestPlan, emulator: Any) -> None:
        nothing: Any = None
        super().__init__(plan.spec, plan.template is not None, emulator, nothing, nothing, nothing, {"start": 0.1})
        self.pretended = pretended

    def start_worker(self, deadline: Deadline) -> Any:
        return self.pretended.start_worker(deadline)

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        return self.pretended.request(doing, kind, args, deadline)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    pretended = Pretended(tmp_path)
    for module in (session, shell):
        monkeypatch.setattr(module, "get_template", pretended.get_template)
        monkeypatch.setattr(module, "running_guest", pretended.running_guest)
    monkeypatch.setattr(shell, "prepare", pretended.resources)
    monkeypatch.setattr(shell, "attach", lambda guest, command: 7)
    return pretended


def test_a_shell_is_a_clone_whose_devices_are_there_before_it_is_ready(pretended: Pretended):
    assert pretended.shell() == 7
    assert pretended.plans[0].template is not None
    assert pretended.plans[0].spec.buses == 4
    asked = {"devices": {"edu0": "02:00.0"}, "vfs": {}, "replaced": [], "implementation": "usdm", "ports": {}}
    assert pretended.asked == [("_begin", asked)]
    assert pretended.said[:2] == ["making a template", "cloning 6.12.88 on QEMU 11.1.3 (tcg)"]
    assert pretended.said[2].startswith("ready: edu0 at 02:00.0; ")


def test_a_shell_boots_when_told_to(pretended: Pretended):
    pretended.shell(fresh_boot=True)
    assert [plan.template for plan in pretended.plans] == [None]
    assert pretended.said[0] == "booting 6.12.88 on QEMU 11.1.3 (tcg)"
    assert [kind for kind, _ in pretended.asked] == ["_begin"]


def test_a_device_on_bus_0_replaces_that_of_the_template(pretended: Pretended):
    pretended.shell(FIXED)
    pretended.shell(FIXED, fresh_boot=True)
    assert [args["replaced"] for _, args in pretended.asked] == [["00:05.0"], []]


def test_a_shell_without_its_devices_is_not_ready(pretended: Pretended):
    pretended.answer_error = {"type": "StepError", "message": "the guest has no PCI function 0000:02:00.0"}
    with pytest.raises(InfrastructureError, match=r"finding the devices failed in the guest: the guest has no PCI"):
        pretended.shell()
    pretended.answer_error, pretended.hangs = None, True
    with pytest.raises(GuestHang, match="finding the devices"):
        pretended.shell()
    assert not any(text.startswith("ready") for text in pretended.said)
    assert all(deadline.remaining < 61 for deadline in pretended.deadlines)


def test_a_cell_says_of_what_it_is_a_clone_and_how_long_it_waited(pretended: Pretended):
    result = pretended.cell(PLAIN)
    assert result.start == "clone"
    assert result.versions is not None
    assert result.versions.template == KEY
    assert list(result.stages)[:2] == ["template", "start"]


@pytest.mark.parametrize(("machine_type", "start"), [("pc-q35-11.1", "clone"), ("pc-q35-10.0", "boot")])
def test_a_machine_that_the_build_cannot_clone_is_booted(pretended: Pretended, machine_type: str, start: str):
    pretended.machine_type = machine_type
    result = pretended.cell(WITH_VFS)
    assert result.start == start
    assert ("template" in result.stages) is (start == "clone")
    pretended.shell(WITH_VFS)
    assert [plan.template is not None for plan in pretended.plans] == [start == "clone"] * 2
    assert pretended.said[-2].startswith({"clone": "cloning", "boot": "booting"}[start])
    ready = "ready: pf at 02:00.0, vf10 at 02:01.2 once the VFs of pf are enabled; "
    assert pretended.said[-1].startswith(ready)
    vfs = {kind: args["vfs"] for kind, args in pretended.asked if kind == "_begin"}
    assert vfs == {"_begin": {"vf10": "pf"}}
    needs = templates.needs_of([Cell(load_scenario(WITH_VFS), "11.1", "6.12", "a")], pretended.resources())
    assert [one.scenarios for one in needs.templates] == ([["a"]] if start == "clone" else [])
    assert needs.skipped == {}


def test_a_cell_that_is_booted_says_so(pretended: Pretended):
    result = pretended.cell(PLAIN, fresh_boot=True)
    assert result.start == "boot"
    assert result.versions is not None
    assert result.versions.template == ""
    assert "template" not in result.stages


def test_a_cell_whose_template_cannot_be_made_says_so(pretended: Pretended):
    pretended.template_error = BootError("not ready in time", hint="wait", context={"console": "one\ntwo"})
    result = pretended.cell(PLAIN)
    assert (result.outcome, result.start, result.message) == (Outcome.ERROR, "clone", "not ready in time")
    assert result.versions is not None
    assert result.versions.template == ""
    assert result.console_tail == ("one", "two")
    assert pretended.plans == []


def test_the_rerun_line_boots_where_the_run_did():
    scenario = load_scenario(PLAIN)
    assert "--fresh-boot" not in Cell(scenario, "11.1", "6.12", "a").rerun
    assert Cell(scenario, "11.1", "6.12", "a", fresh_boot=True).rerun.endswith(" --fresh-boot")


def test_the_wait_for_a_template_teaches_nothing_about_durations():
    one = Cell(load_scenario(PLAIN), "11.1", "6.12", "dma/one")
    fields = {"scenario": "s", "title": "t", "source": "s", "file": "f", "outcome": Outcome.PASS, "start": "clone"}
    result = CellResult.model_validate({**fields, "seconds": 8.5, "stages": {"template": 8.0, "start": 0.1}})
    assert list(schedule._durations([one], {0: result}).values()) == [0.5]
