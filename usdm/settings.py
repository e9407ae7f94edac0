"""How a process wants its USDM: hugepages, and slabs of each thread's own."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HUGEPAGES = "QAT_MAX_2M_HPG_PER_PROCESS"
"""Hugepages of 2 MiB that the process may have: a plain decimal, 1 to 65536. Anything else is 4 KiB mode, as in C."""

THREAD_SPECIFIC = "ICP_THREAD_SPECIFIC_USDM"
"""`1`: slabs are not shared between threads, and map and unmap are refused. The C library decides when it is built."""

MAX_HUGEPAGES = 65536


class Settings:
    """What was asked for.

    Attributes:
        hugepages: How many hugepages the process may have; 0 is 4 KiB mode.
        thread_specific: Slabs are not shared between threads.
        ignored: The value of `QAT_MAX_2M_HPG_PER_PROCESS` that is no number of hugepages, or an empty string.
    """

    __slots__ = ("hugepages", "ignored", "thread_specific")

    def __init__(self, hugepages: int = 0, thread_specific: bool = False, ignored: str = "") -> None:
        self.hugepages = hugepages
        self.thread_specific = thread_specific
        self.ignored = ignored


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables."""
    text = environment.get(HUGEPAGES, "")
    plain = text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= MAX_HUGEPAGES
    thread_specific = environment.get(THREAD_SPECIFIC) == "1"
    return Settings(int(text) if plain else 0, thread_specific, "" if plain else text)
