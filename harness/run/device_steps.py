"""Steps that the host does: what a device is told to do wrong, and how it goes away."""

from __future__ import annotations

import time
from typing import Any

from harness.deadline import Deadline
from harness.errors import ConfigurationError, InfrastructureError
from harness.guest.guest import Guest
from harness.machine.device_server import RequestRefusedError
from harness.machine.removal import pull_out
from harness.run.in_time import in_time


def do_step(guest: Guest, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Do a step of ``HOST_KINDS``.

    Args:
        guest: the guest with the device.
        kind: the step's kind.
        args: its arguments.
        deadline: until when it must be done.

    Returns:
        An answer as the worker gives one; the error ``NotDone`` says why the model would not do it.

    Raises:
        InfrastructureError: the process of the models ended, or QEMU did or refused, or it took too long.
        GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened to the guest instead.
    """
    started = time.monotonic()
    with in_time(f"the step {kind}"):
        answer = _remove(guest, args, deadline) if kind == "surprise_removal" else _tell(guest, kind, args, deadline)
    return {**answer, "seconds": round(time.monotonic() - started, 6)}


def _tell(guest: Guest, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Tell a device's process what to do with it."""
    server = guest.emulator.devices
    if server is None:
        raise InfrastructureError(f"the machine has no device for {kind}")
    more = {key: value for key, value in args.items() if key != "device" and value is not None}
    try:
        server.ask({"resume": "release"}.get(kind, kind), args["device"], deadline, **more)
    except RequestRefusedError as refused:
        # For example a request that would have been held, and never came.
        return {"values": {}, "error": {"type": "NotDone", "message": refused.message}}
    return {"values": {}}


def _remove(guest: Guest, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Pull a device out of its slot, and see what the guest makes of it."""
    name = args["device"]
    doing = f"the surprise removal of {name}"
    bus = next(device.bdf[0] for device in guest.spec.devices if device.name == name)
    if bus not in guest.spec.hot_plug:
        raise ConfigurationError(
            f"{name} is in no slot that it could be pulled out of",
            hint="say so where the machine is described: slot: true among the keys of the device",
        )
    answer = guest.request(doing, "_watch_removal", {"device": name}, deadline)
    if answer["error"]:
        return answer
    pull_out(guest.emulator, guest.spec, bus, deadline)
    return guest.request(doing, "_removed", args, deadline)
