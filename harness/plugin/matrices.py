"""Which collector a YAML file of the harness gets; a matrix's cells as test items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.plugin.files import ScenarioFile, ScenarioItem, shown_path, told
from harness.plugin.state import state_of
from harness.qualified.known import excused
from harness.qualify.plan import Item, make_plan
from harness.results import CellResult
from harness.scenario.load import other_kind
from harness.scenario.matrix_load import load_matrix


class MatrixFile(pytest.File):
    """A matrix: an item for each of its cells, at its own points; the options of the axes say nothing here."""

    def collect(self) -> Iterable[pytest.Item]:
        """Load and check the matrix and its scenarios, and make their items; nothing is started."""
        state = state_of(self.config)
        matrix = load_matrix(Path(shown_path(self.path, self.config)))
        limits = matrix.limits
        options = replace(
            state.settings.run, timeout=limits.timeout, boot_timeout=limits.boot_timeout, auto_kernel=False
        )
        today = datetime.now(UTC).date()
        for item in make_plan(matrix, options).items:

            def known(result: CellResult, item: Item = item) -> tuple[str, str]:
                entry, note = excused(matrix.known, item.cell.scenario.id, item.labels, result, today)
                return (f"{entry.reason} ({entry.link}; {entry.place})" if entry else ""), note

            yield ScenarioItem.from_parent(
                self, name=item.cell.name, cell=item.cell, values=item.labels, options=options, known=known
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong with the matrix, without a traceback of the harness."""
        return told(excinfo.value) or super().repr_failure(excinfo)


def collector_of(path: Path, parent: pytest.Collector, *, named: bool) -> pytest.Collector | None:
    """The collector of a file; None for a file of known failures, and for a matrix that was not named.

    Args:
        path: the file.
        parent: what it is collected by.
        named: whether it stands on the command line.
    """
    kind = other_kind(path)
    if kind is None:
        return ScenarioFile.from_parent(parent, path=path)
    return MatrixFile.from_parent(parent, path=path) if named and kind == "matrix" else None
