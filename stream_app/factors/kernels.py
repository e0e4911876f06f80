"""The inner loops of the factor model, over plain arrays; see :mod:`stream_app.factors.learner` for the method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled, compiled_sums
from stream_app.mixing import GOLDEN, below, mixed
from stream_app.prefetch import AHEAD, prefetch_row
from stream_app.unowned import on_stack

__all__ = ["both_memories", "learn_examples", "score_rows", "user_factors"]


@compiled_sums
def user_factors(
    rows: NDArray[np.int32], context: NDArray[np.float32], decay: float, norm: float, out: NDArray[np.float32]
) -> float:
    """A user's factors from recent items: the decayed sum of their context factors over (sum of weights) ** norm.

    Args:
        rows: int32 [n], newest first; negative rows are left out (they keep their lag).
        context: float32 [rows, k].
        decay: weight per lag.
        norm: exponent of the sum of weights.
        out: float32 [k], overwritten.

    Returns:
        what each context vector's weight ``decay ** lag`` was multiplied with; 0 when there was nothing.
    """
    size = context.shape[1]
    out[:] = 0.0
    total = 0.0
    weight = 1.0
    for lag in range(len(rows)):
        row = rows[lag]
        if row >= 0:
            total += weight
            share = np.float32(weight)
            for column in range(size):
                out[column] += share * context[row, column]
        weight *= decay
    if total <= 0.0:
        return 0.0
    factor: float = total**-norm
    for column in range(size):
        out[column] *= np.float32(factor)
    return factor


@compiled
def both_memories(
    recent: NDArray[np.int32],
    context: NDArray[np.float32],
    has: NDArray[np.bool_],
    reach: int,
    decay: float,
    fast_decay: float,
    norm: float,
    out: NDArray[np.float32],
) -> None:
    """A user's factors by a long and by a short memory; see ``Factors.users``.

    Args:
        recent: int32, rows of recent items, newest first.
        has: bool by row, which have factors; the others keep their lag.
        reach: how many of them count.
        out: float32 [2, k], overwritten.
    """
    rows = on_stack(min(len(recent), reach), np.int32)
    for place in range(len(rows)):
        rows[place] = recent[place] if has[recent[place]] else -1
    user_factors(rows, context, decay, norm, out[0])
    user_factors(rows, context, fast_decay, norm, out[1])


@compiled_sums
def learn_examples(
    taken: NDArray[np.int32],
    history: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    draws: NDArray[np.uint64],
    part: int,
    drawable: NDArray[np.int32],
    context: NDArray[np.float32],
    target: NDArray[np.float32],
    bias: NDArray[np.float32],
    accumulators: NDArray[np.float32],
    applied: NDArray[np.int64],
    waiting: NDArray[np.int64],
    stamp: int,
    learning_rate: float,
    l2: float,
    negatives: int,
    decay: float,
    norm: float,
    limit: float,
) -> float:
    """One step per example, in order. Every row takes every source offset at most once.

    Args:
        taken: int32 [n], the taken item's row.
        history: int32 [n, h], rows of the items before it, newest first.
        lengths: int32 [n], how many of those.
        weights: float64 [n], how much each example says.
        offsets: int64 [n], source offsets, rising.
        draws: uint64 [n], what decides which negatives each example draws.
        part: the column of their source partition in ``applied``.
        drawable: int32 [m], rows that negatives are drawn from, uniformly.
        context, target: float32 [rows, k], changed in place.
        bias: float32 [rows], changed.
        accumulators: float32 [rows, 3], AdaGrad sums of context, target, bias; changed.
        applied: int64 [rows, partitions], changed.
        waiting: int64 [rows], the stamp at which a row first changed since it was broadcast, -1: it has not.
        stamp: what to write there.
        limit: longest gradient of the user's factors.

    Returns:
        the sum of the losses before the steps.
    """
    size = context.shape[1]
    user = np.empty(size, np.float32)
    pull = np.empty(size, np.float32)
    rows = np.empty(negatives + 1, np.int32)
    share = np.empty(negatives + 1, np.float64)
    loss = 0.0
    for example in range(len(taken)):
        offset = offsets[example]
        recent = history[example, : lengths[example]]
        scale = user_factors(recent, context, decay, norm, user)
        rows[0] = taken[example]
        count = 1
        # Mixed twice: the sequences of neighbouring numbers must not be one sequence, shifted.
        state = mixed(draws[example] * np.uint64(0xD1342543DE82EF95))
        for _ in range(negatives):
            # SplitMix64 (Steele, Lea and Flood 2014): the same draws whenever the example is replayed.
            state = state + GOLDEN
            row = drawable[below(mixed(state), len(drawable))]
            if row != rows[0]:
                prefetch_row(target, row)
                rows[count] = row
                count += 1
        largest = -1e30
        for place in range(count):
            row = rows[place]
            score = np.float32(0.0)
            for column in range(size):
                score += user[column] * target[row, column]
            share[place] = score + bias[row]
            largest = max(largest, share[place])
        total = 0.0
        for place in range(count):
            share[place] = np.exp(share[place] - largest)
            total += share[place]
        pull[:] = 0.0
        loss -= np.log(max(share[0] / total, 1e-30))
        for place in range(count):
            row = rows[place]
            slope = share[place] / total
            if place == 0:
                slope -= 1.0
            slope = np.float32(slope * weights[example])
            for column in range(size):
                pull[column] += slope * target[row, column]
            if applied[row, part] >= offset:
                continue
            squares = np.float32(0.0)
            for column in range(size):
                gradient = slope * user[column] + np.float32(l2) * target[row, column]
                squares += gradient * gradient
            accumulators[row, 1] += squares / size
            accumulators[row, 2] += slope * slope
            rate = np.float32(learning_rate / np.sqrt(accumulators[row, 1]))
            for column in range(size):
                target[row, column] -= rate * (slope * user[column] + np.float32(l2) * target[row, column])
            bias[row] -= learning_rate * slope / np.sqrt(accumulators[row, 2])
        length = np.float32(0.0)
        for column in range(size):
            length += pull[column] * pull[column]
        if length > limit * limit:
            shrink = np.float32(limit / np.sqrt(length))
            for column in range(size):
                pull[column] *= shrink
            length = np.float32(limit * limit)
        weight = scale
        for lag in range(len(recent)):
            row = recent[lag]
            if row >= 0 and scale > 0.0 and applied[row, part] < offset:
                accumulators[row, 0] += weight * weight * length / size
                rate = np.float32(learning_rate / np.sqrt(accumulators[row, 0]))
                for column in range(size):
                    context[row, column] -= rate * (
                        np.float32(weight) * pull[column] + np.float32(l2) * context[row, column]
                    )
            weight *= decay
        for place in range(count):
            _moved(rows[place], part, offset, applied, waiting, stamp)
        for lag in range(len(recent)):
            if recent[lag] >= 0:
                _moved(recent[lag], part, offset, applied, waiting, stamp)
    return loss


@compiled_sums
def _moved(
    row: int,
    part: int,
    offset: int,
    applied: NDArray[np.int64],
    waiting: NDArray[np.int64],
    stamp: int,
) -> None:
    if applied[row, part] < offset:
        applied[row, part] = offset
        if waiting[row] < 0:
            waiting[row] = stamp


@compiled_sums
def score_rows(
    users: NDArray[np.float32],
    target: NDArray[np.float32],
    bias: NDArray[np.float32],
    rows: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """``user . target + bias`` of rows: float32 [users, len(rows) or more], overwritten as far as there are rows.

    Args:
        users: float32 [users, k].
        target: float32 [any, k].
        bias: float32 [any].
        rows: int32 [n].
    """
    for place, row in enumerate(rows):
        prefetch_row(target, rows[min(place + AHEAD, len(rows) - 1)])
        for user in range(len(users)):
            score = bias[row]
            for column in range(target.shape[1]):
                score += users[user, column] * target[row, column]
            scores[user, place] = score
