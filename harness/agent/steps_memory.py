"""Steps of the program with its own memory: take, give back, fill, check, compare."""

from __future__ import annotations

from harness.agent import own_memory, patterns
from harness.agent.context import Buffer
from harness.agent.outcome import NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def buffer(context: Context, args: dict[str, Any]) -> Outcome:
    """Take memory from the kernel; values: address."""
    asked = args.get("backing", "anonymous")
    own = getattr(context.api.api, "backing", None)
    backing = own(asked) if own else asked
    address = own_memory.take(args["size"], backing, args.get("align", 4096))
    made = Buffer(args["as"], "buffer", address, args["size"], writable=backing != "read_only")
    made.extent = own_memory.extent(args["size"], backing)
    context.buffers[made.name] = made
    return Outcome(values={"address": address})


def release(context: Context, args: dict[str, Any]) -> Outcome:
    """Give memory of `buffer` back to the kernel."""
    held = context.buffer(args["buffer"])
    if held.address is None or held.gone or held.maker != "buffer":
        raise NotAccessible(f"'{held.name}' is no memory that the program holds by a buffer step")
    own_memory.give_back(held.address, held.extent)
    held.gone = True
    return Outcome()


def fill(context: Context, args: dict[str, Any]) -> Outcome:
    """Write a pattern."""
    held = context.buffer(args["buffer"])
    offset, size = held.span(args)
    start = held.own(offset, size, write=True)
    for place, data in patterns.chunks(args["pattern"], args.get("seed", 0), offset, size):
        own_memory.write(start + place - offset, data)
    return Outcome()


def _compared(different: int | None) -> Outcome:
    return Outcome(values={"equal": different is None, "first_difference": different})


def check(context: Context, args: dict[str, Any]) -> Outcome:
    """Read and compare with a pattern; values: equal, first_difference (offset in the buffer)."""
    held = context.buffer(args["buffer"])
    offset, size = held.span(args)
    start = held.own(offset, size)
    for place, data in patterns.chunks(args["pattern"], args.get("seed", 0), offset, size):
        different = patterns.first_difference(own_memory.read(start + place - offset, len(data)), data)
        if different is not None:
            return _compared(place + different)
    return _compared(None)


def compare(context: Context, args: dict[str, Any]) -> Outcome:
    """Compare two buffers; values: equal, first_difference (offset in the first one)."""
    size: int = args["size"]
    offset: int = args.get("offset", 0)
    left = context.buffer(args["buffer"]).own(offset, size)
    right = context.buffer(args["with"]).own(args.get("with_offset", 0), size)
    for done in range(0, size, patterns.BLOCK):
        length = min(patterns.BLOCK, size - done)
        different = patterns.first_difference(
            own_memory.read(left + done, length), own_memory.read(right + done, length)
        )
        if different is not None:
            return _compared(offset + done + different)
    return _compared(None)


STEPS: dict[str, Step] = {
    "buffer": buffer,
    "release": release,
    "fill": fill,
    "check": check,
    "compare": compare,
}
