"""What a step comes to: an outcome, or an error of its own."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class StepError(Exception):
    """Base of the errors that steps raise themselves, beside those of `usdm`."""


class UnknownStep(StepError):
    """There is no step of that kind."""


class UnknownDevice(StepError):
    """The host told no address for the device."""


class DeviceNotOpen(StepError):
    """The step needs an open device."""


class UnknownBuffer(StepError):
    """No step before gave that name."""


class UnknownRange(StepError):
    """No step before gave a range of IOVAs that name."""


class NoIova(StepError):
    """The buffer or range has had no IOVA, or the place is no 64-bit address."""


class NotAccessible(StepError):
    """The program itself cannot access that memory; trying would end it."""


class NoMemory(StepError):
    """The kernel did not give the memory."""


class NotSet(StepError):
    """The guest's kernel did not do what the step asked for."""


class DmaLength(StepError):
    """The device cannot do a DMA of that length, or not at that place of its own memory."""


class DmaAddress(StepError):
    """The device cannot do a DMA at that address."""


class DmaTimeout(StepError):
    """The device did not say that the DMA is done."""


class InterruptLost(StepError):
    """The device did what it was asked for, and the interrupt that should announce it never came."""


class NotQat(StepError):
    """The device does not answer as the QAT-like device."""


class NothingHanded(StepError):
    """Fewer requests were handed over to the device than responses are asked for."""


class DeviceBusy(StepError):
    """A DMA is still running; the device would ignore another one."""


class NoSriov(StepError):
    """The device has no SR-IOV."""


class TooManyVfs(StepError):
    """The kernel refused the number of VFs."""


class VfsEnabled(StepError):
    """SR-IOV is on already."""


class NotTaken(StepError):
    """The kernel did not take the function away."""


class ChildFailed(StepError):
    """A forked child did not come to its end, or took too long."""


class Outcome:
    """What a step observed.

    Attributes:
        returns: The C return value, None for NULL and for steps without one.
        values: Observations by name.
        error: The error behind a C failure value, or None.
        children: The answers of nested steps.
    """

    __slots__ = ("children", "error", "returns", "values")

    def __init__(
        self,
        returns: int | None = None,
        values: dict[str, Any] | None = None,
        error: Exception | None = None,
        children: list[dict[str, Any]] | None = None,
    ) -> None:
        self.returns = returns
        self.values = values or {}
        self.error = error
        self.children = children or []
