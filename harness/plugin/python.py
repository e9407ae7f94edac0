"""Tests in Python: their points, their guests, and the judge's word when they are over."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigurationError, HarnessError
from harness.plugin.failure import RESULT, failure_text, properties
from harness.plugin.folder import note_failed_setup
from harness.plugin.live import LIVE, LiveTest, failure_of
from harness.plugin.options import rerun_line, value_of
from harness.plugin.points import (
    MACHINE,
    MarkerError,
    TestPoint,
    machine_of,
    marked_machine,
    marked_needs,
    marker_place,
    pinned_axes,
    test_points,
)
from harness.plugin.state import state_of
from harness.run.cells import Cell, unmet
from harness.run.models import with_model
from harness.scenario import Scenario
from harness.scenario.growing import ANY_STEP
from harness.scenario.machine import Machine
from harness.scenario.point import NotApplicable, machine_at

_TIMEOUT = "Timeout ("


def points_of(node: Any, config: pytest.Config) -> list[TestPoint]:
    """The points that a test runs at.

    Args:
        node: the test's definition.
        config: pytest's configuration.

    Raises:
        MarkerError: a marker or an option cannot be meant so.
    """
    try:
        # Also what is not parametrized, so that a mistake is told when tests are collected.
        marked_machine(node)
        marked_needs(node)
        return test_points(state_of(config).settings, pinned_axes(node))
    except pytest.UsageError as error:
        raise MarkerError(str(error)) from None


@contextmanager
def live_test(item: pytest.Function, machine: Machine | Mapping[str, Any], point: TestPoint) -> Iterator[LiveTest]:
    """A test's guests, started, and ended with the block.

    Args:
        item: the test.
        machine: what the fixture ``machine`` gave.
        point: where it runs.
    """
    live = _made(item, machine, point)
    item.stash[LIVE] = live
    try:
        live.start()
    except HarnessError:
        # What went wrong is in the sessions, or nothing was started.
        live.stop()
        live.finish()
        _note(item, live)
        del item.stash[LIVE]
        shown = live.shown()
        pytest.fail(failure_text(shown) if shown else "no guest was started", pytrace=False)
    try:
        yield live
        # What fixtures did behind the test's end is judged too.
        late = live.changed and live.passed()
        if late:
            live.finish()
            _note(item, live)
    finally:
        live.stop()
    if late and not live.passed():
        pytest.fail(_text(live), pytrace=False)


def test_ended(item: pytest.Item, error: BaseException | None) -> None:
    """Judge a test when its call is over, while its guests still run.

    Args:
        item: the test.
        error: what it raised; None for nothing.
    """
    live = item.stash[LIVE]
    if isinstance(error, pytest.skip.Exception | KeyboardInterrupt | SystemExit):
        return
    if error is not None and str(error).startswith(_TIMEOUT):
        live.interrupted = True  # whatever it waits for may never come
    try:
        live.finish("" if error is None else failure_of(error))
    except ConfigurationError as wrong:
        if error is None:
            pytest.fail(usage(wrong), pytrace=False)
    _note(item, live)
    if live.passed():
        return
    if value_of(item.config, "shell"):
        from harness.plugin.shell import open_on_failure

        open_on_failure(item, live.sessions[-1], _text(live))
    if error is None:
        pytest.fail(_text(live), pytrace=False)


test_ended.__test__ = False  # type: ignore[attr-defined]


def _made(item: pytest.Function, machine: Machine | Mapping[str, Any], point: TestPoint) -> LiveTest:
    state = state_of(item.config)
    run = state.settings.run
    place = marker_place(item, MACHINE)
    file = Path(os.path.relpath(item.path, item.config.invocation_params.dir))
    text = (inspect.getdoc(item.obj) or item.name).strip().partition("\n")[0]
    data: dict[str, Any] = {"title": text, "source": f"the test {item.name}", "needs": marked_needs(item)}
    try:
        there = machine_at(machine_of(machine, place), point.point)
    except NotApplicable as error:
        pytest.skip(error.reason)
    scenario = Scenario.model_validate({**data, "machine": {}, "steps": (ANY_STEP,)})
    scenario = scenario.model_copy(update={"machine": there, "steps": ()}).located(item.nodeid, file)
    scenario = with_model(scenario, point.model)
    data["machine"] = scenario.machine.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    cell = Cell(
        scenario,
        point.qemu,
        point.kernel,
        item.nodeid,
        usdm=run.usdm,
        fresh_boot=run.fresh_boot,
        implementation=point.implementation,
        libusdm=point.libusdm,
        model=point.model,
        point=point.point,
    )
    cell, resources = _prepared(item, cell)
    return LiveTest(
        *(state, cell, resources, data, point),
        *(marker_place(item, MACHINE), rerun_line(item.config, item.nodeid), state.new_folder(item.nodeid)),
    )


def _prepared(item: pytest.Function, cell: Cell) -> Any:
    try:
        state = state_of(item.config)
        # A kernel that a marker names is the test's own choice.
        auto = state.settings.run.auto_kernel and "kernel" not in pinned_axes(item)
        cell, resources = state.prepare(cell, replace(state.settings.run, auto_kernel=auto))
    except HarnessError as error:
        note_failed_setup(item.config, cell, item.nodeid, error)
        pytest.fail(error.message + (f"\nhint: {error.hint}" if error.hint else ""), pytrace=False)
    reason = unmet(cell, resources)
    if reason:
        pytest.skip(reason)
    return cell, resources


def _note(item: pytest.Item, live: LiveTest) -> None:
    """Keep a result for the report, in the place of an earlier one."""
    shown = live.shown()
    if shown is not None:
        item.stash[RESULT] = shown
        item.user_properties[:] = [one for one in item.user_properties if not str(one[0]).startswith("harness.")]
        item.user_properties.extend(properties(shown))


def _text(live: LiveTest) -> str:
    shown = live.shown()
    return failure_text(shown) if shown else ""


def usage(error: ConfigurationError) -> str:
    """An error of what a test wrote, as text."""
    return error.message + (f"\nhint: {error.hint}" if error.hint else "")
