"""Scenario files found, read and checked; every mistake of a file is reported at once."""

from __future__ import annotations

import os
import re
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
_OTHER_KINDS = re.compile(r"^(matrix|failures) *:", re.MULTILINE)
_NO_SCENARIO = {
    "matrix": ("a matrix", "harness qualify {file}"),
    "failures": ("a file of known failures", "a matrix names it: known_failures"),
}


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
        text = read_text(file)
    except UnreadableError as error:
        raise ScenarioError([error.problem]) from None
    return parse_scenario(text, file, root)


def parse_scenario(text: str, file: Path | str, root: Path | str | None = None) -> Scenario | BareScenario:
    """Check a scenario's text; errors as those of `load_scenario`.

    Args:
        text: what stands in the file.
        file: the file's name, for messages and the scenario's id; it is not touched.
        root: as of `load_scenario`.
    """
    file = Path(file)
    document = read_document(text, file)
    problems = list(document.problems)
    scenario: Scenario | BareScenario | None = None
    if document.data is not REFUSED:
        other = next((key for key in _NO_SCENARIO if isinstance(document.data, dict) and key in document.data), None)
        if other is not None:
            what, remedy = _NO_SCENARIO[other]
            raise ScenarioError([Problem(file, 0, 0, f"expected a scenario, found {what}", remedy.format(file=file))])
        if isinstance(document.data, dict) and document.data.get("tier") == "bare":
            scenario, found = _bare(document, file)
        else:
            scenario, found = _guest(document, file)
        problems += found
    if problems or scenario is None:
        raise ScenarioError(sorted(set(problems), key=lambda one: (one.line, one.column, one.message)))
    return scenario.located(scenario_id(file, root), file, document.data)


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
    are left out, and so are matrices and files of known failures. A ``*.yml`` in a folder is an error, because it
    would silently never run.

    Args:
        paths: files and folders.

    Raises:
        ScenarioError: a path does not exist, is no scenario file, or holds no scenario.
    """
    found, problems = _find(paths)
    if problems:
        raise ScenarioError(problems)
    return found


def find_all(paths: Iterable[Path | str]) -> tuple[list[Path], list[Problem]]:
    """The files that paths name, as `find_scenarios`, with matrices and known failures; and what is wrong with them."""
    return _find(paths, others=True)


class UnreadableError(Exception):
    """A file that cannot be read as text.

    Attributes:
        problem: why.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_text(file: Path, what: str = "scenario") -> str:
    """The text of a file.

    Args:
        file: the file.
        what: what it should be, for the problems: ``scenario``, ``matrix``, ``known failures``.

    Raises:
        UnreadableError: it is not there, is no text, or is too large.
    """

    def refused(message: str, hint: str | None = None, line: int = 0, column: int = 0) -> UnreadableError:
        return UnreadableError(Problem(file, line, column, message, hint))

    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refused(
                f"expected a {what} file, found a folder",
                "name the file, or run all scenarios of the folder" if what == "scenario" else "name the file",
            )
        if not stat.S_ISREG(mode):
            raise refused(f"expected a {what} file, found a special file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refused(f"expected a {what} file, found nothing there", "check the spelling of the path") from None
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


def scenarios_root(file: Path) -> Path:
    """The scenarios folder that a file lies in: the nearest around it with a ``schema.json``, else its own folder."""
    absolute = file.absolute()
    return next((folder for folder in absolute.parents if (folder / _ROOT_MARK).is_file()), absolute.parent)


def scenario_id(file: Path, root: Path | str | None) -> str:
    """The id of a scenario: its path below the scenarios folder without the suffix.

    Args:
        file: its file.
        root: the scenarios folder; None looks for it around the file.
    """
    absolute = file.absolute()
    base = scenarios_root(file) if root is None else Path(root).absolute()
    inside = absolute.relative_to(base) if absolute.is_relative_to(base) else Path(absolute.name)
    return inside.with_suffix("").as_posix()


def other_kind(file: Path) -> str | None:
    """What a file is that is no scenario by its first key: ``matrix``, ``failures``, or None for anything else."""
    try:
        # What a block scalar holds is indented, so a word at the beginning of a line is a key of the file itself.
        found = _OTHER_KINDS.search(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


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


def _find(paths: Iterable[Path | str], *, others: bool = False) -> tuple[list[Path], list[Problem]]:
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
            files = files if others else [file for file in files if other_kind(file) is None]
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
