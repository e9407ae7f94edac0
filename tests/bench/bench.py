"""How long things take: medians of real runs, as a table and as JSON. Asserts nothing.

Run it with ``nox -s bench``. Machines differ and are shared: compare only figures of one run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.deadline import Deadline
from harness.guest.guest import running_guest
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare
from harness.run.schedule import host_facts

EDU = DeviceSpec("edu0", "edu", "02:00.0")


def peak_memory(pid: int) -> float:
    """Peak resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def boot(resources: Resources, folder: Path) -> dict[str, float]:
    """One cold boot to the first SSH command and on to the worker."""
    folder.mkdir()
    plan = resources.plan(MachineSpec(devices=(EDU,)), "11.1", "6.12", folder)
    started = time.monotonic()
    with running_guest(plan, 120, lambda stage: None) as guest:
        guest.run("true", Deadline.after(60))
        first_command = time.monotonic() - started
        guest.start_worker(resources.payload, folder / "worker.stderr", Deadline.after(60))
        return {
            "QEMU started, monitor answers": guest.stages["start"],
            "cold boot to ready": guest.stages["boot"],
            "cold boot to first SSH command done": first_command,
            "payload sent, worker answers": guest.stages["worker"],
            "peak memory of QEMU, MB": peak_memory(guest.emulator.pid),
        }


def scenario() -> float:
    """One scenario from command line to verdict, caches warm."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness", "run", "scenarios/dma/unmapped_read.yaml", "--out", f"{folder}/out"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often each figure is taken (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    resources = prepare(RunOptions(fetch=True), print)
    figures: dict[str, list[float]] = {}
    folder = Path(tempfile.mkdtemp(prefix="harness-bench-"))
    try:
        for number in range(arguments.runs):
            for name, value in boot(resources, folder / str(number)).items():
                figures.setdefault(name, []).append(value)
            figures.setdefault("one scenario, command line to verdict", []).append(scenario())
    finally:
        shutil.rmtree(folder)
    emulation = resources.emulations["11.1"]
    facts = {
        **host_facts(),
        "qemu": emulation.build.version,
        "guest kernel": resources.images["6.12"].kernel_release,
        "accelerator": f"{emulation.accelerator.accelerator} ({emulation.accelerator.reason})",
        "runs": str(arguments.runs),
    }
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(f"\n{'median':>9} {'lowest':>9} {'highest':>9}  figure (seconds where nothing else is said)")
    for name, values in figures.items():
        print(f"{statistics.median(values):9.2f} {min(values):9.2f} {max(values):9.2f}  {name}")
    if arguments.json:
        data = {"host": facts, "figures": {name: sorted(values) for name, values in figures.items()}}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
