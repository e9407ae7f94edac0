from __future__ import annotations

import json

import pytest
from report_data import PASSED, RUN
from report_qualified import qualification, qualified
from typer.testing import CliRunner

from harness.cli.app import app
from harness.qualified.records import Comparison
from harness.report import write_run


def report(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    write_run(RUN, folder)
    return folder


def test_the_page_is_written_beside_the_results_and_the_exit_code_is_the_run_s(folder):
    done = report(folder)
    assert done.exit_code == 4
    assert "1 passed, 1 failed, 1 errors, 1 skipped" in done.stdout
    assert f"page: {folder / 'report.html'}" in done.stderr
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_every_form_where_it_is_asked_for(folder, tmp_path):
    files = {name: tmp_path / name for name in ("a.html", "a.xml", "a.md", "a.jsonl")}
    words = zip(("--html", "--junit", "--markdown", "--jsonl"), files.values(), strict=True)
    assert report(folder, *(word for pair in words for word in pair)).exit_code == 4
    assert all(file.stat().st_size for file in files.values())
    assert not (folder / "report.html").exists()


def test_no_page(folder):
    done = report(folder, "--html", "-", "--json")
    assert json.loads(done.stdout)["exit_code"] == 4
    assert not list(folder.glob("*.html"))


def test_what_changed(folder, tmp_path):
    write_run(RUN.model_copy(update={"cells": (PASSED,)}), tmp_path / "old")
    done = report(folder, "--since", tmp_path / "old", "--html", "-")
    assert "new: 2" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("Fails with QEMU 11.1.3")


def test_slower_is_as_the_matrix_says_unless_it_is_asked_for(folder, monkeypatch):
    ratios = []

    def compare(before, now, ratio, folder):
        ratios.append(ratio)
        return Comparison(before="")

    matrix = qualification(qualified("a"), slower=3.0)
    monkeypatch.setattr("harness.qualified.compare.compare", compare)
    monkeypatch.setattr("harness.report.load.load_results", lambda _: (matrix, None))
    for words in ([], ["--slower", 2]):
        report(folder, "--since", folder, "--html", "-", *words)
    assert ratios == [3.0, 2.0]


def test_that_nothing_changed_is_said(folder, tmp_path):
    done = report(folder, "--since", folder, "--html", "-", "--markdown", tmp_path / "a.md")
    assert f"since {folder}: nothing changed" in done.stdout
    assert "Nothing changed." in (tmp_path / "a.md").read_text()
    write_run(RUN.model_copy(update={"cells": (PASSED,)}), tmp_path / "old")
    assert "nothing changed" not in report(folder, "--since", tmp_path / "old", "--html", "-").stdout


@pytest.mark.parametrize("option", ["--html", "--junit", "--markdown", "--jsonl"])
def test_a_file_that_cannot_be_written_is_named(folder, tmp_path, option):
    (tmp_path / "file").write_text("")
    done = report(folder, option, tmp_path / "file" / "below")
    assert done.exit_code == 2
    assert f"error: {option} {tmp_path / 'file' / 'below'} cannot be written" in done.stderr


def test_an_earlier_folder_that_has_nothing_is_named(folder, tmp_path):
    done = report(folder, "--since", tmp_path / "none")
    assert done.exit_code == 2
    assert f"{tmp_path / 'none'} does not exist" in done.stderr


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--jsonl"])
def test_a_file_is_not_standard_output(folder, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = report(folder, option, "-")
    assert done.exit_code == 2
    assert f"error: {option} takes a file" in done.stderr
    assert not (tmp_path / "-").exists()


def test_json_has_no_text_after_it(folder):
    done = report(folder, "--json", "--evidence")
    assert done.exit_code == 2
    assert not done.stdout
    assert "--json and --evidence both go to standard output" in done.stderr
