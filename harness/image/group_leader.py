"""Run a command of which nothing is left when it ends, or when whoever started this program ends.

A program of its own (``python3 -I -S group_leader.py DESCRIPTOR COMMAND...``), started by ``harness.image.group``. The
descriptor is the reading end of a pipe: when its other end is closed, be it by ``kill -9``, the command's whole process
group is killed. The exit status is the command's, after all that it started has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

_PR_SET_CHILD_SUBREAPER = 36
_NOT_STARTED = 127


def main(descriptor: int, command: list[str]) -> int:
    """Run the command; gives its exit status, 128 + the signal's number where a signal ended it."""
    # Orphans of the group become children of this process, so that it can wait for them.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_STARTED

    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        _kill(child.pid)

    threading.Thread(target=watch, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    # The group's number stays taken as long as it has a process.
    _kill(child.pid)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return status if status >= 0 else 128 - status


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
