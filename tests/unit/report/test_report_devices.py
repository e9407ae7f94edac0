"""What a device saw in a step, in words."""

from __future__ import annotations

import pytest

from harness.report.devices import devices_text
from harness.results import DeviceNews, Transfer

GOOD = Transfer(access="read", iova=0, size=1, bus_master=True)
BAD = Transfer(access="read", iova=0, size=1, bus_master=True, refused=((0, 1),))


@pytest.mark.parametrize(
    ("news", "text"),
    [
        (DeviceNews(connected=True), ""),
        (DeviceNews(connected=True, ranges=()), "qat0: reaches nothing"),
        (DeviceNews(connected=True, ranges=((0, 1, "rw", 3, 4), (99, 1, "r", 1, 0))), "qat0: reaches 4 ranges"),
        (DeviceNews(connected=True, transfers=(GOOD,)), "qat0: 1 DMA"),
        (DeviceNews(connected=True, transfers=(GOOD, BAD), more=5), "qat0: 7 DMAs, 1 refused"),
        (DeviceNews(connected=False, transfers=(GOOD,), ranges=()), "qat0: 1 DMA; gone"),
    ],
)
def test_words(news, text):
    assert devices_text("qat0", news) == text
