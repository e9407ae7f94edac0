"""docs/qat-device.md says what the stub and its driver have."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path

import pytest
from client import served
from qat_rig import tell

from harness.agent import qat_layout as driver
from harness.agent.qat_ring import ENTRIES, MOST_IN_FLIGHT
from harness.device.qat import layout, operations
from harness.device.qat.stub import QatPf, QatVf

TEXT = (Path(__file__).resolve().parents[4] / "docs/qat-device.md").read_text(encoding="utf-8")


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The rows of a table below a heading, without its head."""
    section = TEXT.split(f"# {heading}\n", 1)[1]
    section = re.split(r"\n#", section, maxsplit=1)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[number]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found.splitlines()[2:]]


def test_registers_are_where_the_table_says_and_have_its_values() -> None:
    rows = table("Registers")
    model = QatPf("qat")
    bar = model.bars[0]
    for offset, name, size, _, reset, _ in rows:
        register, shift = bar._at[int(offset, 16)]
        assert (register.name, register.size, shift) == (name, int(size), 0)
        if reset != "kept":
            assert bar.read(int(offset, 16), int(size)) == int(reset, 16).to_bytes(int(size), "little"), name
    assert len(rows) == len({id(register) for register, _ in bar._at.values()}), "a register that the table has not"


def test_registers_can_be_written_as_the_table_says() -> None:
    async def story() -> None:
        model = QatPf("qat")
        async with served(model) as (_, client):
            for offset, name, size, access, _, _ in table("Registers"):
                before = await client.get(int(offset, 16), int(size))
                value = 0x40 if "RING" in name else 0x55
                await client.put(int(offset, 16), value, int(size))
                after = await client.get(int(offset, 16), int(size))
                assert after == (before if access == "ro" else value), name

    asyncio.run(story())


def test_registers_are_called_as_in_the_layouts() -> None:
    for offset, name, *_ in table("Registers"):
        plain, _, ring = name.partition("[")
        for numbers in (layout, driver):
            if hasattr(numbers, plain):
                assert getattr(numbers, plain) + 4 * int(ring.rstrip("]") or 0) == int(offset, 16), name
        assert hasattr(layout, plain)


def test_a_reset_sets_what_is_not_kept() -> None:
    async def story(rig: object) -> None:
        client = rig.client  # type: ignore[attr-defined]
        await client.put(layout.RING_INT_ENABLE, 3)
        await rig.flr()  # type: ignore[attr-defined]
        for offset, name, size, _, reset, _ in table("Registers"):
            if reset != "kept":
                assert await client.get(int(offset, 16), int(size)) == int(reset, 16), name

    tell(story)


@pytest.mark.parametrize(
    ("heading", "number", "names"),
    [
        ("FATAL", 0, layout.Cause),
        ("Operations", 0, layout.Opcode),
        ("Status codes", 0, layout.Code),
        ("Status codes", 1, layout.Reason),
    ],
)
def test_codes(heading: str, number: int, names: type[layout.Code]) -> None:
    assert {row[1]: int(row[0]) for row in table(heading, number)} == {one.name: one.value for one in names}


def test_operations_have_the_sides_of_the_table() -> None:
    for opcode, _, source, destination, *_ in table("Operations"):
        operation = operations._OPERATIONS[int(opcode)]
        assert (operation.source, operation.destination) == (source == "yes", destination == "yes")


@pytest.mark.parametrize(
    ("heading", "structs", "size"),
    [
        ("Request", (layout.REQUEST,), 64),
        ("Response", (layout.RESPONSE,), 32),
        ("Scatter list", (layout.LIST_HEAD, layout.LIST_ENTRY), 32),
    ],
)
def test_offsets_of_messages(heading: str, structs: tuple[struct.Struct, ...], size: int) -> None:
    offsets, at = [], 0
    for one in structs:
        for letter in one.format.lstrip("<").replace("16x", ""):
            offsets.append((at, struct.calcsize(letter)))
            at += struct.calcsize(letter)
    rows = [(int(offset.split(" ")[0]), int(width)) for offset, width, *_ in table(heading)]
    assert rows[: len(offsets)] == offsets
    assert sum(width for _, width in rows) == size
    assert all(f"`{one.format}`" in TEXT for one in structs)


def test_the_driver_has_the_stubs_numbers() -> None:
    for name, value in vars(driver).items():
        if not name.isupper():
            continue
        if isinstance(value, struct.Struct):
            assert value.format == getattr(layout, name).format, name
        elif hasattr(layout, name):
            assert value == getattr(layout, name), name
    for names, numbers in ((driver.CAUSES, layout.Cause), (driver.REASONS[1:], layout.Reason)):
        assert list(names) == [one.name for one in numbers]
    assert [code.upper() for code in driver.CODES] == [one.name for one in layout.Code]
    for enum in (layout.Opcode, layout.Code, layout.Status, layout.RequestFlags):
        for one in enum:
            assert getattr(driver, one.name or "") == one.value
    missing = {"VERSION", "BAR", "REQUEST_USED"} | {name for name in vars(layout) if not name.isupper()}
    different = {
        "CLASS_CODE",
        "BAR_SIZE",
        "MSIX_TABLE",
        "MSIX_PENDING",
        "VERSION_VALUE",
        "LONGEST_VALUE",
        "LOCAL_BYTES",
    }
    unused = {"RING_SIZE_MASK", "LEAST_ENTRIES_LOG2", "MOST_ENTRIES_LOG2", "RING_E_STAT"}
    unused |= {"ERROR_VECTOR", "RESPONSE_VECTOR"}
    assert set(vars(layout)) - set(vars(driver)) <= missing | different | unused


def test_configuration_space() -> None:
    for model, column in ((QatPf("pf"), 1), (QatVf("vf"), 2)):
        rows = {row[0]: row[column] for row in table("Configuration space")}
        read = model.config.read
        vendor, device = struct.unpack("<HH", read(0, 4))
        assert rows["vendor and device"] == f"{vendor:04x}:{device:04x}"
        code = int.from_bytes(read(8, 4), "little")
        assert rows["class code, revision"] == f"{code >> 8:06x}, {code & 0xFF:x}"
    assert f"table at {layout.MSIX_TABLE:#x}, pending bits at {layout.MSIX_PENDING:#x}" in TEXT
    assert f"{layout.VECTORS} vectors" in TEXT


def test_what_is_said_of_the_driver() -> None:
    assert f"has {ENTRIES} entries in each ring" in TEXT
    assert f"at most {MOST_IN_FLIGHT} requests" in TEXT


def test_the_worked_example() -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code[1], names)  # noqa: S102 - the documentation's own

    async def story() -> None:
        model = QatPf("qat")
        async with served(model) as (_, client):
            for base in (0x7FF0000, 0x7FF1000, 0x40000000, 0x40001000):
                await client.map(base, 0x1000)
            client.poke(0x40000000, bytes(range(256)) * 16)
            client.poke(0x7FF1000, b"\x7f" * 2048)
            client.poke(0x7FF0000, names["request"])  # type: ignore[arg-type]
            for offset, value in names["registers"]:  # type: ignore[attr-defined]
                await client.put(offset, value)
            await client.arrived(4)
            while await client.get(layout.STATUS) & 2:
                await asyncio.sleep(0)
            assert client.peek(0x7FF1000, 32) == names["response"]
            assert client.peek(0x40001000, 4096) == bytes(range(256)) * 16

    asyncio.run(story())


@pytest.mark.parametrize(("model", "column"), [(QatPf, 1), (QatVf, 2)])
def test_the_subsystem(model: type[QatPf], column: int) -> None:
    (row,) = [row for row in table("Configuration space") if row[0] == "subsystem"]
    vendor, device = (int(part, 16) for part in row[column].split(":"))
    assert model("qat").config.read(0x2C, 4) == struct.pack("<HH", vendor, device)
