"""Checks of the steps about the kernel's own driver: what each needs before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from pydantic import ValidationError

from harness.scenario.args import Args
from harness.scenario.args_kernel import KERNEL_KINDS, Replay, Trace, TraceEnd
from harness.scenario.machine import Needs
from harness.scenario.problems import suggest
from harness.scenario.yaml_marks import Path_

_OUTSIDE: Final = 3  # parts of the path of a step's arguments that is in no other step
_TAKE_AWAY: Final = ("open", "register", "unbind", "unplug", "pass_through")

_OPTION: Final = "FPROBE_EVENTS"
_SINCE: Final = "6.16"
_BEFORE: Final = "6.15"
_RELEASE: Final = f">={_SINCE}"

Report = Callable[..., None]
"""Takes the path, the message, the hint, and ``key``: the problem is the key itself."""


class TraceCheck:
    """Follows which devices the kernel's drivers have, and what is recorded.

    Attributes:
        needs: what the scenario says of its kernel, as it stands in the file.
    """

    def __init__(self, report: Report) -> None:
        self.needs: Any = None
        self._report = report
        self._held: set[str] = set()
        self._away: set[str] = set()
        self._running = ""
        self._begun: dict[str, Path_] = {}
        self._ended: list[str] = []

    def step(
        self,
        args: Args,
        kind: str,
        path: Path_,
        devices: Mapping[str, Mapping[str, Any]],
        opened: Collection[str],
    ) -> None:
        """Look at the next step.

        Args:
            args: its arguments.
            kind: its kind.
            path: where they are.
            devices: the machine's devices as they stand in the file, by name.
            opened: devices that the program has open.
        """
        device = str(getattr(args, "device", ""))
        if kind in _TAKE_AWAY:
            self._held.discard(device)
            (self._away.discard if kind in ("open", "register") else self._away.add)(device)
        if kind not in KERNEL_KINDS:
            return
        if len(path) > _OUTSIDE:
            hint = "the recording is of the whole guest: write it before or behind that step"
            self._report(path, f"expected no {kind} inside another step, found one", hint, key=True)
        elif kind == "kernel_driver":
            if device in opened and device not in self._away:
                message = f"expected a device that is not open for kernel_driver, found '{device}'"
                self._report((*path, "device"), message, "the kernel would wait until it is closed: close it before")
            self._driver(device, path, devices)
        elif kind == "disk_io" and device in devices and device not in self._held:
            message = f"expected a device that the kernel's driver has, found '{device}'"
            self._report((*path, "device"), message, "write a kernel_driver before")
        else:
            self._recording(args, path)

    def finish(self) -> None:
        """Look at what was left when all steps were done."""
        if self._running:
            hint = f"nothing is judged without: write trace_end: {{name: {self._running}}}"
            self._report(self._begun[self._running], "expected an end of the recording, found none", hint, key=True)

    def _driver(self, name: str, path: Path_, devices: Mapping[str, Mapping[str, Any]]) -> None:
        if name not in devices:
            return
        self._held.add(name)
        model = devices[name].get("model")
        if model != "nvme":
            hint = "the image has no other device's driver"
            self._report((*path, "device"), f"expected an nvme, found '{name}', model: {model}", hint)

    def _recording(self, args: Args, path: Path_) -> None:
        if isinstance(args, Trace):
            if not _can_record(self.needs):
                wanted = f'needs: {{kernel: "{_RELEASE}", kernel_options: {{{_OPTION}: true}}}}'
                hint = "without --kernel one is taken that has the functions and can record their calls"
                self._report(path, f"expected {wanted} beside trace, found none", hint, key=True)
            if args.name in self._begun:
                hint = "each recording has a name of its own"
                self._report((*path, "name"), f"expected a new name, found '{args.name}' again", hint)
            if self._running:
                hint = f"one recording runs at a time: write trace_end: {{name: {self._running}}} before"
                self._report(path, f"expected no trace while '{self._running}' is being recorded", hint, key=True)
            self._begun[args.name] = path
            self._running = args.name
        elif isinstance(args, TraceEnd):
            if args.name != self._running:
                hint = f"'{self._running}' is" if self._running else "write a trace before"
                self._report((*path, "name"), f"expected a recording that runs, found '{args.name}'", hint)
                return
            self._running = ""
            self._ended.append(args.name)
        elif isinstance(args, Replay) and self._running:
            hint = f"it records by itself: write trace_end: {{name: {self._running}}} before"
            self._report(path, f"expected no replay while '{self._running}' is being recorded", hint, key=True)
        elif isinstance(args, Replay) and args.trace not in self._ended:
            hint = suggest(args.trace, self._ended, "these have ended:") if self._ended else "write a trace_end before"
            self._report((*path, "trace"), f"expected a recording that has ended, found '{args.trace}'", hint)


def _can_record(needs: Any) -> bool:
    """Whether a scenario says that its kernel must have the functions that are recorded, and their events."""
    try:
        found = Needs.model_validate(needs or {})
    except ValidationError:
        return True  # that is told of by itself
    # 6.12 has the events and not the functions.
    return found.kernel_options.get(_OPTION) is True and bool(found.unmet_release(_BEFORE))
