"""Commands that start many processes: all of them end with the command, and with this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.errors import InfrastructureError

_LEADER = Path(__file__).with_name("group_leader.py")


def run_group(command: list[str], *, env: Mapping[str, str], cwd: Path, on_line: Callable[[str], None]) -> int:
    """Run a command to its end. Nothing that it started is left then, also not when an exception ends it.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        cwd: the folder that it runs in.
        on_line: told each line of standard output and standard error, without the newline.

    Returns:
        Its exit status; 128 + N where signal N ended it.

    Raises:
        InfrastructureError: this process can start no more processes.
    """
    reading, writing = os.pipe()
    try:
        leader = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LEADER), str(reading), *command],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(reading,),
            # A Ctrl-C at the terminal is this process's to handle.
            start_new_session=True,
        )
    except OSError as error:
        os.close(writing)
        raise InfrastructureError(f"'{command[0]}' cannot be started: {error.strerror}") from error
    finally:
        os.close(reading)
    # Never None: asked for above.
    output = leader.stdout or ()
    try:
        # Ends with the leader, which has it open too.
        for line in output:
            on_line(line.rstrip("\n"))
    finally:
        os.close(writing)
        leader.wait()
        if leader.stdout is not None:
            leader.stdout.close()
    return leader.returncode
