"""Every system call of USDM fails once at every place, on a real kernel with a real container."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.guest.guest import Guest

PROGRAM = (Path(__file__).parent / "programs/syscall_faults.py").read_bytes()


@pytest.mark.timeout(300)
def test_nothing_is_left_behind_and_the_next_call_works(clone: Callable[[], AbstractContextManager[Guest]]):
    with clone() as guest:
        deadline = Deadline.after(200)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        done = guest.run("python3 -I -", deadline, stdin=PROGRAM)
    assert done.status == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["problems"] == []
    # Each makes at least one system call; registering memory and giving it up make several.
    assert all(count >= 1 for count in found["injected"].values()), found["injected"]
    assert found["injected"]["register"] >= 5
    assert sum(found["injected"].values()) >= 25
