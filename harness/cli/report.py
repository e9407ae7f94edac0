"""``harness report``: every form of a finished run's or qualification's results, made again from its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from harness.cli.handler import guarded, note
from harness.cli.options import check_writable, examples
from harness.errors import ConfigurationError

# Everything else is imported when it is needed: --help and a mistyped option answer at once.
if TYPE_CHECKING:
    from harness.qualified.records import Qualification
    from harness.results import RunResult

EXAMPLES: Final = examples(
    "harness report FOLDER",
    "harness report FOLDER --html /tmp/report.html",
    "harness report FOLDER --since EARLIER_FOLDER",
    "harness report FOLDER --html - --markdown summary.md --junit out.xml --jsonl out.jsonl",
    "harness report FOLDER --evidence",
)

HTML_FILE: Final = "report.html"


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, of one of its cells, or of a qualification.")],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE|-", help="Where the page goes; else report.html in FOLDER. -: no page."),
    ] = None,
    since: Annotated[
        Path | None, typer.Option("--since", metavar="FOLDER", help="Say what changed since this run or qualification.")
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--slower",
            min=1.0,
            help="With --since: how many times as long a cell's steps may take; else as the matrix says, or 1.5.",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML there.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write a summary for a pull request there.")
    ] = None,
    jsonl: Annotated[Path | None, typer.Option("--jsonl", help="Write JSON lines there, one for each cell.")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON on standard output, for programs: of a run one object, else JSON lines."),
    ] = False,
    evidence: Annotated[bool, typer.Option("--evidence", help="Print every cell with its steps and faults.")] = False,
) -> None:
    """Show what a run or a qualification came to, and write it as a page that anybody can open.

    The page is one file that loads nothing: mail it, or open it from the disk. The exit code is that of the run.
    """

    def body() -> int:
        from harness.qualified.compare import compare
        from harness.report.json_report import exit_code as run_exit_code
        from harness.report.load import folder_of, load, load_results
        from harness.report.verdict import exit_code

        if as_json and evidence:
            raise ConfigurationError(
                "--json and --evidence both go to standard output",
                hint="leave one out; verdict.json in a cell's folder has its evidence as JSON",
            )
        files = {"--junit": junit, "--markdown": markdown, "--jsonl": jsonl}
        for option, file in files.items():
            check_writable(option, file)
        found, run = load_results(folder)
        root = folder_of(folder)
        if since is not None:
            earlier = folder_of(since)
            changes = compare(load(earlier), found, ratio or found.slower, str(earlier))
            found = found.model_copy(update={"comparison": changes})
        _write_files(found, run, files)
        page = _page(found, root, html)
        _print(found, run, as_json=as_json, evidence=evidence)
        if page is not None:
            note(f"page: {page}")
        return exit_code(found) if run is None else run_exit_code(run)

    raise typer.Exit(guarded(body))


def _page(found: Qualification, root: Path, html: Path | None) -> Path | None:
    """Write the page and give its path; None where it is not wanted."""
    from harness.report.html import write_html

    if html == Path("-"):
        return None
    target = html or root / HTML_FILE
    _written("--html", target, lambda: write_html(found, target, root))
    return target


def _write_files(found: Qualification, run: RunResult | None, targets: dict[str, Path | None]) -> None:
    from harness.report.json_lines import write_json_lines
    from harness.report.junit import write_junit, write_qualified_junit
    from harness.report.markdown import write_markdown

    def junit(path: Path) -> object:
        return write_qualified_junit(found, path) if run is None else write_junit(run, path)

    writers: dict[str, Callable[[Path], object]] = {
        "--junit": junit,
        "--markdown": lambda path: write_markdown(found, path),
        "--jsonl": lambda path: write_json_lines(found, path),
    }
    for option, path in targets.items():
        if path is not None:
            _written(option, path, lambda write=writers[option], target=path: write(target))  # type: ignore[misc]


def _written(option: str, path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        hint = "name another file, or - for no page" if option == "--html" else None
        raise ConfigurationError(f"{option} {path} cannot be written: {error.strerror}", hint=hint) from error


def _print(found: Qualification, run: RunResult | None, *, as_json: bool, evidence: bool) -> None:
    from harness.report import TerminalReport, cell_text, run_json
    from harness.report.console import Terminal
    from harness.report.json_lines import json_lines
    from harness.report.qualified_terminal import print_qualification

    if as_json:
        for text in [run_json(run)] if run is not None else json_lines(found):
            print(text)
    if evidence:
        for cell in found.cells:
            print(cell_text(cell.result))
    elif not as_json and run is not None and found.comparison is None:
        TerminalReport(Terminal(highlight=False)).run_finished(run)
    elif not as_json:
        print_qualification(found, Terminal(highlight=False))
