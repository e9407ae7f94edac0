"""Finding and reading files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.scenario import ScenarioError, find_scenarios, lint, load_scenario
from harness.scenario.yaml_marks import MAX_BYTES

GOOD = "title: t\nsource: s\nmachine: {}\nsteps: [{buffer: {as: a, size: 1}}]\n"


def problem_of(path: Path) -> tuple[int, int, str]:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    [problem] = caught.value.problems
    assert problem.file == path
    return problem.line, problem.column, problem.message


def test_missing_file(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "no.yaml") == (0, 0, "expected a scenario file, found nothing there")


def test_folder(tmp_path: Path) -> None:
    assert problem_of(tmp_path) == (0, 0, "expected a scenario file, found a folder")


def test_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert problem_of(tmp_path / "pipe.yaml") == (0, 0, "expected a scenario file, found a special file")


def test_name_that_no_file_can_have() -> None:
    assert problem_of(Path("a\0.yaml"))[2] == "expected a readable file: embedded null byte"
    [problem] = lint(["a\0.yaml"])
    assert problem.message == "expected a scenario file or folder, found nothing there"


def test_huge_file(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert problem_of(file) == (0, 0, "expected a file of at most 256 KiB, found a larger one")


def test_text_that_is_no_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("title: ä\nsource: ".encode() + b"\xe4\n")
    assert problem_of(file) == (2, 9, "expected UTF-8 text, found the byte 0xe4")


def test_utf_16_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_bytes(GOOD.encode("utf-16"))
    assert problem_of(file) == (1, 1, "expected UTF-8 text, found the byte 0xff")


def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_scenario(file).title == "t"


def test_id_is_the_path_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "root" / "family" / "case.one.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(GOOD)
    assert load_scenario(file).id == "case.one"
    assert load_scenario(file, root=tmp_path / "root").id == "family/case.one"
    assert load_scenario(file, root=tmp_path / "elsewhere").id == "case.one"
    (tmp_path / "root" / "schema.json").write_text("{}")
    assert load_scenario(file).id == "family/case.one"
    monkeypatch.chdir(file.parent)
    scenario = load_scenario("case.one.yaml")
    assert (scenario.id, scenario.file) == ("family/case.one", Path("case.one.yaml"))


def test_folders_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "b/z.yaml",
        "b/a.yaml",
        "a.yaml",
        "c/d/e.yaml",
        ".hidden/x.yaml",
        "b/.y.yaml",
        "schema.json",
        "README",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(GOOD)
    names = ["a.yaml", "b/a.yaml", "b/z.yaml", "c/d/e.yaml"]
    assert find_scenarios([tmp_path]) == [tmp_path / name for name in names]
    monkeypatch.chdir(tmp_path)
    assert find_scenarios(["b/z.yaml", ".", tmp_path / "a.yaml"]) == [
        Path("b/z.yaml"),
        Path("a.yaml"),
        Path("b/a.yaml"),
        Path("c/d/e.yaml"),
    ]
    assert lint([tmp_path]) == []


def test_paths_that_give_no_scenario(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "case.yml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "good.yaml").write_text(GOOD)
    paths = [tmp_path / name for name in ("empty", "old", "notes.txt", "no.yaml", "good.yaml")]
    with pytest.raises(ScenarioError) as caught:
        find_scenarios(paths)
    messages = {problem.file.name: problem.message for problem in caught.value.problems}
    assert messages == {
        "empty": "expected scenarios (*.yaml) in the folder, found none",
        "case.yml": "expected a name ending in .yaml, found .yml",
        "notes.txt": "expected a name ending in .yaml, found 'notes.txt'",
        "no.yaml": "expected a scenario file or folder, found nothing there",
    }
    assert str(caught.value.problems[0]).startswith(f"{tmp_path}/empty: expected scenarios")


def test_lint_tells_the_mistakes_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + "more: 1\n")
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "c.yaml").write_text(GOOD)
    found = lint([tmp_path, tmp_path / "d.yaml"])
    assert [(problem.file.name, problem.line) for problem in found] == [("d.yaml", 0), ("a.yaml", 5), ("b.yaml", 1)]
