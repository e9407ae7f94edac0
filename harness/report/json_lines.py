"""A qualification as JSON lines: a line for the whole, one for each cell, one for each thing that was not run.

The form is a JSON Schema in ``json_lines.schema.json``, made from the models here: ``python -m
harness.report.json_lines`` writes it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from harness.errors import FailureClass
from harness.qualified.records import Comparison, KnownFailure, Qualification, Standing
from harness.report.json_report import as_json
from harness.report.text import write_text
from harness.report.verdict import exit_code, sentence, totals
from harness.results import CellResult, Implementation, Outcome, Record, Verdict, Versions

FORMAT: Final = 1
SCHEMA: Final = Path(__file__).with_name("json_lines.schema.json")


class QualificationLine(Record):
    """The first line.

    Args:
        type: says which line it is.
        format: of all lines; another one means that a reader must look anew.
        title: what the matrix calls itself; empty for a run of ``harness run``.
        matrix: the matrix file; empty for a run.
        axes: axis to the values that cells have.
        started: ISO 8601 time in UTC.
        argv: the command line.
        host: facts about the host.
        verdict: the verdict in a sentence.
        exit_code: what the command ended with, or should have.
        counts: standing to number of cells.
        planned: how many cells there are to run.
        complete: whether all have been run.
        seconds: time that cells were being run.
        jobs: how many at once.
        executor: where they ran.
        stale: known failures that no cell showed.
        notes: what happened beside.
        comparison: with an earlier one, where it was asked for.
    """

    type: Literal["qualification"] = "qualification"
    format: Literal[1] = FORMAT
    title: str
    matrix: str
    axes: dict[str, tuple[str, ...]]
    started: str
    argv: tuple[str, ...]
    host: dict[str, str]
    verdict: str
    exit_code: int
    counts: dict[Standing, int]
    planned: int
    complete: bool
    seconds: float
    jobs: int
    executor: str
    stale: tuple[KnownFailure, ...]
    notes: tuple[str, ...]
    comparison: Comparison | None


class AttemptLine(Record):
    """One attempt of a cell: its result without the evidence, which is in the cell's folder.

    Args:
        outcome: pass, fail, error or skip.
        failure_class: why not, or None.
        message: one line that says why.
        hint: what to do about it, or None.
        seconds: wall time.
        stages: stage to seconds.
        start: ``clone``, ``boot`` or empty.
        folder: the evidence.
        implementation: what the steps ran on.
        versions: what ran.
        verdict: the judge's word with all checks and faults.
        console_tail: the console's last lines, for errors.
    """

    outcome: Outcome
    failure_class: FailureClass | None
    message: str
    hint: str | None
    seconds: float
    stages: dict[str, float]
    start: str
    folder: str
    implementation: Implementation
    versions: Versions | None
    verdict: Verdict | None
    console_tail: tuple[str, ...]


class CellLine(Record):
    """A cell.

    Args:
        type: says which line it is.
        name: unique.
        scenario: the scenario's id.
        title: the scenario's title.
        source: what it covers.
        file: the scenario's file.
        point: axis to value.
        standing: what it means for the release.
        fingerprint: hash over all that the result depends on.
        known: the known failure that excuses it, or None.
        note: what a reader should know.
        rerun: the command that runs it again.
        attempts: oldest first; the last failed expectation counts, else the last one.
    """

    type: Literal["cell"] = "cell"
    name: str
    scenario: str
    title: str
    source: str
    file: str
    point: dict[str, str]
    standing: Standing
    fingerprint: str
    known: KnownFailure | None
    note: str
    rerun: str
    attempts: Annotated[tuple[AttemptLine, ...], Field(min_length=1)]


class NotRunLine(Record):
    """What was not run, and why.

    Args:
        type: says which line it is.
        scenario: id of the scenario, or patterns.
        point: axis to value.
        reason: one line.
        points: how many points it stands for.
    """

    type: Literal["not-run"] = "not-run"
    scenario: str
    point: dict[str, str]
    reason: str
    points: int


JsonLine = Annotated[QualificationLine | CellLine | NotRunLine, Field(discriminator="type")]


def json_lines(one: Qualification) -> Iterator[str]:
    """The lines, each one JSON object in ASCII without a line break."""
    for record in _records(one):
        yield as_json(record.model_dump(), indent=None)


def write_json_lines(one: Qualification, path: Path) -> Path:
    """Write them and return the file's path."""
    return write_text(path, "".join(f"{line}\n" for line in json_lines(one)))


def schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    made = TypeAdapter(JsonLine).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A line of a qualification", **made}


def _records(one: Qualification) -> Iterator[Record]:
    shared = one.model_dump(include=set(QualificationLine.model_fields) & set(Qualification.model_fields))
    counts = totals(one.cells)
    yield QualificationLine(
        **shared, verdict=sentence(one), exit_code=exit_code(one), counts=counts, complete=one.complete
    )
    for cell in one.cells:
        result = cell.result
        yield CellLine(
            **cell.model_dump(exclude={"attempts"}),
            title=result.title,
            source=result.source,
            file=result.file,
            standing=cell.standing,
            rerun=result.rerun,
            attempts=tuple(_attempt(attempt) for attempt in cell.attempts),
        )
    for item in one.not_run:
        yield NotRunLine(**item.model_dump())


def _attempt(result: CellResult) -> AttemptLine:
    return AttemptLine(**{name: getattr(result, name) for name in AttemptLine.model_fields})


if __name__ == "__main__":
    write_text(SCHEMA, json.dumps(schema(), indent=1) + "\n")
