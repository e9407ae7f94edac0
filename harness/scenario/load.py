"""Scenario files found, read and checked; every mistake of a file is reported at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.scenario.bare import BareScenario
from harness.scenario.bare_check import bare_problems
from harness.scenario.bare_grammar import BARE
from harness.scenario.crosscheck import cross_check
from harness.scenario.explain import explain
from harness.scenario.model import Scenario
from harness.scenario.on_kernel import unjudged
from harness.scenario.problems import Problem, ScenarioError
from harness.scenario.yaml_marks import MAX_BYTES, REFUSED, Document, read_document

_SUFFIX = ".yaml"
_ROOT_MARK = "schema.json"


def load_scenario(path: Path | str, root: Path | str | None = None) -> Scenario | BareScenario:
    """Read and check one scenario file; ``tier: bare`` in it makes it one of the bare tier.

    Args:
        path: the file.
        root: the scenarios folder, which the scenario's id starts from; without it, the nearest folder around the file
            that holds a ``schema.json``, else the file's own folder.

    Raises:
        ScenarioError: with everything that is wrong with the file.
    """
    file = Path(path)
    try:
        text = _read(file)
    except _Unreadable as error:
        raise ScenarioError([error.problem]) from None
    return parse_scenario(text, file, root)


def parse_scenario(text: str, file: Path | str, root: Path | str | None = None) -> Scenario | BareScenario:
    """Check a scenario's text; arguments and errors as `load_scenario`, and the file is not touched."""
    file = Path(file)
    document = read_document(text, file)
    problems = list(document.problems)
    scenario: Scenario | BareScenario | None = None
    if document.data is not REFUSED:
        if isinstance(document.data, dict) and document.data.get("tier") == "bare":
            scenario, found = _bare(document, file)
        else:
            scenario, found = _guest(document, file)
        problems += found
    if problems or scenario is None:
        raise ScenarioError(sorted(set(problems), key=lambda one: (one.line, one.column, one.message)))
    return scenario.located(_scenario_id(file, root), file)


def _guest(document: Document, file: Path) -> tuple[Scenario | None, list[Problem]]:
    problems: list[Problem] = []
    scenario = None
    try:
        scenario = Scenario.model_validate(document.data)
    except ValidationError as error:
        problems += explain(document, file, error)
    problems += cross_check(document, file)
    for path, reason in () if scenario is None else unjudged(scenario):
        message = f"expected no {path[-1]} where the kernel cannot run the scenario, found one"
        problems.append(Problem(file, *document.place(path, key=True), message, reason))
    return scenario, problems


def _bare(document: Document, file: Path) -> tuple[BareScenario | None, list[Problem]]:
    try:
        scenario = BareScenario.model_validate(document.data)
    except ValidationError as error:
        return None, list(explain(document, file, error, BARE))
    return scenario, bare_problems(scenario, document, file)


def find_scenarios(paths: Iterable[Path | str]) -> list[Path]:
    """The scenario files that paths name, without duplicates.

    A file is taken as it is. A folder stands for every ``*.yaml`` in it and below, sorted; names that begin with a dot
    are left out. A ``*.yml`` in a folder is an error, because it would silently never run.

    Args:
        paths: files and folders.

    Raises:
        ScenarioError: a path does not exist, is no scenario file, or holds no scenario.
    """
    found, problems = _find(paths)
    if problems:
        raise ScenarioError(problems)
    return found


def lint(paths: Iterable[Path | str]) -> list[Problem]:
    """Everything that is wrong with all scenario files that paths name; empty when nothing is.

    Args:
        paths: files and folders, as for `find_scenarios`.
    """
    found, problems = _find(paths)
    for file in found:
        try:
            load_scenario(file)
        except ScenarioError as error:
            problems += error.problems
    return problems


class _Unreadable(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _read(file: Path) -> str:
    """The text of a file."""

    def refused(message: str, hint: str | None = None, line: int = 0, column: int = 0) -> _Unreadable:
        return _Unreadable(Problem(file, line, column, message, hint))

    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refused(
                "expected a scenario file, found a folder", "name the file, or run all scenarios of the folder"
            )
        if not stat.S_ISREG(mode):
            raise refused("expected a scenario file, found a special file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refused("expected a scenario file, found nothing there", "check the spelling of the path") from None
    except (OSError, ValueError) as error:
        raise refused(f"expected a readable file: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise refused(f"expected a file of at most {MAX_BYTES >> 10} KiB, found a larger one", "is it a scenario?")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        message = f"expected UTF-8 text, found the byte {data[error.start]:#04x}"
        raise refused(message, "save the file as UTF-8", line, column) from None


def _scenario_id(file: Path, root: Path | str | None) -> str:
    absolute = file.absolute()
    if root is not None:
        base = Path(root).absolute()
    else:
        base = next((folder for folder in absolute.parents if (folder / _ROOT_MARK).is_file()), absolute.parent)
    inside = absolute.relative_to(base) if absolute.is_relative_to(base) else Path(absolute.name)
    return inside.with_suffix("").as_posix()


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The ``.yaml`` files and the ``.yml`` files below a folder."""
    right: list[Path] = []
    wrong: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                suffix = Path(name).suffix
                (right if suffix == _SUFFIX else wrong if suffix == ".yml" else []).append(Path(place, name))
    return sorted(right), sorted(wrong)


def _kind(path: Path) -> str:
    try:
        mode: Any = path.stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file"


def _find(paths: Iterable[Path | str]) -> tuple[list[Path], list[Problem]]:
    found: dict[Path, Path] = {}
    problems: list[Problem] = []
    for path in map(Path, paths):
        kind = _kind(path)
        files: list[Path] = []
        if kind == "nothing":
            hint = "check the spelling of the path"
            problems.append(Problem(path, 0, 0, "expected a scenario file or folder, found nothing there", hint))
        elif kind == "folder":
            files, wrong = _walk(path)
            hint = f"rename it to end in {_SUFFIX}; it would never run"
            problems += [
                Problem(file, 0, 0, f"expected a name ending in {_SUFFIX}, found .yml", hint) for file in wrong
            ]
            if not files and not wrong:
                problems.append(Problem(path, 0, 0, f"expected scenarios (*{_SUFFIX}) in the folder, found none"))
        elif path.suffix == _SUFFIX:
            files = [path]
        else:
            hint = f"scenario files end in {_SUFFIX}"
            problems.append(Problem(path, 0, 0, f"expected a name ending in {_SUFFIX}, found {path.name!r}", hint))
        for file in files:
            found.setdefault(file.absolute(), file)
    return list(found.values()), problems
