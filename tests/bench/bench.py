"""How long things take: medians of real runs, as a table and as JSON. Asserts nothing.

Run it with ``nox -s bench``. Machines differ and are shared: compare only figures of one run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import dma_speed
import explain_speed
import iova_kernel
import iova_speed
import qat_speed
from figures import Figure, Figures
from guests import COLD_SSH, KERNEL, QEMU, SSH, Guests
from usdm_speed import Choice
from usdm_speed import measure as measure_usdm
from virtme import measure

from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare
from harness.run.schedule import host_facts

VIRTME = Figure("virtme-ng --disable-kvm, same kernel and QEMU: one command", "s")


def say(text: str) -> None:
    """Progress, beside the table."""
    print(f"  {text}", flush=True)


def take(figures: Figures, resources: Resources, runs: int, suites: int, *, virtme: bool) -> None:
    """Take every figure; each round takes one value of each, so that a busy host hits all alike."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as scratch:
        guests = Guests(resources, Path(scratch), say)
        for number in range(runs):
            say(f"round {number + 1} of {runs}")
            guests.cold_boot(figures)
            guests.template(figures)
            guests.clone_to_ssh(figures)
            guests.clone_to_device(figures)
            guests.scenario(figures)
            if virtme:
                virtme = add_virtme(figures, resources)
        if suites:
            say("the suite once, for its templates")
            guests.suite(Figures(), None)
        for number in range(suites):
            say(f"suite {number + 1} of {suites}")
            guests.suite(figures, 1)
            guests.suite(figures, None)


def add_virtme(figures: Figures, resources: Resources) -> bool:
    """The same guest command once by virtme-ng; False when that is not possible here."""
    result = measure(resources, 1)
    if result.reason:
        say(f"virtme-ng could not be measured: {result.reason}")
        return False
    for seconds in result.seconds:
        figures.add(VIRTME, seconds)
    return True


def add_ratios(figures: Figures) -> None:
    """virtme-ng's median over ours."""
    theirs = figures.median(VIRTME.name)
    for ours in (SSH, COLD_SSH):
        median = figures.median(ours.name)
        if theirs and median:
            figures.add(Figure(f"virtme-ng / {ours.name}", "x"), theirs / median)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how often each figure is taken (default 20)")
    parser.add_argument("--suites", type=int, default=3, help="how often the whole suite is run (default 3)")
    parser.add_argument("--no-virtme", action="store_true", help="leave the comparison with virtme-ng out")
    parser.add_argument("--no-usdm", action="store_true", help="leave the comparison of usdm with libusdm out")
    parser.add_argument(
        "--only", choices=["guests", "usdm", "dma", "qat", "iova", "explain"], help="only these figures"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="how often usdm and libusdm take turns, and rounds of NVMe, the QAT-like device and ranges (default 7)",
    )
    parser.add_argument("--usdm", type=Path, help="another usdm package to compare with libusdm")
    parser.add_argument(
        "--huge-pages", choices=["always", "never"], default="", help="transparent huge pages for that comparison"
    )
    parser.add_argument("--groups", nargs="+", default=[], help="only these groups of rows of that comparison")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the log to explain (default 1000)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures, usdm_facts = Figures(), {}
    if arguments.only in (None, "explain"):
        explain_speed.measure(figures, arguments.runs, arguments.megabytes, say)
    if arguments.only == "explain":
        finish(figures, host_facts(), arguments.json)
        return
    resources = prepare(RunOptions(fetch=True), say)
    if arguments.only in (None, "usdm") and not arguments.no_usdm:
        choice = Choice(arguments.rounds, arguments.usdm, arguments.huge_pages, arguments.groups)
        with tempfile.TemporaryDirectory(prefix="harness-bench-") as scratch:
            usdm_facts = measure_usdm(figures, resources, choice, Path(scratch), say)
    if arguments.only in (None, "dma"):
        with tempfile.TemporaryDirectory(prefix="harness-bench-") as scratch:
            dma_speed.measure(figures, resources, arguments.rounds, Path(scratch), say)
    if arguments.only in (None, "qat"):
        with tempfile.TemporaryDirectory(prefix="harness-bench-") as scratch:
            qat_speed.measure(figures, resources, arguments.rounds, Path(scratch), say)
    if arguments.only in (None, "iova"):
        with tempfile.TemporaryDirectory(prefix="harness-bench-") as scratch:
            kernels = (KERNEL, iova_speed.LAB, iova_kernel.KERNEL)
            several = prepare(RunOptions(kernels=kernels, fetch=True), say)
            iova_speed.measure(figures, several, arguments.rounds, Path(scratch), say)
            iova_kernel.measure(figures, several, arguments.rounds, Path(scratch), say)
    if arguments.only in (None, "guests"):
        take(figures, resources, arguments.runs, arguments.suites, virtme=not arguments.no_virtme)
        add_ratios(figures)
    emulation = resources.emulations[QEMU]
    facts = {
        **host_facts(),
        "qemu": emulation.build.version,
        "guest kernel": resources.images[KERNEL].kernel_release,
        "accelerator": f"{emulation.accelerator.accelerator} ({emulation.accelerator.reason})",
        **usdm_facts,
    }
    finish(figures, facts, arguments.json)


def finish(figures: Figures, facts: Mapping[str, object], file: Path | None) -> None:
    """Print the table and write the JSON."""
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(f"\n{figures.table()}")
    if file:
        data = {"host": facts, "figures": figures.data()}
        file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
