"""Requests of the harness itself, beside the steps of scenarios."""

from __future__ import annotations

from harness.agent.kernel_log import KernelLog
from harness.agent.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def _log(context: Context) -> KernelLog:
    if context.kernel_log is None:
        context.kernel_log = KernelLog.open()
    return context.kernel_log


def setup(context: Context, args: dict[str, Any]) -> Outcome:
    """Note the addresses of the devices: `{"devices": {"edu0": "02:00.0"}}`."""
    context.addresses.update(args["devices"])
    return Outcome()


def kernel_log_start(context: Context, _args: dict[str, Any]) -> Outcome:
    """Mark the place in the kernel's log where the steps begin; values: marker."""
    context.log_start = _log(context).mark()
    return Outcome(values={"marker": context.log_start})


def kernel_log(context: Context, args: dict[str, Any]) -> Outcome:
    """Give the kernel's log after a mark, by default that of `_kernel_log_start`; values: lines."""
    return Outcome(values={"lines": _log(context).since(args.get("since") or context.log_start)})


STEPS: dict[str, Step] = {"_setup": setup, "_kernel_log_start": kernel_log_start, "_kernel_log": kernel_log}
