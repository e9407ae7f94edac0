"""``harness template``: what is there, what is current, what is made and removed; nothing is booted here."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import BootError, ConfigurationError, EmulatorCrash, HarnessError, InfrastructureError
from harness.guest.freeze import ingredients
from harness.guest.guest import GuestPlan
from harness.image.build import Image
from harness.image.library import Library
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.spec import MachineSpec
from harness.machine.template import Template, list_templates, store_template
from harness.paths import scenarios_dir
from harness.run import cells, doctor, resources, templates
from harness.run.cells import Cell, list_scenarios
from harness.run.options import RunOptions
from harness.run.templates import current_keys, default_key, find_needs, list_known, needs_of
from harness.scenario import BareScenario, Scenario, load_scenario

PLAIN = str(scenarios_dir() / "dma" / "unmapped_read.yaml")
NARROW = str(scenarios_dir() / "dma" / "width_39.yaml")
OTHER = str(scenarios_dir() / "dma" / "unmapped_write.yaml")
FIXED = str(scenarios_dir() / "dma" / "device_on_bus_0.yaml")
RELEASE = "6.12.88+deb13-amd64"
LIBRARY = Library("26.08", "l" * 64, Path("libusdm.so"), "26.08.0-2")
CAPABILITIES = Capabilities(
    machine_type="pc-q35-11.1",
    sandbox=True,
    properties={
        "intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits", "scalable-mode"}),
        "virtio-iommu-pci": frozenset({"aw-bits"}),
    },
    migration=frozenset({"x-ignore-shared"}),
)


@cache
def shipped() -> list[Scenario | BareScenario]:
    """The project's scenarios, read once for all tests here."""
    return list_scenarios(())


def listed(paths: tuple[Path, ...]) -> list[Scenario | BareScenario]:
    return list_scenarios(paths) if paths else list(shipped())


class Host:
    """A host with one QEMU build and three images, on which making a template writes two small files."""

    def __init__(self, tmp_path: Path) -> None:
        self.builds = [QemuBuild("11.1", "11.1.3", "b" * 64, ("qemu",), {}, tmp_path)]
        self.image = Image("trixie", "i" * 64, tmp_path, tmp_path / "k", tmp_path / "r", RELEASE, {}, "2026", 1)
        self.lab = replace(
            self.image, name="lab", key="l" * 64, kernel_release="7.2.12-lab", options=frozenset({"VFIO_NOIOMMU"})
        )
        options = frozenset({"FPROBE_EVENTS"})
        self.newer = replace(
            self.image, name="trixie-7.2", key="n" * 64, kernel_release="7.3.1+deb13-amd64", options=options
        )
        self.capabilities = CAPABILITIES
        self.made: list[MachineSpec] = []
        self.errors: list[HarnessError] = []

    def find_build(self, name: str) -> QemuBuild:
        for build in self.builds:
            if build.name == name:
                return build
        raise InfrastructureError(f"QEMU {name} is not in the cache", hint="fetch it")

    def find_image(self, name: str) -> Image:
        for image in (self.image, self.newer, self.lab):
            if image.name == name:
                return image
        raise InfrastructureError(f"the image '{name}' is not in the cache", hint="build it")

    def get_template(self, plan: GuestPlan, boot_seconds: float, say: Any) -> Template:
        if self.errors:
            raise self.errors.pop()

        def make(folder: Path, ram: Path | None) -> str:
            assert ram is not None
            ram.write_bytes(b"r" * 70000)
            (folder / "state").write_bytes(b"s")
            return f"{RELEASE} 3.40"

        self.made.append(plan.spec)
        say(f"making a template of {plan.spec.aw_bits} bits")
        return store_template(ingredients(plan), make, say)[0]


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in os.environ if name.startswith("HARNESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    host = Host(tmp_path)
    monkeypatch.setattr(templates, "list_builds", lambda: host.builds)
    for module in (templates, cells):
        monkeypatch.setattr(module, "list_scenarios", listed)
    monkeypatch.setattr(templates, "get_template", host.get_template)
    for module in (templates, resources):
        monkeypatch.setattr(module, "capabilities", lambda build: host.capabilities)
        monkeypatch.setattr(module, "find_image", host.find_image)
    monkeypatch.setattr(resources, "find_build", host.find_build)
    monkeypatch.setattr(resources, "decide", lambda build, choice: Decision("tcg", "as the test says"))
    return host


def invoke(*words: str):
    return CliRunner().invoke(app, ["template", *words])


def rows(*words: str) -> Any:
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", [["template"], *(["template", name] for name in ("list", "build", "prune"))])
def test_every_command_explains_itself(words: list[str]):
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_where_there_is_none_it_says_how_they_come():
    assert invoke("list").stdout.startswith("no templates: ")
    assert rows("list") == []
    assert invoke("prune").stdout == "0 removed, 0 MiB; 0 left\n"


def test_build_makes_what_is_needed_once_and_says_what_was_there(host: Host):
    done = invoke("build", PLAIN, NARROW)
    assert done.exit_code == 0, done.output
    made = [line.split()[0] for line in done.stdout.splitlines()]
    assert made == ["made", "made"]
    assert "11.1" in done.stdout
    assert f"{RELEASE}  tcg  intel, 39 bits, 512 MiB, 1 CPU" in done.stdout
    assert "making a template of 39 bits" in done.stderr
    again = invoke("build", PLAIN, NARROW)
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["here", "here"]
    assert again.stdout.count("for 1 scenario\n") == 2
    assert (again.stderr, len(host.made)) == ("", 2)


def test_build_without_a_path_makes_what_all_scenarios_need(host: Host):
    found = rows("build")
    assert len(found["templates"]) == len(host.made) >= 4
    assert sum(len(one["scenarios"]) for one in found["templates"]) >= 60
    assert len({one["key"] for one in found["templates"]}) == len(found["templates"])
    told = {(one["kernel"], one["machine"]) for one in found["templates"]}
    assert len(told) == len(found["templates"]), "rows look alike"
    assert {kernel for kernel, _ in told} == {RELEASE, "7.3.1+deb13-amd64", "7.2.12-lab"}
    assert current_keys() > {one["key"] for one in found["templates"]}, "KVM's are current as well"


def test_a_device_on_bus_0_is_in_the_template_and_is_named(host: Host):
    (one,) = rows("build", FIXED)["templates"]
    assert one["machine"] == "intel, 48 bits, 512 MiB, 1 CPU, edu at 00:05.0"
    assert one["key"] != default_key()
    assert [listed.current for listed in list_known()] == [True]


def test_a_scenario_that_would_be_skipped_needs_none(host: Host, tmp_path: Path):
    file = tmp_path / "new.yaml"
    text = Path(PLAIN).read_text(encoding="utf-8")
    file.write_text(re.sub("^needs:.*\n", "", text, flags=re.MULTILINE) + 'needs: {kernel: ">=9.0"}\n')
    done = invoke("build", str(file))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("skipped, so without a template: new (")
    assert host.made == []


def test_a_matrix_needs_one_for_each_point(host: Host):
    host.builds.append(replace(host.builds[0], name="7.2", version="7.2.1", key="c" * 64))
    found = rows("build", PLAIN, "--qemu", "7.2", "--qemu", "11.1")
    assert [one["qemu"] for one in found["templates"]] == ["7.2.1 (7.2)", "11.1.3 (11.1)"]
    assert all(one.current for one in list_known())
    host.builds.pop()
    assert [one.current for one in list_known()].count(False) == 1


def test_what_fails_is_explained_the_rest_is_made_and_the_worst_is_the_exit_code(host: Host):
    crash = EmulatorCrash("QEMU ended with signal 11")
    boot = BootError("not ready in time", hint="take longer", context={"console": "one\n\x1b[31mtwo\x07"})
    host.errors = [crash, boot]
    done = invoke("build")
    assert done.exit_code == 7
    states = [line.split()[0] for line in done.stdout.splitlines()]
    assert states[:2] == ["failed", "failed"]
    assert "made" in states
    assert "error: not ready in time\nhint: take longer\nconsole: one\nconsole: two\n" in done.stderr
    assert "error: QEMU ended with signal 11" in done.stderr
    host.errors = [boot]
    failed = invoke("build", "--json")
    first = json.loads(failed.stdout)["templates"][0]
    assert (failed.exit_code, first["state"], first["failure_class"]) == (3, "failed", "boot")
    assert (first["message"], first["hint"], first["disk_bytes"]) == ("not ready in time", "take longer", 0)


def test_list_says_what_is_current(host: Host):
    invoke("build", PLAIN)
    (one,) = rows("list")
    assert (one["qemu"], one["kernel"], one["accelerator"]) == ("11.1.3 (11.1)", RELEASE, "tcg")
    assert (one["method"], one["current"]) == ("file", True)
    assert one["disk_bytes"] >= 70000
    assert len(one["key"]) == 64
    text = invoke("list").stdout
    assert one["key"][:12] in text
    assert one["key"][:13] not in text
    assert text.splitlines()[1].endswith("  current")
    assert text.splitlines()[-1] == "1 template, 0 MiB"


@pytest.mark.parametrize("what", ["image", "build", "capabilities", "payload"])
def test_what_it_was_made_of_has_changed_so_it_is_not_current(host: Host, monkeypatch: pytest.MonkeyPatch, what: str):
    invoke("build", PLAIN)
    if what == "image":
        host.image = replace(host.image, key="j" * 64)
    elif what == "build":
        host.builds = [replace(host.builds[0], key="d" * 64)]
    elif what == "capabilities":
        host.capabilities = replace(CAPABILITIES, machine_type="pc-q35-11.2")
    else:
        other = replace(templates.build_payload(), key="p" * 64)
        monkeypatch.setattr(templates, "build_payload", lambda: other)
    assert [one.current for one in list_known()] == [False]
    assert "removes the 1 that are not current" in invoke("list").stdout


def test_another_usdm_is_not_current(host: Host, tmp_path: Path):
    package = tmp_path / "usdm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    invoke("build", PLAIN, "--usdm", str(package))
    assert [one.current for one in list_known()] == [False]


@pytest.mark.parametrize("on", ["libusdm", "both"])
def test_what_the_steps_run_on_makes_no_difference(host: Host, monkeypatch: pytest.MonkeyPatch, on: str):
    monkeypatch.setattr(resources, "find_library", lambda name: LIBRARY)
    found = resources.prepare(RunOptions(implementation="libusdm"), lambda text: None)
    assert found.library is LIBRARY
    one = Cell(load_scenario(Path(PLAIN)), "11.1", "6.12", "x", implementation=on, libusdm="26.08")  # type: ignore[arg-type]
    (wanted,) = needs_of([one], found).templates
    host.get_template(wanted.plan, 1.0, lambda text: None)
    assert [one.current for one in list_known()] == [True]
    assert invoke("build", PLAIN).stdout.startswith("here  ")


def test_what_only_the_library_runs_needs_a_template_as_well(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "only.yaml"
    machine = "machine: {memory: 640M}\nneeds: {implementation: libusdm}"
    file.write_text(f"title: t\nsource: s\n{machine}\nsteps: [{{alloc: {{as: a, size: 64}}}}]\n")
    monkeypatch.setattr(templates, "list_scenarios", lambda paths: [load_scenario(file)])
    monkeypatch.setattr(resources, "find_library", lambda name: LIBRARY)
    needs = find_needs(RunOptions(paths=(file,), implementation="libusdm"), lambda text: None)
    host.get_template(needs.templates[0].plan, 1.0, lambda text: None)
    assert [one.current for one in list_known()] == [True]


def test_a_build_or_image_that_cannot_be_used_makes_nothing_current(host: Host, monkeypatch: pytest.MonkeyPatch):
    invoke("build", PLAIN)

    def broken(build: QemuBuild) -> Capabilities:
        raise InfrastructureError("QEMU did not answer on QMP")

    monkeypatch.setattr(templates, "capabilities", broken)
    assert [one.current for one in list_known()] == [False]
    monkeypatch.setattr(templates, "capabilities", lambda build: replace(CAPABILITIES, properties={}))
    assert [one.current for one in list_known()] == [False]


def test_prune_removes_what_is_not_current_and_says_how_much(host: Host):
    invoke("build", PLAIN)
    host.image = replace(host.image, key="j" * 64)
    invoke("build", PLAIN, NARROW)
    done = invoke("prune")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("removed template QEMU 11.1 ")
    assert done.stdout.splitlines()[-1] == "1 removed, 0 MiB; 2 left"
    assert len(list_templates()) == 2
    pruned = invoke("prune", "--all", "--json")
    found = json.loads(pruned.stdout)
    assert (len(found["removed"]), found["left"]) == (2, 0)
    assert found["disk_bytes"] == sum(one["disk_bytes"] for one in found["removed"]) >= 140000
    assert pruned.stderr.count("removed template") == 2
    assert list_templates() == []


def test_all_are_removed_although_the_scenarios_are_wrong(host: Host, monkeypatch: pytest.MonkeyPatch):
    invoke("build", PLAIN)

    def wrong(paths: object) -> Any:
        raise ConfigurationError("a scenario is wrong")

    monkeypatch.setattr(templates, "list_scenarios", wrong)
    assert invoke("list").exit_code == 2
    assert invoke("prune").exit_code == 2
    assert len(list_templates()) == 1
    assert invoke("prune", "--all").exit_code == 0
    assert list_templates() == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["build", "no/such/path"], 2, "no/such/path"),
        (["build", "--kernel", "2.4"], 2, "no image has a kernel '2.4'"),
        (["build", "--usdm", "/nonexistent"], 2, "no Python package"),
        (["build", "--qemu", "10.0"], 8, "QEMU 10.0 is not in the cache"),
        (["build", "--kernel", "7.2"], 8, "trixie-7.2"),
        (["build", "--accel", "xen"], 2, "--accel"),
        (["build", "--boot-timeout", "0"], 2, "--boot-timeout"),
        (["prune", "--keep", "1"], 2, "--keep"),
        (["list", "extra"], 2, "extra"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_users_mistake_is_named_and_has_no_traceback(host: Host, words: list[str], status: int, said: str):
    host.newer = replace(host.newer, name="not there")
    done = invoke(*words)
    assert done.exit_code == status, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_needs_count_each_template_once():
    needs = find_needs(RunOptions(paths=(Path(PLAIN), Path(NARROW), Path(OTHER))), lambda text: None)
    assert [wanted.scenarios for wanted in needs.templates] == [
        ["dma/unmapped_read", "dma/unmapped_write"],
        ["dma/width_39"],
    ]
    assert needs.templates[0].key == default_key()


def test_doctor_says_whether_the_default_one_is_there(host: Host, monkeypatch: pytest.MonkeyPatch):
    assert (doctor.templates_finding().state, doctor.templates_finding().remedy) == ("warn", "harness template build")
    assert doctor.templates_finding().detail.startswith("none")
    invoke("build", NARROW)
    assert doctor.templates_finding().state == "warn"
    assert doctor.templates_finding().detail.startswith("1, 0 MiB")
    invoke("build", PLAIN)
    assert doctor.templates_finding() == doctor.Finding(
        "templates", "ok", "2, 0 MiB; the one that most guests are cloned from is there"
    )
    host.builds = []
    missing = doctor.templates_finding()
    assert (missing.state, missing.remedy) == ("warn", "fetch it")
    assert "QEMU 11.1 is not in the cache" in missing.detail
