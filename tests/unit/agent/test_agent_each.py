"""Steps that map many pieces, what becomes of pointers, the container's facts, threads, statistics."""

from __future__ import annotations

import pytest
from agent_rig import Rig

from harness.agent import own_memory, steps_process
from harness.agent.outcome import NoMemory, StepError
from usdm import qae_mem
from usdm.qae_mem import Pointer

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def ready(rig: Rig) -> Rig:
    """A registered container and a buffer `b` of 64 KiB."""
    rig("register", device="edu0")
    rig("buffer", **{"as": "b"}, size=64 * KIB)
    return rig


# ---- pieces


def test_pieces_are_mapped_one_after_the_other(ready: Rig) -> None:
    answer = ready("map_each", buffer="b", offset=8 * KIB, size=4 * KIB, count=3)
    address = ready.context.buffer("b").address
    assert address is not None
    assert (answer["error"], answer["values"]) == (None, {"done": 3})
    pieces = sorted(vaddr for vaddr, _ in ready.entries.values())
    assert pieces == [address + 8 * KIB + number * 4 * KIB for number in range(3)]
    assert answer["returns"] in ready.entries, "the last one's IOVA"
    assert {size for _, size in ready.entries.values()} == {4 * KIB}
    # No piece's IOVA is the buffer's.
    assert ready("dma_read", device="edu0", buffer="b", size=1)["error"]["type"] == "NoIova"
    gone = ready("unmap_each", buffer="b", offset=8 * KIB, size=4 * KIB, count=3)
    assert (gone["error"], gone["returns"], gone["values"]) == (None, 0, {"done": 3})
    assert ready.entries == {}


def test_the_first_piece_that_fails_ends_it(ready: Rig) -> None:
    ready("map", buffer="b", offset=8 * KIB, size=4 * KIB)
    answer = ready("map_each", buffer="b", size=4 * KIB, count=16)
    assert (answer["returns"], answer["error"]["type"], answer["values"]) == (0, "AlreadyMapped", {"done": 2})
    assert len(ready.entries) == 3
    answer = ready("unmap_each", buffer="b", size=4 * KIB, count=16)
    assert (answer["returns"], answer["error"]["type"], answer["values"]) == (1, "NotMapped", {"done": 3})
    assert ready.entries == {}


@pytest.mark.parametrize("kind", ["map_each", "unmap_each"])
def test_when_the_very_first_piece_fails_none_is_done(ready: Rig, kind: str) -> None:
    answer = ready(kind, buffer="b", size=1, count=2)
    assert (answer["error"]["type"], answer["values"]) == ("NotAligned", {"done": 0})


class Silent:
    """An implementation that fails without a word, as the C library can."""

    name = "silent"

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def call(self, function: str, *arguments: object) -> tuple[int, None]:
        return self.values.pop(0), None


@pytest.mark.parametrize(("kind", "values"), [("map_each", [1, 2, 0, 3]), ("unmap_each", [0, 0, 1, 0])])
def test_a_return_value_that_means_failure_ends_it_without_an_error_too(
    ready: Rig, kind: str, values: list[int]
) -> None:
    ready.context.api = Silent(list(values))  # type: ignore[assignment]
    answer = ready(kind, buffer="b", size=4 * KIB, count=4)
    assert (answer["returns"], answer["error"], answer["values"]) == (values[2], None, {"done": 2})


# ---- pointers


@pytest.mark.parametrize(("maker", "free"), [("alloc", "free"), ("alloc_plain", "free_plain")])
def test_a_pointer_is_null_after_a_free_and_kept_where_it_was_refused(rig: Rig, maker: str, free: str) -> None:
    rig(maker, **{"as": "a"}, size=4 * KIB)
    assert rig(free, buffer="a")["values"] == {"pointer": "null"}
    again = rig(free, buffer="a")
    assert (again["error"]["type"], again["values"]) == ("DoubleFree", {"pointer": "kept"})


def test_a_free_inside_keeps_the_pointer_and_the_memory(rig: Rig) -> None:
    rig("alloc", **{"as": "a"}, size=4 * KIB)
    refused = rig("free", buffer="a", offset=KIB)
    assert (refused["error"]["type"], refused["values"]) == ("InteriorPointer", {"pointer": "kept"})
    assert rig("fill", buffer="a", pattern=1)["error"] is None


def test_a_refused_free_can_still_set_the_pointer_to_null(rig: Rig) -> None:
    """As the C library does it (A3): the pointer is told as it is, and the memory is not gone."""

    class Refusing:
        name = "refusing"

        def call(self, function: str, pointer: Pointer) -> tuple[None, Exception]:
            pointer.value = None
            return None, StepError("refused")

    rig("alloc", **{"as": "a"}, size=64)
    rig.context.api = Refusing()  # type: ignore[assignment]
    answer = rig("free", buffer="a")
    assert (answer["error"]["type"], answer["values"]) == ("StepError", {"pointer": "null"})
    assert rig("fill", buffer="a", pattern=1)["error"] is None


def test_which_function_frees(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Noting:
        name = "noting"

        def call(self, function: str, *arguments: object) -> tuple[None, None]:
            called.append(function)
            return None, None

    rig("alloc", **{"as": "a"}, size=64)
    rig.context.api = Noting()  # type: ignore[assignment]
    rig("free", buffer="a")
    rig("free", buffer="a", zero=False)
    rig("free_plain", buffer="a")
    assert called == ["qaeMemFreeNUMA", "qaeMemFreeNonZeroNUMA", "qaeMemFree"]


# ---- translations of an implementation that says no more than 0


def test_absent_translations_are_counted_by_the_implementations_own_word(ready: Rig) -> None:
    class Failure(Exception):
        pass

    class Partly:
        name = "partly"

        def __init__(self, start: int) -> None:
            self.start = start

        def call(self, function: str, address: int) -> tuple[int, Exception | None]:
            page = (address - self.start) // 4096
            return (0, Failure()) if page == 0 else (0x200000 + page * 4096, None)

        def is_absent(self, error: Exception) -> bool:
            return isinstance(error, Failure)

    address = ready.context.buffer("b").address
    assert address is not None
    ready.context.api = Partly(address)  # type: ignore[assignment]
    found = ready("translate", buffer="b")["values"]
    assert found == {"present": 15, "absent": 1, "contiguous": True, "first": 0x201000}


# ---- the container's facts


def test_how_many_mappings_are_left(ready: Rig) -> None:
    answer = ready("container_info", device="edu0")
    assert answer["values"]["counts"] == {"mappings_left": 65535}
    assert answer["values"]["iova_ranges"] == [[0, 0xFEDFFFFF], [0xFEF00000, (1 << 48) - 1]]
    ready("map_each", buffer="b", size=4 * KIB, count=5)
    assert ready("container_info", device="edu0")["values"]["counts"] == {"mappings_left": 65530}


def test_a_kernel_that_tells_no_ranges(ready: Rig) -> None:
    ready.vfio.of(ready.fd).ranges = None
    assert ready("container_info", device="edu0")["values"] == {"counts": {"mappings_left": None}, "iova_ranges": None}


# ---- the process


def test_statistics_are_those_of_usdm_only(ready: Rig) -> None:
    counts = ready("statistics")["values"]["counts"]
    assert counts == qae_mem.default_instance().statistics()
    assert counts["registrations"] == 1
    ready.context.api = Silent([])  # type: ignore[assignment]
    assert ready("statistics")["error"] == {"type": "StepError", "message": "the C library has no statistics"}


def test_beginning_and_end_of_the_whole(rig: Rig) -> None:
    assert rig.error("mem_init") == (0, None)
    assert rig.error("mem_init_fd") == (1, "Unsupported")
    assert rig.error("at_fork") == (None, None)
    rig("register", device="edu0")
    rig("alloc", **{"as": "a"}, size=64)
    assert rig.entries
    assert rig.error("mem_destroy") == (None, None)
    assert rig.entries == {}


# ---- threads


def test_threads_find_nothing_wrong_and_leave_nothing(ready: Rig) -> None:
    before = dict(ready.entries)
    answer = ready("threads", count=4, rounds=20)
    assert answer["error"] is None
    assert answer["values"] == {"counts": {"done": 80, "wrong": 0}, "wrong": []}
    assert {size for _, size in ready.entries.values()} <= {2 * MIB}, "slabs only"
    assert len(ready.entries) <= len(before) + 4


def test_threads_tell_what_is_wrong(rig: Rig) -> None:
    """Without a registration nothing can be mapped."""
    values = rig("threads", count=2, rounds=10)["values"]
    assert values["counts"] == {"done": 0, "wrong": 20}
    assert len(values["wrong"]) == 5, "the first few"
    assert all("map: " in text for text in values["wrong"])


class Lying:
    """USDM, but for one function, which does what it must not."""

    name = "lying"

    def __init__(self, function: str, value: object) -> None:
        self.function = function
        self.value = value

    def call(self, function: str, *arguments: object) -> tuple[object, Exception | None]:
        if function == self.function:
            return self.value, None
        return getattr(qae_mem, function)(*arguments), qae_mem.last_error()


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        ("qaeVirtToPhysNUMA", 7, "translates to something else"),
        ("qaeMemUnmapContiguousIova", 1, "unmap: "),
        ("qaeMemAllocNUMA", None, "alloc: "),
        ("qaePhysToVirtNUMA", 7, "does not translate there and back"),
        ("qaeMemFreeNUMA", None, "could not be freed"),
    ],
)
def test_each_thing_that_can_be_wrong_is_seen(ready: Rig, function: str, value: object, said: str) -> None:
    ready.context.api = Lying(function, value)  # type: ignore[assignment]
    values = ready("threads", count=1, rounds=1)["values"]
    assert values["counts"]["wrong"] >= 1
    assert any(said in text for text in values["wrong"])


def test_a_thread_that_breaks_is_told(ready: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is raised, such as NotOffered of an old library, must not look like nothing wrong."""

    def none(size: int, backing: str) -> int:
        raise NoMemory("no memory")

    monkeypatch.setattr(steps_process.own_memory, "take", none)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    answer = ready("threads", count=2, rounds=3)
    assert answer["error"] is not None or answer["values"]["counts"]["wrong"] > 0


def test_a_buffer_that_was_not_made_is_no_place(rig: Rig) -> None:
    assert rig("map_each", buffer="none", size=4 * KIB, count=1)["error"]["type"] == "UnknownBuffer"
    assert own_memory.PIECE == 2 * MIB
