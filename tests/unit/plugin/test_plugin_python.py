"""Tests in Python with guests that only pretend: markers, points, steps and their checks, faults, the judge's word."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_rig import Run

from harness.deadline import Deadline
from harness.errors import BootError, GuestHang
from harness.guest.guest import Guest, GuestPlan
from harness.guest.payload import Payload
from harness.image.build import Image
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.template import Template
from harness.plugin.state import State
from harness.run import session
from harness.run.resources import Emulation, Resources

pytest_plugins = ["pytester"]
INTEL = {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits"})}


class Pretended(Guest):
    """A guest whose worker says yes to everything, or what a test wants."""

    def __init__(self, plan: GuestPlan, log: Path, answers: dict[str, Any]) -> None:
        nothing: Any = None
        emulator: Any = SimpleNamespace(files=SimpleNamespace(log=log), devices=None)
        super().__init__(plan.spec, True, emulator, nothing, nothing, nothing, {"start": 0.1})
        self.answers = answers

    def start_worker(self, deadline: Deadline) -> Any:
        return SimpleNamespace(python="3.13.5")

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        found = self.answers.get(kind, {})
        if isinstance(found, Exception):
            raise found
        if kind == "_end":
            return {"values": {"kernel_log": ["[    1.0] one", "[    2.0] two"], "stderr": ""}}
        return {"returns": 0, "values": {"completed": True}, **found}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the guests answer, by the kind of the step; ``_boot`` is what their start raises."""
    answers: dict[str, Any] = {}
    template = Template("k" * 64, tmp_path, Method.FILE, "6.12.88 3.4", "2026", {})
    build = QemuBuild("11.1", "11.1.3", "b", ("qemu",), {}, None)
    image = Image("trixie", "i", tmp_path, tmp_path, tmp_path, "6.12.88", {}, "2026", 1)
    emulation = Emulation(build, Capabilities("pc-q35-11.1", True, INTEL, frozenset()), Decision("tcg", "no KVM"))
    resources = Resources({"11.1": emulation, "7.2": emulation}, {"6.12": image}, Payload(b"", "p"))

    @contextlib.contextmanager
    def running_guest(plan: GuestPlan, boot_seconds: float, stage: Any) -> Iterator[Any]:
        if "_boot" in answers:
            raise answers["_boot"]
        log = plan.folder / "qemu.log"
        log.write_text("")
        (plan.folder / "spec.txt").write_text(repr(plan.spec))
        yield Pretended(plan, log, answers)

    monkeypatch.setattr(session, "get_template", lambda plan, boot_seconds, say: template)
    monkeypatch.setattr(session, "running_guest", running_guest)
    monkeypatch.setattr(State, "prepare", lambda self, cell, options: (cell, resources))
    return answers


def verdicts(pytester: pytest.Pytester) -> dict[str, Any]:
    """The verdicts below ``out``, by folder."""
    return {file.parent.name: json.loads(file.read_text()) for file in pytester.path.glob("out/*/verdict.json")}


def test_a_test_that_does_steps_passes_and_leaves_a_verdict(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        def test_steps(usdm, device, guest, faults, machine):
            '''What holds.'''
            assert machine.iommu == "intel" and device.address == "02:00.0"
            assert usdm.register("edu0", expect={"returns": 0}).returns == 0
            a = usdm.buffer(size="8K")
            assert a.name == "buffer1" and usdm.buffer(size=4096).name == "buffer2"
            result = usdm.map(a, size="4K")
            assert result["completed"] and result.evidence.args["size"] == 4096
            assert faults.seen == () and guest.kernel_log()[0].endswith("one")
            guest.expect_log("tw[o]")
        """
    )
    result = run("test_a.py", "--harness-out=out")
    result.assert_outcomes(passed=1)
    (verdict,) = verdicts(pytester).values()
    assert (verdict["outcome"], verdict["title"]) == ("pass", "What holds.")
    assert [step["kind"] for step in verdict["evidence"]["steps"]] == ["register", "buffer", "buffer", "map"]
    assert verdict["rerun"] == "pytest test_a.py::test_steps"
    assert json.loads((pytester.path / "out" / "run.json").read_text())["cells"][0]["outcome"] == "pass"


def test_a_step_that_fails_is_told_at_its_line_and_by_the_judge(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        def test_fails(device):
            device.register(expect={"returns": 7})
        def test_caught(device):
            try:
                device.register(expect={"returns": 7})
            except AssertionError:
                pass
        """
    )
    result = run("test_a.py", "--harness-out=out")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E*StepFailed: step 0 (register): expected the return value 7, observed the return value 0",
            "test_a.py:2: StepFailed",
            "*harness: steps*",
            "!  0     register*",
            "*harness: kernel log*",
            "*test_caught*",
            "test_a.py:5: step 0 (register): expected the return value 7, observed the return value 0",
            "evidence: *out/test_a.py-test_caught",
            "rerun: pytest test_a.py::test_caught",
        ]
    )
    assert {one["outcome"] for one in verdicts(pytester).values()} == {"fail"}


def test_a_failed_assertion_is_in_the_verdict(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(test_a="def test_a(device):\n    device.register()\n    assert device.name == 'edu1'\n")
    run("test_a.py", "--harness-out=out").assert_outcomes(failed=1)
    (verdict,) = verdicts(pytester).values()
    assert verdict["outcome"] == "fail"
    assert verdict["message"].startswith("test: AssertionError: ")


def test_a_fault_that_is_missing_fails_at_the_line_that_expects_it(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        def test_a(device, faults):
            device.register()

            faults.expect(device, "read", address=0x900000, reason=6)
        """
    )
    result = run("test_a.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_a.py:4: faults: expected 1 fault, observed 0; missing: edu0 (02:00.0) read *"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("usdm.map('nobody', size='4K')", "*expected a buffer that an earlier step made, found 'nobody'*"),
        ("usdm.mapp('a')", "*there is no step 'mapp' (did you mean 'map'[?])*"),
        ("usdm.buffer(size='4 apples')", "*expected a size*found '4 apples'*"),
        ("usdm.buffer(sise=1)", "*expected 'size' in 'buffer', found none*"),
        ("usdm.register('edu0', 'edu1')", "*register: expected at most 1 arguments (device), found 2*"),
        ("usdm.register('edu0', device='edu0')", "*register: expected device once, found it twice*"),
        ("faults.expect('edu0', 'reed', address=0, reason=6)", "*expected read or write, found 'reed'*"),
        ("faults.expect('edu0', 'read', reason=6)", "*expected exactly one of address, buffer and range*"),
        ("faults.expect('edu7', 'read', address=0, reason=6)", "*expected a device of the machine, found 'edu7'*"),
        ("devices['edu7']", "*the machine has no device 'edu7'; it has edu0*"),
    ],
)
def test_a_mistake_is_told_where_it_is(run: Run, pytester: pytest.Pytester, answers: Any, line: str, said: str):
    pytester.makepyfile(test_a=f"def test_a(usdm, faults, devices):\n    {line}\n")
    result = run("test_a.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])
    assert "harness/plugin/" not in result.stdout.str()


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("harness_machine(iommu='intl')", "test_a.py:3: expected intel, virtio, amd or none, found 'intl'*"),
        ("harness_machine(iomu='intel')", "test_a.py:3: expected a known key in 'machine', found 'iomu'*"),
        ("harness_machine('intel')", "test_a.py:3: expected keys by name, found 'intel'*"),
        ("harness_needs(qemu='new')", "test_a.py:3: *found 'new'*"),
        ("harness_point(qmeu='11.1')", "test_a.py:3: expected an axis, found 'qmeu' (hint: did you mean 'qemu'[?])*"),
        ("harness_point(viommu='intl')", "test_a.py:3: expected a value of viommu, found 'intl'*"),
        ("harness_point(vcpus=65)", "test_a.py:3: expected a value of vcpus, found '65'*"),
    ],
)
def test_a_mistake_in_a_marker_names_its_line(
    run: Run, pytester: pytest.Pytester, answers: Any, marker: str, said: str
):
    pytester.makepyfile(test_a=f"import pytest\n\n@pytest.mark.{marker}\ndef test_a(guest):\n    pass\n")
    result = run("test_a.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])
    assert "harness/" not in result.stdout.str()


def test_tests_run_at_every_point_but_what_a_marker_pins(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        import pytest
        def test_all(guest): pass
        @pytest.mark.harness_point(qemu="11.1", vcpus=[1, 2])
        def test_pinned(guest): pass
        def test_other(): pass
        """
    )
    result = run("--co", "-q", "test_a.py", "--harness-qemu=11.1", "--harness-qemu=7.2")
    assert [line for line in result.outlines if "::" in line] == [
        "test_a.py::test_all[qemu 11.1, kernel 6.12]",
        "test_a.py::test_all[qemu 7.2, kernel 6.12]",
        "test_a.py::test_pinned[vcpus 1]",
        "test_a.py::test_pinned[vcpus 2]",
        "test_a.py::test_other",
    ]
    run("test_a.py", "--harness-out=out", "-k", "pinned and 2").assert_outcomes(passed=1, deselected=3)
    (spec,) = pytester.path.glob("out/*/spec.txt")
    assert "cpus=2" in spec.read_text()


def test_a_fixture_of_ones_own_gives_the_machine(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        import pytest
        @pytest.fixture
        def machine():
            return {"iommu": "none", "devices": {"a": {"model": "edu", "at": "01:00.0"},
                                                   "b": {"model": "edu", "at": "02:00.0"}}}
        def test_a(devices, guest):
            assert list(devices) == ["a", "b"] and guest.machine.iommu == "none"
        def test_b(device): pass
        """
    )
    result = run("test_a.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the fixture 'device' is for a machine with one device, this one has a, b*"])


def test_what_cannot_be_at_a_point_or_lacks_something_is_skipped(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        import pytest
        @pytest.mark.harness_machine(iommu="virtio")
        def test_a(guest): pass
        @pytest.mark.harness_needs(qemu=">=99")
        def test_b(guest): pass
        """
    )
    result = run("test_a.py", "--harness-viommu=intel", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*the scenario is about iommu: virtio", "SKIPPED*needs QEMU >=99, this is *"])


def test_a_guest_that_does_not_start_is_an_error_without_a_traceback(run: Run, pytester: pytest.Pytester, answers: Any):
    answers["_boot"] = BootError("not ready in time", hint="wait", context={"console": "one\ntwo"})
    pytester.makepyfile(test_a="def test_a(guest): pass")
    result = run("test_a.py", "--harness-out=out")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["test_a.py: boot: not ready in time", "hint: wait", "*harness: console*", "one", "two"]
    )
    assert "harness/" not in result.stdout.str()
    (verdict,) = verdicts(pytester).values()
    assert (verdict["outcome"], verdict["failure_class"]) == ("error", "boot")


def test_a_guest_that_hangs_in_a_step_is_an_error_in_the_verdict(run: Run, pytester: pytest.Pytester, answers: Any):
    answers["register"] = GuestHang("the guest does not answer any more")
    pytester.makepyfile(test_a="def test_a(device):\n    device.register()\n")
    result = run("test_a.py", "--harness-out=out")
    result.assert_outcomes(failed=1)
    (verdict,) = verdicts(pytester).values()
    assert (verdict["outcome"], verdict["failure_class"]) == ("error", "hang")


@pytest.mark.parametrize(
    ("last", "words", "interrupted"),
    [
        ("pass", (), False),
        ("assert False", (), False),
        # What pytest tells when a worker of xdist is lost.
        ("hook(node=request.session, error='crashed')", (), True),
        ("import pytest; pytest.exit('enough')", (), True),
        ("assert False", ("-x",), True),
    ],
)
def test_a_session_that_ends_early_is_no_complete_run(
    run: Run, pytester: pytest.Pytester, answers: Any, last: str, words: tuple[str, ...], interrupted: bool
):
    pytester.makepyfile(
        test_a=f"def test_a(device):\n    device.register()\n"
        f"def test_b(device, request):\n    hook = request.config.hook.pytest_testnodedown\n    {last}\n"
        "def test_c(device):\n    device.register()\n"
    )
    run("test_a.py", "--harness-out=out", *words)
    assert json.loads((pytester.path / "out" / "run.json").read_text())["interrupted"] is interrupted


def test_a_fault_without_any_step_is_seen_and_judged(run: Run, pytester: pytest.Pytester, answers: Any):
    line = "vtd_dmar_fault sid 0x200 fault 6 addr 0x900000 write 0"
    pytester.makepyfile(
        test_a=f"""
        def test_a(guest, faults):
            with (guest.folder / "qemu.log").open("a") as log:
                log.write({line!r} + chr(10))
            assert len(faults.seen) == 1
        """
    )
    run("test_a.py", "--harness-out=out").assert_outcomes(failed=1)
    (verdict,) = verdicts(pytester).values()
    assert (verdict["outcome"], len(verdict["verdict"]["faults"])) == ("fail", 1)
    assert "unexpected" in verdict["message"]


def test_what_a_fixture_does_behind_the_test_is_judged_too(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        import pytest
        @pytest.fixture
        def registered(device):
            device.register()
            yield
            try:
                device.unregister(expect={"returns": 1})
            except AssertionError:
                pass
        def test_a(registered): pass
        """
    )
    result = run("test_a.py", "--harness-out=out")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["test_a.py:7: step 1 (unregister): expected the return value 1, *"])
    (verdict,) = verdicts(pytester).values()
    assert (verdict["outcome"], len(verdict["evidence"]["steps"])) == ("fail", 2)


def test_the_failed_ones_again(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(
        test_a="""
        def test_good(device): device.register()
        def test_bad(device): device.register(expect={"returns": 1})
        """
    )
    run("test_a.py").assert_outcomes(passed=1, failed=1)
    answers["register"] = {"returns": 1}
    run("test_a.py", "--lf").assert_outcomes(passed=1)


def test_junit_says_where_it_ran_and_where_the_evidence_is(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(test_a="def test_a(device): device.register(expect={'returns': 1})")
    run("test_a.py", "--junitxml=out.xml")
    text = (pytester.path / "out.xml").read_text()
    for name in ("qemu", "kernel", "versions.qemu", "versions.kernel", "evidence", "pytest", "outcome"):
        assert f'name="harness.{name}"' in text
    assert 'name="harness.pytest" value="pytest test_a.py::test_a"' in text


def test_without_a_terminal_no_shell_is_opened(run: Run, pytester: pytest.Pytester, answers: Any):
    pytester.makepyfile(test_a="def test_a(device): device.register(expect={'returns': 1})")
    result = run("test_a.py", "--harness-shell")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["--harness-shell: there is no terminal, so no shell is opened in the guest"])
