"""Steps about the QAT-like device: operations with their responses, reset, counters."""

from __future__ import annotations

import zlib

from harness.agent import own_memory, patterns, qat_layout
from harness.agent.outcome import NotQat, Outcome
from harness.agent.qat import Qat, completion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.qat_ring import Response
    from harness.agent.registry import Step

_SECONDS = 10.0
_OPCODES = {
    "nop": qat_layout.NOP,
    "copy": qat_layout.COPY,
    "fill": qat_layout.FILL,
    "crc32": qat_layout.CRC32,
    "compare": qat_layout.COMPARE,
    "load": qat_layout.LOAD,
    "store": qat_layout.STORE,
}


def _qat(context: Context, name: str) -> Qat:
    device = context.device(name)
    if not isinstance(device, Qat):
        raise NotQat(f"'{name}' is no qat")
    return device


def operate(context: Context, args: dict[str, Any]) -> Outcome:
    """Have a request done, or only hand it over.

    Values: source, destination (the IOVA of each piece); of a request that was waited for also status, result, unasked
    (responses that came and that no request waited for), refused and refused_at (the first refused address, and the
    offset in the side's bytes, where it is certain), reason (of an invalid one), equal, agrees and first_difference.
    """
    device = _qat(context, args["device"])
    sides = {name: _pieces(context, args.get(name, ())) for name in ("source", "destination")}
    lists = {name: context.iova(args[name]) for name in ("source_list", "destination_list") if args.get(name)}
    values: dict[str, Any] = {name: [iova for iova, _ in pieces] for name, pieces in sides.items()}
    interrupt = args.get("completion") == "interrupt"
    before, seconds = device.unasked, args.get("seconds", _SECONDS)
    number = device.submit(
        _OPCODES[args["op"]],
        sides["source"],
        sides["destination"],
        args.get("device_offset", 0) or args.get("byte", 0),
        source_list=lists.get("source_list"),
        destination_list=lists.get("destination_list"),
        interrupt=interrupt,
        seconds=seconds,
    )
    if not args.get("wait", True):
        device.leave(number)
        return Outcome(values=values)
    response = device.finish(number, interrupt=interrupt, seconds=seconds)
    values |= _said(response) | {"unasked": device.unasked - before}
    refused = values.get("refused")
    if refused is not None:
        # A compare reads both sides: an address at different offsets of the two may have been refused in either.
        both = args["op"] == "compare"
        name = "source" if values["status"] == "read_refused" else "destination"
        places = {_place(refused, sides[side]) for side in (sides if both else (name,))} - {None}
        if len(places) == 1:
            (values["refused_at"],) = places
    if values["status"] == "done" and args["op"] in ("crc32", "compare"):
        values |= _checked(context, args, response.result)
    return Outcome(values=values)


def _pieces(context: Context, pieces: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """The IOVA and the bytes of each piece."""
    return [(context.iova(piece), piece["size"]) for piece in pieces]


def _said(response: Response) -> dict[str, Any]:
    said = completion(response)
    values: dict[str, Any] = {"status": said.status, "result": response.result}
    if said.refused is not None:
        values["refused"] = said.refused
    if said.reason:
        values["reason"] = said.reason
    return values


def _place(address: int, pieces: Sequence[tuple[int, int]]) -> int | None:
    """The offset of an address in the bytes of a side; None when it is in none of its pieces."""
    before = 0
    for iova, size in pieces:
        if iova <= address < iova + size:
            return before + address - iova
        before += size
    return None


# ---- the program's own look at the same bytes


def _checked(context: Context, args: dict[str, Any], result: int) -> dict[str, Any]:
    """The device's result beside the program's own, where all pieces are buffers.

    Raises:
        NotAccessible: The program cannot read a buffer.
    """
    compared = args["op"] == "compare"
    values: dict[str, Any] = {}
    if compared:
        values["equal"] = result == qat_layout.EQUAL
        if not values["equal"]:
            values["first_difference"] = result
    pieces = [*args.get("source", ()), *args.get("destination", ())]
    if not pieces or any(piece.get("buffer") is None for piece in pieces):
        return values
    if compared:
        different = _first_difference(context, args["source"], args["destination"])
        values["agrees"] = result == (qat_layout.EQUAL if different is None else different)
    else:
        crc = 0
        for data in _own(context, args["source"]):
            crc = zlib.crc32(data, crc)
        values["equal"] = values["agrees"] = result == crc
    return values


def _own(context: Context, pieces: Sequence[dict[str, Any]], block: int = patterns.BLOCK) -> Iterator[bytes]:
    """The program's own bytes of some pieces, in blocks: all of the same size but the last one of each piece."""
    for piece in pieces:
        size = piece["size"]
        start = context.buffer(piece["buffer"]).own(piece.get("offset", 0), size)
        for done in range(0, size, block):
            yield own_memory.read(start + done, min(block, size - done))


def _first_difference(
    context: Context, source: Sequence[dict[str, Any]], destination: Sequence[dict[str, Any]]
) -> int | None:
    left, right = b"".join(_own(context, source)), b"".join(_own(context, destination))
    return patterns.first_difference(left, right)


# ---- others


def collect(context: Context, args: dict[str, Any]) -> Outcome:
    """Take responses of requests that were handed over; values: statuses, results, refused (of each), unasked."""
    device = _qat(context, args["device"])
    before = device.unasked
    interrupt, seconds = args.get("completion") == "interrupt", args.get("seconds", _SECONDS)
    found = [_said(one) for one in device.collect(args.get("count", 1), interrupt=interrupt, seconds=seconds)]
    return Outcome(
        values={
            "statuses": [one["status"] for one in found],
            "results": [one["result"] for one in found],
            "refused": [one.get("refused") for one in found],
            "unasked": device.unasked - before,
        }
    )


def reset(context: Context, args: dict[str, Any]) -> Outcome:
    """Reset a device."""
    context.device(args["device"]).reset()
    return Outcome()


def counters(context: Context, args: dict[str, Any]) -> Outcome:
    """Read what the device has counted, and its state; values: see `Qat.counters`."""
    return Outcome(values={**_qat(context, args["device"]).counters()})


STEPS: dict[str, Step] = {"operate": operate, "collect": collect, "reset": reset, "counters": counters}
