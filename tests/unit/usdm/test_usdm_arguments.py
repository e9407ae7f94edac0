from __future__ import annotations

import pickle
from typing import Any

import pytest
from usdm_fake_vfio import Factory, FakeVfio

from usdm import errors
from usdm.driver import Usdm

BAD: list[Any] = [True, False, 1.0, 4096.0, "4096", b"1", [], object(), -1, -(1 << 70), 1 << 64, 1 << 200, float("nan")]
PAGE = 4096
WORD = [
    ("map", lambda bad: (bad, 4096)),
    ("map", lambda bad: (4096, bad)),
    ("unmap", lambda bad: (bad, 4096)),
    ("unmap", lambda bad: (4096, bad)),
    ("allocate", lambda bad: (bad, -1, 4096)),
    ("allocate", lambda bad: (4096, -1, bad)),
    ("free", lambda bad: (bad,)),
    ("virt_to_phys", lambda bad: (bad,)),
    ("phys_to_virt", lambda bad: (bad,)),
    ("allocate_plain", lambda bad: (bad,)),
    ("free_plain", lambda bad: (bad,)),
]
INT = [
    ("allocate", lambda bad: (4096, bad, 4096)),
    ("register_device", lambda bad: (bad,)),
    ("unregister_device", lambda bad: (bad,)),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{type(bad).__name__}")
@pytest.mark.parametrize(("name", "arguments"), WORD)
def test_words(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory, name: str, arguments: Any, bad: Any) -> None:
    usdm.map(buffer(4096).address, 4096)
    regions, calls = usdm.maps(), list(vfio.calls)
    with pytest.raises(errors.BadArgument) as caught:
        getattr(usdm, name)(*arguments(bad))
    assert isinstance(caught.value, TypeError)
    assert caught.value.value is bad
    assert caught.value.argument in str(caught.value)
    assert usdm.maps() == regions
    assert vfio.calls == calls


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, 1 << 31, -(1 << 31) - 1], ids=repr)
@pytest.mark.parametrize(("name", "arguments"), INT)
def test_c_ints(usdm: Usdm, fd: int, name: str, arguments: Any, bad: Any) -> None:
    with pytest.raises(errors.BadArgument):
        getattr(usdm, name)(*arguments(bad))
    assert usdm.registered


def test_what_equals_an_integer_is_none(usdm: Usdm, fd: int, buffer: Factory) -> None:
    """The short ways look up what was given before: 1.0 and True equal 1, and are no integers all the same."""
    virt = buffer(PAGE).address
    usdm.map(virt, PAGE)
    usdm.free(usdm.allocate(1, -1, 1))
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (usdm.unmap, (virt, float(PAGE))),
        (usdm.unmap, (float(virt), PAGE)),
        (usdm.virt_to_phys, (float(virt),)),
        (usdm.allocate, (True, -1, 1)),
        (usdm.allocate, (1.0, -1, 1)),
        (usdm.allocate, (1, -1.0, 1)),
        (usdm.allocate, (1, -1, True)),
    ]
    for call, arguments in calls:
        with pytest.raises(errors.BadArgument):
            call(*arguments)
    usdm.unmap(virt, PAGE)


@pytest.mark.parametrize("name", ["map", "unmap"])
def test_none_is_null(usdm: Usdm, fd: int, name: str) -> None:
    with pytest.raises(errors.NullAddress):
        getattr(usdm, name)(None, 4096)


def classes(kind: type[errors.UsdmError] = errors.UsdmError) -> list[type[errors.UsdmError]]:
    return [kind] + [one for child in kind.__subclasses__() for one in classes(child)]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_says_what_and_survives_a_pickle(kind: type[errors.UsdmError]) -> None:
    more = (22,) if issubclass(kind, errors.KernelError) else ()
    error = kind("virt", 0x1001, *more, "more")  # type: ignore[arg-type]
    assert str(error).startswith(f"virt = 0x1001: {kind.rule} (")
    assert "more" in str(error)
    assert kind.__doc__
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again)) == (kind, str(error))
    assert (kind in (errors.UsdmError, errors.KernelError)) or kind.rule != errors.UsdmError.rule
