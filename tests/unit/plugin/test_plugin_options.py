"""Options and environment variables, and what a wrong one says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from plugin_rig import SCENARIO, Run

import harness
from harness.plugin.options import AXES, OPTIONS
from harness.qualified.records import AXES as ALL_AXES

pytest_plugins = ["pytester"]
ROOT = Path(harness.__file__).parent.parent
HEAVY = ("pydantic", "paramiko", "rich", "yaml", "qemu", "typer", "cryptography")


@pytest.fixture(autouse=True)
def file(pytester: pytest.Pytester) -> None:
    (pytester.path / "read.yaml").write_text(SCENARIO)


def test_there_is_one_option_for_each_axis():
    assert AXES == ALL_AXES


def test_the_help_has_a_group_of_its_own(run: Run):
    text = run("--help").stdout.str()
    group = text[text.index("usdm-harness: scenarios") :]
    assert [option.flag for option in OPTIONS if option.flag not in group] == []
    assert "[HARNESS_VIOMMU]" in group
    assert "harness_scenarios" in text
    assert "@pytest.mark.harness_machine" in run("--markers").stdout.str()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--harness-viommu=intl", "*--harness-viommu: expected one of intel, intel-39, *, found 'intl'*"),
        ("--harness-cmdline=loose", "*--harness-cmdline: expected one of default, strict, lazy, pt, found 'loose'*"),
        ("--harness-implementation=qat", "*--harness-implementation: expected usdm, libusdm, *found 'qat'*"),
        ("--harness-model=nvme", "*--harness-model: expected one of edu, qat, found 'nvme'*"),
        ("--harness-hugepages=many", "*--harness-hugepages: expected a number from 0 to *, found 'many'*"),
        ("--harness-vcpus=65", "*--harness-vcpus: expected a number from 1 to 64, found '65'*"),
        ("--harness-accel=xen", "*--harness-accel: expected auto, tcg or kvm, found 'xen'*"),
        ("--harness-timeout=soon", "*--harness-timeout: expected seconds from 1 on, found 'soon'*"),
    ],
)
def test_a_wrong_value_is_told(run: Run, word: str, said: str):
    result = run("read.yaml", word)
    assert result.ret != 0
    result.stdout.fnmatch_lines([said])
    assert "Traceback" not in result.stdout.str()
    assert "INTERNALERROR" not in result.stderr.str()


@pytest.mark.parametrize("word", ["--harness-qemu=9.9", "--harness-kernel=5.0"])
def test_an_unknown_build_or_kernel_fails_the_test_that_needs_it(run: Run, pytester: pytest.Pytester, word: str):
    result = run("read.yaml", word)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*" + word.partition("=")[2] + "*", "hint: *"])
    assert "harness/" not in result.stdout.str()
    # It is among the cells all the same.
    run("read.yaml", word, "--harness-out=out")
    (cell,) = json.loads((pytester.path / "out" / "run.json").read_text())["cells"]
    assert (cell["outcome"], word.partition("=")[2] in cell["message"]) == ("error", True)


def test_the_environment_counts_where_the_command_line_says_nothing(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_QEMU", "7.2 10.0")
    result = run("--co", "-q", "read.yaml")
    result.stdout.fnmatch_lines(["read.yaml::?qemu 7.2, kernel 6.12?", "read.yaml::?qemu 10.0, kernel 6.12?"])
    run("--co", "-q", "read.yaml", "--harness-qemu=11.1").stdout.fnmatch_lines(["read.yaml::read"])
    monkeypatch.setenv("HARNESS_VIOMMU", "intl")
    run("read.yaml").stdout.fnmatch_lines(["*HARNESS_VIOMMU: expected one of *, found 'intl'*"])


def test_a_wrong_variable_disturbs_no_other_tests(run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_VIOMMU", "intl")
    monkeypatch.setenv("HARNESS_FETCH", "perhaps")
    pytester.makepyfile("def test_a(): pass")
    run("test_a_wrong_variable_disturbs_no_other_tests.py").assert_outcomes(passed=1)
    monkeypatch.delenv("HARNESS_VIOMMU")
    run("read.yaml").stdout.fnmatch_lines(["*HARNESS_FETCH: expected 1 or 0, found 'perhaps'*"])


def test_a_shell_needs_the_tests_in_one_process(run: Run):
    result = run("-p", "xdist", "-n", "2", "read.yaml", "--harness-shell")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--harness-shell needs the tests in this process: leave -n out*"])


def test_a_folder_with_something_else_in_it_is_not_taken(run: Run, pytester: pytest.Pytester):
    (pytester.path / "out").mkdir()
    (pytester.path / "out" / "mine").write_text("")
    result = run("read.yaml", "--harness-out=out")
    result.stderr.fnmatch_lines(["*--harness-out out is not empty and no earlier run's folder*"])
    assert (pytester.path / "out" / "mine").exists()
    assert run("--co", "-q", "read.yaml", "--harness-out=out").ret == 0


def test_a_folder_that_only_the_environment_names_is_never_emptied(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    out = pytester.path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    monkeypatch.setenv("HARNESS_OUT", str(out))
    pytester.makepyfile(test_other="def test_a(): pass")
    run("test_other.py").assert_outcomes(passed=1)
    assert (out / "run.json").read_text() == "{}"
    (out / "mine").write_text("")
    run("test_other.py").assert_outcomes(passed=1)


def test_the_entry_point_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"harness": "harness.pytest_plugin"}
    assert any(one.startswith("pytest>=") for one in project["dependencies"])


def test_a_pytest_without_scenarios_imports_next_to_nothing(pytester: pytest.Pytester):
    pytester.makepyfile(
        test_a=f"""
        import sys
        def test_a():
            found = [name for name in sys.modules if name.split('.')[0] in {HEAVY}]
            assert found == [] and 'harness.pytest_plugin' in sys.modules
            assert 'harness.run' not in sys.modules
        """
    )
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "harness.pytest_plugin", "test_a.py"]
    done = subprocess.run(words, cwd=pytester.path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
