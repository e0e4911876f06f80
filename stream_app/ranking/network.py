"""The inner loops of the ranker: a linear model and a small network beside it, over plain arrays.

The network's score of a candidate is ``skip . x + outer . relu(inner @ [x, context, 1])`` for its scaled features
``x`` and what is known of the request (``context``): linear where that is enough, bent where it is not, and different
for users with short and long histories. One hidden layer of 16 measured 1 to 5 % more hits than the linear model on
two data sets, and wider ones no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled_sums
from stream_app.unowned import on_stack

__all__ = ["both_steps", "contributions", "linear_step", "network_step", "score_linear", "score_network"]


@compiled_sums
def score_linear(values: NDArray[np.float32], weights: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """``values @ weights``: float32 [k, features], float64 [features] -> float64 [k]."""
    for row in range(len(values)):
        total = 0.0
        for column in range(len(weights)):
            total += values[row, column] * weights[column]
        out[row] = total


@compiled_sums
def score_network(
    values: NDArray[np.float32],
    context: NDArray[np.float32],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Scores of a request's candidates.

    Args:
        values: float32 [k, features].
        context: float32 [c].
        skip: float64 [features].
        inner: float64 [hidden, features + c + 1], the constant last.
        outer: float64 [hidden].
        out: float64 [k], overwritten.
    """
    features = len(skip)
    hidden = len(outer)
    # What the context adds is the same for every candidate.
    fixed = on_stack(hidden, np.float64)
    for unit in range(hidden):
        total = inner[unit, features + len(context)]
        for column in range(len(context)):
            total += inner[unit, features + column] * context[column]
        fixed[unit] = total
    # Feature by feature over all candidates: long loops, of which the processor does many steps at once.
    count = len(values)
    by_feature = on_stack((features, count), np.float64)
    for row in range(count):
        for column in range(features):
            by_feature[column, row] = values[row, column]
    out[:] = 0.0
    _add_features(by_feature, skip, out)
    reached = on_stack(count, np.float64)
    for unit in range(hidden):
        reached[:] = fixed[unit]
        _add_features(by_feature, inner[unit], reached)
        weight = outer[unit]
        for row in range(count):
            out[row] += weight * max(reached[row], 0.0)


@compiled_sums
def _add_features(by_feature: NDArray[np.float64], weights: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
    """Add weighted features (float64 [features, k]) to ``sums`` [k], three at a time."""
    features, count = by_feature.shape
    column = 0
    while column + 2 < features:
        one, two, three = weights[column], weights[column + 1], weights[column + 2]
        for row in range(count):
            sums[row] += (
                one * by_feature[column, row] + two * by_feature[column + 1, row] + three * by_feature[column + 2, row]
            )
        column += 3
    while column < features:
        for row in range(count):
            sums[row] += weights[column] * by_feature[column, row]
        column += 1


@compiled_sums
def contributions(
    values: NDArray[np.float32],
    middle: NDArray[np.float32],
    context: NDArray[np.float32],
    kinds: NDArray[np.int64],
    signs: NDArray[np.float32],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """How much less each item would score if its evidence of one kind were that of the middle candidate.

    Args:
        values: float32 [items, features].
        middle: float32 [features], medians over the candidates.
        context: float32 [c].
        kinds: int64 [features], the kind of each feature.
        signs: float32 [features], 1 where being above the middle is evidence, -1 where being below is; only
            evidence is taken away.
        skip, inner, outer: as in :func:`score_network`; ``outer`` may be empty: the linear model.
        out: float64 [items, number of kinds], overwritten.
    """
    rows, features = values.shape
    hidden = len(outer)
    before, changed = on_stack(hidden, np.float64), on_stack(hidden, np.float64)
    for row in range(rows):
        for unit in range(hidden):
            total = inner[unit, features + len(context)]
            for column in range(len(context)):
                total += inner[unit, features + column] * context[column]
            for column in range(features):
                total += inner[unit, column] * values[row, column]
            before[unit] = total
        for kind in range(out.shape[1]):
            # What a kind takes away is added to what is there: most features are of other kinds.
            lost = 0.0
            speaks = False
            for column in range(features):
                above = np.float64(values[row, column] - middle[column])
                if kinds[column] == kind and signs[column] * above > 0.0:
                    if not speaks:
                        speaks = True
                        changed[:] = before
                    lost += skip[column] * above
                    for unit in range(hidden):
                        changed[unit] -= inner[unit, column] * above
            if speaks:
                for unit in range(hidden):
                    lost += outer[unit] * (max(before[unit], 0.0) - max(changed[unit], 0.0))
            out[row, kind] = lost


@compiled_sums
def linear_step(
    values: NDArray[np.float32],
    weights: NDArray[np.float64],
    start: NDArray[np.float64],
    sums: NDArray[np.float64],
    weight: float,
    learning_rate: float,
    l2: float,
    limit: float,
    bound: float,
) -> float:
    """One AdaGrad step of the softmax of row 0 against the others; how far it was from the first rank before.

    Args:
        values: float32 [rows, features]; row 0 was taken.
        weights, start, sums: float64 [features]; ``weights`` and ``sums`` are changed.
        weight: how much the example says.
        limit: longest gradient.
        bound: largest weight.

    Returns:
        1 - 1 / rank of the taken item among the rows.
    """
    share = np.empty(len(values))
    score_linear(values, weights, share)
    missed = _missed(share)
    _softmax(share)
    features = len(weights)
    gradient = np.zeros(features)
    for row in range(len(values)):
        slope = share[row] - (1.0 if row == 0 else 0.0)
        for column in range(features):
            gradient[column] += slope * values[row, column]
    _bounded(gradient, limit)
    for column in range(features):
        step = gradient[column] * weight + l2 * (weights[column] - start[column])
        sums[column] += step * step
        moved = weights[column] - learning_rate * step / np.sqrt(sums[column])
        weights[column] = min(max(moved, -bound), bound)
    return missed


@compiled_sums
def network_step(
    values: NDArray[np.float32],
    context: NDArray[np.float32],
    skip: NDArray[np.float64],
    start: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    skip_sums: NDArray[np.float64],
    inner_sums: NDArray[np.float64],
    outer_sums: NDArray[np.float64],
    weight: float,
    learning_rate: float,
    l2: float,
    limit: float,
    bound: float,
) -> float:
    """One AdaGrad step of the network. Arguments and result as in :func:`linear_step`."""
    rows, features = values.shape
    hidden, width = inner.shape
    active = np.zeros((rows, hidden))
    share = np.empty(rows)
    fixed = np.empty(hidden)
    for unit in range(hidden):
        total = inner[unit, width - 1]
        for column in range(len(context)):
            total += inner[unit, features + column] * context[column]
        fixed[unit] = total
    for row in range(rows):
        score = 0.0
        for column in range(features):
            score += skip[column] * values[row, column]
        for unit in range(hidden):
            total = fixed[unit]
            for column in range(features):
                total += inner[unit, column] * values[row, column]
            if total > 0.0:
                active[row, unit] = total
                score += outer[unit] * total
        share[row] = score
    missed = _missed(share)
    _softmax(share)
    skip_gradient = np.zeros(features)
    inner_gradient = np.zeros((hidden, width))
    outer_gradient = np.zeros(hidden)
    for row in range(rows):
        slope = share[row] - (1.0 if row == 0 else 0.0)
        for column in range(features):
            skip_gradient[column] += slope * values[row, column]
        for unit in range(hidden):
            if active[row, unit] > 0.0:
                outer_gradient[unit] += slope * active[row, unit]
                back = slope * outer[unit]
                for column in range(features):
                    inner_gradient[unit, column] += back * values[row, column]
                for column in range(len(context)):
                    inner_gradient[unit, features + column] += back * context[column]
                inner_gradient[unit, width - 1] += back
    _bounded(skip_gradient, limit)
    _bounded(outer_gradient, limit)
    for column in range(features):
        step = skip_gradient[column] * weight + l2 * (skip[column] - start[column])
        skip_sums[column] += step * step
        skip[column] = min(max(skip[column] - learning_rate * step / np.sqrt(skip_sums[column]), -bound), bound)
    for unit in range(hidden):
        _bounded(inner_gradient[unit], limit)
        step = outer_gradient[unit] * weight + l2 * outer[unit]
        outer_sums[unit] += step * step
        outer[unit] = min(max(outer[unit] - learning_rate * step / np.sqrt(outer_sums[unit]), -bound), bound)
        for column in range(width):
            step = inner_gradient[unit, column] * weight
            inner_sums[unit, column] += step * step
            moved = inner[unit, column] - learning_rate * step / np.sqrt(inner_sums[unit, column])
            inner[unit, column] = min(max(moved, -bound), bound)
    return missed


@compiled_sums
def both_steps(
    values: NDArray[np.float32],
    context: NDArray[np.float32],
    weights: NDArray[np.float64],
    start: NDArray[np.float64],
    sums: NDArray[np.float64],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    skip_sums: NDArray[np.float64],
    inner_sums: NDArray[np.float64],
    outer_sums: NDArray[np.float64],
    memory: NDArray[np.float32],
    memory_rows: NDArray[np.int64],
    memory_context: NDArray[np.float32],
    memory_weights: NDArray[np.float64],
    again: NDArray[np.int64],
    weight: float,
    learning_rate: float,
    network_rate: float,
    l2: float,
    limit: float,
    bound: float,
) -> tuple[float, float]:
    """:func:`linear_step`, :func:`network_step`, and the network's steps of remembered examples, in one call.

    Args:
        memory: float32 [kept, rows, features], remembered examples.
        memory_rows: int64 [kept], how many rows each has.
        memory_context: float32 [kept, c].
        memory_weights: float64 [kept].
        again: int64 [n], which of them are taken again.

    Returns:
        what :func:`linear_step` and :func:`network_step` return of ``values``.
    """
    linear = linear_step(values, weights, start, sums, weight, learning_rate, l2, limit, bound)
    missed = network_step(
        values, context, skip, start, inner, outer, skip_sums, inner_sums, outer_sums, weight, network_rate, l2, limit,
        bound,
    )  # fmt: skip
    for place in again:
        network_step(
            memory[place, : memory_rows[place]], memory_context[place], skip, start, inner, outer, skip_sums,
            inner_sums, outer_sums, memory_weights[place], network_rate, l2, limit, bound,
        )  # fmt: skip
    return linear, missed


@compiled_sums
def _missed(scores: NDArray[np.float64]) -> float:
    """1 - 1 / rank of the first; ties count half."""
    rank = 1.0
    for row in range(1, len(scores)):
        if scores[row] > scores[0]:
            rank += 1.0
        elif scores[row] == scores[0]:
            rank += 0.5
    return 1.0 - 1.0 / rank


@compiled_sums
def _softmax(scores: NDArray[np.float64]) -> None:
    """Scores become shares, in place."""
    largest = scores[0]
    for row in range(len(scores)):
        largest = max(largest, scores[row])
    total = 0.0
    for row in range(len(scores)):
        scores[row] = np.exp(scores[row] - largest)
        total += scores[row]
    for row in range(len(scores)):
        scores[row] /= total


@compiled_sums
def _bounded(gradient: NDArray[np.float64], limit: float) -> None:
    """Shorten a gradient to ``limit``, in place."""
    squares = 0.0
    for column in range(len(gradient)):
        squares += gradient[column] * gradient[column]
    if squares > limit * limit:
        shrink = limit / np.sqrt(squares)
        for column in range(len(gradient)):
            gradient[column] *= shrink
