"""Every task that a person or CI runs. Without a session named: everything that CI runs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

CODE = ("harness", "usdm", "tests", "noxfile.py")
QUICK = ("tests/unit", "tests/property")
# What users import; docs/api.md says what of it is stable. tests/unit/docs/test_docs_api.py looks at the same.
PUBLIC = (
    *("harness.scenario", "harness.results", "harness.qualified", "harness.run", "harness.report", "harness.errors"),
    *("harness.pytest_plugin", "usdm"),
)


def _install(session: nox.Session) -> None:
    session.install("-q", "-e", ".[test]")


def _lint(session: nox.Session) -> None:
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports", "--no-cache")


def _types(session: nox.Session) -> None:
    session.run("mypy", "--strict", "harness", "usdm")


def _unit(session: nox.Session) -> None:
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *QUICK, *session.posargs)


FETCH = (
    *("harness", "fetch", "--qemu", "11.1", "--qemu", "10.0", "--qemu", "7.2"),
    *("--kernel", "6.12", "--kernel", "7.2", "--kernel", "lab", "--libusdm", "26.08", "--libusdm", "24.02"),
    *("--module", "7.2"),
)


def _fetch(session: nox.Session) -> None:
    session.run(*FETCH)


@contextmanager
def _fetching(session: nox.Session) -> Iterator[None]:
    """Fetch meanwhile: it waits for the network half of the time. What it said is printed when it is waited for."""
    with tempfile.TemporaryFile("w+") as said:
        env = os.environ | {name: value for name, value in session.env.items() if value is not None}
        command = [f"{session.bin}/{FETCH[0]}", *FETCH[1:]]
        fetch = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env)
        try:
            yield
            session.log(" ".join(FETCH))
            status = fetch.wait()
            said.seek(0)
            print(said.read(), end="", flush=True)
            if status:
                session.error(f"harness fetch: exit status {status}")
        finally:
            fetch.terminate()
            fetch.wait()


def _browser(session: nox.Session) -> None:
    pictures = f"{session.cache_dir}/screenshots"
    session.run("pytest", "tests/browser", *session.posargs, env={"HARNESS_SCREENSHOTS": pictures})


def _guest(session: nox.Session) -> None:
    if session.posargs:
        session.run("pytest", "tests/guest", *session.posargs)
        return
    # The run of all scenarios starts as many guests at once as there are cores, so nothing runs beside it.
    scenarios = "tests/guest/test_scenarios.py"
    session.run("pytest", scenarios)
    session.run("pytest", "tests/guest", f"--ignore={scenarios}", "-n", "auto", "--dist", "loadfile")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything: style, types, folder rules, unit and property tests, then real guests."""
    _install(session)
    with _fetching(session):
        _lint(session)
        _types(session)
        _unit(session)
        _browser(session)
    _guest(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and folder rules."""
    _install(session)
    _lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict."""
    _install(session)
    _types(session)


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no guest."""
    _install(session)
    _unit(session)


@nox.session
def browser(session: nox.Session) -> None:
    """The report's page in headless Chromium; pictures stay in .nox/.cache/screenshots."""
    _install(session)
    _browser(session)


@nox.session
def guest(session: nox.Session) -> None:
    """Tests on real guests. Arguments go to pytest: nox -s guest -- -k panic"""
    _install(session)
    _fetch(session)
    _guest(session)


@nox.session
def scenarios(session: nox.Session) -> None:
    """All scenarios. Arguments go to harness run."""
    _install(session)
    session.run("harness", "run", "--fetch", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Generated sequences of USDM calls on real guests, 2,000 steps; nox -s fuzz -- --steps 10000 --seed 7"""
    _install(session)
    session.run("python", "tests/fuzz/run.py", "--fetch", *session.posargs)


@nox.session
def fuzz_logs(session: nox.Session) -> None:
    """Any bytes through the reader of logs, 100,000 cases; nox -s fuzz_logs -- --cases 1000 --seed 7"""
    _install(session)
    session.run("python", "tests/fuzz/fuzz_logs.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """How long things take: medians, asserts nothing. Arguments go to the bench: nox -s bench -- --runs 20"""
    _install(session)
    session.run("python", "tests/bench/bench.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The API reference, out of docstrings, into build/docs: nox -s docs -- FOLDER puts it elsewhere."""
    session.install("-q", "-e", ".[docs]")
    folder = session.posargs[0] if session.posargs else "build/docs"
    # harness.report gives this name when it is asked for; the page of harness.report.terminal has it.
    lazy = "ignore:Found 'TerminalReport' in harness.report.__all__"
    pdoc = ("python", "-W", "error", "-W", lazy, "-m", "pdoc", "--docformat", "google", "--output-directory", folder)
    session.run(*pdoc, *PUBLIC)


@nox.session
def schema(session: nox.Session) -> None:
    """Write the schemas of scenarios and of JSON lines from the models."""
    _install(session)
    session.run("python", "-m", "harness.scenario.schema")
    session.run("python", "-m", "harness.report.json_lines")


@nox.session(name="format")
def format_code(session: nox.Session) -> None:
    """Format the code."""
    _install(session)
    session.run("ruff", "format", *CODE)
    session.run("ruff", "check", "--fix", *CODE)
