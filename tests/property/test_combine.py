"""Points of axes: every pair that may be is covered, nothing that may not be is there, and it is always the same."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from harness.scenario.combine import combine, pairs_of

axes_of = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(
    lambda sizes: {f"a{axis}": [f"v{value}" for value in range(size)] for axis, size in enumerate(sizes)}
)
forbidden_pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)))


@given(axes=axes_of, forbidden=forbidden_pairs)
def test_pairs_cover_what_is_allowed(axes: dict[str, list[str]], forbidden: list[tuple[int, int, int, int]]) -> None:
    def allowed(point: dict[str, str]) -> bool:
        return not any(
            point.get(f"a{a}") == f"v{v}" and point.get(f"a{b}") == f"v{w}" for a, v, b, w in forbidden if a != b
        )

    everything = combine(axes, "all", allowed)
    few = combine(axes, "pairs", allowed)
    product = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    assert everything == [point for point in product if allowed(point)]
    wanted = {pair for point in everything for pair in pairs_of(point)}
    assert {pair for point in few for pair in pairs_of(point)} == wanted
    assert all(point in everything for point in few)
    assert len({tuple(point.items()) for point in few}) == len(few)
    assert few == combine(axes, "pairs", allowed)


@given(axes=axes_of)
def test_each_changes_one_axis_at_a_time(axes: dict[str, list[str]]) -> None:
    points = combine(axes, "each")
    first = points[0]
    assert first == {axis: values[0] for axis, values in axes.items()}
    assert all(sum(point[axis] != first[axis] for axis in axes) == 1 for point in points[1:])
    assert len(points) == 1 + sum(len(values) - 1 for values in axes.values())
