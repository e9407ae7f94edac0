"""An instance of the kernel's tracing (tracefs): events defined, recorded and taken away again."""

from __future__ import annotations

import os
import re

from harness.agent.outcome import NotSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

TRACEFS = "/sys/kernel/tracing"
KALLSYMS = "/proc/kallsyms"
GROUP = "harness"
"""The group of the events that are defined here."""

MAP = re.compile(r"IOMMU: iova=(0x\w+) - 0x\w+ paddr=(0x\w+) size=(\d+)")
UNMAP = re.compile(r"IOMMU: iova=(0x\w+) - 0x\w+ size=(\d+) unmapped_size=(\d+)")
"""What the events `iommu:map` and `iommu:unmap` say behind their names."""

_BUFFER_KB = "16384"  # of each CPU: some 100,000 events
_ON_CLOCK = "mono"
_CHUNK = 1 << 20
_WORDS = 2  # of a definition: what it is called, and the function
_LOST = ("overrun", "commit overrun", "dropped events")


class Recording:
    """Events that are being recorded, in an instance of its own: nobody else's tracing is touched.

    Attributes:
        definitions: What was defined, as `dynamic_events` takes it; each begins with `f:GROUP/NAME `.
        events: Names of the kernel's own events, e.g. `iommu/map`.
    """

    def __init__(self, definitions: Sequence[str], events: Sequence[str], tracefs: str = TRACEFS) -> None:
        """Define the events, and begin to record.

        Raises:
            NotSet: The kernel has no tracing, or not such events, and nothing is left behind; or a recording runs
                already, and goes on.
        """
        self.definitions: list[str] = []
        self.events = [*events]
        self._tracefs = tracefs
        self._instance = f"{tracefs}/instances/{GROUP}"
        if not os.access(f"{tracefs}/dynamic_events", os.F_OK):
            raise NotSet(f"this kernel has no dynamic events: there is no {tracefs}/dynamic_events")
        try:
            os.mkdir(self._instance)  # noqa: PTH102 - pathlib costs the guest time
        except FileExistsError:
            raise NotSet(f"a recording runs already: there is {self._instance}") from None
        except OSError as error:
            raise _refused(error) from error
        try:
            self._begin(definitions)
        except OSError as error:
            self._take_away()
            raise _refused(error) from error
        except NotSet:
            self._take_away()
            raise

    def _begin(self, definitions: Sequence[str]) -> None:
        _write(f"{self._instance}/tracing_on", "0")
        _write(f"{self._instance}/trace_clock", _ON_CLOCK)
        _write(f"{self._instance}/buffer_size_kb", _BUFFER_KB)
        _write(f"{self._instance}/trace_options", "noirq-info")
        for text in definitions:
            try:
                _write(f"{self._tracefs}/dynamic_events", text, os.O_APPEND)
            except OSError as error:
                raise NotSet(_refused_event(text, error)) from error
            self.definitions.append(text)
        for event in self._switched():
            _write(f"{self._instance}/events/{event}/enable", "1")
        _write(f"{self._instance}/tracing_on", "1")

    def end(self) -> tuple[str, int]:
        """Stop recording, and take everything away again.

        Returns:
            The recording as text, a line for each event, and how many events the kernel lost.

        Raises:
            NotSet: Somebody else has taken the instance away.
        """
        try:
            _write(f"{self._instance}/tracing_on", "0")
            return _read(f"{self._instance}/trace"), self._lost()
        except FileNotFoundError as error:
            raise NotSet(f"the recording is gone: there is no {error.filename}") from error
        finally:
            self._take_away()

    def mark(self, text: str) -> None:
        """Write a line of one's own into the recording, `tracing_mark_write: TEXT`."""
        _write(f"{self._instance}/trace_marker", f"{text}\n")

    def _switched(self) -> list[str]:
        """What is switched on and off: the group of the events that were defined, and the kernel's own events."""
        return [GROUP, *self.events] if self.definitions else self.events

    def _lost(self) -> int:
        lost = 0
        for cpu in os.listdir(f"{self._instance}/per_cpu"):  # noqa: PTH208
            for line in _read(f"{self._instance}/per_cpu/{cpu}/stats").splitlines():
                name, _, number = line.partition(":")
                lost += int(number) if name in _LOST else 0
        return lost

    def _take_away(self) -> None:
        """Remove the instance and the events; an instance that is gone has switched its events off."""
        if os.access(self._instance, os.F_OK):
            for event in self._switched():
                path = f"{self._instance}/events/{event}/enable"
                if os.access(path, os.F_OK):
                    _write(path, "0")
            os.rmdir(self._instance)  # noqa: PTH106
        for text in self.definitions:
            name = text.partition(" ")[0].partition(":")[2]
            try:
                _write(f"{self._tracefs}/dynamic_events", f"-:{name}", os.O_APPEND)
            except FileNotFoundError:
                continue  # somebody else has taken it away
        self.definitions.clear()


def _refused_event(text: str, error: OSError) -> str:
    """What to say of an event that the kernel does not take: the function that it lacks, most of the time."""
    said = f"the kernel refuses the event '{text}': {os.strerror(error.errno or 0)}"
    words = text.split()
    function = words[1].partition("%")[0] if len(words) >= _WORDS else ""
    try:
        known = not function or any(function in line.split()[2:3] for line in _read(KALLSYMS).splitlines())
    except OSError:
        known = True
    return said if known else f"kernel {os.uname().release} has no function {function} to record; {said}"


def mount(tracefs: str = TRACEFS) -> None:
    """Mount tracefs where it is not; raises `NotSet`."""
    if os.access(f"{tracefs}/trace", os.F_OK):
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tracefs", tracefs.encode(), b"tracefs", 0, None):
        raise NotSet(f"tracefs cannot be mounted at {tracefs}: {os.strerror(ctypes.get_errno())}")


def _refused(error: OSError) -> NotSet:
    return NotSet(f"the kernel does not record that: {error.filename or 'tracing'}: {os.strerror(error.errno or 0)}")


def _write(path: str, text: str, flags: int = 0) -> None:
    """Write a whole text by one call: the kernel takes each as a command."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path, "rb", buffering=_CHUNK) as file:
        return file.read().decode(errors="replace")
