"""What the steps of a scenario can name at a point of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Names:
    """Names that are known at a point of the scenario.

    Attributes:
        devices: those of the machine; None when the machine is not well formed.
        models: the model of each device.
        opened: devices that are open.
        buffers: name to the kind of the step that made it, and the size where it is known.
        mapped: buffers that have had an IOVA.
        ranges: the ranges of iova_alloc.
        streamed: buffers that a stream_map has named.
        iommufd: open devices that were opened through IOMMUFD.
        vfio: open devices that were opened through a container.
        inside: what is known in the virtual machine.
    """

    devices: list[str] | None
    models: Mapping[str, str]
    opened: set[str] = field(default_factory=set)
    buffers: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)
    ranges: set[str] = field(default_factory=set)
    streamed: set[str] = field(default_factory=set)
    iommufd: set[str] = field(default_factory=set)
    vfio: set[str] = field(default_factory=set)
    inside: Names | None = None

    def child(self) -> Names:
        """What a forked child knows; what it learns its parent does not."""
        return Names(
            self.devices,
            self.models,
            set(self.opened),
            dict(self.buffers),
            set(self.mapped),
            set(self.ranges),
            set(self.streamed),
            set(self.iommufd),
            set(self.vfio),
        )
