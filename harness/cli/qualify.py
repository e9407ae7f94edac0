"""``harness qualify``: a matrix of scenarios and points, run, kept, resumed, compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.handler import guarded, tell
from harness.cli.options import (
    Accel,
    AccelOption,
    AsJson,
    Fetch,
    FreshBoot,
    Jobs,
    Junit,
    Mirror,
    Offline,
    Usdm,
    check_writable,
    examples,
    jobs_of,
)
from harness.errors import ConfigurationError

if TYPE_CHECKING:
    from harness.qualify.run import QualifyOptions
    from harness.report import TerminalReport

EXAMPLES = examples(
    "harness qualify scenarios/smoke.yaml --fetch",
    "harness qualify scenarios/release.yaml --out release-1",
    "harness qualify scenarios/release.yaml --out release-1 --resume",
    "harness qualify scenarios/release.yaml --since release-1",
    "harness qualify scenarios/release.yaml --list",
    "harness qualify scenarios/release.yaml --out release-1 --resume -k dma/unmapped_read",
    "harness report release-1",
)


def qualify(
    matrix: Annotated[Path, typer.Argument(help="The matrix: a YAML file that begins with 'matrix: TITLE'.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", envvar="HARNESS_OUT", help="The qualification's folder; else below the state folder."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with --out, or with the matrix's newest: what is done and unchanged stays."
        ),
    ] = False,
    since: Annotated[
        Path | None, typer.Option("--since", help="Say what changed since this qualification, or run: its folder.")
    ] = None,
    listing: Annotated[
        bool,
        typer.Option("--list", "--dry-run", help="Print the cells, and what would not be run and why. Starts nothing."),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("-k", "--filter", envvar="HARNESS_FILTER", help="Only cells with this text in their names."),
    ] = None,
    cell: Annotated[
        str | None, typer.Option("--cell", help="Only the cell of this name, also when it is done.")
    ] = None,
    jobs: Jobs = "auto",
    accel: AccelOption = Accel.AUTO,
    usdm: Usdm = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            envvar="HARNESS_TIMEOUT",
            min=1,
            help="Seconds for a scenario that names none; else as the matrix says.",
        ),
    ] = None,
    boot_timeout: Annotated[
        float | None,
        typer.Option(
            "--boot-timeout",
            envvar="HARNESS_BOOT_TIMEOUT",
            min=1,
            help="Seconds until a guest is ready; else as the matrix says.",
        ),
    ] = None,
    fresh_boot: FreshBoot = False,
    executor: Annotated[
        str,
        typer.Option(
            "--executor", envvar="HARNESS_EXECUTOR", help="Where cells run: local, or dask for more machines."
        ),
    ] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", envvar="HARNESS_SCHEDULER", help="With --executor dask: the scheduler's address."),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make a damaged results file anew from the folders of its cells, then go on."),
    ] = False,
    junit: Junit = None,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
    as_json: AsJson = False,
) -> None:
    """Say on which points of a matrix a release works: QEMU, kernel, vIOMMU, command line, implementation, ...

    Each result is kept when it is there, so that --resume goes on after anything. Errors of infrastructure are tried
    again and both results kept; a failed expectation never is. The exit code is that of the worst failure that is not
    known; it is 0 only when every cell has been run.
    """

    def body() -> int:
        from harness.qualify.run import QualifyOptions, qualify
        from harness.qualify.show import next_lines
        from harness.report.json_lines import json_lines
        from harness.report.junit import write_qualified_junit
        from harness.report.qualified_terminal import print_qualification
        from harness.report.verdict import exit_code
        from harness.run.options import RunOptions

        options = QualifyOptions(
            matrix=matrix,
            run=RunOptions(
                accel=accel.value,
                jobs=jobs_of(jobs),
                usdm=usdm,
                fresh_boot=fresh_boot,
                fetch=fetch,
                offline=offline,
                mirror=mirror,
                argv=tuple(sys.argv),
                elsewhere=executor != "local",
            ),
            timeout=timeout,
            boot_timeout=boot_timeout,
            out=out,
            resume=resume,
            rebuild=rebuild,
            since=since,
            text=only,
            cell=cell,
            executor=executor,
            scheduler=scheduler,
        )
        if resume and rebuild:
            raise ConfigurationError("--rebuild goes on by itself", hint="leave --resume out")
        check_writable("--junit", junit)
        terminal = _terminal(as_json)
        try:
            if listing:
                return _list(options, terminal, as_json=as_json)
            done = qualify(options, terminal)
        finally:
            terminal.close()
        print_qualification(done.qualification, terminal.console)
        for line in next_lines(done):
            terminal.console.print(line, soft_wrap=True, highlight=False, markup=False)
        if as_json:
            for text in json_lines(done.qualification):
                print(text)
        status = exit_code(done.judged)
        if junit is not None:
            try:
                write_qualified_junit(done.qualification, junit)
            except OSError as error:
                # It could be written at the start. The verdict is what the exit code is about, where it is a bad one.
                failed = ConfigurationError(f"--junit {junit} cannot be written: {error.strerror}")
                tell(failed)
                return status or failed.exit_code
        return status

    raise typer.Exit(guarded(body))


def _list(options: QualifyOptions, terminal: TerminalReport, *, as_json: bool) -> int:
    from harness.qualify.executor import make_executor
    from harness.qualify.run import prepare_matrix
    from harness.qualify.show import plan_json, plan_lines
    from harness.run.jobs import default_jobs

    # What the run would refuse, its list does too.
    make_executor(options.executor, options.scheduler)
    prepared = prepare_matrix(options, terminal)
    if as_json:
        print(plan_json(prepared))
        return 0
    for line in plan_lines(prepared, options.run.jobs or default_jobs(options.run.start)):
        print(line)
    return 0


def _terminal(as_json: bool) -> TerminalReport:
    from harness.report import TerminalReport
    from harness.report.console import Terminal

    return TerminalReport(Terminal(highlight=False, stderr=as_json))
