"""Intel VT-d's tables in memory: written and read, entry by entry, and walked from a requester to its pages.

Pure functions of bytes. Names and sections are those of Intel's "Virtualization Technology for Directed I/O,
Architecture Specification"; its word for second-level tables is second-stage since revision 4.
"""

from harness.machine.vtd.entries import (
    ContextEntry,
    PasidDirectoryEntry,
    PasidTableEntry,
    PasidType,
    RootEntry,
    ScalableContextEntry,
    TranslationType,
    width_of,
)
from harness.machine.vtd.paging import (
    FIRST,
    SECOND,
    PageTables,
    Read,
    Run,
    Stage,
    page_entry,
    page_size,
    table_entry,
)
from harness.machine.vtd.registers import BASE, Registers, RootTableAddress, TableMode
from harness.machine.vtd.walk import Requester, Way, find_requester

__all__ = [
    "BASE",
    "FIRST",
    "SECOND",
    "ContextEntry",
    "PageTables",
    "PasidDirectoryEntry",
    "PasidTableEntry",
    "PasidType",
    "Read",
    "Registers",
    "Requester",
    "RootEntry",
    "RootTableAddress",
    "Run",
    "ScalableContextEntry",
    "Stage",
    "TableMode",
    "TranslationType",
    "Way",
    "find_requester",
    "page_entry",
    "page_size",
    "table_entry",
    "width_of",
]
