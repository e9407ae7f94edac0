"""The arguments of steps about the QAT-like device: its operations, and what it does wrong when it is told to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.base import Model
from harness.scenario.expect import exactly_one
from harness.scenario.values import Address, Name, Size, refuse

_LONGEST = 16 << 20
_MOST_BUFFERS = 255
_SIDES = {
    "nop": (False, False),
    "copy": (True, True),
    "compare": (True, True),
    "crc32": (True, False),
    "load": (True, False),
    "fill": (False, True),
    "store": (False, True),
}


class Piece(Model):
    """A piece of memory by the device's addresses."""

    buffer: Name | None = Field(default=None, description="The buffer, whose IOVA is meant.")
    offset: Size = Field(default=0, description="Offset in bytes from the buffer's IOVA.")
    iova: Address | None = Field(default=None, description="Or the IOVA as a number.")
    size: Size = Field(description="Bytes.")

    @model_validator(mode="after")
    def _one_of(self) -> Piece:
        exactly_one("buffer", "iova", self)
        return self


Pieces = Annotated[
    tuple[Piece, ...],
    Field(strict=False, max_length=_MOST_BUFFERS, description="One piece is a flat buffer, more are a scatter list."),
]


class Operate(DeviceArgs):
    """A qat does an operation on memory, and says how it went."""

    op: Literal["copy", "fill", "crc32", "compare", "load", "store", "nop"] = Field(
        description="copy, fill (destination with byte), crc32 (of source), compare (source with destination), load "
        "(source to the device's own bytes), store (the device's own bytes to destination), nop."
    )
    source: Pieces = Field(default=(), description="What is read.")
    destination: Pieces = Field(default=(), description="What is written; of compare, the other side.")
    byte: int = Field(default=0, ge=0, le=255, description="fill: the byte. Default: 0.")
    device_offset: Size = Field(default=0, description="load, store: offset in the device's own 16 MiB. Default: 0.")
    completion: Literal["poll", "interrupt"] = Field(
        default="poll", description="How the driver learns of the response: it looks at memory, or waits for MSI-X."
    )
    wait: bool = Field(default=True, description="false: only hand the request over; collect takes the response.")

    @model_validator(mode="after")
    def _sides(self) -> Operate:
        for name, wanted, pieces in zip(
            ("source", "destination"), _SIDES[self.op], (self.source, self.destination), strict=True
        ):
            if wanted is not bool(pieces):
                found = name if pieces else f"no {name}"
                raise refuse(f"{'a' if wanted else 'no'} {name} with op: {self.op}", found, "see the op", quote=False)
        return self


class Collect(DeviceArgs):
    """Take the responses of requests that were handed over with ``wait: false``, the oldest first."""

    count: int = Field(default=1, ge=1, le=64, description="How many responses to wait for. Default: 1.")
    completion: Literal["poll", "interrupt"] = Field(
        default="poll", description="How the driver learns of them: it looks at memory, or waits for MSI-X."
    )


class Reset(DeviceArgs):
    """VFIO_DEVICE_RESET: the device's Function Level Reset; a qat's rings are set up anew."""


class Counters(DeviceArgs):
    """Read a qat's counters since it was plugged in (counts)."""


class Misbehave(DeviceArgs):
    """Tell a qat to do the next requests wrong, one at a time."""

    how: Literal[
        "delay",
        "hold",
        "stale_address",
        "next_page",
        "wrong_requester",
        "write_instead_of_read",
        "complete_twice",
        "lose_interrupt",
        "stop_answering",
    ] = Field(
        description="delay: wait before the first access to data. hold: wait for the step resume. stale_address: use "
        "the addresses of the request before. next_page: use addresses one page further. wrong_requester: access "
        "memory as another function. write_instead_of_read. complete_twice: two responses. lose_interrupt. "
        "stop_answering: nothing more until a reset."
    )
    milliseconds: int = Field(default=0, ge=0, le=10_000, description="delay: how long.")
    through: Name | None = Field(default=None, description="wrong_requester: the other function, a qat too.")
    times: int = Field(default=1, ge=1, le=1000, description="How many requests. Default: 1.")

    @model_validator(mode="after")
    def _fits(self) -> Misbehave:
        if (self.how == "wrong_requester") is not (self.through is not None):
            raise refuse("through with how: wrong_requester, and only there", self.how, "name another qat", quote=False)
        if (self.how == "delay") is not bool(self.milliseconds):
            raise refuse(
                "milliseconds with how: delay, and only there", self.how, "write milliseconds: 50", quote=False
            )
        return self


class Resume(DeviceArgs):
    """Let a qat go on with the request that is held; its data has been accessed when this step ends."""


class Vanish(DeviceArgs):
    """The device's process drops its connection with QEMU: as if it lost its power."""


class SurpriseRemoval(DeviceArgs):
    """The device is pulled out of its slot, and nobody is asked before (counts)."""

    keep: bool = Field(
        default=False, description="true: the program does not close the device when the kernel then asks for it."
    )


DEVICE_KINDS: dict[str, type[Args]] = {
    "operate": Operate,
    "collect": Collect,
    "reset": Reset,
    "counters": Counters,
    "misbehave": Misbehave,
    "resume": Resume,
    "vanish": Vanish,
    "surprise_removal": SurpriseRemoval,
}
"""The kinds of steps about the device."""

HOST_KINDS = ("misbehave", "resume", "vanish", "surprise_removal")
"""Those that the host does, and no program in the guest."""
