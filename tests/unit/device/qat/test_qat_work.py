"""The worker behind the rings: what is on its way when a ring ends, and requests that cannot be read."""

from __future__ import annotations

import pytest
from client import PAGE
from qat_rig import CONFIG, EMPTY, ERROR, ERROR_ADDRESS, NOP, REQUESTS, RESPONSES, STATUS, TAIL, Rig, request, tell


@pytest.mark.parametrize(("register", "value"), [(CONFIG, 0), (CONFIG + 4, 0), (TAIL, 65)])
def test_it_is_busy_until_the_response_has_arrived(register: int, value: int) -> None:
    """Also when a ring is disabled, or makes no sense, right after the response was sent."""

    async def story(rig: Rig) -> None:
        client = rig.client
        rig.put(request(NOP))
        await rig.read_and_write((register, value))
        for _ in range(3):
            assert await client.get(STATUS) & 2
        assert len(client.held) == 1, "the response is on its way"
        await client.serve()
        await rig.idle()
        assert client.peek(RESPONSES, 32) != EMPTY

    tell(story)


def test_requests_before_one_that_cannot_be_read_are_done() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await client.put(CONFIG, 0)
        await client.put(CONFIG + 4, 0)
        await rig.rings(7)
        for number in range(65):
            rig.put(request(NOP, opaque=number))
        await client.unmap(REQUESTS + PAGE, PAGE)
        await rig.ring()
        assert [(await rig.take()).opaque for _ in range(64)] == list(range(64))
        await rig.idle()
        assert await client.get(ERROR) == 1
        assert await client.get(ERROR_ADDRESS, 8) == REQUESTS + PAGE
        assert await client.get(0x40, 8) == 64
        assert await client.get(0x60, 8) == 1, "nothing is asked for twice"

    tell(story)
