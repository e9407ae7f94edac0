"""What to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.qualified.records import Qualification
from harness.qualify.run import Done
from harness.qualify.show import next_lines

WITH = "--usdm mine --executor dask --scheduler tcp://a:1 -j 2"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (f"qualify m.yaml {WITH}", f"harness qualify m.yaml {WITH} --out /q --resume"),
        (
            "--debug qualify m.yaml --out q --usdm 'a b'",
            "harness --debug qualify m.yaml --usdm 'a b' --out /q --resume",
        ),
        ("qualify m.yaml --out=q --resume -k dma", "harness qualify m.yaml --out /q --resume"),
        ("qualify m.yaml -kdma --cell 'a [b]' --rebuild", "harness qualify m.yaml --out /q --resume"),
        ("qualify m.yaml --filter=dma --cell=a --jobs 3", "harness qualify m.yaml --jobs 3 --out /q --resume"),
        ("", "harness qualify /m.yaml --out /q --resume"),
    ],
)
def test_going_on_is_with_the_options_of_the_start(said: str, wanted: str) -> None:
    import shlex

    one = Qualification(started="", matrix="/m.yaml", argv=("/usr/bin/harness", *shlex.split(said)), planned=1)
    assert next(next_lines(Done(Path("/q"), one))) == f"go on:   {wanted}"
