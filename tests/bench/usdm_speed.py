"""usdm and the C libusdm, measured in one guest: real VFIO container, one process each, in turns.

The program that measures is ``in_guest.py``. The machine's vIOMMU has 39 address bits, as many as libusdm uses, so that
both have the same IOVA space; and 3 GiB of memory, because each maps 1 GiB of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from figures import Figure, Figures
from guests import KERNEL, QEMU

from harness.deadline import Deadline
from harness.guest.bring import bring_library
from harness.guest.guest import running_guest
from harness.guest.payload import build_payload
from harness.image.library import fetch_library
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.resources import Resources

LIBRARY = "26.08"
_BOOT_SECONDS = 120.0
# A quarter of it on a quiet host: what is set up once, and a round.
_SET_UP_SECONDS, _ROUND_SECONDS = 400.0, 100.0
_DEVICES = {"usdm": "02:00.0", "libusdm": "03:00.0"}
_MACHINE = MachineSpec(
    aw_bits=39,
    memory=3 << 30,
    devices=tuple(DeviceSpec(f"edu{number}", "edu", at) for number, at in enumerate(_DEVICES.values())),
)
_PROGRAM = Path(__file__).with_name("in_guest.py")


@dataclass
class Precise(Figure):
    """A figure whose second digit after the point matters."""

    def row(self) -> str:
        cells = super().row().split("|")
        numbers = (self.median, min(self.values), max(self.values))
        return "|".join([*cells[:2], *(f" {number:.2f} " for number in numbers), *cells[5:]])


@dataclass(frozen=True)
class Choice:
    """What is measured.

    Args:
        rounds: how many values each figure gets.
        usdm: another folder with a ``usdm`` package, None for the working tree's.
        huge_pages: transparent huge pages in the guest: ``always``, ``never``; empty for as the kernel begins.
        groups: names of groups of rows; empty for all.
    """

    rounds: int = 7
    usdm: Path | None = None
    huge_pages: str = ""
    groups: list[str] = field(default_factory=list)


def measure(
    figures: Figures, resources: Resources, choice: Choice, scratch: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Take every figure of usdm and libusdm, and their ratios; gives facts about the guest.

    Args:
        figures: where they go.
        resources: build, image, accelerator.
        choice: what is measured.
        scratch: an existing folder, for the guest's run folder.
        say: told what goes on.
    """
    library = fetch_library(LIBRARY, say=say)
    folder = scratch / "usdm-speed"
    folder.mkdir()
    plan = replace(resources.plan(_MACHINE, QEMU, KERNEL, folder), payload=build_payload(choice.usdm))
    options = {
        "rounds": choice.rounds,
        "devices": _DEVICES,
        "huge_pages": choice.huge_pages,
        "groups": choice.groups,
    }
    # Booted, not cloned: a template of this machine would keep 3 GiB in the cache for one use.
    with running_guest(plan, _BOOT_SECONDS, lambda stage: None) as guest:
        started = Deadline.after(_BOOT_SECONDS)
        guest.start_worker(started)
        bring_library(guest, library, started)
        say(f"usdm and libusdm {library.name}, {choice.rounds} rounds in one guest")
        command = f"python3 -I - {shlex.quote(json.dumps(options))}"
        deadline = Deadline.after(_SET_UP_SECONDS + choice.rounds * _ROUND_SECONDS)
        result = guest.run(command, deadline, stdin=_PROGRAM.read_bytes())
    if result.status:
        raise RuntimeError(f"{_PROGRAM.name} failed in the guest: {result.stderr.decode(errors='replace')}")
    measured = json.loads(result.stdout)
    for row in measured["rows"]:
        add_row(figures, row["row"], row["seconds"])
    return {f"usdm in the guest: {name}": fact for name, fact in measured["facts"].items()} | {
        "libusdm": library.version
    }


def add_row(figures: Figures, row: str, seconds: dict[str, list[float]]) -> None:
    """Add the times of each implementation, in microseconds, and how often usdm's time goes into libusdm's.

    The ratio is taken in each round: what else the host does changes from round to round, and less within one.
    """
    for implementation, values in seconds.items():
        for value in values:
            figures.add(Precise(f"{row}: {implementation}", "µs"), value * 1e6)
    for implementation, target in (("usdm", 1.0), ("usdm.qae_mem", None)):
        for ours, theirs in zip(seconds[implementation], seconds["libusdm"], strict=True):
            figures.add(Precise(f"{row}: libusdm / {implementation}", "x", target, at_least=True), theirs / ours)
