"""The command line: help, messages and exit codes; runs of guests are in tests/guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import EXIT_CODES, FailureClass, worst_exit_code
from harness.paths import scenarios_dir

GOOD = scenarios_dir() / "dma" / "unmapped_read.yaml"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def harness(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in ("run", "list", "lint", "doctor", "shell", "fetch", "report", "image", "qemu")),
        *(["image", name] for name in ("build", "list", "show", "prune")),
        *(["qemu", name] for name in ("list", "fetch", "command", "prune")),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(command: list[str]):
    done = harness(*command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("group", ["qemu", "image", "template"])
def test_no_line_of_a_groups_help_is_cut(group: str):
    assert "..." not in harness(group, "--help").stdout.replace("[ARGS]...", "")


def test_the_help_has_the_exit_codes_and_the_version_is_printed():
    text = " ".join(harness("--help").stdout.split())
    for code, meaning in ((2, "configuration"), (4, "panic"), (8, "infrastructure"), (130, "Ctrl-C")):
        assert f"{code} {meaning}" in text
    assert harness("--version").stdout.startswith("harness 0.")


def test_each_failure_class_has_its_own_code_and_the_worst_wins():
    assert sorted(EXIT_CODES.values()) == list(range(1, 9))
    assert worst_exit_code([FailureClass.PANIC, FailureClass.EXPECTATION, FailureClass.HANG]) == 5
    assert worst_exit_code([]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "no/such/path"], "no/such/path"),
        (["run", str(GOOD), "--qemu", "9.9"], "no QEMU build named '9.9'"),
        (["run", str(GOOD), "--kernel", "2.4", "--qemu", "11.1"], "no image has a kernel '2.4'"),
        (["run", str(GOOD), "-j", "many"], "--jobs"),
        (["run", str(GOOD), "-j", "0"], "--jobs"),
        (["run", str(GOOD), "--accel", "xen"], "--accel"),
        (["run", str(GOOD), "--usdm", "/nonexistent"], "no Python package"),
        (["image", "build", "nothing"], "no image recipe 'nothing'"),
        (["qemu", "fetch", "1.0"], "no QEMU build named '1.0'"),
        (["qemu", "command", "1.0"], "no QEMU build named '1.0'"),
        (["list", "no/such/path"], "no/such/path"),
        (["report", "/nonexistent"], "/nonexistent"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_users_mistake_is_named_and_has_no_traceback(words: list[str], said: str):
    done = harness(*words)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_missing_is_infrastructure_with_a_remedy():
    done = harness("run", str(GOOD))
    assert done.returncode == 8
    assert "hint: get it with 'harness qemu fetch 11.1', or run with --fetch" in done.stderr
    offline = harness("fetch", "--offline")
    assert offline.returncode == 8
    assert "not in the cache" in offline.stderr


def test_a_folder_without_a_scenario_is_an_error(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = harness("run", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "empty" in done.stderr


def test_lint_finds_all_problems_at_once(tmp_path: Path):
    (tmp_path / "one.yaml").write_text("title: a\ntitel: b\n")
    (tmp_path / "two.yaml").write_text('title: a\nsource: "b"\nmachine: {iommu: on}\nsteps: []\n')
    done = harness("lint", str(tmp_path))
    assert done.returncode == 2
    assert "one.yaml:2:1" in done.stdout
    assert "two.yaml:3:" in done.stdout
    found = json.loads(harness("lint", str(tmp_path), "--json").stdout)
    assert {Path(problem["file"]).name for problem in found} == {"one.yaml", "two.yaml"}
    assert all(problem["line"] and problem["message"] for problem in found)
    run = harness("run", str(tmp_path))
    assert run.returncode == 2
    assert "one.yaml:2:1" in run.stderr
    assert "two.yaml:3:" in run.stderr


def test_the_shipped_scenarios_are_clean_and_listed():
    assert harness("lint").returncode == 0
    rows = json.loads(harness("list", "--json").stdout)
    assert len(rows) >= 25
    assert all(row["source"] for row in rows)
    assert "dma/unmapped_read" in harness("list").stdout


def test_doctor_names_what_to_do():
    done = harness("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["QEMU 11.1"]["state"] == "warn"
    assert findings["QEMU 11.1"]["remedy"] == "harness qemu fetch 11.1"
    assert findings["accelerator"]["detail"].startswith(("not measured", "tcg", "kvm"))
    assert harness("doctor").returncode == done.returncode


def test_doctor_fails_where_a_needed_program_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = harness("doctor")
    assert done.returncode == 8
    assert "apt-get install util-linux" in done.stdout


def test_out_of_something_else_is_not_overwritten(tmp_path: Path):
    from harness.errors import ConfigurationError
    from harness.run.schedule import make_run_folder

    (tmp_path / "precious").write_text("data")
    with pytest.raises(ConfigurationError, match="not empty"):
        make_run_folder(tmp_path)
    assert (tmp_path / "precious").exists()


def test_the_readmes_test_line_is_what_ci_runs():
    root = Path(__file__).parents[3]
    readme = (root / "README.md").read_text()
    assert readme.count("<!-- test line -->") == 1
    line = readme.split("<!-- test line -->")[1].split("```")[1]
    assert "nox" in line
    assert "test line" in (root / ".ci/run").read_text()


def test_the_readmes_scenario_is_valid():
    from harness.scenario import parse_scenario

    text = (Path(__file__).parents[3] / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert parse_scenario(text, "README.yaml").steps
