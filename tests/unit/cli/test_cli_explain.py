"""``harness explain`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.cli.handler import NO_FAULT
from harness.report import write_run
from harness.results import CellResult, Evidence, Outcome, RunResult, StepEvidence

LINE = (
    "DMAR: [DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000 [fault reason 0x06] PTE Read access is"
    " not set"
)
DATA = {
    "faults": [
        {
            "vendor": "intel",
            "access": "read",
            "requester": "02:01.2",
            "address": 0x900000,
            "reason": 6,
            "reason_text": "PTE Read access is not set",
            "pasid": None,
            "count": 1,
            "line": 1,
        }
    ],
    "suppressed": 0,
}


def invoke(*words: str, stdin: bytes | None = None):
    return CliRunner().invoke(app, ["explain", *words], input=stdin)


def test_text_file_and_standard_input_say_the_same(tmp_path):
    file = tmp_path / "kern.log"
    file.write_text(LINE + "\n", encoding="utf-8")
    for done in (
        invoke(LINE, "--json"),
        invoke(*LINE.split(), "--json"),
        invoke(str(file), "--json"),
        invoke("-", "--json", stdin=LINE.encode() + b"\n"),
        invoke("--json", stdin=LINE.encode() + b"\n"),
    ):
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == DATA


def test_what_is_told_of_a_line():
    done = invoke("--pf", "02:00.0", "--aw-bits", "48", LINE)
    assert done.exit_code == 0
    for text in (
        "VF 10 (virtfn9) of the PF 02:00.0",
        "PTE read access is not set",
        "within the 48 bits",
        "never mapped",
        "/sys/bus/pci/devices/0000:02:01.2/iommu_group",
        "harness run scenarios/dma/unmapped_read.yaml",
    ):
        assert text in done.stdout


def test_advice_is_given_once():
    done = invoke(f"{LINE}\n{LINE.replace('0x900000', '0x901000')}")
    assert done.stdout.count("usual causes") == 1
    assert "causes and checks: as for 1" in done.stdout


def test_counts_status_and_suppressed_messages():
    log = f"DMAR: DRHD: handling fault status reg 3\n{LINE}\n{LINE}\ndmar_fault: 4 callbacks suppressed\n"
    done = invoke("-", stdin=log.encode())
    assert "2 times" in done.stdout
    assert "left out 4 messages" in done.stdout
    assert "PFO (" in done.stdout


def test_a_terminal_gets_the_same_as_a_pipe(monkeypatch):
    piped = invoke(LINE).stdout
    monkeypatch.setattr("harness.cli.explain.is_terminal", lambda stream: True)
    shown = invoke(LINE).stdout
    for text in [line for line in piped.splitlines()[3:] if line]:
        assert text in shown
    assert all(text in shown for text in ("02:01.2", "0x900000", "VT-d"))


@pytest.mark.parametrize("text", ["hello world", "DMAR: IOMMU enabled", ""])
def test_a_text_without_a_fault_says_so_and_has_an_exit_code_of_its_own(text):
    done = invoke("-", stdin=text.encode())
    assert done.exit_code == NO_FAULT == 9
    assert "no fault in standard input" in done.stderr
    assert "hint:" in done.stderr
    as_json = invoke("-", "--json", stdin=text.encode())
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (9, {"faults": [], "suppressed": 0})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no/such.log"], "there is no file no/such.log"),
        (["missing.txt"], "there is no file missing.txt"),
        (["."], ". is a folder"),
        (["--pf", "2", LINE], "--pf: '2' is no PCI address"),
        (["--run", "/nonexistent", LINE], "--run: /nonexistent is no folder"),
    ],
)
def test_a_mistake_is_told_with_a_hint(words, says):
    done = invoke(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "hint:" in done.stderr


def test_a_terminal_without_anything_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr("harness.cli.log_input.is_terminal", lambda stream: True)
    done = invoke()
    assert done.exit_code == 2
    assert "dmesg | harness" in done.stderr


def test_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(range(256)) * 100)
    assert invoke(str(file)).exit_code == 9
    file.write_bytes(b"\xff\xfe\0" + LINE.encode() + b"\r\n\0\0")
    assert json.loads(invoke(str(file), "--json").stdout) == DATA


def test_the_mappings_of_a_run(tmp_path):
    step = StepEvidence(index=1, kind="map", args={"buffer": "a", "size": 4096}, values={"iova": 0x900000})
    ended = StepEvidence(index=2, kind="unmap", args={"buffer": "a", "size": 4096}, returns=0)
    cell = CellResult(
        scenario="dma/x",
        title="t",
        source="s",
        file="f",
        outcome=Outcome.PASS,
        evidence=Evidence(steps=(step, ended)),
    )
    write_run(RunResult(started="", argv=(), cells=(cell,)), tmp_path)
    done = invoke("--run", str(tmp_path), LINE)
    assert "inside a+0x0 of dma/x: mapped by step 1 (map), ended by step 2" in done.stdout
    assert "a mapping that had ended" in done.stdout
    assert "in no mapping that the run knows" in invoke("--run", str(tmp_path), LINE.replace("0x9", "0xa")).stdout


def test_only_what_is_needed_is_imported():
    code = (
        "import sys; from harness.cli.app import app\n"
        f"try: app(['explain', '--json', {LINE!r}])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "slow = {'harness.run', 'harness.scenario', 'harness.machine', 'paramiko', 'yaml', 'qemu', 'rich.console'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
