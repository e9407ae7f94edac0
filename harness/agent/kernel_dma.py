"""The kernel's own dma_iova_* as an implementation that steps can call: the oracle of `usdm.dma_iova`.

The test module calls it (`kernel_device`). A function that returns something says by it that it failed. The others say
so in the kernel's log only, as a warning with a call trace.
"""

from __future__ import annotations

import errno
import os
import re

from harness.agent import kernel_abi as abi
from harness.agent.kernel_log import parse
from harness.agent.outcome import StepError
from usdm.dma_iova import DMA_MAPPING_ERROR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from harness.agent.kernel_device import KernelDevice

    class State(Protocol):
        """What a caller keeps: the IOVA of the range's first byte and its size; both 0 without a range."""

        addr: int
        size: int


# The bit of __size in which the kernel notes that it has bounced something of the range.
USE_SWIOTLB = 1 << 63
_WARNING = re.compile(r"WARNING: (?P<where>\S+:\d+ at \w+|.*)")
_RECORD = 16 * 1024


class KernelRefused(StepError):
    """The kernel's function said by its return value that it failed; the text has the value by its name."""


class KernelWarned(StepError):
    """The kernel's function returns nothing, and left a warning in the kernel's log."""


class LogOverrun(StepError):
    """The kernel's log was overrun while a function was called that says only there that it failed."""


class NotOfTheKernel(StepError):
    """The kernel has no such function, or the test module does not call it."""


class KernelDma:
    """The kernel. `dev` of its functions is a `KernelDevice`; a state is any object with `addr` and `size`."""

    name = "kernel"

    def __init__(self, log: str = "/dev/kmsg") -> None:
        """Open the kernel's log at its end.

        Args:
            log: The log; another file in tests.

        Raises:
            OSError: It cannot be read.
        """
        self._log = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._log, 0, os.SEEK_END)
        # The module's number of each state, and the state itself, so that its id is nobody else's meanwhile.
        self._states: dict[int, tuple[State, KernelDevice, int]] = {}

    def close(self) -> None:
        """Close the log."""
        os.close(self._log)

    def is_absent(self, _error: Exception) -> bool:
        """See `Implementation`; there are no translations to ask for."""
        return False

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """Call a function by its C name.

        Args:
            function: The name, e.g. `dma_iova_link`.
            arguments: As `usdm.dma_iova` takes them: `virt` stands where the kernel has `phys`.

        Returns:
            What the kernel returned, None of a void function; and a `KernelRefused`, a `KernelWarned` or None.

        Raises:
            NotOfTheKernel: There is no such function.
            LogOverrun: A function that returns nothing was called, and whether it left a warning is not known.
            harness.agent.kernel_device.TestModuleRefused: The kernel was not called.
            usdm.errors.DeviceError: The device is not the module's any more.
        """
        called = _FUNCTIONS.get(function)
        if called is None:
            raise NotOfTheKernel(f"the test module does not call '{function}'")
        return called(self, *arguments)

    # ---- ranges

    def _try_alloc(self, dev: KernelDevice, state: State, virt: int, size: int) -> tuple[int, Exception | None]:
        number = self.number(dev, state)
        answer = dev.call(abi.TRY_ALLOC, abi.call_request(number, address=virt, size=size))
        self._note(state, answer)
        if not answer.result:
            self._states.pop(id(state))
            return 0, KernelRefused("dma_iova_try_alloc: false")
        return 1, None

    def _use_iova(self, state: State) -> tuple[int, None]:
        # An inline function of the kernel's: it looks at nothing else.
        return int(state.size != 0), None

    def _link(
        self, dev: KernelDevice, state: State, virt: int, offset: int, size: int, direction: int, attrs: int = 0
    ) -> tuple[int, Exception | None]:
        request = abi.call_request(
            self.number(dev, state), address=virt, offset=offset, size=size, direction=direction, attrs=attrs
        )
        return self._checked("dma_iova_link", state, dev.call(abi.LINK, request))

    def _sync(self, dev: KernelDevice, state: State, offset: int, size: int) -> tuple[int, Exception | None]:
        request = abi.call_request(self.number(dev, state), offset=offset, size=size)
        return self._checked("dma_iova_sync", state, dev.call(abi.SYNC, request))

    def _unlink(
        self, dev: KernelDevice, state: State, offset: int, size: int, direction: int, attrs: int = 0
    ) -> tuple[None, Exception | None]:
        request = abi.call_request(self.number(dev, state), offset=offset, size=size, direction=direction, attrs=attrs)
        return self._void("dma_iova_unlink", dev, abi.UNLINK, request, state)

    def _free(self, dev: KernelDevice, state: State) -> tuple[None, Exception | None]:
        return self._end("dma_iova_free", dev, abi.FREE, abi.call_request(self.number(dev, state)), state)

    def _destroy(
        self, dev: KernelDevice, state: State, mapped_len: int, direction: int, attrs: int = 0
    ) -> tuple[None, Exception | None]:
        request = abi.call_request(self.number(dev, state), size=mapped_len, direction=direction, attrs=attrs)
        return self._end("dma_iova_destroy", dev, abi.DESTROY, request, state)

    def _end(
        self, function: str, dev: KernelDevice, request: int, argument: bytearray, state: State
    ) -> tuple[None, Exception | None]:
        ended = self._void(function, dev, request, argument, state)
        # The state stays as the kernel left it; the module takes it for try_alloc only, and then under any number.
        del self._states[id(state)]
        return ended

    # ---- the streaming API

    def _map_single(
        self, dev: KernelDevice, virt: int, size: int, direction: int, attrs: int = 0
    ) -> tuple[int, Exception | None]:
        request = abi.call_request(address=virt, size=size, direction=direction, attrs=attrs)
        address = dev.call(abi.MAP_SINGLE, request).word
        refused = address == DMA_MAPPING_ERROR
        return address, KernelRefused("dma_map_phys: DMA_MAPPING_ERROR") if refused else None

    def _unmap_single(
        self, dev: KernelDevice, addr: int, size: int, direction: int, attrs: int = 0
    ) -> tuple[None, Exception | None]:
        request = abi.call_request(address=addr, size=size, direction=direction, attrs=attrs)
        return self._void("dma_unmap_phys", dev, abi.UNMAP_SINGLE, request, None)

    def _mapping_error(self, _dev: KernelDevice, addr: int) -> tuple[int, None]:
        return int(addr == DMA_MAPPING_ERROR), None

    def _merge_boundary(self, dev: KernelDevice) -> tuple[int, None]:
        return dev.info().merge_boundary, None

    # ---- states, answers

    def number(self, dev: KernelDevice, state: State) -> int:
        """Return the module's number of a state on a device, a new one for a state that has none."""
        known = self._states.get(id(state))
        if known is not None and known[1] is dev:
            return known[2]
        taken = {number for _, device, number in self._states.values() if device is dev}
        number = next((number for number in range(abi.STATES) if number not in taken), None)
        if number is None:
            raise StepError(f"the test module has {abi.STATES} states, and all are in use")
        self._states[id(state)] = (state, dev, number)
        return number

    @staticmethod
    def _note(state: State, answer: abi.Answer) -> None:
        state.addr, state.size = answer.addr, answer.size & ~USE_SWIOTLB

    def _checked(self, function: str, state: State, answer: abi.Answer) -> tuple[int, Exception | None]:
        self._note(state, answer)
        if answer.result == 0:
            return 0, None
        return answer.result, KernelRefused(f"{function}: {_name(answer.result)}")

    def _void(
        self, function: str, dev: KernelDevice, request: int, argument: bytearray, state: State | None
    ) -> tuple[None, Exception | None]:
        self._warnings()  # others' from before
        answer = dev.call(request, argument)
        if state is not None:
            self._note(state, answer)
        warnings, overrun = self._warnings()
        if overrun:
            raise LogOverrun(f"{function}: the kernel's log was overrun; whether there was a warning is not known")
        return None, KernelWarned(f"{function}: {'; '.join(warnings)}") if warnings else None

    def _warnings(self) -> tuple[list[str], bool]:
        """Return the warnings since the log was last read, and whether some of it was lost.

        Those of a call are there before it returns.
        """
        found: list[str] = []
        overrun = False
        while True:
            try:
                record = os.read(self._log, _RECORD)
            except BlockingIOError:
                return found, overrun
            except BrokenPipeError:  # the next read goes on with the oldest record that there is
                overrun = True
                continue
            if not record:
                return found, overrun
            for line in parse(record)[1]:
                match = _WARNING.search(line)
                if match:
                    found.append(match["where"])


def _name(result: int) -> str:
    """Return a negative error number as the kernel's source writes it, e.g. `-EIO`."""
    if result == -errno.EOPNOTSUPP:
        return "-EOPNOTSUPP"  # Python knows the number by its other name
    name = errno.errorcode.get(-result)
    return f"-{name}" if name else str(result)


_FUNCTIONS: dict[str, Callable[..., tuple[Any, Exception | None]]] = {
    "dma_iova_try_alloc": KernelDma._try_alloc,
    "dma_use_iova": KernelDma._use_iova,
    "dma_iova_link": KernelDma._link,
    "dma_iova_sync": KernelDma._sync,
    "dma_iova_unlink": KernelDma._unlink,
    "dma_iova_free": KernelDma._free,
    "dma_iova_destroy": KernelDma._destroy,
    "dma_get_merge_boundary": KernelDma._merge_boundary,
    "dma_map_single": KernelDma._map_single,
    "dma_unmap_single": KernelDma._unmap_single,
    "dma_mapping_error": KernelDma._mapping_error,
}
