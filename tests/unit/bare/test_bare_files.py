"""What is wrong with a bare scenario is said with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.scenario import BARE_KINDS, BareScenario, ScenarioError, parse_scenario

GOOD = """tier: bare
title: t
source: s
machine: {devices: {a: {model: edu, at: "02:00.0"}, nv: {model: nvme, at: "04:00.0"}}}
tables:
  domains: {d: {pages: [{iova: 0x1000, to: 0x2000}]}}
  contexts: {a: {domain: d}}
steps:
  - enable: {}
  - dma_read: {device: a, iova: 0x900000, size: 16}
    id: one
expect:
  faults: [{device: a, access: read, address: 0x900000, reason: 6, step: one}]
"""


def said(text: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, Path("x.yaml"))
    return [f"{one.line}:{one.column}: {one.message} ({one.hint})" for one in caught.value.problems]


def test_the_good_one_is_good_and_a_program_can_make_it() -> None:
    loaded = parse_scenario(GOOD, Path("x.yaml"))
    assert isinstance(loaded, BareScenario)
    assert (loaded.id, loaded.file, loaded.steps_by_id()) == ("x", Path("x.yaml"), {"one": 1})
    made = BareScenario.model_validate(
        {
            "tier": "bare",
            "title": "t",
            "source": "s",
            "machine": {"devices": {"a": {"model": "edu", "at": "02:00.0"}}},
            "steps": [{"enable": {}}, {"dma_read": {"device": "a", "iova": 0, "size": 1}}],
        }
    )
    assert [step.kind for step in made.located("repro", Path("y")).steps] == ["enable", "dma_read"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("enable: {}", "enabel: {}", "9:5: expected a kind of step of the bare tier, found 'enabel' (did you mean"),
        ("enable: {}", "register: {device: a}", "of the bare tier, found 'register' (it is a step of a guest"),
        ("enable: {}", "enable: {queu: true}", "9:14: expected a known key in 'enable', found 'queu' (did you"),
        ("title: t\n", "title: t\nnedes: {}\n", "3:1: expected a known key in the scenario, found 'nedes'"),
        ("domain: d}", "domain: e}", "expected a domain of tables.domains, found 'e'"),
        ("{domain: d}", "{domain: d, widht: 1}", "expected a known key in 'a', found 'widht' (did you mean 'width'?)"),
        ("{domain: d}", "{domain: d, width: 9}", "expected a number of at most 7, found 9"),
        ("to: 0x2000", "to: 0x2001", "expected a multiple of the page size as to, found 0x2001"),
        ("to: 0x2000", "to: 0x2000, page: 8K", "expected 4K, 2M or 1G"),
        ("to: 0x2000", "to: 0x2000, bits: [64]", "expected numbers from 0 to 63, found 64"),
        ("dma_read: {device: a", "dma_read: {device: z", "expected a device of the machine, found 'z'"),
        ("dma_read: {device: a", "dma_read: {device: nv", "expected a device that does this, found 'nv' (nvme)"),
        ("size: 16", "size: 4096", "expected at most 4095 bytes of edu's memory, found 4096"),
        ("step: one}", "step: two}", "expected the id of a step, found 'two'"),
        ("reason: 6", "reason: 0", "expected a number of at least 1, found 0"),
        ("address: 0x900000", "index: 1", "expected an index of an interrupt, an address of a read or write"),
        ('at: "02:00.0"', 'at: "00:10.0"', "expected a PCI address where a device can be"),
        ('at: "02:00.0"', 'at: "04:00.0"', "expected an address of its own, found 04:00.0"),
        ('at: "02:00.0"', 'at: "02:01.0", bridge: true', None),
        ('at: "02:00.0"', 'at: "05:01.0", bridge: true', "expected another bus, found 04:00.0"),
        ("tables:\n", "tables:\n  mode: scalable\n", "expected a mode that the machine offers, found 'scalable'"),
        ("enable: {}", "invalidate_pasids: {}", "expected a machine with scalable mode, found none"),
        ("enable: {}", "invalidate_interrupts: {}", "expected an invalidation queue, found none"),
        ("enable: {}", "invalidate_iotlb: {scope: page}", "expected a domain and an iova beside scope: page"),
        ("enable: {}", "entry: {domain: d, iova: 0, level: 5}", "expected a level from 1 to 4, found 5"),
        ("enable: {}", "enable: {}\n    expect: {equal: true}", "expected a key that fits enable, found 'equal'"),
        ("enable: {}", "check: {address: 0, size: 0, pattern: zero}", "expected a size from 1 to 1M, found 0"),
        ("enable: {}", "interrupt: {device: nv, index: 1}", "expected an edu, found 'nv'"),
        ("enable: {}", "interrupt: {device: a}", "expected exactly one of index and address"),
    ],
)  # fmt: skip
def test_a_mistake(old: str, new: str, message: str | None) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if message is None:
        parse_scenario(text, Path("x.yaml"))
    else:
        assert any(message in one for one in said(text)), said(text)


def test_a_step_of_the_bare_tier_in_a_guests_file_is_told() -> None:
    text = "title: t\nsource: s\nmachine: {}\nsteps:\n  - clear_fault: {}\n"
    (problem,) = said(text)
    assert problem.startswith("5:5: expected a kind of step, found 'clear_fault' (it is a step of the bare tier")
    assert "clear_fault" in BARE_KINDS


def test_an_unknown_tier_is_told() -> None:
    assert any("'tier'" in one or "guest" in one for one in said(GOOD.replace("tier: bare", "tier: bear")))
