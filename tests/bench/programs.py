"""A program that takes its figures in a guest of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.guest.freeze import get_template
from harness.guest.guest import GuestPlan, running_guest

_BOOT_SECONDS = 120.0


def run_in_clone(
    plan: GuestPlan, program: Path, options: Mapping[str, object], seconds: float, say: Callable[[str], None]
) -> Any:
    """Run a program in a clone, whose devices have been found, and give the JSON that it prints.

    Args:
        plan: the machine; its run folder is there.
        program: read from the guest's standard input; its one argument is ``options`` as JSON.
        options: what it is told.
        seconds: how long it may take.
        say: told what a template takes.

    Raises:
        RuntimeError: the program failed.
    """
    plan = replace(plan, template=get_template(plan, _BOOT_SECONDS, say))
    with running_guest(plan, _BOOT_SECONDS, lambda stage: None) as guest:
        deadline = Deadline.after(seconds)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        command = f"python3 -I - {shlex.quote(json.dumps(options))}"
        result = guest.run(command, deadline, stdin=program.read_bytes())
    if result.status:
        raise RuntimeError(f"{program.name} failed in the guest: {result.stderr.decode(errors='replace')}")
    return json.loads(result.stdout)
