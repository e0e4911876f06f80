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
from stream_app.heap import largest
from stream_app.mixing import GOLDEN, mixed
from stream_app.ranking.slate import in_order

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
) -> NDArray[np.intp]:
    """Indices of new items, the one that deserves a reserved place most first: int64 [up to c], not all of many.

    Args:
        promise: float64 [c], of the user taking each; any scale.
        taken: float64 [c], how often each was taken.
        passed: float64 [c], how often it was shown and not taken.
        hashes: int64 [c], of the ids; distinct, they break ties.
        seed: of user and state: the same one gives the same order.
        trials: how many showings the prior counts for; inf: no chance, promise alone decides.
        wanted: how many places there are for them.
    """
    lifts = _lifts(promise)
    if np.isinf(trials):
        return in_order(lifts, hashes)
    places = np.arange(len(lifts)).astype(np.int32)
    contestants = max(_CONTESTANTS, 4 * wanted)
    if trials >= _SURE and len(lifts) > contestants:
        places = places[: largest(lifts, contestants, places)]
    mean = np.minimum(_BASE_RATE * np.exp(_LIFT * lifts[places]), _MOST_RATE)
    draws = _draws(mean * trials + taken[places], (1.0 - mean) * trials + passed[places], hashes[places], seed)
    return places[in_order(draws, hashes[places])].astype(np.int64)


@compiled
def explores(seed: np.uint64, share: float) -> bool:
    """Whether a slate keeps a place for an item that was hardly shown, by chance.

    Args:
        seed: of user and state: the same one decides the same.
        share: of slates that do.
    """
    return float(np.float64(mixed(seed) >> np.uint64(11))) * _UNIT < share


@compiled
def least_shown(shown: NDArray[np.uint32], scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of items in the order in which they may take that place: those shown least, of these the best scored.

    What everybody is shown is what everybody takes, and a ranker that learns from choices never finds out about the
    rest: most of a catalogue is never seen. So a place of some slates goes round among the candidates of the user's own
    interests (least tried first, as in UCB, Auer, Cesa-Bianchi and Fischer 2002, doi 10.1023/A:1013689704352).

    Args:
        shown: uint32 [k], how often each stood in somebody's first ranks.
        scores: float64 [k]; of equal ones the smaller index goes first.
    """
    keys = np.empty(len(shown))
    for place, times in enumerate(shown):
        keys[place] = -np.float64(times)
    return in_order(keys, -scores)


@compiled
def _lifts(promise: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many standard deviations each is above the mean."""
    count = len(promise)
    middle = squares = 0.0
    for value in promise:
        middle += value / count
    for value in promise:
        squares += (value - middle) ** 2 / count
    spread = np.sqrt(squares)
    lifts = np.zeros(count)
    if spread > 1e-6:
        for place, value in enumerate(promise):
            # Rounded: the last bits differ between processors, and the draws must not.
            lifts[place] = np.rint((value - middle) / spread * 1e4) / 1e4
    return lifts


@compiled
def _draws(
    successes: NDArray[np.float64], failures: NDArray[np.float64], hashes: NDArray[np.int64], seed: np.uint64
) -> NDArray[np.float64]:
    """One draw of Beta(successes, failures) for each, as X / (X + Y) of two Gamma draws."""
    draws = np.empty(len(hashes))
    state = np.zeros(1, np.uint64)
    for index in range(len(hashes)):
        state[0] = np.uint64(hashes[index]) ^ (seed * GOLDEN)
        success = _gamma(successes[index], state)
        draws[index] = success / (success + _gamma(failures[index], state))
    return draws


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
        # A normal draw by Box and Muller.
        x = math.sqrt(-2.0 * math.log(_uniform(state))) * math.cos(2.0 * math.pi * _uniform(state))
        v = (1.0 + c * x) ** 3
        if v > 0.0:
            # Most are taken by a bound that needs no logarithms.
            drawn = _uniform(state)
            if drawn < 1.0 - 0.0331 * x**4 or math.log(drawn) < 0.5 * x * x + d - d * v + d * math.log(v):
                return float(max(d * v * boost, 1e-300))


@compiled
def _uniform(state: NDArray[np.uint64]) -> float:
    """The next number between 0 and 1, both excluded."""
    state[0] += GOLDEN
    return (float(mixed(state[0]) >> np.uint64(11)) + 0.5) * _UNIT
