"""pytest in pytest, with this plugin and no other."""

from __future__ import annotations

import os

import pytest
from plugin_rig import Run

# A pytest in this process forgets what it has imported itself: so once for all tests, and not once for each.
import harness.plugin.folder
import harness.plugin.hands
import harness.plugin.matrices
import harness.plugin.python
import harness.plugin.shell  # noqa: F401


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest in this process, in a folder of its own, with the plugin and with warnings as errors."""
    for name in [one for one in os.environ if one.startswith("HARNESS_")]:
        monkeypatch.delenv(name)
    # Other plugins of the environment would be imported again for every run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def runner(*words: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "harness.pytest_plugin", "-W", "error", *words)

    return runner
