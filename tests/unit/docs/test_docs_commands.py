"""Each command line that README, documents and ready CI files show exists, with these options."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs_text import DOCS, FILES, ROOT, all_blocks, blocks, prose
from shell_lines import COMMAND, harness_calls, problem

from harness.cli.groups import GROUPS, HELP
from harness.cli.handler import EXIT_CODES
from harness.errors import FailureClass
from harness.report import TerminalReport
from harness.report.console import Terminal
from harness.results import CellResult, Outcome, RunResult

_CALL = re.compile(r"(?:^|[\s|/])harness [a-z-]")


def _lines() -> list[tuple[str, str]]:
    """Every line with a call of harness: in a shell block, behind ``$`` in others, or in one `code` of a text."""
    found = []
    for block in all_blocks():
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "sh" or line.startswith(("$ harness", "       rerun: harness")):
                found.append((str(block), line.removeprefix("$ ").replace("       rerun: ", "")))
    for file in FILES:
        text = prose(file)
        codes = [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text), *re.findall(r"<code>(.*?)</code>", text)]
        found += [(str(file.relative_to(ROOT)), code.replace("&#124;", "|")) for code in codes]
    found += [("harness --help", line) for line in HELP.splitlines()]
    return [(place, line) for place, line in found if _CALL.search(line) and "harness worker in" not in line]


LINES = _lines()


@pytest.mark.parametrize(("place", "line"), LINES, ids=[f"{place} {line.strip()[:60]}" for place, line in LINES])
def test_a_command_line_can_be_meant(place: str, line: str) -> None:
    line = re.sub(r" {2,}\S.*$", "", line.strip())  # words beside a command
    calls = harness_calls(line)
    assert calls, line
    for call in calls:
        assert problem(call) is None, f"{place}: {line}: {problem(call)}"


def test_there_are_many_lines() -> None:
    assert len(LINES) > 60


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("harness rum", "no command rum"),
        ("FOO=1 .venv/bin/harness run --kernle 6.12", "--kernle"),
        ("harness run --accel fast scenarios", "fast"),
        ("harness template make", "no command make"),
        ("dmesg | harness explain --aw-bits wide", "--aw-bits"),
    ],
)
def test_what_does_not_exist_is_found(line: str, why: str) -> None:
    (call,) = harness_calls(line)
    assert why in (problem(call) or "")


def test_every_command_is_in_one_group_of_the_help() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMAND.commands)


def test_the_help_shows_each_command_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        COMMAND.make_context("harness", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for command in COMMAND.commands.values():
        first = " ".join(command.help.split("\n\n")[0].split()).split(". ")[0].removesuffix(".")
        assert first in shown
    assert all(f" {title}: " in shown for title in GROUPS)


def test_every_leaf_of_the_help_has_a_sentence_and_examples() -> None:
    def leaves(command: object, path: str) -> list[tuple[str, object]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [(path, command)]
        return [leaf for name, one in inner.items() for leaf in leaves(one, f"{path} {name}")]

    for path, command in leaves(COMMAND, "harness"):
        assert (getattr(command, "help", "") or "").strip(), path
        assert path in (getattr(command, "epilog", "") or ""), path
        for line in (getattr(command, "epilog", "") or "").splitlines():
            for call in harness_calls(line) if line.startswith("  ") else []:
                assert problem(call) is None, line


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_the_ready_ci_files_parse_and_call_what_there_is(name: str) -> None:
    text = (DOCS / "ci" / name).read_text()
    assert yaml.safe_load(text)
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for line in text.splitlines()]
    calls = [call for line in lines if ".venv/bin/harness " in line for call in harness_calls(line)]
    assert {call[0] for call in calls} >= {"doctor", "fetch", "run", "report"}
    for call in calls:
        assert problem([word for word in call if word != "$SCENARIOS"]) is None, call
    for variable in re.findall(r"\bHARNESS_[A-Z_]+", text):
        assert variable == "HARNESS_NOTE_TOKEN" or variable in _variables(), variable


def test_the_keys_of_caches_name_files_that_there_are() -> None:
    github = (DOCS / "ci" / "github-actions.yml").read_text()
    for pattern in re.findall(r"'([^']*/[^']*)'", " ".join(re.findall(r"hashFiles\((.*)\)", github))):
        if not pattern.startswith("results/"):
            assert any(ROOT.glob(pattern)), pattern
    gitlab = yaml.safe_load((DOCS / "ci" / "gitlab-ci.yml").read_text())
    downloads, templates = gitlab["scenarios"]["cache"]
    assert all((ROOT / file).is_file() for file in downloads["key"]["files"])
    assert {downloads["when"], templates["when"]} == {"always"}
    assert templates["paths"] == [".cache/usdm-harness/template"]


def test_a_qualification_is_reported_as_a_run_is() -> None:
    steps = _github_steps("scenarios")
    for name in ("Report", "Keep the templates"):
        assert "hashFiles('results/run.json', 'results/results.sqlite') != ''" in steps[name]["if"]
    assert "qualify scenarios/release.yaml --fetch --out results" in (DOCS / "using-it-in-ci.md").read_text()


def test_caches_are_saved_whether_scenarios_pass_or_not() -> None:
    steps = _github_steps("scenarios")
    names = list(steps)
    assert names.index("Keep the downloads") < names.index("Run")
    assert steps["Keep the templates"]["if"].startswith("${{ !cancelled()")
    for kept, found in (("downloads", "Downloads"), ("templates", "Templates")):
        restored = steps[f"{found} from the cache"]
        assert steps[f"Keep the {kept}"]["with"]["path"] == restored["with"]["path"]
        assert (restored["id"], restored["uses"]) == (kept, "actions/cache/restore@v4")


@pytest.mark.parametrize(("there", "called"), [("", "pr comment 7"), ("11\n12", "repos/o/r/issues/comments/12")])
def test_the_comment_that_is_written_anew_is_the_workflow_s_own(tmp_path: Path, there: str, called: str) -> None:
    """With a gh of our own, which says which comments have the marker, and notes what it is called with."""
    step = _github_steps("comment")["Comment"]
    assert step["if"] == "${{ hashFiles('summary.md') != '' }}"
    (tmp_path / "summary.md").write_text("### fine\n")
    gh = tmp_path / "gh"
    gh.write_text(f"#!/bin/sh\necho \"$@\" >> calls\n[ \"$2\" != --paginate ] || printf '%s' '{there}'\n")
    gh.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GH_REPO": "o/r", "NUMBER": "7"}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=env, check=True)
    listed, written = (tmp_path / "calls").read_text().splitlines()
    assert 'startswith("<!-- usdm-harness -->")' in listed
    assert called in written
    assert (tmp_path / "comment.md").read_text() == "<!-- usdm-harness -->\n### fine\n"


def test_the_program_that_writes_the_note_on_gitlab_can_be_read() -> None:
    script = yaml.safe_load((DOCS / "ci" / "gitlab-ci.yml").read_text())["scenarios"]["after_script"][-1]
    program = script.split("-c '")[1].split("\n'\n")[0]
    compile(program, "note", "exec")
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def _github_steps(job: str) -> dict[str, dict[str, Any]]:
    steps = yaml.safe_load((DOCS / "ci" / "github-actions.yml").read_text())["jobs"][job]["steps"]
    return {step["name"]: step for step in steps if "name" in step}


def _variables() -> set[str]:
    found: set[str] = set()

    def walk(command: object) -> None:
        for parameter in getattr(command, "params", []):
            envvar = getattr(parameter, "envvar", None)
            found.update([envvar] if isinstance(envvar, str) else envvar or [])
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(COMMAND)
    return found


def test_variables_that_are_named_exist() -> None:
    known = _variables() | {"HARNESS_NOTE_TOKEN"}
    for file in FILES:
        named = set(re.findall(r"\bHARNESS_[A-Z][A-Z_]+\b", file.read_text())) - {"HARNESS_TEST_OUT"}
        assert named <= known, f"{file.relative_to(ROOT)}: {sorted(named - known)}"


def test_the_exit_codes_of_document_and_help_are_the_same() -> None:
    table = re.findall(r"^\| (\d+) \|", (DOCS / "exit-codes.md").read_text(), re.MULTILINE)
    assert list(map(int, table)) == [int(code) for code in re.findall(r"^ +(\d+)  ", EXIT_CODES, re.MULTILINE)]


_NUMBER = r"\d+(?:\.\d+)?"
_FORMS = (
    rf"{_NUMBER} cells?, {_NUMBER} at once",
    rf"(PASS|FAIL|ERROR|SKIP) +{_NUMBER} s  \S+(  .+)?",
    r"       (reason|guest|folder|rerun): .+",
    rf"{_NUMBER} passed, {_NUMBER} failed, {_NUMBER} errors, {_NUMBER} skipped in {_NUMBER} s",
    r"(yours|here)   ?.*DMAR: ?\[DMA Read.*",
    r" +yours +here",
    r"(requester|access|address|reason) +\S.* +equal",
    r"my/\S+:\d+:\d+: expected .+ \(hint: .+\)",
    "",
)


@pytest.mark.parametrize("file", [ROOT / "README.md", DOCS / "first-run.md", DOCS / "writing-a-scenario.md"], ids=str)
def test_what_is_shown_has_the_form_of_what_is_printed(file: Path) -> None:
    shown = [block for block in blocks(file) if not block.language and not block.text.startswith("#")]
    assert shown
    for block in shown:
        for line in block.text.splitlines():
            if not line.startswith("$ "):
                assert any(re.fullmatch(form, line) for form in _FORMS), f"{block}: {line}"


def test_the_forms_are_those_of_the_terminal_report() -> None:
    """What harness prints of a cell that passed and of one that failed has the same forms."""
    told = {"title": "t", "source": "s", "file": "scenarios/dma/a.yaml", "seconds": 2.25, "folder": "/runs/1/dma.a"}
    passed = CellResult(scenario="dma/a", outcome=Outcome.PASS, rerun="harness run a", **told)
    failed = CellResult(
        scenario="dma/b",
        outcome=Outcome.FAIL,
        rerun="harness run b",
        failure_class=FailureClass.EXPECTATION,
        message="faults: expected 1 fault, observed 0",
        start="clone",
        **told,
    )
    result = RunResult(started="2026-01-02T03:04:05Z", argv=("harness", "run"), cells=(passed, failed), seconds=2.5)
    out = io.StringIO()
    report = TerminalReport(Terminal(file=out, highlight=False, width=400), live=False)
    report.run_started(2, 1)
    for cell in result.cells:
        report.cell_finished(cell)
    report.run_finished(result)
    lines = out.getvalue().splitlines()
    assert len(lines) > 7
    for line in lines:
        assert any(re.fullmatch(form, line) for form in _FORMS), line
