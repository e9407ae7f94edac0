"""``--harness-shell``: the guest of a test that failed, opened before it ends."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import HarnessError
from harness.run.session import GuestSession
from harness.run.shell import attach, has_terminal


def open_on_failure(item: pytest.Item, session: GuestSession, why: str) -> None:
    """Open a shell in a guest that still runs, for the person at the terminal; without one say so.

    Args:
        item: the test that failed.
        session: its guest.
        why: what failed.
    """
    manager = item.config.pluginmanager
    capture: Any = manager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend(in_=True)
    try:
        print(f"\n{item.nodeid}\n{why}")
        if not has_terminal():
            print("--harness-shell: there is no terminal, so no shell is opened in the guest")
            return
        # As for a debugger: a person takes as long as it takes, and pytest-timeout knows this call.
        item.config.hook.pytest_enter_pdb(config=item.config, pdb=None)
        print("the guest of the failed test; Ctrl-D ends it and goes on")
        attach(session.guest, None)
    except (HarnessError, TimeoutError) as error:
        print(f"--harness-shell: there is no shell in this guest: {error}")
    finally:
        if capture is not None:
            capture.resume()
