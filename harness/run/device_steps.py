"""Steps that the host does: what a device whose model runs beside QEMU is told to do wrong."""

from __future__ import annotations

import time
from typing import Any

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.guest import Guest


def do_step(guest: Guest, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Do a step of ``HOST_KINDS``.

    Args:
        guest: the guest with the device.
        kind: the step's kind.
        args: its arguments.
        deadline: until when it must be done.

    Returns:
        An answer as the worker gives one.

    Raises:
        InfrastructureError: the process of the models ended or refused.
    """
    started = time.monotonic()
    server = guest.emulator.devices
    if server is None:
        raise InfrastructureError(f"the machine has no device for {kind}")
    name = args["device"]
    if kind == "misbehave":
        more = {key: value for key, value in args.items() if key != "device" and value is not None}
        server.ask("misbehave", name, deadline, **more)
    elif kind == "resume":
        server.ask("release", name, deadline)
    else:
        server.ask("vanish", name, deadline)
    return {"values": {}, "seconds": round(time.monotonic() - started, 6)}
