"""The pytest plugin: scenario files as test items, and fixtures for tests in Python (docs/pytest.md).

It is loaded by every pytest of the environment, so it touches nothing that is not the harness's, and imports the rest
of the harness only when there is an item of it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.plugin.options import FOLDERS, add_options, value_of

if TYPE_CHECKING:
    from harness.plugin.hands import Devices, Faults, Guest
    from harness.plugin.live import LiveTest
    from harness.plugin.points import TestPoint
    from harness.plugin.steps import Device, Steps
    from harness.scenario.machine import Machine

_MARKERS: Final = (
    "harness_machine(**machine): the machine that a test's guest has, by the keys of 'machine' in scenario files",
    "harness_point(**axes): the values of axes that a test runs at, instead of those of the options",
    "harness_needs(**needs): what a test needs, by the keys of 'needs' in scenario files; else it is skipped",
)
# What files of the harness begin lines with, and hardly any other YAML file.
_OURS: Final = re.compile(r"^(title|source|machine|steps|tier|matrix)\s*:", re.MULTILINE)
_HEAD: Final = 1 << 16
_NAMED: Final = pytest.StashKey[set[Path]]()
_LOST: Final = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, one for each axis and some for the run."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and refuse what cannot be."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    # Each worker of xdist has no terminal, and the pytest that has one runs no test.
    if value_of(config, "shell") and (config.getoption("numprocesses", None) or hasattr(config, "workerinput")):
        raise pytest.UsageError("--harness-shell needs the tests in this process: leave -n out")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the folder of ``--harness-out``, once for all workers, before a test runs."""
    if value_of(session.config, "out") and not _is_worker(session.config) and not session.config.option.collectonly:
        from harness.plugin.folder import make_out

        make_out(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Note a worker of xdist that was lost: the test that it was running has no cell."""
    if error:
        node.config.stash[_LOST] = True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Make the folder of ``--harness-out`` one that ``harness report`` reads."""
    if value_of(session.config, "out") and not _is_worker(session.config) and not session.config.option.collectonly:
        from harness.plugin.folder import finish_out

        # -x leaves tests out, and ends as failed tests do.
        stopped = bool(session.shouldstop or session.shouldfail) or session.config.stash.get(_LOST, False)
        whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not stopped
        finish_out(session.config, interrupted=not whole)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Scenario files that were named, or that lie below a folder of ``harness_scenarios``; no other YAML file."""
    if file_path.suffix != ".yaml":
        return None
    below = any(file_path.is_relative_to(folder) for folder in parent.config.getini(FOLDERS))
    named = parent.session.isinitpath(file_path) or file_path in _named(parent.config)
    if not (below or named) or not (below or _OURS.search(_head(file_path))):
        return None
    from harness.plugin.matrices import collector_of

    return collector_of(file_path, parent, named=named)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with a guest, at each point of the options."""
    if "harness_point" in metafunc.fixturenames and _is_own(metafunc):
        from harness.plugin.python import points_of

        points = points_of(metafunc.definition, metafunc.config)
        if len(points) > 1:
            metafunc.parametrize("harness_point", points, indirect=True, ids=str)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Judge a test that had a guest, when its own call is over."""
    error: BaseException | None = None
    try:
        result = yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        if _has_guest(item):
            from harness.plugin.python import test_ended

            test_ended(item, error)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Attach the evidence to the report of a test that failed."""
    report: pytest.TestReport = yield
    if _loaded():
        from harness.plugin.failure import attach_evidence

        attach_evidence(item, report)
    return report


@pytest.fixture
def harness_point(request: pytest.FixtureRequest) -> TestPoint:
    """The point that the test runs at."""
    point: TestPoint | None = getattr(request, "param", None)
    if point is not None:
        return point
    from harness.plugin.python import points_of

    return points_of(request.node, request.config)[0]


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Machine:
    """The machine of the test: what its marker ``harness_machine`` says, or one with an edu at 02:00.0.

    A test module or a conftest.py may have a fixture of its own by this name, which gives a mapping or a ``Machine``.
    """
    from harness.plugin.points import marked_machine

    return marked_machine(request.node)


@pytest.fixture
def harness_test(request: pytest.FixtureRequest, machine: Machine, harness_point: TestPoint) -> Iterator[LiveTest]:
    """The guests of the test, which the other fixtures share."""
    from harness.plugin.python import live_test

    with live_test(request.node, machine, harness_point) as live:
        yield live


@pytest.fixture
def guest(harness_test: LiveTest) -> Guest:
    """The running guest: commands, files, kernel log, shell."""
    from harness.plugin.hands import Guest

    return Guest(harness_test)


@pytest.fixture
def devices(harness_test: LiveTest) -> Devices:
    """The devices of the machine by their names."""
    from harness.plugin.hands import Devices

    return Devices(harness_test)


@pytest.fixture
def device(devices: Devices) -> Device:
    """The only device of the machine."""
    return devices.only()


@pytest.fixture
def usdm(harness_test: LiveTest) -> Steps:
    """Every kind of step as a method, done on the implementation of the point."""
    from harness.plugin.steps import Steps

    return Steps(harness_test)


@pytest.fixture
def faults(harness_test: LiveTest) -> Faults:
    """The faults that must happen, and those that did."""
    from harness.plugin.hands import Faults

    return Faults(harness_test)


def _named(config: pytest.Config) -> set[Path]:
    """The paths of the command line: of one that lies below another one pytest itself says no more."""
    if _NAMED not in config.stash:
        start = config.invocation_params.dir
        config.stash[_NAMED] = {(start / word.partition("::")[0]).resolve() for word in config.args}
    return config.stash[_NAMED]


def _head(file: Path) -> str:
    """The beginning of a file, as far as it is text."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_HEAD)
    except OSError:
        return ""


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _is_own(metafunc: pytest.Metafunc) -> bool:
    """Whether the fixture is this plugin's, and not another one of the same name."""
    found = metafunc._arg2fixturedefs.get("harness_point", ())
    return bool(found) and found[-1].func.__module__ == __name__


def _loaded() -> bool:
    """Whether there has been an item of the harness at all."""
    import sys

    return "harness.plugin.failure" in sys.modules


def _has_guest(item: pytest.Item) -> bool:
    import sys

    live = sys.modules.get("harness.plugin.live")
    return live is not None and live.LIVE in item.stash
