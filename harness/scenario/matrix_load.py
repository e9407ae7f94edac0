"""Matrix files and files of known failures read and checked; every mistake of both is reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from harness.qualified.fits import fits_pattern
from harness.qualified.records import AXES, KnownFailure
from harness.scenario.base import Model
from harness.scenario.expect import OTHER_REASONS, parse_reason
from harness.scenario.explain import Grammar, explain
from harness.scenario.known_failures import KnownFailureModel, KnownFailuresModel
from harness.scenario.load import UnreadableError, find_scenarios, read_text, scenario_id, scenarios_root
from harness.scenario.matrix import (
    DEFAULTS,
    NUMBERS,
    VALUES,
    Exclusion,
    ExclusionModel,
    Expectation,
    ExpectationModel,
    InclusionModel,
    LimitsModel,
    Matrix,
    MatrixModel,
    Selection,
    SelectionModel,
    Where,
    impossible,
)
from harness.scenario.point import Rule
from harness.scenario.problems import Problem, ScenarioError, suggest
from harness.scenario.steps import Step
from harness.scenario.values import show
from harness.scenario.yaml_marks import REFUSED, Document, Path_, read_document

_LISTS: Final[Mapping[str, type[Model]]] = {
    "parts": SelectionModel,
    "exclude": ExclusionModel,
    "include": InclusionModel,
    "expectations": ExpectationModel,
}
_DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {axis: (value,) for axis, value in DEFAULTS.items()}
_AnyModel = TypeVar("_AnyModel", bound=Model)


def _matrix_model_at(path: Path_) -> type[Model] | None:
    """The model of the mapping at a path of a matrix."""
    if path in ((), ("limits",)):
        return LimitsModel if path else MatrixModel
    return _LISTS.get(str(path[0])) if len(path) == 2 else None


def _failures_model_at(path: Path_) -> type[Model] | None:
    """The model of the mapping at a path of a file of known failures."""
    return KnownFailuresModel if not path else KnownFailureModel if path[0] == "failures" and len(path) == 2 else None


_MATRIX: Final = Grammar(Step, _matrix_model_at, "the matrix")
_FAILURES: Final = Grammar(Step, _failures_model_at, "the file")


@dataclass(slots=True)
class _File:
    """A file that is being read, and what is wrong with it so far."""

    path: Path
    text: str = ""
    document: Document = field(default_factory=Document)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path_, message: str, hint: str | None = None, *, key: bool = False) -> None:
        """Note what is wrong with the value at a path, or with its key."""
        self.problems.append(Problem(self.path, *self.document.place(path, key=key), message, hint))

    def line(self, path: Path_) -> int:
        """The line that a value is in."""
        return self.document.place(path)[0]


def load_matrix(file: Path) -> Matrix:
    """Read and check a matrix and the known failures that it names.

    Args:
        file: the file.

    Raises:
        ScenarioError: with everything that is wrong with both files.
    """
    matrix, problems = _load(file)
    if problems or matrix is None:
        raise ScenarioError(problems)
    return matrix


def matrix_problems(file: Path) -> list[Problem]:
    """Everything that is wrong with a matrix and the known failures that it names."""
    return _load(file)[1]


def failures_problems(file: Path) -> list[Problem]:
    """Everything that is wrong with a file of known failures."""
    return _load_failures(file, None)[2]


def _load(file: Path) -> tuple[Matrix | None, list[Problem]]:
    here = _File(file)
    model = _read(here, MatrixModel, _MATRIX)
    if model is None:
        return None, _sorted(here.problems)
    root = scenarios_root(file)
    scenarios = {scenario_id(one, root): one for one in find_scenarios([root])}
    reader = _Reader(here, scenarios)
    selections = reader.selections(model)
    exclusions = tuple(
        Exclusion(reader.where(("exclude", number), one.scenarios, one.when), one.why)
        for number, one in enumerate(model.exclude)
    )
    expectations = tuple(
        Expectation(reader.where(("expectations", number), one.scenarios, one.when), reader.rule(number, one))
        for number, one in enumerate(model.expectations)
    )
    for what, wheres in (
        ("exclude", [one.where for one in exclusions]),
        ("expectations", [one.where for one in expectations]),
    ):
        reader.refuse_idle(what, wheres, selections)
    known: tuple[KnownFailure, ...] = ()
    text = ""
    problems: list[Problem] = []
    if model.known_failures is not None:
        known, text, problems = _load_failures(file.parent / model.known_failures, scenarios)
        if problems and not text:
            here.problem(("known_failures",), problems[0].message, problems[0].hint)
            problems = []
    problems = _sorted(here.problems) + problems
    matrix = Matrix(
        title=model.matrix,
        file=file,
        text=f"{here.text}\0{text}",
        root=root,
        files=scenarios,
        selections=selections,
        exclusions=exclusions,
        expectations=expectations,
        known=known,
        limits=model.limits,
    )
    return matrix, problems


def _load_failures(
    file: Path, scenarios: Mapping[str, Path] | None
) -> tuple[tuple[KnownFailure, ...], str, list[Problem]]:
    """The entries of a file of known failures, its text, and what is wrong with it.

    Args:
        file: the file.
        scenarios: those that an entry may name; None looks for them around the file.
    """
    here = _File(file)
    model = _read(here, KnownFailuresModel, _FAILURES)
    if model is None:
        return (), here.text, _sorted(here.problems)
    if scenarios is None:
        root = scenarios_root(file)
        scenarios = {scenario_id(one, root): one for one in find_scenarios([root])}
    reader = _Reader(here, scenarios)
    entries = []
    for number, one in enumerate(model.failures):
        path: Path_ = ("failures", number)
        reader.check_pattern((*path, "scenario"), one.scenario)
        entries.append(
            KnownFailure(
                scenario=one.scenario,
                when=reader.values((*path, "when"), one.when),
                signature=one.signature,
                failure_class=one.class_ or "",
                reason=one.reason,
                link=one.link,
                until=one.until,
                place=f"{file.name}:{here.line(path)}",
            )
        )
    return tuple(entries), here.text, _sorted(here.problems)


def _read(here: _File, model: type[_AnyModel], grammar: Grammar) -> _AnyModel | None:
    """A file as its model, or None where it cannot be; what is wrong is in its problems."""
    what = "matrix" if model is MatrixModel else "known failures"
    try:
        here.text = read_text(here.path, what)
    except UnreadableError as error:
        here.problems.append(error.problem)
        return None
    here.document = read_document(here.text, here.path, numbers=True, what=what)
    here.problems += here.document.problems
    if here.document.data is REFUSED:
        return None
    if (
        model is MatrixModel
        and isinstance(here.document.data, Mapping)
        and {"title", "steps"} <= set(here.document.data)
    ):
        here.problem((), "expected a matrix, found a scenario", f"run it: harness run {here.path}")
        return None
    try:
        return model.model_validate(here.document.data)
    except ValidationError as error:
        here.problems += explain(here.document, here.path, error, grammar)
        return None


def _sorted(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(set(problems), key=lambda one: (one.line, one.column, one.message))


class _Reader:
    """The parts of a file that have to do with axes and scenarios.

    Args:
        file: the file.
        scenarios: ids of the scenarios that there are.
    """

    def __init__(self, file: _File, scenarios: Iterable[str]) -> None:
        self._file = file
        self._scenarios = tuple(scenarios)

    def selections(self, model: MatrixModel) -> tuple[Selection, ...]:
        """What is to be run, inclusions too."""
        found = []
        if not model.parts or model.axes is not None or model.scenarios is not None or model.combine is not None:
            found.append(
                self._selection((), model.scenarios or ("*",), model.axes or {}, model.combine or "all", ("axes",))
            )
        for number, part in enumerate(model.parts):
            at: Path_ = ("parts", number)
            found.append(self._selection(at, part.scenarios, part.axes, part.combine, (*at, "axes")))
        for number, one in enumerate(model.include):
            at = ("include", number)
            found.append(self._selection(at, one.scenarios, one.at, "all", (*at, "at")))
        return tuple(found)

    def _selection(self, path: Path_, patterns: tuple[str, ...], axes: Any, combine: Any, place: Path_) -> Selection:
        self._check_patterns((*path, "scenarios"), patterns)
        values = self.values(place, axes)
        selection = Selection(patterns, values, combine, self._file.line(place))
        single = {axis: each[0] for axis, each in ({**_DEFAULTS, **values}).items() if len(each) == 1}
        reason = impossible(single)
        if reason is not None:
            self._file.problem(place, f"expected a point that can be, found one that cannot: {reason}", key=True)
        return selection

    def where(self, path: Path_, patterns: tuple[str, ...], when: Any) -> Where:
        """What an entry is about."""
        self._check_patterns((*path, "scenarios"), patterns)
        if not when:
            self._file.problem(
                (*path, "when"),
                "expected a point, found nothing",
                "name at least one axis; what is wrong everywhere is the scenario's own matter",
            )
        return Where(patterns, self.values((*path, "when"), when), self._file.line(path))

    def rule(self, number: int, one: ExpectationModel) -> Rule:
        """What is expected in place of what the file says."""
        if not (one.reasons or one.steps or one.expect is not None):
            hint = "add reasons, expect or steps"
            self._file.problem(("expectations", number), "expected what differs, found nothing", hint)
        return Rule(
            why=one.why,
            reasons=self._reasons(("expectations", number, "reasons"), one.reasons),
            expect=one.expect,
            steps={_number(key): value for key, value in one.steps.items()},
        )

    def _reasons(self, path: Path_, given: Mapping[str, Any]) -> dict[int | str, int | str]:
        """Fault reason to fault reason; what is none is noted and left out."""
        found: dict[int | str, int | str] = {}
        for key, value in given.items():
            pair = []
            for one, is_key in ((_number(key), True), (value, False)):
                try:
                    pair.append(parse_reason(one))
                except PydanticCustomError as error:
                    if one is not REFUSED:
                        words = (*OTHER_REASONS,)
                        hint = suggest(one, words) if isinstance(one, str) else ""
                        near = hint if hint.startswith("did") else str((error.context or {}).get("hint", ""))
                        message = f"expected a fault reason, found {show(one)}"
                        self._file.problem((*path, key), message, near, key=is_key)
            if len(pair) == 2:
                found[pair[0]] = pair[1]
        return found

    def refuse_idle(self, what: str, wheres: Iterable[Where], selections: Iterable[Selection]) -> None:
        """Note the entries that no selection can meet.

        An axis that a selection does not name is as the scenario has it, so it may be anything.
        """
        selections = tuple(selections)
        for number, where in enumerate(wheres):
            if not any(self._meet(where, one) for one in selections):
                self._file.problem(
                    (what, number),
                    "expected an entry that fits a point of the matrix, found one that fits none",
                    "its scenarios, or its points, are not in axes, parts or include",
                )

    def _meet(self, where: Where, selection: Selection) -> bool:
        axes = {**_DEFAULTS, **selection.axes}
        points = all(axis not in axes or set(values) & set(axes[axis]) for axis, values in where.when.items())
        return points and any(
            fits_pattern(where.patterns, one) and fits_pattern(selection.patterns, one) for one in self._scenarios
        )

    def _check_patterns(self, path: Path_, patterns: tuple[str, ...]) -> None:
        for number, pattern in enumerate(patterns):
            self.check_pattern((*path, number), pattern)
            if pattern in patterns[:number]:
                self._file.problem((*path, number), f"expected each once, found {show(pattern)} again")

    def check_pattern(self, path: Path_, pattern: str) -> None:
        """Note a pattern that means no scenario."""
        if not any(fits_pattern((pattern,), one) for one in self._scenarios):
            folders = {one.rpartition("/")[0] for one in self._scenarios} - {""}
            near = suggest(pattern, (*sorted(folders), *self._scenarios))
            hint = near if near.startswith("did") else "'harness list' shows the ids"
            self._file.problem(
                path, f"expected the id of a scenario, a folder or a pattern, found {show(pattern)}", hint
            )

    def values(self, path: Path_, axes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Axis to its values as words, in the order of the axes; what is wrong is noted and left out."""
        found: dict[str, tuple[str, ...]] = {}
        for axis, given in axes.items():
            at: Path_ = (*path, axis)
            if axis not in AXES:
                self._file.problem(at, f"expected an axis, found {show(axis)}", suggest(axis, AXES, "axes"), key=True)
                continue
            if given is REFUSED:
                continue
            items = given if isinstance(given, tuple) else (given,)
            if not items:
                self._file.problem(at, "expected at least one value, found an empty list")
            words: list[str] = []
            for number, item in enumerate(items):
                place = (*at, number) if isinstance(given, tuple) else at
                word = self._value(place, axis, item)
                if word in words:
                    self._file.problem(place, f"expected each value once, found {word} again")
                elif word is not None:
                    words.append(word)
            if words:
                found[axis] = tuple(words)
        return {axis: found[axis] for axis in AXES if axis in found}

    def _value(self, path: Path_, axis: str, item: Any) -> str | None:
        if item is REFUSED:
            return None
        if axis in NUMBERS:
            allowed = NUMBERS[axis]
            if isinstance(item, int) and not isinstance(item, bool) and item in allowed:
                return str(item)
            self._file.problem(
                path, f"expected a number from {allowed[0]} to {allowed[-1]} for {axis}, found {show(item)}"
            )
            return None
        if isinstance(item, str) and item in VALUES[axis]:
            return item
        words = VALUES[axis]
        hint = suggest(item, words, "its values") if isinstance(item, str) else f"its values: {', '.join(words)}"
        if isinstance(item, float | int) and not isinstance(item, bool) and str(item) in words:
            hint = f'write it in quotes: "{item}"'
        elif isinstance(item, float) and f"{item}0" in words:
            hint = f'write it in quotes: "{item}0"'
        self._file.problem(path, f"expected a value of the axis {axis}, found {show(item)}", hint)
        return None


def _number(key: str) -> int | str:
    """A key that is written as a number, as one."""
    try:
        return int(key, 0)
    except ValueError:
        return key
