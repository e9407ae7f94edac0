"""The commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from harness import __version__
from harness.cli.explain import explain, explain_epilog
from harness.cli.groups import EPILOG, HELP, GroupedCommands
from harness.cli.handler import guarded, note, set_debug
from harness.cli.options import (
    Accel,
    AccelOption,
    AsJson,
    BootTimeout,
    Cmdline,
    Fetch,
    Filter,
    FreshBoot,
    Hugepages,
    Implementation,
    Implementations,
    Jobs,
    Junit,
    Kernel,
    Libusdm,
    Mirror,
    Model,
    Models,
    Offline,
    OneCmdline,
    OneHugepages,
    OneKernel,
    OneModel,
    OneQemu,
    OneVcpus,
    OneViommu,
    Out,
    Paths,
    Qemu,
    Timeout,
    Usdm,
    Vcpus,
    Viommu,
    examples,
    is_default,
    jobs_of,
    kernel_is_default,
    only,
    points,
)
from harness.cli.qualify import EXAMPLES as QUALIFY_EXAMPLES
from harness.cli.qualify import qualify
from harness.cli.report import EXAMPLES as REPORT_EXAMPLES
from harness.cli.report import report
from harness.cli.repro import EXAMPLES as REPRO_EXAMPLES
from harness.cli.repro import repro
from harness.cli.stores import image_app, qemu_app
from harness.cli.templates import template_app
from harness.cli.worker import EXAMPLES as WORKER_EXAMPLES
from harness.cli.worker import worker
from harness.errors import ConfigurationError, FailureClass

# Everything else is imported by the command that needs it: --help and a mistyped option answer at once.
if TYPE_CHECKING:
    from harness.report import TerminalReport
    from harness.results import RunResult
    from harness.scenario import BareScenario, Scenario

app = typer.Typer(
    name="harness",
    cls=GroupedCommands,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(image_app, name="image")
app.add_typer(qemu_app, name="qemu")
app.add_typer(template_app, name="template")


def _chosen(paths: list[Path] | None, text: str | None) -> list[Scenario | BareScenario]:
    """The scenarios that paths and ``--filter`` name."""
    from harness.run import list_scenarios

    scenarios = [one for one in list_scenarios(tuple(paths or ())) if text is None or text in one.id]
    if not scenarios:
        raise ConfigurationError(f"--filter: no scenario has '{text}' in its id", hint="'harness list' shows the ids")
    return scenarios


@app.command(
    epilog=examples(
        "harness run --fetch",
        "harness run scenarios/dma -k unmap -j 2",
        "harness run --qemu 7.2 --qemu 11.1 --kernel 6.12 --kernel 7.2",
        "harness run --model edu --model qat scenarios/dma",
        "harness run --viommu intel --viommu intel-scalable --cmdline lazy --vcpus 2 scenarios/dma",
        "harness run --implementation both -k libusdm --fetch",
        "harness run --implementation both -k iova --fetch",
        "harness run --junit out.xml --json > run.json",
        "HARNESS_QEMU='7.2 11.1' harness run",
    )
)
def run(
    context: typer.Context,
    paths: Paths = None,
    text: Filter = None,
    jobs: Jobs = "auto",
    qemu: Qemu = ["11.1"],  # noqa: B006 - typer copies it
    kernel: Kernel = ["6.12"],  # noqa: B006
    model: Model = [Models.EDU],  # noqa: B006
    viommu: Viommu = None,
    cmdline: Cmdline = None,
    hugepages: Hugepages = None,
    vcpus: Vcpus = None,
    accel: AccelOption = Accel.AUTO,
    out: Out = None,
    junit: Junit = None,
    usdm: Usdm = None,
    implementation: Implementation = Implementations.USDM,
    libusdm: Libusdm = "26.08",
    timeout: Timeout = 120.0,
    boot_timeout: BootTimeout = 120.0,
    fresh_boot: FreshBoot = False,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
    as_json: AsJson = False,
) -> None:
    """Run scenarios on real guests and judge them.

    Each scenario gets a guest of its own, on every QEMU build times every kernel that is named, at every point of the
    other axes: a clone of a template, which is made when it is missing. What means nothing at a point is skipped. The
    evidence stays in the run folder, which each failure names. The exit code is that of the worst failure.
    """

    def body() -> int:
        from harness.report.json_report import exit_code
        from harness.run import run_scenarios
        from harness.run.options import RunOptions

        chosen = paths if text is None else [scenario.file for scenario in _chosen(paths, text)]
        options = RunOptions(
            paths=tuple(chosen or ()),
            qemu=tuple(qemu),
            kernels=tuple(kernel),
            auto_kernel=kernel_is_default(context),
            models=tuple(dict.fromkeys(one.value for one in model)),
            points=points(viommu, cmdline, hugepages, vcpus),
            accel=accel.value,
            jobs=jobs_of(jobs),
            out=out,
            usdm=usdm,
            implementation=implementation.value,
            libusdm=libusdm,
            timeout=timeout,
            boot_timeout=boot_timeout,
            fresh_boot=fresh_boot,
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
        if not result.interrupted:
            _refuse_empty(result)
        return exit_code(result)

    raise typer.Exit(guarded(body))


_AXIS_WORDS: Final = {
    "--qemu": ("QEMU",),
    "--kernel": ("kernel ",),
    "--viommu": ("iommu: ", "aw_bits", "scalable"),
    "--cmdline": ("kernel_args",),
    "--vcpus": ("cpus",),
}
"""Which option is meant by the words of a reason for which a scenario is skipped."""


def _refuse_empty(result: RunResult) -> None:
    """A run in which nothing ran must not look like one in which everything passed."""
    from harness.results import Outcome

    if all(cell.outcome is Outcome.SKIP for cell in result.cells):
        said = " ".join(cell.message for cell in result.cells)
        asked = [option for option, words in _AXIS_WORDS.items() if any(word in said for word in words)]
        raise ConfigurationError(
            "every scenario was skipped, so nothing was run",
            hint=f"the report says what each needs: {', '.join(asked or ['--qemu', '--kernel'])}",
        )


def _terminal(as_json: bool) -> TerminalReport:
    from harness.report import TerminalReport
    from harness.report.console import Terminal

    return TerminalReport(Terminal(highlight=False, stderr=as_json))


def _write(result: RunResult, junit: Path | None, as_json: bool) -> None:
    from harness.report import run_json, write_junit

    if junit is not None:
        try:
            write_junit(result, junit)
        except OSError as error:
            raise ConfigurationError(f"--junit {junit} cannot be written: {error.strerror}") from error
    if as_json:
        print(run_json(result))


app.command(epilog=explain_epilog)(explain)
app.command(epilog=REPRO_EXAMPLES)(repro)
app.command(epilog=REPORT_EXAMPLES)(report)
app.command(epilog=QUALIFY_EXAMPLES)(qualify)
app.command(epilog=WORKER_EXAMPLES)(worker)


@app.command("list", epilog=examples("harness list", "harness list scenarios/usdm -k map", "harness list --json"))
def list_command(paths: Paths = None, text: Filter = None, as_json: AsJson = False) -> None:
    """List scenarios: id and title."""

    def body() -> int:
        scenarios = _chosen(paths, text)
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


@app.command(epilog=examples("harness lint", "harness lint my/scenarios one.yaml", "harness lint --json my/scenarios"))
def lint(paths: Paths = None, as_json: AsJson = False) -> None:
    """Check scenario files, matrices and known failures, and print every problem.

    Each is one line, file:line:column: message (hint); all problems of all files are told at once.
    The exit code is 2 when there is a problem, else 0. No guest is started.
    """

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
        return FailureClass.CONFIGURATION.exit_code if problems else 0

    raise typer.Exit(guarded(body))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


@app.command(epilog=examples("harness doctor", "harness doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Say what this host can do, and what to do about the rest. Nothing is downloaded or changed.

    ok: fine. warn: a run works without it, or gets it with --fetch. fail: needed and missing; the exit code is 8.
    """

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
        failed = any(finding.state == "fail" for finding in findings)
        return FailureClass.INFRASTRUCTURE.exit_code if failed else 0

    raise typer.Exit(guarded(body))


@app.command(
    epilog=examples(
        "harness shell",
        "harness shell scenarios/dma/unmapped_read.yaml",
        "harness shell -c 'dmesg | grep DMAR' --kernel 7.2",
        "harness shell --model qat -c lspci",
        "harness shell --viommu intel-scalable -c 'dmesg | grep DMAR'",
        "harness shell --fresh-boot -c dmesg",
        "harness shell < commands.sh",
    )
)
def shell(
    context: typer.Context,
    scenario: Annotated[Path | None, typer.Argument(help="Take this scenario's machine; else one with an edu.")] = None,
    command: Annotated[str | None, typer.Option("-c", help="Run this command instead of a shell.")] = None,
    qemu: OneQemu = ["11.1"],  # noqa: B006
    kernel: OneKernel = ["6.12"],  # noqa: B006
    model: OneModel = [Models.EDU],  # noqa: B006
    viommu: OneViommu = None,
    cmdline: OneCmdline = None,
    hugepages: OneHugepages = None,
    vcpus: OneVcpus = None,
    accel: AccelOption = Accel.AUTO,
    boot_timeout: BootTimeout = 120.0,
    fresh_boot: FreshBoot = False,
    usdm: Usdm = None,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
) -> None:
    """Open a root shell in a new guest, over SSH. The payload (usdm and the guest's worker) is in /run/payload.

    Without a terminal, standard input is run as a script. The exit code is that of the shell or command. Ctrl-D ends
    the guest; nothing of it stays.
    """

    def body() -> int:
        from harness.run.options import RunOptions
        from harness.run.shell import open_shell

        options = RunOptions(
            qemu=only("--qemu", qemu, "a shell"),
            kernels=only("--kernel", kernel, "a shell"),
            auto_kernel=kernel_is_default(context),
            models=(Models(*only("--model", [one.value for one in model], "a shell")).value,),
            points=points(viommu, cmdline, hugepages, vcpus, one="a shell"),
            accel=accel.value,
            usdm=usdm,
            boot_timeout=boot_timeout,
            fresh_boot=fresh_boot,
            fetch=fetch,
            offline=offline,
            mirror=mirror,
        )
        return open_shell(options, scenario, command, note)

    raise typer.Exit(guarded(body))


@app.command(
    "fetch",
    epilog=examples(
        "harness fetch",
        "harness fetch --qemu 7.2 --qemu 11.1 --kernel 6.12 --kernel 7.2",
        "harness fetch --kernel lab",
        "harness fetch --libusdm 26.08",
        "harness fetch --module 7.2",
        "harness fetch --mirror http://HOST/debian",
    ),
)
def fetch_command(
    context: typer.Context,
    qemu: Qemu = ["11.1"],  # noqa: B006
    kernel: Kernel = ["6.12"],  # noqa: B006
    libusdm: Annotated[
        list[str] | None, typer.Option("--libusdm", help="C library: 26.08 or 24.02. Repeatable; default none.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option("--module", help="Test module of the DMA mapping API for kernel 7.2. Repeatable; default none."),
    ] = None,
    offline: Offline = False,
    mirror: Mirror = None,
) -> None:
    """Get what a run needs into the cache.

    QEMU builds and guest images; the C library where --libusdm names it; the test module, with the compiler that it
    takes, where --module names its kernel; --module alone gets nothing else than that and the kernel's image. Without
    options: for the default run, of which some scenarios need kernel 7.2 or the lab kernel. The latter is compiled,
    which takes some minutes; --kernel 6.12 leaves both out.
    """

    def body() -> int:
        from harness.run.modules import check_modules, fetch_modules
        from harness.run.options import RunOptions
        from harness.run.resources import fetch_all

        options = RunOptions(
            qemu=tuple(qemu),
            kernels=tuple(kernel),
            auto_kernel=kernel_is_default(context),
            offline=offline,
            mirror=mirror,
        )

        def say(text: str) -> None:
            print(text, flush=True)

        modules = module or ()
        check_modules(modules)
        if not (modules and all(is_default(context, name) for name in ("qemu", "kernel", "libusdm"))):
            fetch_all(options, tuple(libusdm or ()), say)
        fetch_modules(modules, options, say)
        return 0

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
    debug: Annotated[
        bool, typer.Option("--debug", envvar="HARNESS_DEBUG", help="Show the traceback of a defect of harness.")
    ] = False,
) -> None:
    """Options before the command."""
    del version
    set_debug(debug)


def main() -> None:
    """The program ``harness``."""
    app()
