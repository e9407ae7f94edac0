"""Checks of the steps about two-step DMA mapping: ranges and their names, and devices that have no container."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from harness.scenario.args import Args
from harness.scenario.args_device import Operate
from harness.scenario.args_iova import IovaAlloc, IovaLink, IovaLinkEach, StreamArgs
from harness.scenario.problems import suggest
from harness.scenario.yaml_marks import Path_

OPTIONS: Final = ("IOMMUFD", "VFIO_DEVICE_CDEV")
"""What the kernel must have for ``through: iommufd``."""

# What concerns a container, or the group that is in one.
_OF_A_CONTAINER: Final = (
    *("register", "unregister", "container_info", "container_map", "container_unmap"),
    *("enable_vfs", "disable_vfs", "unbind", "unplug", "surprise_removal", "pass_through"),
)

Found = tuple[Path_, str, str | None]
"""Where, the message, and a hint."""


def unknown_ranges(args: Args, path: Path_, ranges: Collection[str], buffers: Collection[str]) -> Iterator[Found]:
    """The ranges that a step names and that no step before made.

    Args:
        args: the step's arguments.
        path: where they are.
        ranges: the ranges so far.
        buffers: the buffers so far.
    """
    for where, name in _named(args):
        found = unknown_range(name, (*path, *where), ranges, buffers)
        if found is not None:
            yield found


def unknown_range(name: str, path: Path_, ranges: Collection[str], buffers: Collection[str]) -> Found | None:
    """What to say of a name at a path that should be a range's; None when it is."""
    if name in ranges:
        return None
    if name in buffers:
        return path, f"expected a range, found '{name}', a buffer", f"write buffer: {name}"
    if ranges:
        hint = suggest(name, list(ranges), "the ranges so far are")
    else:
        hint = f"write 'iova_alloc: {{device: ..., as: {name}, buffer: ..., size: ...}}' before"
    return path, f"expected a range that an earlier iova_alloc made, found '{name}'", hint


def _named(args: Args) -> Iterator[tuple[Path_, str]]:
    if isinstance(args, Operate):
        for where, place in args.places():
            if place.range is not None:
                yield (*where, "range"), place.range
    name = getattr(args, "range", None)
    if name is not None:
        yield ("range",), name


def range_as_buffer(name: str, kind: str) -> tuple[str, str]:
    """The message and the hint for a range where a buffer is expected.

    Args:
        name: the range's name.
        kind: the kind of the step.
    """
    takes_both = kind in ("dma_read", "dma_write", "mappings", "operate", "expect")
    hint = f"write range: {name}" if takes_both else "a range has no memory: name the buffer that is linked into it"
    return f"expected a buffer, found '{name}', a range", hint


def outside_buffer(args: Args, name: str, size: int, *, fails: bool) -> str | None:
    """What to say of memory that a step names and that is not the buffer's; None when it is.

    A size alone may be any where the step shall fail, and try_alloc reserves IOVAs for memory that is linked later.

    Args:
        args: the step's arguments.
        name: the buffer's name.
        size: its bytes.
        fails: an error is expected of the step.
    """
    if not isinstance(args, IovaAlloc | IovaLink | StreamArgs):
        return None
    length = 0 if fails or isinstance(args, IovaAlloc) else args.size
    count = args.count if isinstance(args, IovaLinkEach) else 1
    if args.offset < size and args.offset + length * count <= size:
        return None
    found = f"offset {args.offset}" + (f" + size {length}" if length else "") + (f" * {count}" if count > 1 else "")
    return f"expected bytes inside '{name}' of {size} bytes, found {found}"


def without_container(kind: str, name: str) -> tuple[str, str] | None:
    """The message and the hint for a step about the container of a device that was opened through IOMMUFD, or None."""
    if kind not in _OF_A_CONTAINER:
        return None
    message = f"expected a device of a container for {kind}, found '{name}', opened through iommufd"
    return message, "it has an IOAS instead: leave 'through: iommufd' away, or use iova_alloc and stream_map"


def options_missing(data: Mapping[str, Any]) -> bool:
    """Whether a scenario that opens a device through IOMMUFD does not say that its kernel must have it."""
    needs = data.get("needs")
    options = needs.get("kernel_options") if isinstance(needs, Mapping) else None
    return not isinstance(options, Mapping) or any(options.get(name) is not True for name in OPTIONS)
