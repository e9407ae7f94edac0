"""Stories of the sample device, its server and a client."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from client import CONFIG, Client, descriptors, served
from sample import Sample

from harness.device.server import FunctionServer

Story = Callable[[FunctionServer, Client], Coroutine[Any, Any, None]]


def tell(story: Story, model: Sample | None = None, hello: bool = True) -> Sample:
    """Run a story with a server and a client; gives the model. Whatever happens, no descriptor is left."""
    model = model or Sample("s")
    before = descriptors()

    async def whole() -> None:
        async with served(model, hello) as (server, client):
            await story(server, client)

    asyncio.run(whole())
    assert descriptors() == before
    return model


async def still_works(client: Client) -> None:
    """The connection goes on."""
    assert await client.read(CONFIG, 0, 4) == struct.pack("<HH", 0x1AF4, 0x10F0)
