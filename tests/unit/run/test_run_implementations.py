"""A run on either implementation or on both: which cells there are, which are skipped, and what a cell leaves."""

from __future__ import annotations

import base64
import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.deadline import Deadline
from harness.errors import ConfigurationError, EmulatorCrash, FailureClass, GuestHang, HarnessError
from harness.guest.guest import Guest, GuestPlan
from harness.guest.payload import Payload
from harness.image.build import Image
from harness.image.library import Library
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.template import Template
from harness.results import CellResult, Outcome
from harness.run import cell, session
from harness.run.cells import Cell, expand, unmet
from harness.run.options import Implementation, RunOptions
from harness.run.resources import Emulation, Resources
from harness.scenario import Scenario, parse_scenario

NEW, OLD = "26.08.0-2", "24.02.0-1"
KNOWN = "{defect: D1, expect: {translation: partial}}"
TEXT = f"""\
title: t
source: s
machine: {{devices: {{edu0: {{model: edu, at: "02:00.0"}}}}}}
steps:
  - register: {{device: edu0}}
    expect: {{returns: 0}}
  - buffer: {{as: b, size: 16K}}
  - translate: {{buffer: b}}
    expect: {{translation: absent}}
    libusdm: {KNOWN}
"""
ABSENT = {"present": 0, "absent": 4, "contiguous": False}
PARTIAL = {"present": 3, "absent": 1, "contiguous": True}


def scenario(*steps: str, needs: str = "{}") -> Scenario:
    listed = "".join(f"  - {step}\n" for step in ("buffer: {as: b, size: 16K}", *steps))
    return parse_scenario(f"title: t\nsource: s\nmachine: {{}}\nneeds: {needs}\nsteps:\n{listed}", "x.yaml")


def library(version: str, file: Path = Path("libusdm.so")) -> Library:
    return Library(version[:5], "l" * 64, file, version)


@dataclass
class Pretended:
    """Guests that only pretend: what each answers, and what was asked of them."""

    tmp_path: Path
    translations: dict[str, Any] = field(default_factory=lambda: {"usdm": ABSENT, "libusdm": PARTIAL})
    returns: dict[str, int] = field(default_factory=lambda: {"usdm": 0, "libusdm": 0})
    error: HarnessError | None = None
    fails: tuple[str, str] = ("", "")  # implementation, kind
    asked: list[tuple[str, str]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    version: str = NEW

    @contextlib.contextmanager
    def running_guest(self, plan: GuestPlan, boot_seconds: float, stage: Any) -> Iterator[Any]:
        log = plan.folder / "qemu.log"
        log.write_text("")
        (plan.folder / "console.log").write_text(f"console of {plan.folder.name}\n")
        yield PretendedGuest(self, plan, SimpleNamespace(files=SimpleNamespace(log=log), devices=None))

    @property
    def file(self) -> Path:
        file = self.tmp_path / "libusdm.so"
        file.write_bytes(b"\x7fELF of libusdm")
        return file

    def resources(self) -> Resources:
        build = QemuBuild("11.1", "11.1.3", "b", ("qemu",), {}, None)
        image = Image("trixie", "i", self.tmp_path, self.tmp_path, self.tmp_path, "6.12.88", {}, "2026", 1)
        emulation = Emulation(build, Capabilities("pc-q35-11.1", True, {}, frozenset()), Decision("tcg", "no KVM"))
        return Resources({"11.1": emulation}, {"6.12": image}, Payload(b"", "p"), library(self.version, self.file))

    def run(self, implementation: Implementation) -> CellResult:
        one = Cell(parse_scenario(TEXT, "x.yaml"), "11.1", "6.12", "x", implementation=implementation, libusdm="26.08")
        folder = self.tmp_path / "run" / "x"
        return cell.run_cell(one, self.resources(), RunOptions(), folder, self.stages.append, lambda text: None)


class PretendedGuest(Guest):
    """A guest whose worker answers for the implementation that it was told of."""

    def __init__(self, pretended: Pretended, plan: GuestPlan, emulator: Any) -> None:
        nothing: Any = None
        super().__init__(plan.spec, True, emulator, nothing, nothing, nothing, {"start": 0.1})
        self.pretended = pretended
        self.implementation = "not told"
        self.has_library = False

    def start_worker(self, deadline: Deadline) -> Any:
        return SimpleNamespace(python="3.13.5")

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        pretended = self.pretended
        if kind == "_begin":
            self.implementation = args["implementation"]
            # Only where the steps run on it, and before it is asked for.
            assert self.has_library == (self.implementation == "libusdm")
        if kind == "_library":
            assert base64.b64decode(args["data"]) == b"\x7fELF of libusdm"
            self.has_library = True
        pretended.asked.append((self.implementation, kind))
        if pretended.error is not None and pretended.fails == (self.implementation, kind):
            raise pretended.error
        if kind == "translate":
            return {"values": pretended.translations[self.implementation]}
        if kind == "_end":
            return {"values": {"kernel_log": [f"[    1.0] log of {self.implementation}"], "stderr": "said"}}
        return {"returns": pretended.returns[self.implementation] if kind == "register" else None}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    pretended = Pretended(tmp_path)
    template = Template("k" * 64, tmp_path, Method.FILE, "6.12.88 3.4", "2026", {})
    monkeypatch.setattr(session, "get_template", lambda plan, boot_seconds, say: template)
    monkeypatch.setattr(session, "running_guest", pretended.running_guest)
    return pretended


STEPS = ["_begin", "register", "buffer", "translate", "_end"]


def asked(*sides: str) -> list[tuple[str, str]]:
    """What each side's guest is asked; one that runs on the library is sent it first."""
    sent = [("not told", "_library")]
    return [one for side in sides for one in ((sent if side == "libusdm" else []) + [(side, kind) for kind in STEPS])]


# ---- a cell


def test_a_cell_on_both_runs_the_same_steps_on_each(pretended: Pretended):
    result = pretended.run("both")
    assert pretended.asked == asked("usdm", "libusdm")
    assert (result.outcome, result.message) == (Outcome.PASS, "")
    assert result.evidence is not None
    assert result.reference is not None
    assert (result.evidence.libusdm, result.reference.libusdm) == ("", NEW)
    assert (result.evidence.steps[2].values, result.reference.steps[2].values) == (ABSENT, PARTIAL)
    assert result.evidence.kernel_log == ("[    1.0] log of usdm",)
    assert result.reference.kernel_log == ("[    1.0] log of libusdm",)
    assert result.implementation == "both"
    assert result.versions is not None
    assert result.versions.libusdm == NEW
    assert result.verdict is not None
    assert [one.defect for one in result.verdict.findings] == ["D1"]
    assert pretended.stages.count("steps") == 2
    assert pretended.stages[-1] == "judge"


def test_each_side_has_a_folder_of_its_own(pretended: Pretended):
    result = pretended.run("both")
    folder = Path(result.folder)
    assert sorted(path.name for path in folder.iterdir()) == ["libusdm", "usdm"]
    for which in ("usdm", "libusdm"):
        assert (folder / which / "kernel.log").read_text() == f"[    1.0] log of {which}\n"
        assert (folder / which / "worker.stderr").read_text() == "said"
        assert (folder / which / "qemu.log").exists()


@pytest.mark.parametrize(("which", "version"), [("usdm", ""), ("libusdm", NEW)])
def test_a_cell_on_one_has_one_evidence_in_its_own_folder(pretended: Pretended, which: Any, version: str):
    result = pretended.run(which)
    assert pretended.asked == asked(which)
    assert (result.outcome, result.reference, result.implementation) == (Outcome.PASS, None, which)
    assert result.evidence is not None
    assert result.evidence.libusdm == version
    assert (Path(result.folder) / "kernel.log").exists()
    assert not (Path(result.folder) / which).exists()


def test_a_difference_that_nobody_expected_fails_the_cell(pretended: Pretended):
    pretended.translations["libusdm"] = ABSENT
    result = pretended.run("both")
    assert (result.outcome, result.failure_class) == (Outcome.FAIL, FailureClass.EXPECTATION)
    assert result.message.startswith("libusdm: step 2 (translate), known as D1: expected some addresses")


def test_an_error_on_the_second_side_keeps_the_evidence_of_both(pretended: Pretended):
    pretended.error, pretended.fails = GuestHang("the guest does not answer", hint="look"), ("libusdm", "translate")
    result = pretended.run("both")
    assert (result.outcome, result.failure_class) == (Outcome.ERROR, FailureClass.HANG)
    assert (result.message, result.hint) == ("on libusdm: the guest does not answer", "look")
    assert result.evidence is not None
    assert result.reference is not None
    assert [step.kind for step in result.evidence.steps] == ["register", "buffer", "translate"]
    assert [step.kind for step in result.reference.steps] == ["register", "buffer"]
    assert result.verdict is None
    assert result.console_tail == ("console of libusdm",)


def test_an_error_on_the_first_side_ends_the_cell(pretended: Pretended):
    pretended.error, pretended.fails = EmulatorCrash("QEMU ended"), ("usdm", "register")
    result = pretended.run("both")
    assert (result.outcome, result.message) == (Outcome.ERROR, "on usdm: QEMU ended")
    assert result.console_tail == ("console of usdm",)
    assert result.reference is None
    assert not [which for which, _ in pretended.asked if which == "libusdm"]
    assert not (Path(result.folder) / "libusdm").exists()


def test_an_error_of_the_only_side_needs_no_name(pretended: Pretended):
    pretended.error, pretended.fails = EmulatorCrash("QEMU ended"), ("libusdm", "register")
    assert pretended.run("libusdm").message == "QEMU ended"


def test_the_stages_of_both_guests_are_summed(pretended: Pretended):
    assert pretended.run("both").stages["start"] == pytest.approx(0.2)


def test_a_cell_that_cannot_run_is_skipped_without_a_folder(pretended: Pretended):
    pretended.version = OLD
    one = Cell(scenario("map: {buffer: b, size: 4K}"), "11.1", "6.12", "x", implementation="both", libusdm="24.02")
    folder = pretended.tmp_path / "none"
    result = cell.run_cell(one, pretended.resources(), RunOptions(), folder, pytest.fail, pytest.fail)
    assert (result.outcome, result.implementation) == (Outcome.SKIP, "both")
    assert result.message == "libusdm 24.02.0-1 has no function for the step map"
    assert not folder.exists()


# ---- what has to be skipped


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        (["map: {buffer: b, size: 4K}"], "map"),
        (["{map: {buffer: b, size: 4K}, expect: {error: TooLarge}}", "unmap: {buffer: b, size: 4K}"], "map"),
        (["unmap: {buffer: b, size: 4K}"], "unmap"),
        (["map_each: {buffer: b, size: 4K, count: 2}"], "map_each"),
        (["unmap_each: {buffer: b, size: 4K, count: 2}"], "unmap_each"),
        (["threads: {count: 2, rounds: 2}"], "threads"),
        (["fork: {steps: [{map: {buffer: b, size: 4K}}]}"], "map"),
        (["mem_init: {}", "alloc: {as: a, size: 64}"], ""),
    ],
)
def test_the_old_library_has_no_functions_that_map(pretended: Pretended, steps: list[str], kind: str):
    resources = pretended.resources()
    for implementation in ("libusdm", "both"):
        one = Cell(scenario(*steps), "11.1", "6.12", "x", implementation=implementation, libusdm="24.02")  # type: ignore[arg-type]
        assert unmet(one, resources) is None
        old = replace(resources, library=library(OLD))
        reason = f"libusdm 24.02.0-1 has no function for the step {kind}"
        assert unmet(one, old) == (reason if kind else None)
    assert unmet(replace(one, implementation="usdm"), replace(resources, library=None)) is None


def test_what_a_scenario_needs_comes_first(pretended: Pretended):
    one = Cell(
        *(scenario("map: {buffer: b, size: 4K}", needs='{libusdm: ">=26.08"}'), "11.1", "6.12", "x"),
        implementation="libusdm",
    )
    resources = replace(pretended.resources(), library=library(OLD))
    assert unmet(one, resources) == "needs libusdm >=26.08, this is 24.02.0-1"
    usdm_only = replace(one, scenario=scenario(needs="{implementation: usdm}"), implementation="both")
    assert unmet(usdm_only, resources) == "needs the implementation usdm, this is both"


# ---- cells and how they are run again


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize("implementation", ["usdm", "libusdm", "both"])
def test_every_cell_knows_what_it_runs_on(file: Path, implementation: Implementation):
    options = RunOptions(paths=(file,), implementation=implementation, libusdm="24.02", qemu=("7.2", "11.1"))
    cells = expand(options)
    assert [one.implementation for one in cells] == [implementation] * 2
    assert [one.libusdm for one in cells] == ["" if implementation == "usdm" else "24.02"] * 2


def test_the_rerun_line_runs_on_the_same(file: Path):
    (one,) = expand(RunOptions(paths=(file,)))
    assert one.rerun == f"harness run {file} --qemu 11.1 --kernel 6.12"
    (one,) = expand(RunOptions(paths=(file,), implementation="both", libusdm="24.02"))
    assert one.rerun == f"harness run {file} --qemu 11.1 --kernel 6.12 --implementation both --libusdm 24.02"


@pytest.mark.parametrize("implementation", ["usdm", "libusdm", "both"])
def test_the_rerun_line_gives_the_same_cell_again(
    file: Path, implementation: Implementation, monkeypatch: pytest.MonkeyPatch
):
    taken: list[RunOptions] = []

    def run_scenarios(options: RunOptions, progress: object) -> None:
        taken.append(options)
        raise ConfigurationError("that is all")

    monkeypatch.setattr("harness.run.run_scenarios", run_scenarios)
    (one,) = expand(RunOptions(paths=(file,), implementation=implementation, libusdm="24.02", fresh_boot=True))
    words = shlex.split(one.rerun)
    assert words[:2] == ["harness", "run"]
    assert CliRunner().invoke(app, words[1:]).exit_code == 2
    assert expand(taken[0]) == [one]
