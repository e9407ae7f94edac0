"""What others use of a loaded scenario."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.scenario import KINDS, Scenario, expect_keys, parse_scenario
from harness.scenario.expect import StepExpect
from harness.scenario.machine import Needs

PROJECT = Path(__file__).parents[3]

TEXT = """\
title: all kinds of steps
source: s
machine:
  {iommu: intel, aw_bits: 39, memory: 1G, vm: true, cpus: 2, kernel_args: [a=b, c],
  devices: {e: {model: edu, at: 02:00.0}, q: {model: qat, at: 03:00.0}, d: {model: nvme, at: 04:00.0}}}
needs: {qemu: ">=10.0", kernel: ">=6.16", kernel_options: {FPROBE_EVENTS: true}}
timeout: 2m
steps:
  - open: {device: e}
  - bus_master: {device: e, enabled: true}
  - register: {device: e}
  - register_fd: {fd: "null"}
  - container_info: {device: e}
    expect: {counts: {mappings_left: 65535}}
  - open: {device: e, container: other, type: type1v2}
  - environment: {name: QAT_MAX_2M_HPG_PER_PROCESS, value: "8"}
  - hugepages: {pages: 8, folder: false}
    expect: {counts: {total: 8, free: 8}}
  - limit_memory: {bytes: 64K}
  - mem_init: {}
    expect: {returns: 0}
    libusdm: {defect: H1, versions: ">=26.02", expect: {error: CFailure, says: "no pages", returns: -1}}
  - mem_init_fd: {}
    expect: {error: Unsupported}
  - statistics: {}
  - threads: {count: 4, rounds: 100}
    expect: {counts: {done: 400, wrong: 0}}
  - alloc: {as: m, size: 64K, align: 4K}
  - alloc_plain: {as: p, size: 100}
  - buffer: {as: b, size: 2M, backing: repeated}
  - map: {buffer: b, offset: 4K, size: 1M}
    expect: {returns: nonzero}
  - map: {address: 0, size: 0}
    expect: {error: NullAddress, returns: 0}
  - translate: {buffer: b, offset: 4K, size: 1M}
    expect: {translation: contiguous}
  - translate_back: {buffer: m, offset: 3}
  - fill: {buffer: m, pattern: 0x5a}
  - check: {buffer: m, offset: 1, size: 2, pattern: random, seed: 7}
    expect: {equal: false}
  - compare: {buffer: m, with: b, with_offset: 5, size: 6}
  - dma_read: {device: e, iova: 0x900000, size: 16}
    id: bad
  - dma_write: {device: e, buffer: b, offset: -4K, size: 4096}
  - container_map: {device: e, buffer: b, size: 4K, iova: 0x40000000, access: read}
  - mappings: {device: e, buffer: b, offset: 4K, size: 8K}
    expect: {mapped: whole, page_sizes: [4K, 2M], counts: {mapped: 2}}
  - container_unmap: {device: e, iova: 0x40000000, size: 4K}
  - dma_limits: {device: e, bits: 32, untrusted: true}
  - merge_boundary: {device: e}
    expect: {returns: 4095}
  - iova_alloc: {device: e, as: r, buffer: b, offset: 0x234, size: 64K}
    expect: {returns: 1}
  - iova_link: {range: r, buffer: b, offset: 0x234, size: 3532, direction: to_device, attrs: [mmio, skip_cpu_sync]}
    expect: {returns: 0}
  - iova_link_each: {range: r, buffer: b, offset: 4K, at: 3532, size: 4K, count: 8, order: scattered}
    expect: {returns: 0, counts: {done: 8}}
  - iova_sync: {range: r, size: 36300}
    expect: {returns: 0}
  - iova_info: {range: r}
    expect: {counts: {links: 9, synced: 9, mappings: 9, in_use: 1, reserved: 69632}}
  - dma_read: {device: e, range: r, offset: -1, size: 4}
    id: before_the_range
  - mappings: {device: e, range: r, size: 4K}
  - iova_unlink: {range: r, at: 3532, size: 4K}
  - iova_free: {range: r}
    expect: {error: StillLinked}
  - iova_destroy: {range: r, size: 36300}
  - stream_map: {device: e, buffer: b, size: 4K, direction: from_device}
    expect: {returns: nonzero}
  - stream_unmap: {device: e, buffer: b, size: 4K, direction: from_device}
  - noiommu: {enabled: true}
  - enable_vfs: {device: e, count: 2}
    expect: {error: NoSriov, counts: {vfs: 0}}
  - disable_vfs: {device: e}
    expect: {counts: {vfs: 0, closed: 0}}
  - open: {device: q}
  - operate: {device: q, op: copy, source: [{iova: 0x1000, size: 4K}], destination: [{buffer: m, offset: 1, size: 4K}]}
    expect: {status: read_refused, counts: {refused: 4096}}
  - operate: {device: q, op: crc32, source_list: {buffer: m}, completion: interrupt, wait: false}
  - collect: {device: q, count: 1, completion: interrupt}
    expect: {status: invalid}
  - reset: {device: q}
  - counters: {device: q}
    expect: {counts: {requests: 2}}
  - misbehave: {device: q, how: hold}
  - operate: {device: q, op: fill, destination: [{iova: 0x1000, size: 8}], wait: false}
  - resume: {device: q}
  - collect: {device: q, seconds: 0.5}
  - kernel_driver: {device: d}
    expect: {counts: {alignment: 4}}
  - trace: {name: t}
  - disk_io: {device: d, at: 1M, piece: 512, pieces: 4, stride: 4K, offset: 4, order: scattered, op: read, seed: 1}
    expect: {equal: true, counts: {bytes: 2048}}
  - trace_end: {name: t}
    expect: {shapes: [refused, streaming], counts: {lost: 0}}
  - replay: {device: e, trace: t}
    expect: {counts: {calls: 1}}
  - vanish: {device: q}
  - surprise_removal: {device: q, keep: true}
    expect: {counts: {asked: 1}}
  - unbind: {device: e}
  - unplug: {device: e}
    expect: {counts: {closed: 0}}
  - pass_through: {device: e}
  - in_vm:
      steps:
        - noiommu: {enabled: true}
        - open: {device: e}
  - fork:
      steps:
        - alloc: {as: child, size: 1}
          expect: {error: ForkedChild, returns: null}
          id: in_child
        - free: {buffer: m, zero: false}
  - unmap: {buffer: b, offset: 4K, size: 1M}
  - map_each: {buffer: b, size: 4K, count: 3}
    expect: {counts: {done: 3}, returns: nonzero}
  - unmap_each: {buffer: b, offset: 4K, size: 4K, count: 3}
  - nodes: {buffer: m, size: 8K}
    expect: {nodes: [0, 1]}
  - remap_size: {size: 5000, build: user_sriov}
    expect: {returns: 8192}
  - physical_address: {buffer: b, offset: 4K}
    expect: {counts: {contiguous: 4096}}
  - remap: {buffer: b, iova: 0x40000000, size: 4K}
    expect: {error: IovaTaken, returns: -1}
  - unremap: {iova: 0x40000000, size: 4K}
    expect: {returns: 0}
  - at_fork: {}
  - free: {buffer: m, offset: 64}
    expect: {error: InteriorPointer, pointer: kept}
  - free: {buffer: m}
    expect: {pointer: "null"}
  - mem_destroy: {}
  - free_plain: {buffer: p}
  - release: {buffer: b}
  - unregister: {device: e}
  - close: {device: e}
expect:
  faults:
    - {device: e, access: read, address: 0x900000, reason: 0x06, step: bad}
    - {requester: "02:00.0", access: write, buffer: b, offset: -4096, reason: 5}
    - {device: e, access: read, range: r, offset: -1, reason: 6, step: before_the_range}
  kernel_log: ['x\\.y']
  libusdm:
    defect: D3
    versions: "<26.02"
    faults:
      - {device: e, access: read, address: 0x900000, reason: 6, step: bad}
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return parse_scenario(TEXT, "folder/all.yaml")


def test_all_kinds_are_covered_here(scenario: Scenario) -> None:
    assert {step.kind for step in scenario.steps} == set(KINDS)


def test_machine_and_needs(scenario: Scenario) -> None:
    machine = scenario.machine
    assert (machine.iommu, machine.aw_bits, machine.memory, machine.cpus) == ("intel", 39, 1 << 30, 2)
    assert machine.kernel_args == ("a=b", "c")
    assert machine.devices["e"].at == "02:00.0"
    assert (scenario.needs.qemu, scenario.needs.kernel, scenario.timeout) == (">=10.0", ">=6.16", 120.0)


def test_defaults() -> None:
    scenario = parse_scenario("title: t\nsource: s\nmachine: {}\nsteps: [{buffer: {as: a, size: 1}}]\n", "x.yaml")
    machine = scenario.machine
    assert (machine.iommu, machine.aw_bits, machine.memory, machine.cpus) == ("intel", 48, 512 << 20, 1)
    assert (machine.kernel_args, machine.devices, scenario.timeout) == ((), {}, None)
    assert (scenario.expect.faults, scenario.expect.kernel_log) == ((), ())
    assert not any(scenario.steps[0].expect.names(key) for key in StepExpect.model_fields)
    assert (scenario.steps[0].libusdm, scenario.expect.libusdm) == (None, None)
    assert scenario.needs == Needs(qemu=None, kernel=None, implementation=None, libusdm=None)


def test_arguments_for_the_worker_are_plain_json(scenario: Scenario) -> None:
    sent = [(step.kind, step.args_json()) for step in scenario.steps]
    assert json.loads(json.dumps(sent)) == [[kind, args] for kind, args in sent]
    by_kind = dict(reversed(sent))
    assert by_kind["alloc"] == {"as": "m", "size": 65536, "align": 4096, "node": -1}
    assert by_kind["buffer"] == {"as": "b", "size": 2 << 20, "backing": "repeated", "align": 4096}
    assert by_kind["open"] == {"device": "e"}
    assert ("open", {"device": "e", "container": "other", "type": "type1v2"}) in sent
    assert by_kind["environment"] == {"name": "QAT_MAX_2M_HPG_PER_PROCESS", "value": "8"}
    assert by_kind["hugepages"] == {"pages": 8, "folder": False}
    assert by_kind["limit_memory"] == {"bytes": 65536}
    assert by_kind["threads"] == {"count": 4, "rounds": 100}
    assert by_kind["nodes"] == {"buffer": "m", "offset": 0, "size": 8192}
    assert by_kind["map_each"] == {"buffer": "b", "offset": 0, "size": 4096, "count": 3}
    assert by_kind["free"] == {"buffer": "m", "offset": 64, "zero": True}
    assert by_kind["mem_init"] == by_kind["at_fork"] == by_kind["statistics"] == {}
    assert by_kind["map"] == {"buffer": "b", "offset": 4096, "size": 1 << 20}
    assert ("map", {"address": 0, "offset": 0, "size": 0}) in sent
    assert by_kind["fill"] == {"buffer": "m", "offset": 0, "pattern": 0x5A, "seed": 0}
    assert by_kind["check"] == {"buffer": "m", "offset": 1, "size": 2, "pattern": "random", "seed": 7}
    assert by_kind["compare"] == {"buffer": "m", "offset": 0, "with": "b", "with_offset": 5, "size": 6}
    assert by_kind["dma_read"] == {"device": "e", "iova": 0x900000, "offset": 0, "size": 16, "device_offset": 0}
    assert by_kind["dma_write"] == {"device": "e", "buffer": "b", "offset": -4096, "size": 4096, "device_offset": 0}
    assert by_kind["register_fd"] == {"fd": "null"}
    assert by_kind["dma_limits"] == {"device": "e", "bits": 32, "untrusted": True}
    assert by_kind["iova_alloc"] == {"device": "e", "as": "r", "buffer": "b", "offset": 0x234, "size": 65536}
    link = {"range": "r", "buffer": "b", "offset": 0x234, "at": 0, "size": 3532}
    assert by_kind["iova_link"] == {**link, "direction": "to_device", "attrs": ["mmio", "skip_cpu_sync"]}
    assert by_kind["iova_unlink"] == {"range": "r", "at": 3532, "size": 4096, "direction": "both", "attrs": []}
    assert by_kind["iova_free"] == {"range": "r"}
    assert ("dma_read", {"device": "e", "range": "r", "offset": -1, "size": 4, "device_offset": 0}) in sent
    assert by_kind["fork"] == {
        "steps": [
            {"kind": "alloc", "args": {"as": "child", "size": 1, "align": 4096, "node": -1}},
            {"kind": "free", "args": {"buffer": "m", "offset": 0, "zero": False}},
        ]
    }


def test_what_an_expectation_says(scenario: Scenario) -> None:
    fork = next(step for step in scenario.steps if step.kind == "fork")
    expect = fork.args.steps[0].expect  # type: ignore[attr-defined]
    assert (expect.error, expect.returns, expect.names("returns"), expect.names("equal")) == (
        "ForkedChild",
        None,
        True,
        False,
    )
    assert next(step for step in scenario.steps if step.kind == "map").expect.returns == "nonzero"
    fault = scenario.expect.faults[1]
    assert (fault.requester, fault.buffer, fault.offset, fault.reason) == ("02:00.0", "b", -4096, 5)


def test_what_the_c_library_does_instead(scenario: Scenario) -> None:
    known = next(step.libusdm for step in scenario.steps if step.kind == "mem_init")
    assert known is not None
    assert (known.defect, known.expect.error, known.expect.says, known.expect.returns) == (
        "H1",
        "CFailure",
        "no pages",
        -1,
    )
    assert [known.applies(version) for version in ("26.08.0-2", "26.02.0-1", "24.02.0-1")] == [True, True, False]
    faults = scenario.expect.libusdm
    assert faults is not None
    assert (faults.defect, faults.faults[0].address) == ("D3", 0x900000)
    assert [faults.applies(version) for version in ("26.08.0-2", "24.02.0-1")] == [False, True]
    assert sum(step.libusdm is not None for step in scenario.steps) == 1


def test_which_kinds_a_scenario_uses(scenario: Scenario) -> None:
    assert all(scenario.uses(kind) for kind in KINDS)
    inside = "steps: [{fork: {steps: [{mem_init: {}}]}}]"
    small = parse_scenario(f"title: t\nsource: s\nmachine: {{}}\n{inside}\n", "x.yaml")
    assert small.uses("mem_init"), "a child's steps count"
    assert not small.uses("map")


def test_ids(scenario: Scenario) -> None:
    kinds = [step.kind for step in scenario.steps]
    read, fork = kinds.index("dma_read"), kinds.index("fork")
    assert scenario.steps[read].id == "bad"
    later = next(at for at, step in enumerate(scenario.steps) if step.id == "before_the_range")
    assert scenario.steps_by_id() == {"bad": read, "before_the_range": later, "in_child": fork}
    assert (scenario.id, scenario.file) == ("all", Path("folder/all.yaml"))


def test_a_scenario_does_not_change(scenario: Scenario) -> None:
    with pytest.raises(ValidationError):
        scenario.title = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        scenario.steps[0].args.device = "x"  # type: ignore[attr-defined]


def test_a_scenario_goes_to_other_processes(scenario: Scenario) -> None:
    copy = pickle.loads(pickle.dumps(scenario))  # noqa: S301
    assert copy == scenario
    assert copy.id == scenario.id
    assert [step.args_json() for step in copy.steps] == [step.args_json() for step in scenario.steps]


def test_a_scenario_can_be_written_and_read_as_data(scenario: Scenario) -> None:
    assert Scenario.model_validate(scenario.model_dump(by_alias=True, exclude_unset=True)) == scenario.located(
        "", Path()
    )


def test_models_take_the_form_of_files() -> None:
    data = {"title": "t", "source": "s", "machine": {}, "steps": [{"alloc": {"as": "a", "size": "2M"}, "id": "x"}]}
    step = Scenario.model_validate(data).steps[0]
    assert (step.kind, step.id, step.args_json()["size"]) == ("alloc", "x", 2 << 20)


def test_keys_of_expect() -> None:
    assert expect_keys("map") == ("error", "says", "returns")
    assert expect_keys("map_each") == ("error", "says", "returns", "counts")
    assert expect_keys("check") == ("error", "says", "equal")
    assert expect_keys("free") == ("error", "says", "pointer")
    assert expect_keys("nodes") == ("error", "says", "nodes")
    assert expect_keys("fork") == ()
