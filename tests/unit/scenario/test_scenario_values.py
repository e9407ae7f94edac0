from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic_core import PydanticCustomError

from harness.scenario import Needs, values


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (4097, 4097),
        ("12", 12),
        ("4K", 4096),
        ("4 K", 4096),
        ("64KiB", 65536),
        ("2M", 2 << 20),
        ("2 GiB", 2 << 30),
        ("0x10K", 16384),
        (values.MAX_U64, values.MAX_U64),
    ],
)
def test_size(written: object, size: int) -> None:
    assert values.parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        "",
        "K",
        "4KB",
        "4k",
        "1.5M",
        "-1",
        -1,
        True,
        None,
        1.5,
        "1_000",
        "4  K",
        " 4K",
        "٤K",
        1 << 64,
        "17179869184G",
        "9" * 39,
    ],
)
def test_no_size(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="expected a size"):
        values.parse_size(written)


def test_an_offset_may_be_negative() -> None:
    assert values.parse_signed("-4K") == -4096
    assert values.parse_signed(-1) == -1
    with pytest.raises(PydanticCustomError, match="expected an offset"):
        values.parse_signed("--4K")
    with pytest.raises(PydanticCustomError, match="expected an offset from"):
        values.parse_signed(1 << 63)


@pytest.mark.parametrize(
    ("written", "seconds"), [(60, 60), (1.5, 1.5), ("60s", 60), ("2m", 120), ("1 h", 3600), ("1500ms", 1.5)]
)
def test_duration(written: object, seconds: float) -> None:
    assert values.parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "60", "s", "2 minutes", 0, -5, "0s", "25h", True, None, float("inf"), float("nan"), 10**400]
)
def test_no_duration(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="expected a duration"):
        values.parse_duration(written)


def test_bdf() -> None:
    assert values.parse_bdf("02:1f.7") == "02:1f.7"
    assert values.split_bdf("0a:1f.7") == (10, 31, 7)


@pytest.mark.parametrize(
    "written", ["2:00.0", "02:00.8", "02:20.0", "02:0.0", "0000:02:00.0", "02:00.0\n", "02:1F.0", 2, None]
)
def test_no_bdf(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="expected a PCI address"):
        values.parse_bdf(written)


@pytest.mark.parametrize(
    ("version", "requirement", "met"),
    [
        ("10.0.2", ">=10.0", True),
        ("10.0", ">=10.0.0", True),
        ("10.0.0", "==10", True),
        ("9.2", ">=10.0", False),
        ("7.2.22 (Debian 1:7.2+dfsg-7)", "<10.0", True),
        ("6.12.88+deb13-amd64", ">=6.16", False),
        ("6.16", ">=6.16", True),
        ("11.1.3", ">=10.0, <11", False),
        ("10.9", ">10.0,<11", True),
        ("10.0", ">10.0", False),
        ("10.0", "<=10.0", True),
    ],
)
def test_requirement(version: str, requirement: str, met: bool) -> None:
    assert values.satisfies(version, values.parse_requirement(requirement)) is met


@pytest.mark.parametrize("written", ["10.0", ">=", ">=10.", "~=10", "", ">=10.0,", 10.0, None, ">=1.2.3.4.5"])
def test_no_requirement(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="expected a comparison with a version"):
        values.parse_requirement(written)


def test_satisfies_refuses_what_is_no_requirement() -> None:
    with pytest.raises(ValueError, match="no comparison"):
        values.satisfies("10.0", "new")


def test_needs_say_what_is_not_met() -> None:
    needs = Needs(qemu=">=10.0", kernel=">=6.16")
    assert needs.unmet(qemu="10.0.2", kernel="6.16.3+deb13-amd64") is None
    assert (
        needs.unmet(qemu="7.2.22", kernel="6.12.1")
        == "needs QEMU >=10.0, this is 7.2.22; needs kernel >=6.16, this is 6.12.1"
    )
    assert Needs().unmet(qemu="1", kernel="1") is None


@pytest.mark.parametrize("parse", [values.parse_name, values.parse_regex, values.parse_text, values.parse_word])
@pytest.mark.parametrize("written", [None, 1, "", True, ()])
def test_no_text(parse: Callable[[object], str], written: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse(written)


def test_text_is_one_line() -> None:
    assert values.parse_text(" a\n b\tc ") == "a b c"


def test_shown_values_are_short_and_plain() -> None:
    assert values.show("\x1b[31mé\ud800") == r"'\x1b[31m\xe9\ud800'"
    assert len(values.show("x" * 1000)) == 60
    assert [values.show(v) for v in (None, True, False, {}, (), (1,))] == [
        "null",
        "true",
        "false",
        "a mapping",
        "an empty list",
        "a list",
    ]
