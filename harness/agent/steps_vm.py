"""Steps about a virtual machine inside the guest."""

from __future__ import annotations

from harness.agent import pci, vm
from harness.agent.outcome import Outcome, StepError
from usdm.vfio import full_bdf
from usdm.vfio_uapi import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


class StillOpen(StepError):
    """The device is open in this process, which keeps its group."""


def pass_through(context: Context, args: dict[str, Any]) -> Outcome:
    """Give a device to the virtual machine; values: address (there)."""
    name = args["device"]
    if name in context.devices:
        raise StillOpen(f"'{name}' is open; close it first")
    address = full_bdf(context.address(name))
    pci.bind(address)
    token = context.vf_tokens.get(context.pf_of.get(name, ""))
    # A VF whose PF is in user space, too, is given to somebody who knows the PF's token only.
    further = {} if token is None else {"vf-token": uuid(token)}
    return Outcome(values={"address": vm.machine().pass_through(name, address, **further)})


def in_vm(_context: Context, args: dict[str, Any]) -> Outcome:
    """Do steps in the virtual machine, one after the other; what they make stays there for later ones."""
    inside = vm.machine()
    return Outcome(children=[inside.request(step["kind"], step["args"]) for step in args["steps"]])


def vm_start(_context: Context, args: dict[str, Any]) -> Outcome:
    """Start the virtual machine, and have it do for the first time what is slow then; arguments: megabytes, rehearsal.

    `rehearsal` is a list of requests, `{"kind": …, "args": …}`.
    """
    inside = vm.start(args["megabytes"])
    for request in args["rehearsal"]:
        answer = inside.request(request["kind"], request["args"])
        if answer["error"]:
            raise vm.VmRefused(f"rehearsing {request['kind']}: {answer['error']['message']}")
    return Outcome()


STEPS: dict[str, Step] = {"pass_through": pass_through, "in_vm": in_vm, "_vm_start": vm_start}
