"""The two implementations that steps can call by the C names: `usdm`, and Intel's C library.

Both are called as `call(name, *arguments)`, e.g. `call("qaeMemMapContiguousIova", address, size)`, and give the C
return value and the error behind it. Functions that free take a `usdm.qae_mem.Pointer`.
"""

from __future__ import annotations

from harness.agent.outcome import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Implementation(Protocol):
        """What steps call."""

        name: str

        def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
            """Call a function by its C name; gives its C return value, and why it failed or None."""

        def is_absent(self, error: Exception) -> bool:
            """Tell whether the error of a translation means that there is none."""


NAMES = ("usdm", "libusdm")


class UnknownImplementation(StepError):
    """There is no implementation of that name."""


class Usdm:
    """The `usdm` package. Its functions keep the error behind a C failure value."""

    name = "usdm"

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """See `Implementation`."""
        from usdm import dma_iova, icp_sal_iommu, qae_mem

        headers = {"icp": icp_sal_iommu, "dma": dma_iova}
        value = getattr(headers.get(function.partition("_")[0], qae_mem), function)(*arguments)
        return value, qae_mem.last_error()

    def is_absent(self, error: Exception) -> bool:
        """See `Implementation`."""
        from usdm.errors import NotMapped

        return isinstance(error, NotMapped)


def find(name: str) -> Implementation:
    """Return an implementation.

    Raises:
        UnknownImplementation: There is none of that name.
        StepError: The C library is not in this guest or cannot be loaded.
    """
    if name == "usdm":
        return Usdm()
    if name == "libusdm":
        from harness.agent.libusdm import CLibrary

        return CLibrary()
    raise UnknownImplementation(f"there is no implementation '{name}'; there are {', '.join(NAMES)}")
