"""docs/device-models.md: its device works, and its tables name what there is."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from client import decode, served, signalled

import harness.device
from harness.device.__main__ import load
from harness.device.model import Model

TEXT = (Path(__file__).parents[3] / "docs" / "device-models.md").read_text(encoding="utf-8")
ADDRESS, SIZE, STATUS, SUM, GO = 0x00, 0x08, 0x0C, 0x10, 0x18
DONE, REFUSED = 2, 3


def summer(folder: Path) -> Model:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (folder / "summer.py").write_text(code)
    return load(f"{folder}/summer.py:Summer")("summer")


def test_the_device_adds_up_and_interrupts_and_tells_a_refusal(tmp_path: Path) -> None:
    model = summer(tmp_path)
    assert set(decode(model.config)) == {0x10, 0x11}

    async def story() -> None:
        async with served(model) as (_, client):
            event = os.eventfd(0)
            await client.interrupts(0, event)
            await client.map(0x10000, 0x20000)
            data = bytes(n % 256 for n in range(0x1F000))
            client.poke(0x10123, data)
            for address, status, value in ((0x10123, DONE, sum(data)), (0x20000, REFUSED, 0x30000)):
                await client.put(ADDRESS, address, 8)
                await client.put(SIZE, len(data))
                await client.put(GO, 1)
                assert await signalled(event) == 1
                assert (await client.get(STATUS), await client.get(SUM, 8)) == (status, value)
            os.close(event)

    asyncio.run(story())
    assert model.failure is None


def test_every_file_is_in_the_table() -> None:
    folder = Path(harness.device.__file__).parent
    table = TEXT.split("## Where it lives")[1]
    for file in folder.glob("*.py"):
        assert file.name == "__init__.py" or f"`{file.name}`" in table, file.name
