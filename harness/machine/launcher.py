"""Start a program so that it cannot outlive this process, not even after ``kill -9``."""

from __future__ import annotations

import os
import shutil

from harness.errors import InfrastructureError

# After PDEATHSIG is armed the shell compares its parent with the one that was expected: a parent that died in between
# would never send the signal. 125 is the launcher's own exit status.
_GUARD = '[ "$PPID" = "$0" ] || exit 125; exec "$@"'


def guarded(argv: list[str]) -> list[str]:
    """``argv`` behind a launcher that arms ``PDEATHSIG`` (SIGKILL) and then becomes the program itself.

    The process id stays the one that was started. Must be started from a thread that lives as long as the program may
    (``harness.machine.loop``).

    Raises:
        InfrastructureError: ``setpriv`` (util-linux) is missing.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise InfrastructureError(
            "the program 'setpriv' is not on PATH; without it QEMU could outlive a killed harness",
            hint="install the package util-linux",
        )
    return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _GUARD, str(os.getpid()), *argv]
