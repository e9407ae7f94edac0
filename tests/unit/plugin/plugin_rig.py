"""Files for a pytest in pytest, and what runs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SCENARIO = """\
title: t
source: s
machine: {iommu: intel, devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - register: {device: edu0}
    expect: {returns: 0}
"""
BARE = """\
title: t
source: s
tier: bare
machine: {devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - dma_read: {device: edu0, iova: 0x1000, size: 4}
"""

Run = Callable[..., pytest.RunResult]
