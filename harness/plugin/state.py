"""What a pytest session keeps for its guests: the settings, what cells need, the folders for their evidence."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from harness.errors import HarnessError
from harness.plugin.options import Settings, settings, value_of
from harness.run.cells import Cell, calls_kernel, prepare_for
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario

_LONGEST: Final = 120
_DIGITS: Final = 8


class State:
    """One for each session, and for each worker of xdist. Made when the first harness item is collected.

    Args:
        config: pytest's configuration.

    Attributes:
        config: as given.
        settings: what the options come to.

    Raises:
        pytest.UsageError: an option or a variable is wrong.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.settings: Settings = settings(config)
        self._prepared: dict[tuple[object, ...], tuple[str, Resources] | HarnessError] = {}

    def prepare(self, cell: Cell, options: RunOptions) -> tuple[Cell, Resources]:
        """The cell on the kernel that it runs on, and what it needs; found once for all cells that need the same.

        Args:
            cell: the cell.
            options: where what is missing comes from, and whether the kernel was anybody's choice.

        Raises:
            ConfigurationError, InfrastructureError: see :func:`harness.run.cells.prepare_for`.
        """
        scenario = cell.scenario
        needs = "" if isinstance(scenario, BareScenario) else scenario.needs.model_dump_json()
        on = (cell.qemu, cell.kernel, options.auto_kernel, cell.oracle, cell.libusdm)
        wanted = (*on, cell.refused, needs, type(scenario), calls_kernel(cell))
        if wanted not in self._prepared:
            try:
                (chosen,), resources = prepare_for([cell], options, say)
                self._prepared[wanted] = chosen.kernel, resources
            except HarnessError as error:
                self._prepared[wanted] = error
        found = self._prepared[wanted]
        if isinstance(found, HarnessError):
            raise found
        return replace(cell, kernel=found[0]), found[1]

    def new_folder(self, nodeid: str) -> Path:
        """A folder for a test's evidence that is not there yet.

        With ``--harness-out`` below that, else in pytest's own temporary folder, which each worker of xdist has one of.
        """
        out = value_of(self.config, "out")
        parent = Path(out).absolute() if out else _temporary(self.config) / "harness"
        name = folder_name(nodeid)
        folder, number = parent / name, 1
        # A test that is repeated in one session.
        while folder.exists():
            number += 1
            folder = parent / f"{name}-{number}"
        return folder


STATE: Final = pytest.StashKey[State]()


def state_of(config: pytest.Config) -> State:
    """The session's state.

    Raises:
        pytest.UsageError: an option or a variable is wrong.
    """
    if STATE not in config.stash:
        config.stash[STATE] = State(config)
    return config.stash[STATE]


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a folder: a long one is cut, and told apart by a hash."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", nodeid).strip("-.") or "test"
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:_DIGITS]}"


def say(text: str) -> None:
    """Tell what takes time; pytest shows it with a test that fails, or at once with ``-s``."""
    print(text, file=sys.stderr, flush=True)


def _temporary(config: pytest.Config) -> Path:
    # There is no public way to it for an item that is no function, which has no fixtures.
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
    return factory.getbasetemp()
