"""Checks of the steps about a device's own doings: what it can do, and what it can only do after another step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from harness.scenario.args import Args, DmaArgs
from harness.scenario.args_device import HOST_KINDS, Collect, Misbehave, Operate, SurpriseRemoval
from harness.scenario.engines import QAT_MODELS
from harness.scenario.machine import SLOT_BUSES
from harness.scenario.yaml_marks import Path_

_OF_A_QAT: Final = ("operate", "collect", "counters", "misbehave", "resume", "vanish")
_WAIT_FOR_IT: Final = ("close", "reset", "unbind", "unplug")
_OUTSIDE: Final = 3  # parts of the path of a step's arguments that is in no other step

Report = Callable[..., None]
"""Takes the path, the message, the hint, and ``key``: the problem is the key itself."""


@dataclass(slots=True)
class _Plan:
    """Misbehaviour that requests will meet."""

    how: str
    path: Path_
    left: int  # requests that it is for still


@dataclass(slots=True)
class _Doings:
    """What has been asked of a device since its last reset."""

    requests: int = 0  # with data: a nop leaves no addresses behind
    handed: list[bool] = field(default_factory=list)  # requests that nobody has collected: whether each is held
    plans: deque[_Plan] = field(default_factory=deque)
    gone: str = ""  # how it went away

    @property
    def ready(self) -> int:
        """How many responses can be collected: they come in the order of the requests."""
        return self.handed.index(True) if any(self.handed) else len(self.handed)


class DeviceCheck:
    """Follows what the steps of a scenario ask of its devices."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._doings: dict[str, _Doings] = {}

    def step(
        self,
        args: Args,
        kind: str,
        path: Path_,
        devices: Mapping[str, Mapping[str, Any]],
        *,
        fails: bool,
        theirs: bool = False,
    ) -> None:
        """Look at the next step.

        Args:
            args: its arguments.
            kind: its kind.
            path: where they are.
            devices: the machine's devices as they stand in the file, by name.
            fails: an error is expected of it.
            theirs: a program of somebody else may have the device, and make requests that are in no step.
        """
        name = getattr(args, "device", None)
        if name is None or name not in devices:
            return
        model, doings = devices[name].get("model"), self._doings.setdefault(name, _Doings())
        if kind in HOST_KINDS and len(path) > _OUTSIDE:
            hint = "nothing in the guest does it: write it before or behind that step"
            self._report(path, f"expected no {kind} inside another step, found one", hint, key=True)
            return
        if kind in _OF_A_QAT and model not in QAT_MODELS:
            message = f"expected a qat for {kind}, found '{name}', model: {model}"
            hint = "write model: qat in machine.devices" + ", or use dma_read and dma_write" * (kind == "operate")
            self._report((*path, "device"), message, hint)
            return
        if doings.gone:
            self._after_the_end(kind, name, path, doings)
        if not (theirs and kind in ("misbehave", "resume")):
            self._order(args, kind, path, doings, fails=fails)
        if isinstance(args, Misbehave) and args.through is not None:
            self._through(args, path, devices)
        if isinstance(args, SurpriseRemoval):
            self._slot(name, path, devices[name], devices)

    def unclear(self, name: object) -> None:
        """A step of a device has a mistake of its own, so nothing is said of what it may have been needed for."""
        doings = self._doings.get(str(name))
        if doings is not None:
            doings.plans.clear()
            doings.handed = [False] * len(doings.handed)

    def finish(self) -> None:
        """Look at what was left when all steps were done."""
        for doings in self._doings.values():
            hint = "nothing goes wrong without one: write an operate, a dma_read or a dma_write behind it"
            self._unmet(doings, "behind it", hint)

    def _unmet(self, doings: _Doings, where: str, hint: str) -> None:
        """Say which plans no request has met, or too few."""
        for plan in doings.plans:
            what = "a request" if plan.left == 1 else f"{plan.left} more requests"
            self._report(plan.path, f"expected {what} {where}, found none", hint, key=True)
        doings.plans.clear()

    def _order(self, args: Args, kind: str, path: Path_, doings: _Doings, *, fails: bool) -> None:
        """What a step needs before it, and what it makes known to later ones."""
        if isinstance(args, Misbehave):
            if args.how == "stale_address" and not doings.requests:
                hint = "let the device do one with the addresses that shall be stale"
                self._report((*path, "how"), "expected an earlier request of the device, found none", hint)
            doings.plans.append(_Plan(args.how, path, args.times))
        elif isinstance(args, Operate | DmaArgs):
            self._request(args, path, doings)
        elif isinstance(args, Collect) and not fails:
            if args.count > len(doings.handed):
                message = f"expected {args.count} operate with wait: false before it, found {len(doings.handed)}"
                self._report((*path, "count") if args.count > 1 else path, message, "there is nothing to collect")
            elif args.count > doings.ready:
                self._waits(path, "write a resume before it")
            del doings.handed[: args.count]
        elif kind == "resume":
            if not any(doings.handed):
                hint = "write a misbehave with how: hold and an operate with wait: false before it"
                self._report(path, "expected a request that is held, found none", hint, key=True)
            else:
                doings.handed[doings.handed.index(True)] = False
        elif kind in ("reset", "close", "unbind", "unplug"):
            doings.requests = 0
            doings.handed.clear()
            self._unmet(doings, "before the device is reset", f"{kind} resets it")
        elif kind in ("vanish", "surprise_removal"):
            doings.gone = "vanished" if kind == "vanish" else "removed"
            doings.handed = [False] * len(doings.handed)  # who collects is told at once that it is gone

    def _request(self, args: Operate | DmaArgs, path: Path_, doings: _Doings) -> None:
        waits, data = not isinstance(args, Operate) or args.wait, _has_data(args)
        doings.requests += data
        held = False
        if doings.plans:
            plan = doings.plans[0]
            held = data and plan.how == "hold"
            plan.left -= 1
            if not plan.left:
                doings.plans.popleft()
        if waits and (held or any(doings.handed)):
            self._waits(path, "write an operate with wait: false, then resume and collect")
        if held or not waits:
            doings.handed.append(held)

    def _waits(self, path: Path_, hint: str) -> None:
        message = "expected no step that waits for a request that is held, found one"
        self._report(path, message, f"it would never end: {hint}", key=True)

    def _after_the_end(self, kind: str, name: str, path: Path_, doings: _Doings) -> None:
        if kind in _WAIT_FOR_IT and doings.gone == "vanished":
            hint = (
                "the kernel waits a minute and more for a function that does not answer: write surprise_removal before"
            )
            self._report((*path, "device"), f"expected no {kind} of a device that has vanished, found '{name}'", hint)
        elif kind in ("misbehave", "resume", "vanish"):
            self._report((*path, "device"), f"expected a device that is still there, found '{name}'", "it is gone")

    def _through(self, args: Misbehave, path: Path_, devices: Mapping[str, Mapping[str, Any]]) -> None:
        other = devices.get(str(args.through))
        if other is not None and other.get("model") in QAT_MODELS and args.through != args.device:
            return
        what = "the device itself" if args.through == args.device else f"'{args.through}'"
        offer = [name for name, one in devices.items() if one.get("model") in QAT_MODELS and name != args.device]
        hint = f"these are: {', '.join(offer)}" if offer else "write another device with model: qat in machine.devices"
        self._report((*path, "through"), f"expected another qat of the machine, found {what}", hint)

    def _slot(
        self, name: str, path: Path_, device: Mapping[str, Any], devices: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Refuse to pull out what is in no slot, or in one with others."""
        place = str(device.get("at", ""))[:2]
        if device.get("model") == "vf" or device.get("vfs"):
            message = f"expected a device without VFs, found '{name}'"
            self._report((*path, "device"), message, "a VF is in no slot, and a PF takes its VFs along")
        elif place not in {f"{bus:02x}" for bus in SLOT_BUSES}:
            message = f"expected a device on the buses 01 to 08, found '{name}' on bus {place}"
            self._report((*path, "device"), message, "those are behind slots of their own")
        elif [one for one, other in devices.items() if one != name and str(other.get("at", ""))[:2] == place]:
            message = f"expected a device that is alone on its bus, found '{name}' beside others"
            self._report((*path, "device"), message, "whatever is in the slot goes with it")


def _has_data(args: Operate | DmaArgs) -> bool:
    """Whether a request accesses data; one that does not uses a plan up, and is never held."""
    return not isinstance(args, Operate) or args.op != "nop"
