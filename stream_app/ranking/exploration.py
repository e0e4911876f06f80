"""Which new items get the places kept for them: Thompson sampling on their click rates.

Each new item has a Beta distribution of the rate at which it is taken when shown (Thompson 1933,
doi 10.2307/2332286; for recommendations Chapelle and Li 2011). Its prior has the mean that its promise suggests
(``retrieval.cold.promise``); what the item did so far moves it. Items are ordered by one draw each: those that promise
most come first most of the time, the others get their chance, and an item that was shown often and never taken steps
back, where the shop says what it shows (``stream_app.users.impressions``).

Draws come from a hash of the item's id and a seed, not from a generator, so that replicas and replays agree.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.heap import in_order, largest
from stream_app.mixing import GOLDEN, mixed
from stream_app.unowned import on_stack

__all__ = ["explores", "least_shown", "thompson_order"]

_BASE_RATE = 0.05
"""Mean rate of a new item of middling promise. Only ratios matter for the order; the scale sets how much one event
weighs against the prior."""
_MOST_RATE = 0.5
_LIFT = 1.0
"""Log of the factor by which the prior's mean grows per standard deviation of promise."""
_UNIT = 2.0**-53
_CONTESTANTS = 64
"""New items that compete at least, and four for each place: those that promise most, and what promises as much as the
last of them. No other has a chance worth its draw where the prior counts for some dozens of showings."""
_SURE = 50.0


@compiled
def thompson_order(
    promise: NDArray[np.float64],
    taken: NDArray[np.float64],
    passed: NDArray[np.float64],
    hashes: NDArray[np.int64],
    seed: np.uint64,
    trials: float,
    wanted: int,
    order: NDArray[np.intp],
) -> int:
    """Indices of new items, the one that deserves a reserved place most first; how many there are, of many not all.

    Args:
        promise: float64 [c], of the user taking each; any scale.
        taken: float64 [c], how often each was taken.
        passed: float64 [c], how often it was shown and not taken.
        hashes: int64 [c], of the ids; distinct, they break ties.
        seed: of user and state: the same one gives the same order.
        trials: how many showings the prior counts for; inf: no chance, promise alone decides.
        wanted: how many places there are for them.
        order: int64 [c], overwritten as far as there are any.
    """
    count = len(promise)
    lifts, places = on_stack(count, np.float64), on_stack(count, np.int32)
    _lift(promise, lifts)
    if np.isinf(trials):
        in_order(lifts, hashes, order)
        return count
    contestants = max(_CONTESTANTS, 4 * wanted)
    if trials >= _SURE and count > contestants:
        count = largest(lifts, contestants, places)
    else:
        for place in range(count):
            places[place] = place
    successes, failures = on_stack(count, np.float64), on_stack(count, np.float64)
    of_them, drawn_order = on_stack(count, np.int64), on_stack(count, np.int64)
    for at in range(count):
        place = places[at]
        mean = min(_BASE_RATE * np.exp(_LIFT * lifts[place]), _MOST_RATE)
        successes[at], failures[at] = mean * trials + taken[place], (1.0 - mean) * trials + passed[place]
        of_them[at] = hashes[place]
    draws = on_stack(count, np.float64)
    draw_rates(successes, failures, of_them, seed, draws)
    in_order(draws, of_them, drawn_order)
    for at in range(count):
        order[at] = places[drawn_order[at]]
    return count


@compiled
def explores(seed: np.uint64, share: float) -> bool:
    """Whether a slate keeps a place for an item that was hardly shown, by chance.

    Args:
        seed: of user and state: the same one decides the same.
        share: of slates that do.
    """
    return float(np.float64(mixed(seed) >> np.uint64(11))) * _UNIT < share


@compiled
def least_shown(shown: NDArray[np.uint32], scores: NDArray[np.float64], out: NDArray[np.bool_]) -> int:
    """The index of the item that may take that place first: the one shown least, of equals the best scored; -1: none.

    What everybody is shown is what everybody takes, and a ranker that learns from choices never finds out about the
    rest: most of a catalogue is never seen. So a place of some slates goes round among the candidates of the user's own
    interests (least tried first, as in UCB, Auer, Cesa-Bianchi and Fischer 2002, doi 10.1023/A:1013689704352).

    Args:
        shown: uint32 [k], how often each stood in somebody's first ranks.
        scores: float64 [k]; of equal ones the smaller index goes first.
        out: bool [k], which of them are out of the question.
    """
    found = -1
    for place, times in enumerate(shown):
        if not out[place] and (
            found < 0 or times < shown[found] or (times == shown[found] and scores[place] > scores[found])
        ):
            found = place
    return found


@compiled
def _lift(promise: NDArray[np.float64], lifts: NDArray[np.float64]) -> None:
    """How many standard deviations each is above the mean: float64 [c], overwritten."""
    count = len(promise)
    middle = squares = 0.0
    for value in promise:
        middle += value / count
    for value in promise:
        squares += (value - middle) ** 2 / count
    spread = np.sqrt(squares)
    lifts[:] = 0.0
    if spread > 1e-6:
        for place, value in enumerate(promise):
            # Rounded: the last bits differ between processors, and the draws must not.
            lifts[place] = np.rint((value - middle) / spread * 1e4) / 1e4


@compiled
def draw_rates(
    successes: NDArray[np.float64],
    failures: NDArray[np.float64],
    hashes: NDArray[np.int64],
    seed: np.uint64,
    draws: NDArray[np.float64],
) -> None:
    """One draw of Beta(successes, failures) for each, as X / (X + Y) of two Gamma draws: float64 [c], overwritten."""
    state = on_stack(1, np.uint64)
    for index in range(len(hashes)):
        state[0] = np.uint64(hashes[index]) ^ (seed * GOLDEN)
        success = _gamma(successes[index], state)
        draws[index] = success / (success + _gamma(failures[index], state))


@compiled
def _gamma(shape: float, state: NDArray[np.uint64]) -> float:
    """A draw of Gamma(shape, 1) by Marsaglia and Tsang 2000 (doi 10.1145/358407.358414)."""
    boost = 1.0
    if shape < 1.0:
        boost = _uniform(state) ** (1.0 / max(shape, 1e-3))
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _normal(_uniform(state))
        v = (1.0 + c * x) ** 3
        if v > 0.0:
            # Most are taken by a bound that needs no logarithms.
            drawn = _uniform(state)
            if drawn < 1.0 - 0.0331 * x**4 or math.log(drawn) < 0.5 * x * x + d - d * v + d * math.log(v):
                return float(max(d * v * boost, 1e-300))


@compiled
def _normal(share: float) -> float:
    """The number that a standard normal draw is below with probability ``share``, to 1e-7: PPND7 of Wichura 1988
    (algorithm AS 241, doi 10.2307/2347330), without a logarithm for 85 % of them."""
    away = share - 0.5
    if abs(away) <= 0.425:
        r = 0.180625 - away * away
        above = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
        return float(away * above / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0))
    r = math.sqrt(-math.log(min(share, 1.0 - share)))
    if r <= 5.0:
        r -= 1.6
        above = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
        found = above / ((0.12021132975 * r + 0.73700164250) * r + 1.0)
    else:
        r -= 5.0
        above = ((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150
        found = above / ((0.012258202635 * r + 0.24197894225) * r + 1.0)
    return float(found if away > 0.0 else -found)


@compiled
def _uniform(state: NDArray[np.uint64]) -> float:
    """The next number between 0 and 1, both excluded."""
    state[0] += GOLDEN
    return (float(mixed(state[0]) >> np.uint64(11)) + 0.5) * _UNIT
