"""What is noted of Intel's C library while several threads call it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness.agent.ledger import NotedCalls

SIZE, APART, THREADS, ROUNDS = 128 << 10, 4 << 20, 8, 100


class Library:
    """It maps everything at the IOVA that is its address."""

    name = "libusdm"

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        return (arguments[0] if function == "qaeMemMapContiguousIova" else 0), None

    def is_absent(self, error: Exception) -> bool:
        return False


@pytest.fixture
def impatient() -> Iterator[None]:
    """Python changes threads after nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_threads_do_not_disturb_each_others_notes():
    calls = NotedCalls(Library())
    wrong: list[Exception] = []
    together = threading.Barrier(THREADS)

    def work(number: int) -> None:
        try:
            together.wait()
            for one in range(ROUNDS):
                address = (1 + number * ROUNDS + one) * APART
                calls.call("qaeMemMapContiguousIova", address, SIZE)
                calls.call("qaeMemUnmapContiguousIova", address, SIZE)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert calls.call("qaeRegisterDevice", 7) == (0, None)
    assert calls.promises(7)[0] == [], "nothing is mapped any more"
