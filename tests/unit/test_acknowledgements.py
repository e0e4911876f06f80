"""What may be committed of a partition, in whatever order its records are done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_app.delivery.acknowledgements import Acknowledgements


@given(st.data())
def test_the_position_is_behind_the_last_record_that_is_done_with_all_before(data: st.DataObject):
    offsets = sorted(data.draw(st.sets(st.integers(0, 60), max_size=25)))
    order = data.draw(st.lists(st.sampled_from(offsets), max_size=60)) if offsets else []
    parts = sorted(data.draw(st.lists(st.integers(0, len(offsets)), max_size=3)))
    held = Acknowledgements()
    for start, end in zip([0, *parts], [*parts, len(offsets)], strict=True):
        held.deliver(offsets[max(0, start - 1) : end])  # the last one before may come again
    done: set[int] = set()
    for offset in order:
        held.acknowledge(offset)
        done.add(offset)
        first = next((place for place, one in enumerate(offsets) if one not in done), len(offsets))
        assert held.position == (offsets[first - 1] + 1 if first else None)


def test_it_keeps_nothing_of_what_is_done():
    held = Acknowledgements()
    held.deliver(range(1_000))
    for offset in reversed(range(1_000)):
        held.acknowledge(offset)
    assert held.position == 1_000
    assert not held._waiting
    assert not held._done
