"""What the host brings into a guest that runs already: Intel's C library, and the test module for the kernel.

They come through the worker's own connection: a command of the guest's would take four times as long.
"""

from __future__ import annotations

import binascii
import ctypes
import os

from harness.agent import libusdm
from harness.agent.kernel_log import KernelLog
from harness.agent.outcome import Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step

_INIT_MODULE = 175
"""Number of the system call on x86-64."""
_LINES = 3

_libc = ctypes.CDLL(None, use_errno=True)


class ModuleRefused(StepError):
    """The kernel does not take the module."""


def library(_context: Context, args: dict[str, Any]) -> Outcome:
    """Put the C library where an implementation of that name is looked for; arguments: data (base64)."""
    with open(libusdm.FILE, "wb") as file:
        file.write(binascii.a2b_base64(args["data"]))
    return Outcome()


def module(_context: Context, args: dict[str, Any]) -> Outcome:
    """Load a module into the kernel; arguments: name, data (base64). Raises `ModuleRefused` with the kernel's words."""
    data = binascii.a2b_base64(args["data"])
    log = KernelLog.open()
    start = log.mark()
    if _libc.syscall(_INIT_MODULE, data, ctypes.c_ulong(len(data)), b""):
        why = os.strerror(ctypes.get_errno())
        # The error number says little; the kernel says why in its log, as "NAME: ..." or "module: ...".
        said = [line for line in log.since(start) if args["name"] in line or "module:" in line]
        raise ModuleRefused("; ".join([why, *said[-_LINES:]]))
    return Outcome()


STEPS: dict[str, Step] = {"_library": library, "_module": module}
