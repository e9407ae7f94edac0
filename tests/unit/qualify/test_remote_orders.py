"""What a cell takes of a worker, and what it is sent as."""

from __future__ import annotations

from dataclasses import replace

import pytest
from remote_rig import cell, resources

from harness.errors import InfrastructureError
from harness.machine import accel
from harness.paths import scenarios_dir
from harness.qualify.remote.orders import KVM_SHARE, Entry, make_order, needs_of
from harness.run import resources as module
from harness.run.options import RunOptions
from harness.scenario import load_scenario

GUEST = replace(cell("dma"), scenario=load_scenario(scenarios_dir() / "dma" / "unmapped_read.yaml"))


def test_needs_are_those_of_the_machine():
    assert needs_of(cell("bare"), resources("kvm")).resources == {"memory": 80 << 20}
    assert needs_of(GUEST, resources("tcg")).resources == {"memory": 700 << 20}
    assert needs_of(GUEST, resources("kvm")).resources == {"memory": 700 << 20, "kvm": KVM_SHARE}
    assert needs_of(GUEST, resources(version="9.2")).system == "9.2"


def test_a_build_of_the_cache_goes_by_its_key(tmp_path):
    using = resources()
    emulation = using.emulations["system"]
    fetched = replace(emulation, build=replace(emulation.build, folder=tmp_path))
    order = make_order(1, "s", GUEST, replace(using, emulations={"system": fetched}), RunOptions())
    assert order.entries == (Entry("qemu", "b" * 64),)
    assert make_order(1, "s", GUEST, using, RunOptions()).entries == ()
    assert needs_of(GUEST, replace(using, emulations={"system": fetched})).system is None


def test_kvm_need_not_be_here_where_guests_run_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accel, "_device_problem", lambda: "/dev/kvm does not exist")
    build = resources().emulations["system"].build
    assert module._decide(build, RunOptions(accel="kvm", elsewhere=True)).accelerator == "kvm"
    assert module._decide(build, RunOptions(elsewhere=True)).accelerator == "tcg"
    with pytest.raises(InfrastructureError, match="/dev/kvm does not exist"):
        module._decide(build, RunOptions(accel="kvm"))
