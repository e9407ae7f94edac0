"""Requests of the harness itself, beside the steps of scenarios."""

from __future__ import annotations

import sys

from harness.agent import implementations, own_output, pci
from harness.agent.kernel_log import KernelLog
from harness.agent.ledger import NotedCalls
from harness.agent.outcome import Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step

_STDERR_BYTES = 64 * 1024


def begin(context: Context, args: dict[str, Any]) -> Outcome:
    """Take in the devices, see that they are there, and mark the kernel's log.

    Arguments: `devices`, name to address, `{"edu0": "02:00.0"}`; `vfs`, the names of those that are VFs to the names of
    their PFs, which are not there before SR-IOV is switched on; `replaced`, the addresses at which the kernel knows a
    device of the template that this guest was cloned from; `ports`, the addresses of root ports to the buses that they
    get; `implementation`, what the steps run on.
    """
    context.api = NotedCalls(implementations.find(args.get("implementation", "usdm")))
    context.addresses.update(args["devices"])
    context.pf_of.update(args.get("vfs", {}))
    pci.renumber(args.get("ports", {}))
    for name, address in args["devices"].items():
        if name not in context.pf_of:
            pci.scan(address, address in args["replaced"])
    context.kernel_log = KernelLog.open()
    context.log_start = context.kernel_log.mark()
    return Outcome()


def end(context: Context, _args: dict[str, Any]) -> Outcome:
    """Give what only the guest knows; values: kernel_log (the lines since `_begin`), stderr (this process's own)."""
    if context.kernel_log is None:
        raise StepError("_end without _begin")
    sys.stderr.flush()
    return Outcome(values={"kernel_log": context.kernel_log.since(context.log_start), "stderr": _stderr()})


def _stderr() -> str:
    """Return the end of what this process has written to its standard error, where that is a file."""
    written = own_output.size()
    return own_output.read(max(0, written - _STDERR_BYTES), _STDERR_BYTES) if written else ""


STEPS: dict[str, Step] = {"_begin": begin, "_end": end}
