"""``harness explain``: what a fault line means, what usually causes it, what to check next."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from harness.cli.handler import NO_FAULT, guarded
from harness.cli.log_input import given_log, is_terminal
from harness.cli.options import AsJson, examples
from harness.errors import ConfigurationError

if TYPE_CHECKING:
    from harness.fault.decode import Context
    from harness.fault.known import KnownRange
    from harness.fault.pci import Requester
    from harness.results import LogExplanation

_RUN_HINT: Final = "give the folder of a finished run; its summary names it"

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT|FILE|-]", help="A line, a file with a log of any size, or - for standard input."),
]
PfOption = Annotated[
    list[str] | None, typer.Option("--pf", metavar="BDF", help="A PF: say which of its VFs a requester is. Repeatable.")
]
Offset = Annotated[int, typer.Option("--offset", min=1, max=0xFFFF, help="First VF Offset of the PFs.")]
Stride = Annotated[int, typer.Option("--stride", min=0, max=0xFFFF, help="VF Stride of the PFs.")]
Vfs = Annotated[int, typer.Option("--vfs", min=1, max=0xFFFF, help="How many VFs a PF has at most.")]
AwBits = Annotated[
    int | None, typer.Option("--aw-bits", min=12, max=64, help="Width of the IOMMU's addresses in bits, e.g. 48.")
]
Run = Annotated[
    Path | None, typer.Option("--run", metavar="FOLDER", help="A finished run: say which of its mappings is meant.")
]


def explain(
    text: Words = None,
    pf: PfOption = None,
    offset: Offset = 1,
    stride: Stride = 1,
    vfs: Vfs = 256,
    aw_bits: AwBits = None,
    run: Run = None,
    as_json: AsJson = False,
) -> None:
    """Say what a fault line in a log means, its causes, what to check.

    Reads VT-d's lines (Linux, Xen, FreeBSD), AMD-Vi's, SMMUv3's and virtio-iommu's, in the forms of old and new
    kernels, with any prefix. Equal faults are counted. An argument that is the name of a file is read; without one,
    standard input is. The exit code is 9 when there is no fault in it. 'harness repro' makes such a fault happen here.
    """

    def body() -> int:
        from harness.fault.explain import explain_stream, explain_text

        context = _context(pf or [], offset, stride, vfs, aw_bits, run)
        given = given_log(text or [])
        if given.stream is None:
            log = explain_text(given.text, context)
        else:
            with given.stream as stream:
                log = explain_stream(stream, context)
        _print(log, as_json)
        if not log.explanations:
            _tell_nothing(log, given.name)
            return NO_FAULT
        return 0

    raise typer.Exit(guarded(body))


explain_epilog: Final = examples(
    "dmesg | harness explain",
    "harness explain /var/log/kern.log",
    "harness explain 'DMAR: [DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000 [fault reason 0x06]'",
    "harness explain --pf 02:00.0 --offset 1 --stride 1 --aw-bits 48 kern.log",
    "harness explain --json - < serial.log",
)


def _context(names: list[str], offset: int, stride: int, vfs: int, aw_bits: int | None, run: Path | None) -> Context:
    from harness.fault.decode import Context
    from harness.fault.pci import Pf

    pfs = [Pf(_pf_address(name), offset, stride, vfs) for name in names]
    return Context(pfs=pfs, aw_bits=aw_bits, ranges=None if run is None else _ranges(run))


def _pf_address(name: str) -> Requester:
    from harness.fault.pci import Requester

    address = Requester.parse(name)
    if address is None:
        raise ConfigurationError(f"--pf: '{name}' is no PCI address", hint="write it as 02:00.0 or 0000:02:00.0")
    return address


def _ranges(run: Path) -> list[KnownRange]:
    from harness.fault.known import known_ranges
    from harness.report import load_run

    if not run.is_dir():
        raise ConfigurationError(f"--run: {run} is no folder", hint=_RUN_HINT)
    return known_ranges(load_run(run).cells)


def _print(log: LogExplanation, as_json: bool) -> None:
    from harness.report.explain import explanation_data, explanation_text, print_explanation

    if as_json:
        print(json.dumps(explanation_data(log)))
    elif log.explanations and is_terminal(sys.stdout):
        print_explanation(log)
    elif log.explanations:
        print(explanation_text(log), end="")


def _tell_nothing(log: LogExplanation, source: str) -> None:
    print(f"no fault in {source}", file=sys.stderr)
    for note in log.notes:
        print(note, file=sys.stderr)
    if log.suppressed:
        print(f"but the rate limit left out {log.suppressed} messages", file=sys.stderr)
    hint = (
        "a fault line names a requester, e.g. 'DMAR: [DMA Read] Request device [02:00.0] fault addr 900000', 'AMD-Vi:"
        " Event logged [IO_PAGE_FAULT device=02:00.0 ...]', 'page fault from EP 256 at 0x900000'"
    )
    print(f"hint: {hint}", file=sys.stderr)
