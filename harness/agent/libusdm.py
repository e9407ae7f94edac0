"""Intel's C library libusdm through ctypes, so that the same steps run on it.

Its functions say that they failed by their return value, and why, if at all, on standard error. Those without a return
value say it there only. A process has one libusdm state, which nothing resets.
"""

from __future__ import annotations

import ctypes

from harness.agent import own_output
from harness.agent.outcome import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from usdm.qae_mem import Pointer

FILE = "/run/libusdm.so"
"""Where the host puts it (`harness/agent/brought.py`)."""

_POINTER, _SIZE, _INT, _U64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64
_CELL = ctypes.POINTER(ctypes.c_void_p)
# name: (type of the result, types of the arguments), as qae_mem.h declares them
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "qaeMemInit": (ctypes.c_int32, ()),
    "qaeMemDestroy": (None, ()),
    "qaeMemAlloc": (_POINTER, (_SIZE,)),
    "qaeMemFree": (None, (_CELL,)),
    "qaeMemAllocNUMA": (_POINTER, (_SIZE, _INT, _SIZE)),
    "qaeMemFreeNUMA": (None, (_CELL,)),
    "qaeMemFreeNonZeroNUMA": (None, (_CELL,)),
    "qaeVirtToPhysNUMA": (_U64, (_POINTER,)),
    "qaePhysToVirtNUMA": (_POINTER, (_U64,)),
    "qaeRegisterDevice": (_INT, (_INT,)),
    "qaeUnregisterDevice": (_INT, (_INT,)),
    "qaeMemMapContiguousIova": (_U64, (_POINTER, _SIZE)),
    "qaeMemUnmapContiguousIova": (_INT, (_POINTER, _SIZE)),
    "qaeAtFork": (None, ()),
}
# The value 0 (or NULL) means that the function failed.
_ZERO_FAILS = ("qaeMemAlloc", "qaeMemAllocNUMA", "qaeVirtToPhysNUMA", "qaePhysToVirtNUMA", "qaeMemMapContiguousIova")


class CFailure(StepError):
    """The C library said that the call failed, by its return value or on standard error."""


class NotOffered(StepError):
    """This version of the C library has no such function."""


class NoLibrary(StepError):
    """The C library is not in this guest, or cannot be loaded."""


class CLibrary:
    """The C library."""

    name = "libusdm"

    def __init__(self, file: str = FILE) -> None:
        """Load it; nothing of it runs yet.

        Raises:
            NoLibrary: It is not there, or the guest's C library is too old for it.
        """
        try:
            self._library = ctypes.CDLL(file)
        except OSError as error:
            raise NoLibrary(str(error)) from error
        self._functions: dict[str, Any] = {}

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise NotOffered(f"this libusdm has no {name}") from None
            function.restype, function.argtypes = _SIGNATURES[name]
            self._functions[name] = function
        return self._functions[name]

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """Call a function by its C name.

        Args:
            function: The name.
            arguments: Integers, None for NULL, or a `Pointer`, whose value is set to what the library left in it.

        Returns:
            The C return value, and a `CFailure` or None.

        Raises:
            NotOffered: This version has no such function.
        """
        called = self._function(function)
        before = _stderr_size()
        frees = _SIGNATURES[function][1] == (_CELL,)
        value = self._release(called, *arguments) if frees else called(*arguments)
        said = _stderr_since(before)
        if not _failed(function, value, said):
            return value, None
        returned = "" if _SIGNATURES[function][0] is None else f"returned {value or 0} and "
        return value, CFailure(f"{function} {returned}{f'said: {said}' if said else 'said nothing'}")

    def is_absent(self, error: Exception) -> bool:
        """Tell whether the error of a translation means that there is none: the C value 0 tells no more."""
        return isinstance(error, CFailure)

    @staticmethod
    def _release(called: Any, pointer: Pointer | None) -> None:
        if pointer is None:
            called(None)
            return
        cell = ctypes.c_void_p(pointer.value)
        called(ctypes.byref(cell))
        pointer.value = cell.value


def _failed(function: str, value: int | None, said: str) -> bool:
    if _SIGNATURES[function][0] is None:
        return bool(said)
    return not value if function in _ZERO_FAILS else value != 0


def _stderr_size() -> int:
    size = own_output.size()
    if size is None:
        raise StepError("standard error is no file, so what the C library says cannot be read")
    return size


def _stderr_since(start: int) -> str:
    """Return what was written to standard error since; the library writes it unbuffered."""
    written = _stderr_size() - start
    return " ".join(own_output.read(start, written).split()) if written > 0 else ""
