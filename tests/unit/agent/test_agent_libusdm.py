"""The C library through ctypes, with C functions of our own in its place: callbacks, called as a library's are."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import implementations, libusdm
from harness.agent.implementations import UnknownImplementation, Usdm
from harness.agent.libusdm import CFailure, CLibrary, NoLibrary, NotOffered
from harness.agent.outcome import StepError
from usdm import errors
from usdm.qae_mem import Pointer

CELL = ctypes.POINTER(ctypes.c_void_p)
ADDRESS = 0x7F0000200000


def say(text: str) -> None:
    os.write(2, text.encode())


class FakeLibrary:
    """Functions by name; one that was not given is not there. What they got is in `calls`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.kept: list[Any] = []

    def offer(self, name: str, result: Any, *types: Any, does: Callable[..., Any]) -> None:
        def called(*arguments: Any) -> Any:
            self.calls.append((name, *(None if one is None else getattr(one, "value", one) for one in arguments)))
            return does(*arguments)

        function = ctypes.CFUNCTYPE(result, *types)(called)
        self.kept.append(function)
        setattr(self, name, ctypes.cast(function, ctypes.CFUNCTYPE(result, *types)))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    monkeypatch.setattr(libusdm.ctypes, "CDLL", lambda file: fake)
    return fake


@pytest.fixture(autouse=True)
def stderr_file(tmp_path: Path) -> Iterator[Path]:
    """Standard error is a file, as the supervisor opens it for the worker."""
    path = tmp_path / "stderr"
    sys.stderr.flush()
    kept, fd = os.dup(2), os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 2)
    os.write(2, b"said long before\n")
    yield path
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(fd)
    os.close(kept)


# ---- what fails


@pytest.mark.parametrize(
    ("name", "result", "types", "arguments", "value", "failed"),
    [
        ("qaeMemAllocNUMA", ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t), (64, -1, 64), 0, True),
        ("qaeMemAllocNUMA", ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t), (64, -1, 64), 64, False),
        ("qaeMemAlloc", ctypes.c_void_p, (ctypes.c_size_t,), (64,), 0, True),
        ("qaeVirtToPhysNUMA", ctypes.c_uint64, (ctypes.c_void_p,), (ADDRESS,), 0, True),
        ("qaeVirtToPhysNUMA", ctypes.c_uint64, (ctypes.c_void_p,), (ADDRESS,), 1 << 63, False),
        ("qaePhysToVirtNUMA", ctypes.c_void_p, (ctypes.c_uint64,), (0x200000,), 0, True),
        ("qaeMemMapContiguousIova", ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_size_t), (ADDRESS, 1 << 31), 0, True),
        ("qaeMemMapContiguousIova", ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_size_t), (None, 0), 1 << 40, False),
        ("qaeMemUnmapContiguousIova", ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t), (ADDRESS, 4096), 0, False),
        ("qaeMemUnmapContiguousIova", ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t), (ADDRESS, 4096), 1, True),
        ("qaeRegisterDevice", ctypes.c_int, (ctypes.c_int,), (3,), -1, True),
        ("qaeRegisterDevice", ctypes.c_int, (ctypes.c_int,), (3,), 0, False),
        ("qaeUnregisterDevice", ctypes.c_int, (ctypes.c_int,), (3,), 2, True),
        ("qaeMemInit", ctypes.c_int32, (), (), -1, True),
        ("qaeMemInit", ctypes.c_int32, (), (), 0, False),
    ],
)
def test_the_return_value_tells_whether_it_failed(
    fake: FakeLibrary,
    name: str,
    result: Any,
    types: tuple[Any, ...],
    arguments: tuple[Any, ...],
    value: int,
    failed: bool,
) -> None:
    fake.offer(name, result, *types, does=lambda *_: value)
    returned, error = CLibrary().call(name, *arguments)
    assert fake.calls == [(name, *arguments)]
    assert (returned or 0) == value
    assert returned is None or value or result is not ctypes.c_void_p, "NULL is None"
    if failed:
        assert type(error) is CFailure
        assert str(error) == f"{name} returned {value} and said nothing"
    else:
        assert error is None


def test_every_function_has_a_rule() -> None:
    assert set(libusdm._ZERO_FAILS) < set(libusdm._SIGNATURES)
    for name in libusdm._ZERO_FAILS:
        assert libusdm._SIGNATURES[name][0] in (ctypes.c_void_p, ctypes.c_uint64)


def test_large_values_are_not_cut(fake: FakeLibrary) -> None:
    top = (1 << 64) - 4096
    fake.offer(
        *("qaeMemMapContiguousIova", ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t),
        does=lambda address, size: address,
    )
    assert CLibrary().call("qaeMemMapContiguousIova", top, (1 << 64) - 1) == (top, None)
    assert fake.calls == [("qaeMemMapContiguousIova", top, (1 << 64) - 1)]


# ---- what it says


def test_what_it_said_is_in_the_failure_in_one_line_without_what_was_said_before(fake: FakeLibrary) -> None:
    def refuse(address: int, size: int) -> int:
        say("mem_map: too large\n   errno=22\n")
        return 0

    fake.offer("qaeMemMapContiguousIova", ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, does=refuse)
    library = CLibrary()
    for _ in range(2):
        _, error = library.call("qaeMemMapContiguousIova", ADDRESS, 4096)
        assert str(error) == "qaeMemMapContiguousIova returned 0 and said: mem_map: too large errno=22"


def test_bytes_that_are_no_text_are_kept_readable(fake: FakeLibrary) -> None:
    def refuse() -> int:
        os.write(2, b"bad \xff\n")
        return -1

    fake.offer("qaeMemInit", ctypes.c_int32, does=refuse)
    assert str(CLibrary().call("qaeMemInit")[1]) == "qaeMemInit returned -1 and said: bad \N{REPLACEMENT CHARACTER}"


def test_a_warning_beside_a_good_return_value_is_no_failure(fake: FakeLibrary) -> None:
    fake.offer("qaeRegisterDevice", ctypes.c_int, ctypes.c_int, does=lambda fd: say("a warning\n") or 0)
    assert CLibrary().call("qaeRegisterDevice", 5) == (0, None)


def test_a_function_without_a_return_value_fails_by_what_it_says(fake: FakeLibrary) -> None:
    fake.offer("qaeAtFork", None, does=lambda: None)
    fake.offer("qaeMemDestroy", None, does=lambda: say("cannot destroy\n"))
    library = CLibrary()
    assert library.call("qaeAtFork") == (None, None)
    value, error = library.call("qaeMemDestroy")
    assert (value, str(error)) == (None, "qaeMemDestroy said: cannot destroy")


def test_standard_error_that_is_no_file_is_told_before_anything_is_called(fake: FakeLibrary) -> None:
    fake.offer("qaeMemInit", ctypes.c_int32, does=lambda: 0)
    kept, (source, sink) = os.dup(2), os.pipe()
    os.dup2(sink, 2)
    try:
        with pytest.raises(StepError, match="standard error is no file"):
            CLibrary().call("qaeMemInit")
    finally:
        os.dup2(kept, 2)
        for fd in (kept, source, sink):
            os.close(fd)
    assert fake.calls == []


# ---- pointers


def test_a_pointer_is_what_the_library_left_in_it(fake: FakeLibrary) -> None:
    seen: list[int | None] = []

    def free(pointer: Any) -> None:
        seen.append(pointer[0])
        pointer[0] = None

    fake.offer("qaeMemFreeNUMA", None, CELL, does=free)
    pointer = Pointer(ADDRESS)
    assert CLibrary().call("qaeMemFreeNUMA", pointer) == (None, None)
    assert (seen, pointer.value) == ([ADDRESS], None)


@pytest.mark.parametrize("name", ["qaeMemFree", "qaeMemFreeNUMA", "qaeMemFreeNonZeroNUMA"])
def test_a_refused_pointer_is_kept_or_not_as_the_library_does_it(fake: FakeLibrary, name: str) -> None:
    def refuse(pointer: Any) -> None:
        say("not mine\n")
        if pointer[0] == ADDRESS:
            pointer[0] = ADDRESS + 64

    fake.offer(name, None, CELL, does=refuse)
    library = CLibrary()
    for before, after in ((ADDRESS, ADDRESS + 64), (ADDRESS + 1, ADDRESS + 1), (None, None)):
        pointer = Pointer(before)
        assert str(library.call(name, pointer)[1]) == f"{name} said: not mine"
        assert pointer.value == after


def test_no_pointer_variable_at_all_is_null(fake: FakeLibrary) -> None:
    seen: list[bool] = []
    fake.offer("qaeMemFreeNUMA", None, CELL, does=lambda pointer: seen.append(bool(pointer)))
    assert CLibrary().call("qaeMemFreeNUMA", None) == (None, None)
    assert seen == [False]


# ---- what is not there


def test_a_function_that_this_version_has_not(fake: FakeLibrary) -> None:
    fake.offer("qaeMemInit", ctypes.c_int32, does=lambda: 0)
    library = CLibrary()
    with pytest.raises(NotOffered, match="this libusdm has no qaeMemMapContiguousIova"):
        library.call("qaeMemMapContiguousIova", ADDRESS, 4096)
    with pytest.raises(NotOffered, match="qaeMemInitAndReturnFd"):
        library.call("qaeMemInitAndReturnFd", Pointer())
    assert library.call("qaeMemInit") == (0, None)


def test_a_library_that_is_not_there_or_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(NoLibrary, match=r"none\.so"):
        CLibrary(str(tmp_path / "none.so"))
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"\x7fELF but no more")
    with pytest.raises(NoLibrary, match=r"bad\.so"):
        CLibrary(str(bad))


def test_only_the_librarys_own_failure_means_that_there_is_no_translation(fake: FakeLibrary) -> None:
    library = CLibrary()
    assert library.is_absent(CFailure("returned 0"))
    assert not library.is_absent(NotOffered("no such function"))
    assert not library.is_absent(errors.NotMapped("virt", 0))


# ---- by name


def test_implementations_by_name(fake: FakeLibrary) -> None:
    assert [implementations.find(name).name for name in ("usdm", "libusdm")] == ["usdm", "libusdm"]
    assert implementations.NAMES == ("usdm", "libusdm", "kernel")
    assert isinstance(implementations.find("usdm"), Usdm)
    assert isinstance(implementations.find("libusdm"), CLibrary)
    for name in ("both", "", "LIBUSDM"):
        with pytest.raises(UnknownImplementation, match=f"no implementation '{name}'; there are usdm, libusdm"):
            implementations.find(name)


def test_the_library_is_loaded_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libusdm.ctypes, "CDLL", pytest.fail)
    implementations.find("usdm")
    monkeypatch.undo()
    with pytest.raises(NoLibrary):
        implementations.find("libusdm")


def test_usdm_says_why() -> None:
    usdm = Usdm()
    value, error = usdm.call("qaeMemMapContiguousIova", 1, 4096)
    assert (value, type(error)) == (0, errors.NotAligned)
    value, error = usdm.call("qaeMemAlloc", 64)
    assert value
    assert error is None
    assert usdm.call("qaeMemFree", Pointer(value)) == (None, None)
    assert usdm.is_absent(errors.NotMapped("virt", 0))
    assert not usdm.is_absent(errors.NullAddress("virt", 0))
