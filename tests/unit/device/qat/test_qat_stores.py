"""STORE of the device's own bytes where it goes in several pieces."""

from __future__ import annotations

import random

import pytest
from qat_rig import DATA, DESTINATION_LIST, DONE, LOAD, STORE, Rig, request, tell

UNIT = 1 << 20
SIZE = 2 * UNIT + 4321
B = DATA + 3 * UNIT


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([(B, SIZE)], id="more than is held at a time"),
        pytest.param([(B + 5000, 1), (B, 4096), (B + 4096, 7)], id="a list"),
        pytest.param([(B + UNIT, UNIT + 5), (B, 3)], id="a list of more than is held at a time"),
    ],
)
def test_each_piece_has_the_bytes_behind_those_of_the_piece_before(pieces: list[tuple[int, int]]) -> None:
    async def story(rig: Rig) -> None:
        data = random.Random(1).randbytes(SIZE)
        rig.client.poke(DATA, data)
        assert (await rig.do(request(LOAD, (DATA, SIZE), operand=77))).code == DONE
        total = sum(size for _, size in pieces)
        if len(pieces) == 1:
            store = request(STORE, destination=pieces[0], operand=77)
        else:
            store = request(STORE, destination=(rig.listed(pieces), 0), operand=77, flags=DESTINATION_LIST)
        assert await rig.do(store) == (DONE, total, 0, 7)
        assert b"".join(rig.client.peek(*piece) for piece in pieces) == data[:total]

    tell(story, data=6 * UNIT)
