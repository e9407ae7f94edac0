"""The commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import __version__
from harness.cli.handler import EXIT_CODES, INTERRUPTED, guarded
from harness.cli.stores import image_app, qemu_app
from harness.errors import ConfigurationError
from harness.run.options import RunOptions

if TYPE_CHECKING:
    from harness.results import RunResult

app = typer.Typer(
    name="harness",
    help="Boot QEMU guests with a vIOMMU, run USDM in them, and judge DMA and DMA faults.\n\n"
    "First time:  harness run --fetch\n\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(image_app, name="image")
app.add_typer(qemu_app, name="qemu")


class Accel(StrEnum):
    """What ``--accel`` takes."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


Paths = Annotated[
    list[Path] | None, typer.Argument(help="Scenario files and folders; without any, the scenarios that come along.")
]
Qemu = Annotated[
    list[str], typer.Option("--qemu", envvar="HARNESS_QEMU", help="QEMU build: 11.1, 10.0, 7.2 or system. Repeatable.")
]
Kernel = Annotated[
    list[str], typer.Option("--kernel", envvar="HARNESS_KERNEL", help="Guest kernel: 6.12 or 7.2. Repeatable.")
]
AccelOption = Annotated[
    Accel, typer.Option("--accel", envvar="HARNESS_ACCEL", help="auto takes KVM only after it has run a boot sector.")
]
Out = Annotated[
    Path | None, typer.Option("--out", envvar="HARNESS_OUT", help="Run folder; else below the state folder.")
]
Usdm = Annotated[Path | None, typer.Option("--usdm", help="Another usdm package to put under test.")]
Fetch = Annotated[
    bool, typer.Option("--fetch", envvar="HARNESS_FETCH", help="Build or download what the cache lacks (about 160 MB).")
]
Offline = Annotated[bool, typer.Option("--offline", envvar="HARNESS_OFFLINE", help="Use the cache only.")]
Mirror = Annotated[
    str | None, typer.Option("--mirror", envvar="HARNESS_MIRROR", help="Debian mirror; else the host's own.")
]
BootTimeout = Annotated[
    float, typer.Option("--boot-timeout", envvar="HARNESS_BOOT_TIMEOUT", min=1, help="Seconds until a guest is ready.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", envvar="HARNESS_TIMEOUT", min=1, help="Seconds for a scenario that names none.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for programs.")]


def _jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigurationError(f"--jobs takes a number from 1 or 'auto', not '{text}'")
    return int(text)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def run(
    paths: Paths = None,
    jobs: Annotated[str, typer.Option("-j", "--jobs", envvar="HARNESS_JOBS", help="Guests at once, or auto.")] = "auto",
    qemu: Qemu = ["11.1"],  # noqa: B006 - typer copies it
    kernel: Kernel = ["6.12"],  # noqa: B006
    accel: AccelOption = Accel.AUTO,
    out: Out = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML there.")] = None,
    usdm: Usdm = None,
    timeout: Timeout = 120.0,
    boot_timeout: BootTimeout = 120.0,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
    as_json: AsJson = False,
) -> None:
    """Run scenarios on real guests and judge them.

    harness run scenarios/dma --qemu 7.2 --qemu 11.1 --junit out.xml
    """

    def body() -> int:
        from harness.report.json_report import exit_code
        from harness.run import run_scenarios

        options = RunOptions(
            paths=tuple(paths or ()),
            qemu=tuple(qemu),
            kernels=tuple(kernel),
            accel=accel.value,
            jobs=_jobs(jobs),
            out=out,
            usdm=usdm,
            timeout=timeout,
            boot_timeout=boot_timeout,
            fetch=fetch,
            offline=offline,
            mirror=mirror,
            argv=tuple(sys.argv),
        )
        terminal = _terminal(as_json)
        try:
            result = run_scenarios(options, terminal)
        finally:
            terminal.close()
        _write(result, junit, as_json)
        return INTERRUPTED if result.interrupted else exit_code(result)

    raise typer.Exit(guarded(body))


def _terminal(as_json: bool):  # type: ignore[no-untyped-def]  # imported late, for a fast --help
    from rich.console import Console

    from harness.report import TerminalReport

    return TerminalReport(Console(highlight=False, stderr=as_json))


def _write(result: RunResult, junit: Path | None, as_json: bool) -> None:
    from harness.report import run_json, write_junit

    if junit is not None:
        try:
            write_junit(result, junit)
        except OSError as error:
            raise ConfigurationError(f"--junit {junit} cannot be written: {error.strerror}") from error
    if as_json:
        print(run_json(result))


@app.command("list")
def list_command(paths: Paths = None, as_json: AsJson = False) -> None:
    """List scenarios with their titles."""

    def body() -> int:
        from harness.run import list_scenarios

        scenarios = list_scenarios(tuple(paths or ()))
        if as_json:
            print(
                json.dumps([{"id": s.id, "title": s.title, "source": s.source, "file": str(s.file)} for s in scenarios])
            )
            return 0
        width = max(len(scenario.id) for scenario in scenarios)
        for scenario in scenarios:
            print(f"{scenario.id:{width}}  {scenario.title}")
        return 0

    raise typer.Exit(guarded(body))


@app.command()
def lint(paths: Paths = None, as_json: AsJson = False) -> None:
    """Check scenario files; prints every problem of every file as file:line:column."""

    def body() -> int:
        from harness.paths import scenarios_dir
        from harness.scenario import lint as lint_files

        problems = lint_files(list(paths or [scenarios_dir()]))
        if as_json:
            fields = ("file", "line", "column", "message", "hint")
            print(json.dumps([{name: _plain(getattr(problem, name)) for name in fields} for problem in problems]))
        else:
            for problem in problems:
                print(problem)
        return ConfigurationError.failure_class.exit_code if problems else 0

    raise typer.Exit(guarded(body))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this host can do, and what to do about the rest."""

    def body() -> int:
        from harness.run.doctor import examine

        findings = examine()
        if as_json:
            print(json.dumps([finding.as_dict() for finding in findings]))
        else:
            for finding in findings:
                print(f"{finding.state:4}  {finding.name}: {finding.detail}")
                if finding.remedy:
                    print(f"      {finding.remedy}")
        return 8 if any(finding.state == "fail" for finding in findings) else 0

    raise typer.Exit(guarded(body))


@app.command()
def shell(
    scenario: Annotated[Path | None, typer.Argument(help="Take this scenario's machine; else one with an edu.")] = None,
    command: Annotated[str | None, typer.Option("-c", help="Run this command instead of a shell.")] = None,
    qemu: Annotated[str, typer.Option("--qemu", envvar="HARNESS_QEMU", help="QEMU build.")] = "11.1",
    kernel: Annotated[str, typer.Option("--kernel", envvar="HARNESS_KERNEL", help="Guest kernel.")] = "6.12",
    accel: AccelOption = Accel.AUTO,
    boot_timeout: BootTimeout = 120.0,
    fetch: Fetch = False,
    mirror: Mirror = None,
) -> None:
    """Open a root shell in a fresh guest, over SSH. The payload is in /run/payload."""

    def body() -> int:
        from harness.run.shell import open_shell

        options = RunOptions(
            qemu=(qemu,), kernels=(kernel,), accel=accel.value, boot_timeout=boot_timeout, fetch=fetch, mirror=mirror
        )
        return open_shell(options, scenario, command, _note)

    raise typer.Exit(guarded(body))


@app.command("fetch")
def fetch_command(
    qemu: Qemu = ["11.1"],  # noqa: B006
    kernel: Kernel = ["6.12"],  # noqa: B006
    offline: Offline = False,
    mirror: Mirror = None,
) -> None:
    """Get what a run needs into the cache: QEMU builds and guest images."""

    def body() -> int:
        from harness.run.resources import fetch_all

        options = RunOptions(qemu=tuple(qemu), kernels=tuple(kernel), offline=offline, mirror=mirror)
        fetch_all(options, lambda text: print(text, flush=True))
        return 0

    raise typer.Exit(guarded(body))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run, or of one of its cells.")],
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML there.")] = None,
    as_json: AsJson = False,
    evidence: Annotated[bool, typer.Option("--evidence", help="Print every cell with its steps and faults.")] = False,
) -> None:
    """Make the reports of a finished run again from its folder."""

    def body() -> int:
        from harness.report import cell_text, load_run
        from harness.report.json_report import exit_code

        result = load_run(folder)
        _write(result, junit, as_json)
        if evidence:
            for cell in result.cells:
                print(cell_text(cell))
        elif not as_json:
            _terminal(False).run_finished(result)
        return exit_code(result)

    raise typer.Exit(guarded(body))


def _show_version(value: bool) -> None:
    if value:
        print(f"harness {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    del version


def main() -> None:
    """The program ``harness``."""
    runner: Callable[[], None] = app
    runner()
