"""The kinds of steps and where each is implemented; a module is loaded when its first step comes."""

from __future__ import annotations

from harness.agent.outcome import UnknownStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.outcome import Outcome

    Step = Callable[[Context, dict[str, Any]], Outcome]

MODULES = {
    "steps_device": ("open", "close", "bus_master", "container_info", "register", "unregister", "register_fd"),
    "steps_usdm": (
        *("alloc", "free", "alloc_plain", "free_plain", "map", "unmap", "map_each", "unmap_each"),
        *("translate", "translate_back", "at_fork", "mem_init", "mem_destroy", "mem_init_fd", "statistics"),
    ),
    "steps_memory": ("buffer", "release", "fill", "check", "compare"),
    "steps_process": ("environment", "hugepages", "limit_memory", "nodes", "threads"),
    "steps_dma": ("dma_read", "dma_write", "container_map", "container_unmap"),
    "steps_function": ("noiommu", "enable_vfs", "disable_vfs", "unbind", "unplug"),
    "steps_remap": ("physical_address", "remap_size", "remap", "unremap"),
    "steps_iova": (
        *("dma_limits", "merge_boundary", "iova_alloc", "iova_link", "iova_link_each", "iova_sync", "iova_unlink"),
        *("iova_free", "iova_destroy", "iova_info", "stream_map", "stream_unmap"),
    ),
    "steps_tables": ("mappings",),
    "steps_qat": ("operate", "collect", "reset", "counters"),
    "steps_removal": ("_watch_removal", "_removed"),
    "steps_kernel": ("kernel_driver", "disk_io", "trace", "trace_end"),
    "steps_replay": ("replay",),
    "steps_fork": ("fork",),
    "steps_vm": ("pass_through", "in_vm", "_vm_start"),
    "requests": ("_begin", "_end"),
    "believed": ("_believed",),
    "brought": ("_library", "_module"),
}
"""Modules of this package, each with a `STEPS`, and the kinds in it; `_` begins requests of the harness itself."""

_MODULE_OF = {kind: module for module, kinds in MODULES.items() for kind in kinds}

KINDS = tuple(kind for kind in _MODULE_OF if not kind.startswith("_"))
"""The kinds of steps that a scenario can use."""


def find(kind: str) -> Step:
    """Return the implementation of a kind; raises `UnknownStep`."""
    module = _MODULE_OF.get(kind)
    if module is None:
        raise UnknownStep(f"there is no step '{kind}'")
    # Not importlib, which nothing else here needs.
    steps: dict[str, Step] = __import__(f"harness.agent.{module}", fromlist=("STEPS",)).STEPS
    return steps[kind]
