"""The arguments of steps about the QAT-like device: its operations, and what it does wrong when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.base import Model
from harness.scenario.engines import QAT_BUFFERS, QAT_BYTES
from harness.scenario.expect import exactly_one
from harness.scenario.values import Address, Name, Size, refuse

_SECONDS = 10.0
_SIDES = {
    "nop": (False, False),
    "copy": (True, True),
    "compare": (True, True),
    "crc32": (True, False),
    "load": (True, False),
    "fill": (False, True),
    "store": (False, True),
}


class Place(Model):
    """A place in memory by the device's addresses."""

    buffer: Name | None = Field(default=None, description="The buffer, whose IOVA is meant.")
    range: Name | None = Field(default=None, description="Or the range of iova_alloc, which begins there.")
    offset: Size = Field(default=0, description="Offset in bytes from the IOVA of the buffer or range.")
    iova: Address | None = Field(default=None, description="Or the IOVA as a number.")

    @model_validator(mode="after")
    def _one_of(self) -> Place:
        exactly_one(self, "buffer", "range", "iova")
        if self.iova is not None and self.offset:
            raise refuse("an offset only beside buffer or range", "iova and offset", "add it to the IOVA", quote=False)
        return self


class Piece(Place):
    """A piece of memory by the device's addresses."""

    size: Size = Field(description="Bytes.")

    @model_validator(mode="after")
    def _not_empty(self) -> Piece:
        if not 1 <= self.size <= QAT_BYTES:
            raise refuse(f"a size from 1 to {QAT_BYTES}", self.size, "a qat does at most 16M at once")
        return self


Pieces = Annotated[
    tuple[Piece, ...],
    Field(strict=False, max_length=QAT_BUFFERS, description="One piece is a flat buffer, more are a scatter list."),
]


def _total(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.size for piece in pieces)


class Operate(DeviceArgs):
    """A qat does an operation on memory, and says how it went.

    Several pieces are a scatter list. Counts: result, refused (the first IOVA that was refused), refused_at (its
    offset in the bytes of that side), unasked (responses that nobody asked for; 0 when it is not named). What crc32
    and compare find by DMA must be what the program finds itself.
    """

    op: Literal["copy", "fill", "crc32", "compare", "load", "store", "nop"] = Field(
        description="copy, fill (destination with byte), crc32 (of source), compare (source with destination), load "
        "(source to the device's own bytes), store (the device's own bytes to destination), nop."
    )
    source: Pieces = Field(default=(), description="What is read.")
    destination: Pieces = Field(default=(), description="What is written; of compare, the other side.")
    source_list: Place | None = Field(
        default=None, description="Instead of source: where the device looks for a scatter list, whatever is there."
    )
    destination_list: Place | None = Field(
        default=None, description="Instead of destination: where the device looks for a scatter list."
    )
    byte: int = Field(default=0, ge=0, le=255, description="fill: the byte. Default: 0.")
    device_offset: Size = Field(default=0, description="load, store: offset in the device's own 16 MiB. Default: 0.")
    completion: Literal["poll", "interrupt"] = Field(
        default="poll", description="How the driver learns of the response: it looks at memory, or waits for MSI-X."
    )
    wait: bool = Field(default=True, description="false: only hand the request over; collect takes the response.")
    seconds: float = Field(
        default=_SECONDS, ge=0.1, le=60.0, description="How long the driver waits for the response. Default: 10."
    )

    def places(self) -> Iterator[tuple[tuple[str | int, ...], Place]]:
        """Every place that it names, with its path in the arguments."""
        for name, pieces in (("source", self.source), ("destination", self.destination)):
            for index, piece in enumerate(pieces):
                yield (name, index), piece
        for name, listed in (("source_list", self.source_list), ("destination_list", self.destination_list)):
            if listed is not None:
                yield (name,), listed

    @model_validator(mode="after")
    def _sides(self) -> Operate:
        for name, wanted, pieces, listed in (
            ("source", _SIDES[self.op][0], self.source, self.source_list),
            ("destination", _SIDES[self.op][1], self.destination, self.destination_list),
        ):
            if pieces and listed:
                raise refuse(f"{name} or {name}_list", "both", "write one of them", quote=False)
            given = bool(pieces or listed)
            if wanted is not given:
                found = name if given else f"no {name}"
                raise refuse(f"{'a' if wanted else 'no'} {name} with op: {self.op}", found, "see the op", quote=False)
            if _total(pieces) > QAT_BYTES:
                hint = "a qat does at most 16M at once; use several steps"
                raise refuse(f"at most {QAT_BYTES} bytes of {name}", _total(pieces), hint)
        return self

    @model_validator(mode="after")
    def _fits(self) -> Operate:
        source, destination = _total(self.source), _total(self.destination)
        if self.op in ("copy", "compare") and source and destination and source != destination:
            found = f"{source} and {destination} bytes"
            raise refuse(f"as many bytes on both sides of a {self.op}", found, "make them equal", quote=False)
        if self.byte and self.op != "fill":
            raise refuse("byte with op: fill, and only there", self.op, "take it away", quote=False)
        if self.device_offset and self.op not in ("load", "store"):
            raise refuse("device_offset with op: load or store", self.op, "take it away", quote=False)
        if self.device_offset + (source or destination or 1) > QAT_BYTES and self.op in ("load", "store"):
            found = f"{self.device_offset} + {source or destination}"
            raise refuse(
                f"device_offset + bytes of at most {QAT_BYTES}", found, "a qat has 16M of its own", quote=False
            )
        return self


class Collect(DeviceArgs):
    """Take the responses of requests that were handed over with ``wait: false``, the oldest first.

    Counts: unasked.
    """

    count: int = Field(default=1, ge=1, le=48, description="How many responses to wait for. Default: 1.")
    completion: Literal["poll", "interrupt"] = Field(
        default="poll",
        description="How the driver learns of them: it looks at memory, or waits for MSI-X, for which the requests "
        "must have asked with their completion.",
    )
    seconds: float = Field(
        default=_SECONDS, ge=0.1, le=60.0, description="How long the driver waits for all of them. Default: 10."
    )


class FunctionReset(DeviceArgs):
    """VFIO_DEVICE_RESET: the device's Function Level Reset; a qat's rings are set up anew.

    The rings are set up at the next use.
    """


class Counters(DeviceArgs):
    """Read what a qat has counted since it was plugged in, and whether it is busy or fatal (counts).

    Counts: requests, responses, bytes_read, bytes_written, dma_errors, interrupts, resets, busy, fatal, error.
    """


class Misbehave(DeviceArgs):
    """Tell a qat to do the next requests wrong, one at a time.

    A reset forgets the plans, and so does closing the device. docs/misbehaviour.md says what is then seen.
    """

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
    """Let a qat go on with the request that is held; its data has been accessed when this step ends.

    So faults of that request are this step's.
    """


class Vanish(DeviceArgs):
    """The device's process drops its connection with QEMU, to which that is as if the process had been killed.

    Its registers read as all ones from then on. `close`, `reset`, `unbind` and `unplug` of it are refused by lint:
    the kernel would wait for 70 s.
    """


class SurpriseRemoval(DeviceArgs):
    """The device is pulled out of its slot, and nobody is asked before (counts).

    The kernel then asks for an open device, and it is closed, unless `keep` says otherwise. On a bus from 01 to 08,
    alone. Counts: asked, closed.
    """

    keep: bool = Field(
        default=False, description="true: the program does not close the device when the kernel then asks for it."
    )


DEVICE_KINDS: dict[str, type[Args]] = {
    "operate": Operate,
    "collect": Collect,
    "reset": FunctionReset,
    "counters": Counters,
    "misbehave": Misbehave,
    "resume": Resume,
    "vanish": Vanish,
    "surprise_removal": SurpriseRemoval,
}
"""The kinds of steps about the device."""

HOST_KINDS = ("misbehave", "resume", "vanish", "surprise_removal")
"""Those that the host does, and no program in the guest."""
