"""Commands called in this process, with what lies behind them replaced where it would start a guest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import handler
from harness.cli.app import app
from harness.errors import BootError, FailureClass, HarnessError
from harness.machine.builds import QemuBuild
from harness.paths import scenarios_dir
from harness.report import write_run
from harness.results import CellResult, Outcome, RunResult
from harness.run.options import RunOptions

GOOD = scenarios_dir() / "dma" / "unmapped_read.yaml"


def result(*outcomes: Outcome, interrupted: bool = False) -> RunResult:
    cells = [
        CellResult(
            scenario=f"dma/{number}",
            title="t",
            source="s",
            file="f.yaml",
            outcome=outcome,
            failure_class=FailureClass.PANIC if outcome is Outcome.ERROR else None,
            message="" if outcome is Outcome.PASS else "why",
        )
        for number, outcome in enumerate(outcomes)
    ]
    return RunResult(
        started="2026-01-01T00:00:00+00:00", argv=("harness",), cells=tuple(cells), interrupted=interrupted
    )


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in os.environ if name.startswith("HARNESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    handler.set_debug(False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """Replaces the run; gives the options that it was called with. ``answer`` is what it returns or raises."""

    class Asked:
        options: RunOptions
        answer: RunResult | BaseException = result(Outcome.PASS)

        def run(self, options: RunOptions, progress: object) -> RunResult:
            self.options = options
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

    asked = Asked()
    monkeypatch.setattr("harness.run.run_scenarios", asked.run)
    return asked


def invoke(*words: str, **env: str):
    return CliRunner().invoke(app, list(words), env=env)


def test_run_hands_every_option_on(asked, tmp_path: Path):
    words = "run -j 3 --qemu 7.2 --qemu 11.1 --kernel 7.2 --accel tcg --timeout 9 --boot-timeout 8 --offline"
    done = invoke(*words.split(), "--mirror", "http://m/debian", "--usdm", "u", "--out", "o", str(GOOD))
    assert done.exit_code == 0, done.output
    options = asked.options
    assert (options.jobs, options.qemu, options.kernels, options.accel) == (3, ("7.2", "11.1"), ("7.2",), "tcg")
    assert (options.timeout, options.boot_timeout, options.offline, options.fetch) == (9, 8, True, False)
    assert (options.mirror, options.usdm, options.out) == ("http://m/debian", Path("u"), Path("o"))
    assert options.paths == (GOOD,)


def test_a_kernel_is_chosen_on_the_command_line_or_in_the_environment(asked):
    assert invoke("run").exit_code == 0
    assert (asked.options.kernels, asked.options.auto_kernel) == (("6.12",), True)
    for words, env in ((["--kernel", "6.12"], {}), ([], {"HARNESS_KERNEL": "6.12"})):
        assert invoke("run", *words, **env).exit_code == 0
        assert (asked.options.kernels, asked.options.auto_kernel) == (("6.12",), False)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ``fetch`` gets, in order."""
    got: list[str] = []
    monkeypatch.setattr("harness.run.resources.fetch_all", lambda options, libraries, say: got.append("all"))
    monkeypatch.setattr("harness.run.modules.build_image", lambda name, **more: got.append(f"image {name}"))

    def fetch_module(image: object, **more: object) -> SimpleNamespace:
        got.append("module")
        return SimpleNamespace(release="7.2")

    monkeypatch.setattr("harness.run.modules.fetch_module", fetch_module)
    return got


MODULE = ["image trixie-7.2", "module"]


@pytest.mark.parametrize(
    ("words", "env", "got"),
    [
        ([], {}, ["all"]),
        (["--module", "7.2"], {}, MODULE),
        (["--module", "7.2", "--module", "7.2", "--offline"], {}, MODULE),
        (["--module", "7.2", "--qemu", "11.1"], {}, ["all", *MODULE]),
        (["--module", "7.2", "--libusdm", "26.08"], {}, ["all", *MODULE]),
        (["--module", "7.2"], {"HARNESS_KERNEL": "6.12"}, ["all", *MODULE]),
    ],
)
def test_fetch_gets_the_module_alone_where_nothing_else_is_named(
    fetched: list[str], words: list[str], env: dict[str, str], got: list[str]
):
    done = invoke("fetch", *words, **env)
    assert (done.exit_code, fetched) == (0, got), done.output


@pytest.mark.parametrize(("kernel", "said"), [("6.12", "has no dma_iova_*"), ("lab", "loads no modules"), ("9", "'9'")])
def test_a_wrong_module_is_refused_before_anything_is_fetched(fetched: list[str], kernel: str, said: str):
    done = invoke("fetch", "--qemu", "11.1", "--module", "7.2", "--module", kernel)
    assert (done.exit_code, fetched) == (2, [])
    assert said in done.stderr


def test_every_option_of_run_has_an_environment_variable():
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = [one for one in command.params if one.param_type_name == "option"]
    missing = [one.name for one in options if not one.envvar]
    assert len(options) > 10
    assert missing == []


def test_the_environment_names_a_matrix(asked):
    assert invoke("run", HARNESS_QEMU="7.2 11.1", HARNESS_KERNEL="7.2", HARNESS_JOBS="auto").exit_code == 0
    assert (asked.options.qemu, asked.options.kernels, asked.options.jobs) == (("7.2", "11.1"), ("7.2",), None)


def test_filter_takes_scenarios_by_a_part_of_their_id(asked):
    assert invoke("run", "-k", "unmapped").exit_code == 0
    names = {path.stem for path in asked.options.paths}
    assert {"unmapped_read", "unmapped_write"} <= names
    assert all("unmapped" in name for name in names)
    listed = invoke("list", "--filter", "dma/unmapped_read", "--json")
    assert [row["id"] for row in json.loads(listed.stdout)] == ["dma/unmapped_read"]
    nothing = invoke("run", "-k", "no such id")
    assert nothing.exit_code == 2
    assert "no such id" in nothing.stderr


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "²", "1.5", ""])
def test_a_bad_number_of_jobs_is_refused(asked, jobs: str):
    done = invoke("run", f"--jobs={jobs}")
    assert done.exit_code == 2
    assert "--jobs takes a number from 1 or 'auto'" in done.stderr


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (result(Outcome.PASS, Outcome.SKIP), 0),
        (result(Outcome.PASS, Outcome.ERROR), 4),
        (result(Outcome.PASS, interrupted=True), 130),
        (result(interrupted=True), 130),
        (result(Outcome.SKIP, Outcome.SKIP), 2),
        (BootError("no boot"), 3),
        (HarnessError("no disk", hint="make room"), 8),
        (KeyboardInterrupt(), 130),
        (RuntimeError("oops"), 70),
    ],
)
def test_what_a_run_came_to_is_its_exit_code(asked, outcome: RunResult | BaseException, status: int):
    asked.answer = outcome
    done = invoke("run")
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output


def test_a_run_that_skipped_everything_says_that_nothing_was_run(asked):
    asked.answer = result(Outcome.SKIP)
    assert "nothing was run" in invoke("run").stderr


def test_an_error_has_its_hint(asked):
    asked.answer = HarnessError("no disk", hint="make room")
    assert invoke("run").stderr == "error: no disk\nhint: make room\n"


def test_a_defect_shows_its_traceback_only_when_asked(asked):
    asked.answer = RuntimeError("oops")
    assert "error: this is a defect of harness: RuntimeError: oops" in invoke("run").stderr
    assert "Traceback" in invoke("--debug", "run").stderr
    assert "Traceback" in invoke("run", HARNESS_DEBUG="1").stderr
    assert "Traceback" not in invoke("run", HARNESS_DEBUG="0").stderr


def test_run_writes_json_and_junit(asked, tmp_path: Path):
    asked.answer = result(Outcome.PASS, Outcome.ERROR)
    done = invoke("run", "--json", "--junit", str(tmp_path / "deep" / "out.xml"))
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["counts"]["error"]) == (4, 1)
    assert ET.parse(tmp_path / "deep" / "out.xml").getroot().get("tests") == "2"  # noqa: S314
    (tmp_path / "file").touch()
    refused = invoke("run", "--junit", str(tmp_path / "file" / "out.xml"))
    assert refused.exit_code == 2
    assert "--junit" in refused.stderr


def test_report_says_again_what_the_run_said(tmp_path: Path):
    write_run(result(Outcome.PASS, Outcome.ERROR), tmp_path)
    done = invoke("report", str(tmp_path))
    assert done.exit_code == 4
    assert "1 passed" in done.stdout
    again = invoke("report", str(tmp_path), "--json", "--junit", str(tmp_path / "out.xml"))
    assert json.loads(again.stdout)["exit_code"] == 4
    assert (tmp_path / "out.xml").exists()
    assert "dma/1" in invoke("report", str(tmp_path), "--evidence").stdout


def test_a_shell_is_one_guest(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def open_shell(options: RunOptions, scenario: Path | None, command: str | None, say: object) -> int:
        seen.append((options, scenario, command))
        return 7

    monkeypatch.setattr("harness.run.shell.open_shell", open_shell)
    assert invoke("shell", str(GOOD), "-c", "exit 7", "--offline").exit_code == 7
    assert seen[0][0].offline
    assert seen[0][1:] == (GOOD, "exit 7")
    many = invoke("shell", HARNESS_QEMU="7.2 11.1")
    assert many.exit_code == 2
    assert "7.2, 11.1" in many.stderr


@pytest.mark.parametrize("words", [["image", "list"], ["qemu", "list"], ["doctor"], ["lint"], ["list"]], ids=" ".join)
def test_json_is_json(words: list[str]):
    assert json.loads(invoke(*words, "--json").stdout) is not None


def test_every_command_has_examples_that_name_real_options():
    def leaves(command: Any, path: tuple[str, ...]):
        for name, one in getattr(command, "commands", {}).items():
            yield from leaves(one, (*path, name))
        if not hasattr(command, "commands"):
            yield command, path

    found = list(leaves(typer.main.get_command(app), ("harness",)))
    assert len(found) > 10
    for command, path in found:
        lines = [line for line in (command.epilog or "").splitlines() if " ".join(path) in line]
        assert lines, path
        known = {name for one in command.params for name in one.opts}
        for line in lines:
            for word in re.findall(r"(?<= )--?[a-z][a-z-]*", line):
                assert word in known, line


@pytest.mark.parametrize("words", [["list"], ["lint", str(scenarios_dir())]], ids=["list", "lint"])
def test_a_reader_that_goes_away_is_met_quietly(words: list[str]):
    command = [sys.executable, "-m", "harness", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate()
    assert said == ""
    assert process.returncode == (handler.READER_GONE if words == ["list"] else 0)


def test_a_run_whose_reader_goes_away_has_not_passed():
    code = (
        "import sys, harness.run, harness.cli.app as a\n"
        "def run(options, progress):\n"
        "    while True: progress.message('on and on')\n"
        "harness.run.run_scenarios = run\n"
        "sys.argv = ['harness', 'run']\n"
        "a.main()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on and on\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == handler.READER_GONE


def test_help_does_not_load_what_it_does_not_need():
    code = "import sys, harness.cli.app; print([m for m in ('paramiko', 'qemu', 'yaml') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "loader 'a b/qemu'\n"),
        ({"B": "x y", "A": "z"}, "env A=z 'B=x y' loader 'a b/qemu'\n"),
    ],
)
def test_a_build_by_hand(env: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch):
    build = QemuBuild("11.1", "11.1.3", "k", ("loader", "a b/qemu"), env, None)
    asked = []
    monkeypatch.setattr("harness.machine.builds.find_build", lambda name: asked.append(name) or build)
    assert invoke("qemu", "command").stdout == said
    assert invoke("qemu", "command", "7.2").stdout == said
    assert asked == ["11.1", "7.2"]
