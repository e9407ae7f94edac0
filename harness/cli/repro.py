"""``harness repro``: from a fault line to the same line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.handler import guarded, note
from harness.cli.options import (
    Accel,
    AccelOption,
    AsJson,
    BootTimeout,
    Fetch,
    FreshBoot,
    Mirror,
    Offline,
    OneKernel,
    OneQemu,
    Out,
    examples,
    kernel_is_default,
    only,
)
from harness.errors import ConfigurationError, FailureClass
from harness.repro.kinds import State, Tier

if TYPE_CHECKING:
    from harness.repro.run import Reproduction
    from harness.results import FaultRecord, Progress

EXAMPLES = examples(
    "harness repro 'DMAR: [DMA Read] Request device [02:01.2] fault addr 900000 [fault reason 06]'",
    "dmesg | harness repro --write again.yaml",
    "harness repro customer.log --line 4711 --state unmapped",
    "harness repro customer.log --dry-run",
)


def repro(
    context: typer.Context,
    log: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT|FILE|-]", help="The log: its text, a file, or - for stdin.")
    ] = None,
    line: Annotated[
        int | None, typer.Option("--line", min=1, help="The fault of this line; else the log's first.")
    ] = None,
    state: Annotated[
        State, typer.Option("--state", help="How the page came to be without permission, for reasons 05 and 06.")
    ] = State.NEVER_MAPPED,
    tier: Annotated[
        Tier, typer.Option("--tier", help="guest: under Linux; bare: without a system, for what Linux never does.")
    ] = Tier.AUTO,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Leave the scenario there, once it has passed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scenario, and run nothing.")] = False,
    qemu: OneQemu = ["11.1"],  # noqa: B006 - typer copies it
    kernel: OneKernel = ["6.12"],  # noqa: B006
    accel: AccelOption = Accel.AUTO,
    boot_timeout: BootTimeout = 120.0,
    fresh_boot: FreshBoot = False,
    out: Out = None,
    fetch: Fetch = False,
    offline: Offline = False,
    mirror: Mirror = None,
    as_json: AsJson = False,
) -> None:
    """Make the fault of a log line happen again, and show both lines.

    Builds the machine that has a function at the line's address, brings its IOMMU into the state that gives the line's
    reason, and has the function do that access. The exit code is 0 when the same fault happened, 1 when it did not,
    and 2 when no machine can give it; then the message says which rule stands in the way.
    """

    def body() -> int:
        from harness.repro.plan import plan
        from harness.repro.run import check_name, keep, reproduce
        from harness.repro.show import show
        from harness.run.options import RunOptions

        if write is not None:
            check_name(write)
        record, text, others = _chosen(log or [], line)
        if others:
            note(f"{others} other fault{'s' * (others != 1)} in this log; --line chooses")
        made = plan(record, text, state, tier)
        if dry_run:
            print(made.text, end="")
            return 0
        options = RunOptions(
            qemu=only("--qemu", qemu, "a reproduction"),
            kernels=only("--kernel", kernel, "a reproduction"),
            auto_kernel=kernel_is_default(context),
            accel=accel.value,
            boot_timeout=boot_timeout,
            fresh_boot=fresh_boot,
            out=out,
            fetch=fetch,
            offline=offline,
            mirror=mirror,
            argv=tuple(sys.argv),
        )
        found = reproduce(made, record, text, options, _progress())
        if as_json:
            print(_json(found))
        else:
            print("\n".join(show(found)))
        if not found.same:
            failure = found.cell.failure_class or FailureClass.EXPECTATION
            return failure.exit_code
        if write is not None:
            keep(made, write)
            note(f"written: {write}")
        return 0

    raise typer.Exit(guarded(body))


def _chosen(words: list[str], line: int | None) -> tuple[FaultRecord, str, int]:
    """The fault to reproduce, its line, and how many different ones there are beside it."""
    from harness.cli.log_input import given_log
    from harness.fault import parse_kernel_log

    given = given_log(words)
    text = given.text
    if given.stream is not None:
        with given.stream as stream:
            text = stream.read().decode("utf-8", "replace")
    records = parse_kernel_log(text).records
    lines = text.split("\n")
    if not records:
        raise ConfigurationError(f"there is no fault in {given.name}", hint="'harness explain' says what it reads")
    wanted = records[0] if line is None else next((one for one in records if one.line == line), None)
    if wanted is None:
        there = ", ".join(str(one.line) for one in records[:10])
        raise ConfigurationError(f"--line {line}: no fault begins there", hint=f"faults begin at the lines {there}")
    different = {(one.requester, one.access, one.address, one.reason) for one in records}
    return wanted, lines[wanted.line - 1].strip(), len(different) - 1


def _progress() -> Progress:
    """Tells what takes time: a template or an image that has to be made."""
    from harness.results import Progress

    class Notes(Progress):
        def message(self, text: str) -> None:
            note(text)

    return Notes()


def _json(found: Reproduction) -> str:
    cell = found.cell
    return json.dumps(
        {
            "same": found.same,
            "yours": {"line": found.line, "fault": found.wanted.model_dump(mode="json")},
            "here": {
                "line": found.seen_line,
                "printed": found.printed,
                "fault": found.seen.model_dump(mode="json") if found.seen else None,
            },
            "aspects": [aspect.model_dump(mode="json") for aspect in found.aspects],
            "remarks": list(found.remarks),
            "state": found.state,
            "scenario": found.scenario,
            "outcome": cell.outcome.value,
            "message": cell.message,
            "folder": cell.folder,
        }
    )
