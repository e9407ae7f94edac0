"""One QEMU without a guest system: its processor is halted, and the harness drives the machine over qtest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
from pathlib import Path

from harness.bare.argv import bare_argv, firmware
from harness.bare.qtest import Qtest
from harness.bare.spec import BareSpec
from harness.deadline import Deadline
from harness.errors import EmulatorCrash, InfrastructureError
from harness.machine import loop
from harness.machine.builds import QemuBuild
from harness.machine.emulator import spawn, tail, unwatch, watch
from harness.machine.probe import Capabilities

_START_SECONDS = 20.0
_END_SECONDS = 10.0


class BareEmulator:
    """A QEMU process and its qtest connection, made by :meth:`start`.

    The connection ends at once when QEMU dies, so no wait outlives it.
    """

    def __init__(self, process: asyncio.subprocess.Process, qtest: Qtest, folder: Path) -> None:
        self._process = process
        self._asked = False
        self.qtest = qtest
        self.folder = folder
        watch(self)

    @classmethod
    def start(
        cls, spec: BareSpec, build: QemuBuild, capabilities: Capabilities, folder: Path, deadline: Deadline
    ) -> BareEmulator:
        """Start QEMU on a machine.

        Args:
            spec: the machine.
            build: the QEMU build.
            capabilities: what that build can do, as probed.
            folder: an existing folder for log and trace, the qtest log and the command line.
            deadline: until when the whole scenario must be done.

        Raises:
            ConfigurationError: the build lacks what the machine asks for.
            InfrastructureError: QEMU did not start.
        """
        ours, theirs = socket.socketpair()
        bios = firmware()
        try:
            argv = [
                *build.argv_prefix,
                *bare_argv(spec, capabilities, qtest=theirs.fileno(), bios=bios, folder=folder.absolute()),
            ]
            words = [f"{name}={shlex.quote(value)}" for name, value in sorted(build.env.items())]
            text = " \\\n  ".join([*words, *map(shlex.quote, argv)])
            (folder / "qemu.sh").write_text(f"# The descriptors are the harness's own.\nenv {text}\n", encoding="utf-8")
            (folder / "qemu.log").touch()
            starting = spawn(argv, build.env, [theirs.fileno(), bios], folder / "qemu.stderr")
            process = loop.call(starting, deadline.sooner(_START_SECONDS))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(bios)
        return cls(process, Qtest(ours, deadline), folder)

    def ended(self, said: str) -> Exception:
        """What to say when the connection ended without being asked to; waits for the process."""
        with contextlib.suppress(TimeoutError):
            loop.call(self._process.wait(), Deadline.after(1.0))
        status = self._process.returncode
        self.stop()
        stderr = tail(self.folder / "qemu.stderr").strip()
        if status is not None and status > 0 and not self.qtest.answered:
            hint = f"the whole command line is in {self.folder / 'qemu.sh'}"
            return InfrastructureError(f"QEMU did not start: {stderr or said}", hint=hint)
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        return EmulatorCrash(
            f"QEMU ended {how}: {stderr.splitlines()[-1] if stderr else said}", context={"stderr": stderr}
        )

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, and every wait on it. Any thread may call it."""
        self._asked = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def stop(self) -> None:
        """End the process and close everything. Nothing in it has to be saved. May be called twice."""
        self.kill()
        loop.call(self._process.wait(), Deadline.after(_END_SECONDS))
        self.qtest.close()
        unwatch(self)
