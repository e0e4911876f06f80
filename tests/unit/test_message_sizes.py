"""What is published in parts: the estimate by which it is cut is never below what is sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.decode import encode
from schemas.messages import TrainingExample, Transition
from stream_app.agents.interactions import _example_bytes, _transition_bytes

ids = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.integers(0, 2**63 - 1), numbers, numbers, ids, st.lists(ids, max_size=20), st.lists(numbers, max_size=4),
    st.integers(0, 4_000),
)  # fmt: skip
def test_examples(
    offset: int, at: float, weight: float, item_id: str, previous: list[str], context: list[float], features: int
) -> None:
    row = TrainingExample(
        offset=offset, at=at, weight=weight, rows=41, features="A" * features, item_id=item_id, previous=previous,
        context=context,
    )  # fmt: skip
    assert len(encode(row)) <= _example_bytes(row)


@given(st.integers(0, 2**63 - 1), numbers, numbers, ids, st.lists(st.tuples(ids, numbers, numbers), max_size=20))
def test_transitions(
    offset: int, at: float, count: float, item_id: str, previous: list[tuple[str, float, float]]
) -> None:
    row = Transition(
        offset=offset,
        at=at,
        item_id=item_id,
        count=abs(count),
        previous=[other for other, _, _ in previous],
        symmetric=[weight for _, weight, _ in previous],
        directed=[weight for _, _, weight in previous],
    )
    assert len(encode(row)) <= _transition_bytes(row)
