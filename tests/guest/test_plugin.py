"""The pytest plugin on real guests: a file and its twin in Python, failures, a test that hangs, a shell."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from conftest import processes_with

import harness
from harness.deadline import Deadline
from harness.paths import scenarios_dir
from harness.run.resources import Resources

ROOT = Path(harness.__file__).parent.parent
TESTS = '''
import pytest

@pytest.mark.harness_machine(iommu="intel", devices={"edu0": {"model": "edu", "at": "02:00.0"}})
def test_twin(usdm, device, faults):
    """After unmap the device can no longer read the buffer"""
    usdm.register("edu0", expect={"returns": 0})
    device.bus_master(enabled=True)
    a = usdm.buffer(as_="a", size="8K")
    usdm.map(a, size="8K", expect={"returns": "nonzero"})
    device.dma_read(buffer=a, size=64)
    usdm.unmap(buffer=a, size="8K", expect={"returns": 0})
    device.dma_read(buffer=a, size=64, id="first_page")
    second = device.dma_read(buffer=a, offset="4K", size=64, id="second_page")
    assert [fault.step for fault in second.faults] == [7] and len(faults.seen) == 2
    faults.expect(device, "read", buffer=a, reason=6, step="first_page")
    faults.expect(device, "read", buffer=a, offset="4K", reason=6, step="second_page")

def test_unexpected_fault(device, guest, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(range(256)))
    guest.copy_in(file, "/run/some/a")
    assert guest.copy_out("/run/some/a", tmp_path / "b").read_bytes() == file.read_bytes()
    device.register()
    device.bus_master(enabled=True)
    device.dma_read(iova=0x900000, size=16)

@pytest.mark.harness_machine(devices={"dut": {"model": "qat", "at": "02:00.0", "slot": True}})
def test_pulled_out(usdm, device):
    device.open()
    device.surprise_removal(expect={"counts": {"closed": 1}})

def test_in_no_slot(device):
    device.open()
    device.surprise_removal()

@pytest.mark.timeout(5, func_only=True)
def test_hangs(guest):
    guest.run("sleep 1000", timeout=1000)
'''
WRONG = """\
title: A returned value that is not so
source: "a test of the plugin"
machine: {iommu: intel, devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - register: {device: edu0}
    expect: {returns: 1}
"""
LIMIT = 240.0


def words(*more: str) -> list[str]:
    known = any(one.name == "harness" for one in entry_points(group="pytest11"))
    load = [] if known else ["-p", "harness.pytest_plugin"]
    return [sys.executable, "-m", "pytest", "-W", "error", *load, *more]


@pytest.fixture
def folder(resources: Resources, tmp_path: Path) -> Path:
    """A project with a scenario file, one that fails, and tests in Python; what they need is in the cache."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_python.py").write_text(TESTS)
    (folder / "wrong.yaml").write_text(WRONG)
    (folder / "read.yaml").write_text((scenarios_dir() / "dma" / "read_after_unmap.yaml").read_text())
    return folder


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def what_was_judged(file: Path) -> dict[str, Any]:
    """A verdict without what differs from guest to guest: times, and the addresses that programs get."""
    found = json.loads(file.read_text())
    step_keys = ("index", "kind", "args", "returns", "error")
    steps = [[one[key] for key in step_keys] for one in found["evidence"]["steps"]]
    checks = [(one["name"], one["passed"], one["expected"]) for one in found["verdict"]["checks"]]
    fault_keys = ("witness", "requester", "access", "address", "reason", "step")
    faults = [[one[key] for key in fault_keys] for one in found["verdict"]["faults"] if one["witness"] == "trace"]
    same = ("title", "outcome", "failure_class", "implementation", "start")
    more = {"steps": steps, "checks": checks, "faults": faults, "keys": sorted(found)}
    return {key: found[key] for key in same} | more


def test_files_and_tests_in_python_by_two_workers(folder: Path) -> None:
    out = folder / "out"
    files = ("read.yaml", "wrong.yaml", "test_python.py")
    done = subprocess.run(
        words("-n", "2", "--harness-out", str(out), "--junitxml", "junit.xml", *files),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout
    assert "4 failed, 3 passed" in text, text + done.stderr
    assert "edu0 is in no slot that it could be pulled out of" in text
    assert not processes_with(str(out))
    # A file, and the same in Python.
    file, twin = (out / name / "verdict.json" for name in ("read.yaml-read", "test_python.py-test_twin"))
    assert what_was_judged(file) == what_was_judged(twin)
    assert len(what_was_judged(file)["faults"]) == 2
    names = ("console.log", "kernel.log", "qemu.log", "qemu.sh", "qmp.log")
    assert all((one.parent / name).exists() for one in (file, twin) for name in names)
    # Failures with their places, evidence and commands.
    assert "wrong.yaml:5: step 0 (register): expected the return value 1, observed the return value 0" in text
    assert f"evidence: {out}/wrong.yaml-wrong" in text
    assert "rerun: pytest wrong.yaml::wrong" in text
    assert "or: harness run wrong.yaml --qemu 11.1 --kernel 6.12" in text
    line = next(number for number, one in enumerate(TESTS.splitlines(), 1) if "0x900000" in one)
    what = "faults: expected no faults, observed 1; unexpected: edu0 (02:00.0) read 0x900000"
    assert f"test_python.py:{line}: {what}" in text
    assert "kernel: 02:00.0 read 0x900000 reason 0x06" in text
    assert "Timeout (>5.0s)" in text
    assert "fault addr 0x900000" in text  # the guest's kernel log
    cases = {case.get("name"): case for case in ET.parse(folder / "junit.xml").iter("testcase")}  # noqa: S314 - our own
    facts = {one.get("name"): one.get("value") for one in cases["wrong"].iter("property")}
    assert facts["harness.evidence"] == f"{out}/wrong.yaml-wrong"
    assert facts["harness.qemu"] == "11.1"
    assert "deb13" in str(facts["harness.versions.kernel"])
    report = subprocess.run(
        [sys.executable, "-m", "harness", "report", str(out)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed, 3 failed, 1 error" in report.stdout, report.stdout + report.stderr


def test_a_shell_in_the_guest_of_a_test_that_failed(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = words("--harness-out", str(folder / "out"), "--harness-shell", "wrong.yaml")
    running = subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        # What is written before the shell is there is for nobody.
        said = _until(ours, b"guest# ")
        os.write(ours, b"echo in the $(uname -s) guest; exit\n")
        said += _until(ours, b"1 failed")
        assert b"in the Linux guest" in said
        assert b"wrong.yaml:5: step 0 (register)" in said
        assert running.wait(LIMIT) == 1
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def _until(terminal: int, wanted: bytes) -> bytes:
    """What is said on a terminal until something is."""
    deadline, said = Deadline.after(LIMIT), b""
    while wanted not in said:
        ready, _, _ = select.select([terminal], [], [], deadline.remaining)
        assert ready, said.decode(errors="replace")
        said += os.read(terminal, 1 << 16)
    return said
