"""What a file says of Intel's library: right and wrong, with the place of what is wrong."""

from __future__ import annotations

import pytest
from scenario_said import FILE, HEAD, said

from harness.scenario import Scenario, parse_scenario
from harness.scenario.defects import DEFECTS, OTHER
from harness.scenario.machine import Needs

STEPS = """\
steps:
  - register: {device: edu0}
  - buffer: {as: a, size: 8K}
  - map: {buffer: a, size: 8K}
"""  # the next step is in line 8


def with_step(line: str) -> str:
    return f"{HEAD}{STEPS}  - {line}\n"


def parsed(text: str) -> Scenario:
    return parse_scenario(text, FILE)


# ---- a step


@pytest.mark.parametrize("defect", [*DEFECTS, *OTHER])
def test_every_known_difference_can_be_named(defect: str) -> None:
    step = parsed(
        with_step(f"{{unmap: {{buffer: a, size: 4K}}, expect: {{error: X}}, libusdm: {{defect: {defect}}}}}")
    ).steps[3]
    assert step.libusdm is not None
    assert (step.libusdm.defect, step.libusdm.versions) == (defect, None)
    assert not step.libusdm.expect.model_fields_set
    assert step.libusdm.applies("26.08.0-2")


@pytest.mark.parametrize(
    ("expect", "key", "value"),
    [
        ("error: CFailure", "error", "CFailure"),
        ("error: NotOffered", "error", "NotOffered"),
        ("returns: 0", "returns", 0),
        ("says: 'returned 1 and said: .*'", "says", "returned 1 and said: .*"),
    ],
)
def test_what_is_expected_instead(expect: str, key: str, value: object) -> None:
    line = f"{{unmap: {{buffer: a, size: 4K}}, libusdm: {{defect: D6, expect: {{{expect}}}}}}}"
    known = parsed(with_step(line)).steps[3].libusdm
    assert known is not None
    assert getattr(known.expect, key) == value
    assert known.expect.names(key)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{unmap: {buffer: a, size: 4K}, libusdm: D1}", "8:45 expected a mapping, found 'D1'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {}}", "8:36 expected 'defect' in 'libusdm', found none"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expects: {}}}",
         "8:58 expected a known key in 'libusdm', found 'expects'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, versions: 26.08}}",
         "8:68 expected a comparison with a version, found 26.08"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, versions: newer}}",
         "8:68 expected a comparison with a version, found 'newer'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expect: {error: not so}}}",
         "8:74 expected the class name of an error of usdm, found 'not so'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expect: {says: '('}}}",
         "8:73 expected a regular expression, found '('"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expect: {eror: X}}}",
         "8:67 expected a known key in 'expect', found 'eror'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expect: {same: true}}}",
         "8:67 expected a key that fits unmap, found 'same'"),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D1, expect: {returns: null}}}",
         "8:76 expected an integer or nonzero, found null"),
        ("{translate: {buffer: a}, libusdm: {defect: D1, expect: {error: CFailure, translation: absent}}}",
         "8:78 expected either error or translation, found both"),
        ("{translate: {buffer: a}, libusdm: {defect: D1, expect: {counts: {present: many}}}}",
         "8:79 expected an integer, found 'many'"),
        ("{fork: {steps: [{open: {device: edu0}}]}, libusdm: {defect: F1, expect: {error: X}}}",
         "8:78 expected a key that fits fork, found 'error'"),
        ("{fork: {steps: [{map: {buffer: a, size: 4K}, libusdm: {defect: F1, expect: {equal: true}}}]}}",
         "8:81 expected a key that fits map, found 'equal'"),
        ("{fork: {steps: [{map: {buffer: a, size: 4K}, libusdm: {defect: F9}}]}}", None),
        ("{unmap: {buffer: a, size: 4K}, libusdm: {defect: D99}}", None),
    ],
)  # fmt: skip
def test_one_mistake(line: str, message: str | None) -> None:
    found = said(with_step(line))
    if message is None:  # all that there are
        assert len(found) == 1
        assert f"expected {', '.join([*DEFECTS, *list(OTHER)[:-1]])} or absent, found " in found[0]
    else:
        assert found == [message]


def test_pointers_and_nodes_are_checked_too() -> None:
    assert said(with_step("{unmap: {buffer: a, size: 4K}, expect: {pointer: kept}}")) == [
        "8:45 expected a key that fits unmap, found 'pointer'"
    ]
    assert said(with_step("{nodes: {buffer: a}, expect: {nodes: 0}}")) == ["8:42 expected a list, found 0"]
    assert said(HEAD + STEPS + "  - alloc: {as: m, size: 64}\n  - {free: {buffer: m}, expect: {pointer: gone}}\n") == [
        "9:43 expected null or kept, found 'gone'"
    ]


# ---- the whole scenario

FAULT = "{device: edu0, access: read, address: 0x900000, reason: 6}"


def with_expect(text: str) -> str:
    return f"{HEAD}steps: [{{open: {{device: edu0}}, id: x}}]\nexpect:\n  libusdm: {text}\n"  # in line 6


def test_other_faults() -> None:
    known = parsed(with_expect(f"{{defect: D3, versions: '<26.08', faults: [{FAULT}]}}")).expect.libusdm
    assert known is not None
    assert (known.defect, len(known.faults), known.faults[0].address) == ("D3", 1, 0x900000)
    assert [known.applies(version) for version in ("24.02.0-1", "26.08.0-2")] == [True, False]
    none = parsed(with_expect(f"{{defect: policy}}\n  faults: [{FAULT}]")).expect.libusdm
    assert none is not None
    assert none.faults == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{faults: []}", "6:3 expected 'defect' in 'libusdm', found none"),
        ("{defect: D3, expect: {}}", "6:25 expected a known key in 'libusdm', found 'expect'"),
        ("{defect: D3, faults: 5}", "6:33 expected a list, found 5"),
        ("{defect: D3, faults: [{device: edu9, access: read, address: 1, reason: 6}]}",
         "6:43 expected a device of the machine, found 'edu9'"),
        ("{defect: D3, faults: [{device: edu0, access: read, buffer: b, reason: 6}]}",
         "6:71 expected a buffer that an earlier step made, found 'b'"),
        ("{defect: D3, faults: [{device: edu0, access: read, address: 1, reason: 6, step: z}]}",
         "6:92 expected the id of a step, found 'z'"),
        ("{defect: D3, faults: [{device: edu0, access: read, address: 1, reason: 6, step: x}]}",
         "6:92 expected a step of kind dma_read, found 'x', a open"),
    ],
)  # fmt: skip
def test_one_mistake_in_the_other_faults(text: str, message: str) -> None:
    assert said(with_expect(text)) == [message]


# ---- needs


def needing(text: str) -> Needs:
    return parsed(f"{HEAD}needs: {text}\nsteps: [{{open: {{device: edu0}}}}]\n").needs


def unmet(needs: Needs, implementation: str = "usdm", libusdm: str = "") -> str | None:
    return needs.unmet(qemu="11.1.3", kernel="6.12.88+deb13-amd64", implementation=implementation, libusdm=libusdm)


def test_what_the_steps_make_sense_on() -> None:
    only = needing("{implementation: libusdm}")
    assert unmet(only, "libusdm", "26.08.0-2") is None
    assert unmet(only) == "needs the implementation libusdm, this is usdm"
    assert unmet(only, "both", "26.08.0-2") == "needs the implementation libusdm, this is both"
    ours = needing("{implementation: usdm}")
    assert unmet(ours) is None
    assert unmet(ours, "libusdm", "26.08.0-2") == "needs the implementation usdm, this is libusdm"
    assert unmet(ours, "both", "26.08.0-2") == "needs the implementation usdm, this is both"
    assert all(unmet(needing("{}"), one, "26.08.0-2") is None for one in ("usdm", "libusdm", "both"))


def test_a_version_of_the_library_is_asked_for_where_it_runs() -> None:
    needs = needing('{libusdm: ">=26.08"}')
    assert unmet(needs) is None
    assert unmet(needs, "both", "26.08.0-2") is None
    assert unmet(needs, "both", "24.02.0-1") == "needs libusdm >=26.08, this is 24.02.0-1"


def test_all_that_is_missing_is_told() -> None:
    needs = needing('{qemu: ">=12", kernel: ">=7", implementation: usdm, libusdm: ">=27"}')
    assert unmet(needs, "both", "26.08.0-2") == (
        "needs QEMU >=12, this is 11.1.3; needs kernel >=7, this is 6.12.88+deb13-amd64; "
        "needs the implementation usdm, this is both; needs libusdm >=27, this is 26.08.0-2"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{implementation: both}", "4:25 expected usdm, libusdm or kernel, found 'both'"),
        ("{libusdm: 26.08}", "4:18 expected a comparison with a version, found 26.08"),
        ("{libusmd: '>=26.08'}", "4:9 expected a known key in 'needs', found 'libusmd'"),
    ],
)
def test_needs_that_are_wrong(text: str, message: str) -> None:
    assert said(f"{HEAD}needs: {text}\nsteps: [{{open: {{device: edu0}}}}]\n") == [message]


# ---- machines and steps that came with it


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("buffer: {as: b, size: 4K, align: 3K}", "8:38 expected a power of two from 4K to 1G, found 3072"),
        ("buffer: {as: b, size: 4K, align: 2K}", "8:38 expected a power of two from 4K to 1G, found 2048"),
        ("buffer: {as: b, size: 4K, align: 2G}", "8:38 expected a power of two from 4K to 1G, found 2147483648"),
        ("map_each: {buffer: a, size: 4K}", "8:5 expected 'count' in 'map_each', found none"),
        ("map_each: {buffer: a, size: 4K, count: 0}", "8:44 expected a number of at least 1, found 0"),
        ("unmap_each: {buffer: c, size: 4K, count: 1}",
         "8:26 expected a buffer that an earlier step made, found 'c'"),
        ("open: {device: edu0, type: type2}", "8:32 expected type1 or type1v2, found 'type2'"),
        ("threads: {count: 65, rounds: 1}", "8:22 expected a number of at most 64, found 65"),
        ("hugepages: {pages: -1}", "8:24 expected a number of at least 0, found -1"),
        ("environment: {name: X, value: 8}", "8:35 expected a word or text, found 8"),
        ("limit_memory: {bytes: 64KB}", "8:27 expected a size, found '64KB'"),
        ("mem_init: {x: 1}", "8:16 expected a known key in 'mem_init', found 'x'"),
    ],
)  # fmt: skip
def test_one_mistake_in_a_new_kind_of_step(line: str, message: str) -> None:
    assert said(with_step(line)) == [message]


@pytest.mark.parametrize("name", ["qat", "8X", "A-B", "''"])
def test_the_name_of_a_variable(name: str) -> None:
    (found,) = said(with_step(f"environment: {{name: {name}, value: x}}"))
    assert found.startswith("8:25 expected "), "in the words of all other mistakes"


def test_a_width_of_36_bits_is_for_virtio_only() -> None:
    steps = "steps: [{buffer: {as: a, size: 1}}]\n"
    assert parsed(f"title: t\nsource: s\nmachine: {{iommu: virtio, aw_bits: 36}}\n{steps}").machine.aw_bits == 36
    (found,) = said(f"title: t\nsource: s\nmachine: {{aw_bits: 36}}\n{steps}")
    assert found == "3:10 expected aw_bits 39 or 48, found 36"


def test_a_buffer_whose_pieces_were_mapped_has_no_iova_of_its_own() -> None:
    """The step would end with NoIova: what a piece got is not kept."""
    lines = "  - buffer: {as: p, size: 8K}\n  - map_each: {buffer: p, size: 4K, count: 2}\n"
    text = f"{HEAD}{STEPS}{lines}  - dma_read: {{device: edu0, buffer: p, size: 16}}\n"
    assert said(text) == ["10:38 expected a buffer with an IOVA, found 'p'"]
