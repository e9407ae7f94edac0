"""Which worker gets which cell."""

from __future__ import annotations

from harness.qualify.remote.orders import Needs, WorkerFacts
from harness.qualify.remote.placement import Host, Placement, describe

MIB = 1 << 20


def host(name: str = "one", threads: int = 1, memory: int = 4096, kvm: bool = False, system: str | None = None) -> Host:
    facts = WorkerFacts(name, f"tcp://{name}", "s", "1", 2.0, threads, memory * MIB, kvm, "so", system, f"cache {name}")
    return Host(facts)


def placement(groups: str, needs: dict[int, Needs] | None = None) -> Placement:
    """Cells whose templates are letters; a dot has none."""
    every = {index: Needs(700 * MIB) for index in range(len(groups))} | (needs or {})
    by_index = {index: None if letter == "." else letter for index, letter in enumerate(groups)}
    return Placement(every, by_index, range(len(groups)))


def taken(made: Placement, *hosts: Host) -> list[int | None]:
    return [made.next_for(one, hosts) for one in hosts]


def test_templates_stay_where_they_were_made():
    one, two = host("one", 3), host("two", 3)
    made = placement("aaabbb")
    assert [taken(made, one, two) for _ in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert made.waiting == ()


def test_who_has_nothing_else_to_do_makes_a_template_again():
    one, two = host("one", 3), host("two", 3)
    made = placement("aaa")
    assert [taken(made, one, two) for _ in range(2)] == [[0, 1], [2, None]]


def test_cells_without_a_guest_wait_for_their_turn():
    made = placement("a.b.")
    one = host("one", 9)
    assert [made.next_for(one, [one]) for _ in range(5)] == [0, 1, 2, 3, None]


def test_room_is_memory_and_threads():
    one = host("one", threads=9, memory=1500)
    made = placement("aaa")
    assert [made.next_for(one, [one]) for _ in range(3)] == [0, 1, None]
    del one.running[0]
    assert made.next_for(one, [one]) == 2
    assert made.next_for(host("two", threads=0), [one]) is None


def test_what_was_lost_comes_first():
    one = host("one", threads=9)
    made = placement("aaaa")
    assert [made.next_for(one, [one]) for _ in range(2)] == [0, 1]
    made.put_back([0, 1])
    assert made.waiting == (0, 1, 2, 3)


def test_a_cell_goes_only_where_what_it_needs_is():
    needs = {0: Needs(MIB, kvm=True), 1: Needs(MIB, system="9.2"), 2: Needs(9000 * MIB)}
    made = placement("....", needs)
    plain, fast, other = host("plain"), host("fast", kvm=True), host("other", system="9.2")
    assert taken(made, plain, fast, other) == [3, 0, 1]
    assert made.impossible([plain, fast, other]) == [2]
    assert made.impossible([]) == [2]


def test_a_refusal_names_cells_and_workers():
    needs = {index: Needs(9000 * MIB, kvm=True) for index in range(5)}
    made = placement(".....", needs)
    error = made.refusal(range(5), "abcde", [host("plain", system="9.2")])
    assert error.message == (
        "no worker has what these cells need: a, b, c and 2 more need memory 9000 MiB and kvm 1. Workers: plain "
        "(tcp://plain) runs 1 at once, memory 4096 MiB, kvm 0 (so), QEMU 9.2 of its own"
    )
    assert describe(host("fast", kvm=True).facts).endswith("kvm 1 (so)")


def test_the_order_decides_where_nothing_has_to_be_made_twice():
    one = host("one", 9)
    made = placement("abaab")
    assert [made.next_for(one, [one]) for _ in range(5)] == [0, 1, 2, 3, 4]
