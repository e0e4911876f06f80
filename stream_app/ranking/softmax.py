"""The online ranker: softmax over the taken item and those it was compared with, learned event by event.

One example is one choice (conditional logit, McFadden 1974; as an online ranker with sampled alternatives). Two models
learn from every example side by side: a linear one, and a small network (:mod:`stream_app.ranking.network`) that also
takes every example again a few times from a bounded memory of recent ones (experience replay, Lin 1992). Steps are
AdaGrad (Duchi, Hazan and Singer 2011). Before an example is learned both are asked about it (progressive validation,
Blum, Kalai and Langford 1999). While both put the taken item about as near to the first rank, their mean ranks, which
beats either (1 % more hits on two data sets). When one is clearly better of late, that one ranks: should the network go
astray, the linear model takes over by itself. Ranks are compared, and not likelihoods: on Online Retail the network has
more hits and the smaller likelihood.

Every gradient is bounded, weights are bounded and pulled towards the start weights, so that neither a burst of events
nor a single user can turn them over.

The whole state travels in :class:`schemas.messages.RankerWeights`, with how far each source partition was learned:
learning the same examples again changes nothing. The memory of recent examples does not travel: a new learner begins
with an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import learnable, pack_float64, unpack_float32, unpack_float64
from schemas.messages import RankerWeights, TrainingExample, TrainingExamples
from stream_app.compiled import compiled
from stream_app.ranking.features import CONTEXT, FEATURE_LIMIT, start_weights
from stream_app.ranking.network import both_steps, contributions, linear_step, score_network
from stream_app.settings import RankerSettings

__all__ = ["SoftmaxRanker"]

_GRADIENT_LIMIT = 4.0
_WEIGHT_LIMIT = 4.0
_FIRST_SUM = 1.0
"""AdaGrad's sums start here: the first steps are as careful as if one unit gradient had been seen."""
_FIRST_INNER_SUM = 0.1
_CLOSE = 0.02
"""Mean losses that differ by no more than this share are as good as the same."""
_LOSS_DECAY = 0.9995
"""The mean losses look back over some 2,000 examples."""


class SoftmaxRanker:
    """The two models by feature, and how they learn.

    Args:
        names: features, in the order of the columns.
        settings: learning rates, pull towards the start, size of the network.
        variant: which of several rankers this is; the key of its weights.

    Attributes:
        weights: float64 [features] of the linear model.
        losses: running means of 1 - 1 / rank of the taken item, by the linear model and by the network, before it was
            learned.
    """

    def __init__(self, names: Sequence[str], settings: RankerSettings, *, variant: str = "default") -> None:
        self.names = tuple(names)
        self.variant = variant
        self._settings = settings
        self._start = start_weights(self.names)
        features = len(self.names)
        self.weights: NDArray[np.float64] = self._start.copy()
        self._sums = np.full(features, _FIRST_SUM)
        self._network = _Network.new(self._start, settings.hidden)
        self.losses = [0.0, 0.0]
        self._memory = np.zeros((0, settings.negatives + 1, features), np.float32)
        self._memory_rows = np.zeros(0, np.int64)
        self._memory_context = np.zeros((0, len(CONTEXT)), np.float32)
        self._memory_weights = np.zeros(0)
        self._remembered = 0
        self._applied: dict[str, int] = {}
        self.examples = 0
        self.version = 0

    @property
    def label(self) -> str:
        """Variant, version and model, for the versions of a slate."""
        return f"{self.variant}.{self.version}.{self.model}"

    @property
    def model(self) -> str:
        """What ranks: ``linear``, ``network``, or ``both``, the mean of the two."""
        trained = self._settings.hidden > 0 and self._network.examples >= max(self._settings.network_from, 1)
        linear, network = self.losses
        if not trained or network > linear * (1.0 + _CLOSE):
            return "linear"
        return "network" if network < linear * (1.0 - _CLOSE) else "both"

    def score(self, values: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of a request's candidates; differences are log-odds.

        Args:
            values: float32 [k, features], scaled.
            context: float32 [c], see :data:`stream_app.ranking.features.CONTEXT`.
        """
        out = np.empty(len(values))
        score_network(values, context, *self.parameters(), out)
        return out

    def contributions(
        self,
        values: NDArray[np.float32],
        middle: NDArray[np.float32],
        context: NDArray[np.float32],
        kinds: NDArray[np.int64],
        signs: NDArray[np.float32],
        count: int,
    ) -> NDArray[np.float64]:
        """What each kind of evidence adds to the items' scores, compared with the middle candidate.

        Args:
            values: float32 [items, features].
            middle: float32 [features], medians over the request's candidates.
            context: float32 [c].
            kinds: int64 [features], the kind of each feature, below ``count``.
            signs: float32 [features], which side of the middle is evidence.

        Returns:
            float64 [items, count].
        """
        out = np.empty((len(values), count))
        contributions(values, middle, context, kinds, signs, *self.parameters(), out)
        return out

    def parameters(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """``skip``, ``inner`` and ``outer`` of what ranks now, as ``network.score_network`` takes them; read-only."""
        network, model = self._network, self.model
        if model == "network":
            return network.skip, network.inner, network.outer
        if model == "both":
            # The mean of a linear model and a network is a network.
            return 0.5 * (self.weights + network.skip), network.inner, 0.5 * network.outer
        return self.weights, network.inner[:0], network.outer[:0]

    def learn(self, batch: TrainingExamples) -> int:
        """Learn from the examples whose offsets were not learned yet; returns how many there were.

        Raises:
            ValueError: when an example's features do not have the shape it says; those before it were learned.
        """
        columns = self._columns(batch.feature_names)
        partition = str(batch.source_partition)
        learned = 0
        try:
            for example in batch.examples:
                if example.offset <= self._applied.get(partition, -1):
                    continue
                if example.rows:
                    features = self._features(example, columns)
                    self.step(features, _context(example), weight=example.weight)
                self.examples += 1
                self._applied[partition] = example.offset
                learned += 1
        finally:
            # Also when an example is wrong: what came before it was learned, and has to be broadcast.
            if learned:
                self.version += 1
        return learned

    def step(
        self, features: NDArray[np.float32], context: NDArray[np.float32] | None = None, *, weight: float = 1.0
    ) -> float:
        """One step of both models; returns how far the linear model was from the first rank (1 - 1 / rank) before, 0
        when nothing is learned (a learning rate or weight of 0).

        Args:
            features: float32 [rows, features]; row 0 was taken.
            context: float32 [c]; None: nothing is known.
            weight: how much the choice says; bounded by 4.
        """
        settings, network = self._settings, self._network
        if context is None:
            context = np.zeros(len(CONTEXT), np.float32)
        weight = min(weight, _WEIGHT_LIMIT) if settings.learning_rate > 0.0 else 0.0
        if weight <= 0.0:
            return 0.0
        if not settings.hidden:
            return linear_step(
                features, self.weights, self._start, self._sums, weight, settings.learning_rate, settings.l2,
                _GRADIENT_LIMIT, _WEIGHT_LIMIT,
            )  # fmt: skip
        # Remembered examples with their own weights: what says little must not say more because of what came after it.
        again = np.array(self._remember(features, context, weight), np.int64)
        linear, missed = both_steps(
            features, context, self.weights, self._start, self._sums, network.skip, network.inner, network.outer,
            network.skip_sums, network.inner_sums, network.outer_sums, self._memory, self._memory_rows,
            self._memory_context, self._memory_weights, again, weight, settings.learning_rate, settings.network_rate,
            settings.l2, _GRADIENT_LIMIT, _WEIGHT_LIMIT,
        )  # fmt: skip
        # Of examples that both were asked about: from the first of the network's on.
        held = self.losses if network.examples else [linear, missed]
        pairs = zip(held, (linear, missed), strict=True)
        self.losses = [mean * _LOSS_DECAY + loss * (1.0 - _LOSS_DECAY) for mean, loss in pairs]
        network.examples += 1
        return linear

    def _remember(self, features: NDArray[np.float32], context: NDArray[np.float32], weight: float) -> list[int]:
        """Keep an example, and say which of the kept ones to take again."""
        room = self._settings.replay_memory
        if not room or not self._settings.replay or len(features) > self._memory.shape[1]:
            return []
        place = self._remembered % room
        if place >= len(self._memory_rows):
            held: list[NDArray[Any]] = [self._memory, self._memory_rows, self._memory_context, self._memory_weights]
            size = min(room, max(256, 2 * len(self._memory_rows)))
            self._memory = np.zeros((size, *self._memory.shape[1:]), np.float32)
            self._memory_rows = np.zeros(size, np.int64)
            self._memory_context = np.zeros((size, len(CONTEXT)), np.float32)
            self._memory_weights = np.zeros(size)
            fresh: list[NDArray[Any]] = [self._memory, self._memory_rows, self._memory_context, self._memory_weights]
            for old, new in zip(held, fresh, strict=True):
                new[: len(old)] = old
        self._memory[place, : len(features)] = features
        self._memory_rows[place] = len(features)
        self._memory_context[place] = context
        self._memory_weights[place] = weight
        self._remembered += 1
        filled = min(self._remembered, room)
        again = self._settings.replay
        # Not random, and as good: a stride that visits everything in another order than it came.
        return [(self._remembered * 2_654_435_761 + number * 40_503_197) % filled for number in range(again)]

    def follow(self, other: SoftmaxRanker) -> None:
        """Rank as ``other`` of the same features and settings would now, without a message; what it learns later does
        not count until the next call."""
        if other.version == self.version:
            return
        self.weights[:] = other.weights
        ours, theirs = self._network, other._network
        ours.skip[:], ours.inner[:], ours.outer[:] = theirs.skip, theirs.inner, theirs.outer
        ours.examples = theirs.examples
        self.losses, self.examples, self.version = list(other.losses), other.examples, other.version

    def weights_message(self) -> RankerWeights:
        """The whole state."""
        network = self._network
        return RankerWeights(
            variant=self.variant,
            version=self.version,
            feature_names=list(self.names),
            weights=self.weights.tolist(),
            accumulators=self._sums.tolist(),
            examples=self.examples,
            applied=dict(self._applied),
            context_names=list(CONTEXT),
            network=pack_float64(np.concatenate([network.skip, network.outer, network.inner.ravel()])),
            network_accumulators=pack_float64(
                np.concatenate([network.skip_sums, network.outer_sums, network.inner_sums.ravel()])
            ),
            network_examples=network.examples,
            losses=list(self.losses),
        )

    def restore(self, message: RankerWeights) -> bool:
        """Take over a state; False when it is another variant's or holds less than ours.

        Features the message does not know keep their start weights, features it alone knows are dropped. A network of
        another size or of other features, or none (of an older release), begins anew.

        Raises:
            ValueError: when arrays do not fit together or a number is not finite; nothing was taken over.
        """
        if message.variant != self.variant:
            return False
        if any(message.applied.get(partition, -1) < offset for partition, offset in self._applied.items()):
            return False
        if message.version < self.version:
            return False
        held = dict(zip(message.feature_names, zip(message.weights, message.accumulators, strict=True), strict=True))
        fresh = zip(self._start.tolist(), [_FIRST_SUM] * len(self.names), strict=True)
        weights, sums = (
            np.array([held.get(name, start) for name, start in zip(self.names, fresh, strict=True)], np.float64)
            .reshape(len(self.names), 2)
            .T
        )
        if not (learnable(weights) and np.isfinite(sums).all() and (sums > 0).all()):
            raise ValueError(
                f"weights {message.variant} version {message.version}: weights and sums must be finite, not too large"
            )
        network = self._network_of(message)
        self.weights, self._sums = weights.copy(), sums.copy()
        self._network = _Network.new(self._start, self._settings.hidden) if network is None else network
        self.losses = list(message.losses) if network is not None else [0.0, 0.0]
        self._applied = dict(message.applied)
        self.examples = message.examples
        self.version = message.version
        return True

    def _network_of(self, message: RankerWeights) -> _Network | None:
        """The network of a message; None when it is none of ours."""
        if tuple(message.feature_names) != self.names or tuple(message.context_names) != CONTEXT:
            return None
        if not message.network_examples or len(message.losses) != 2:
            return None
        values, sums = unpack_float64(message.network), unpack_float64(message.network_accumulators)
        fresh = _Network.new(self._start, self._settings.hidden)
        size = fresh.skip.size + fresh.outer.size + fresh.inner.size
        if len(values) != size or len(sums) != size:
            return None
        finite = learnable(values) and np.isfinite(sums).all() and np.isfinite(message.losses).all()
        if not finite or (sums <= 0).any():
            raise ValueError(f"weights {message.variant} version {message.version}: the network must be finite")
        return fresh.filled(values, sums, message.network_examples)

    def _columns(self, names: list[str]) -> NDArray[np.intp] | None:
        """Where our features are in a message of other features; None when they are the same."""
        if tuple(names) == self.names:
            return None
        place = {name: index for index, name in enumerate(names)}
        return np.array([place.get(name, len(names)) for name in self.names], np.intp)

    def _features(self, example: TrainingExample, columns: NDArray[np.intp] | None) -> NDArray[np.float32]:
        values = unpack_float32(example.features)
        if example.rows < 2 or len(values) % example.rows:
            raise ValueError(f"example at offset {example.offset}: {len(values)} values are not {example.rows} rows")
        table = values.reshape(example.rows, -1)
        if columns is not None:
            table = np.concatenate([table, np.zeros((example.rows, 1), np.float32)], axis=1)[:, columns]
        bounded = np.empty(table.shape, np.float32)
        if table.shape[1] != len(self.names) or not _bound(table.ravel(), bounded.ravel()):
            raise ValueError(
                f"example at offset {example.offset}: {table.shape[1]} finite features expected to be {len(self.names)}"
            )
        return bounded


def _context(example: TrainingExample) -> NDArray[np.float32]:
    """What the example says of its request; zeros when it is of another release or not finite."""
    bounded = np.zeros(len(CONTEXT), np.float32)
    if len(example.context) == len(CONTEXT) and not _bound(np.array(example.context, np.float64), bounded):
        bounded.fill(0.0)
    return bounded


@compiled
def _bound(values: NDArray[np.floating[Any]], bounded: NDArray[np.float32]) -> bool:
    """Put values within the bounds they are made in: one wild number must not drown every other.

    Args:
        values: float32 or float64 [n].
        bounded: float32 [n], overwritten.

    Returns:
        whether all of them are finite; otherwise ``bounded`` holds anything.
    """
    finite = True
    for place, value in enumerate(values):
        finite = finite and np.isfinite(value)
        bounded[place] = min(max(value, np.float32(-FEATURE_LIMIT)), np.float32(FEATURE_LIMIT))
    return finite


@dataclass(slots=True)
class _Network:
    """The network's parameters, their AdaGrad sums, and from how many examples they are; see ``ranking.network``."""

    skip: NDArray[np.float64]
    outer: NDArray[np.float64]
    inner: NDArray[np.float64]
    skip_sums: NDArray[np.float64]
    outer_sums: NDArray[np.float64]
    inner_sums: NDArray[np.float64]
    examples: int = 0

    @classmethod
    def new(cls, start: NDArray[np.float64], hidden: int) -> _Network:
        """The linear model with nothing bent; the same everywhere, whichever process begins it."""
        width = len(start) + len(CONTEXT) + 1
        inner = np.random.default_rng(0).normal(0.0, width**-0.5, (hidden, width))
        inner[:, -1] = 0.0
        return cls(
            start.copy(),
            np.zeros(hidden),
            inner,
            np.full(len(start), _FIRST_SUM),
            np.full(hidden, _FIRST_INNER_SUM),
            np.full((hidden, width), _FIRST_INNER_SUM),
        )

    def filled(self, values: NDArray[np.float64], sums: NDArray[np.float64], examples: int) -> _Network:
        """One of this size with the parameters of a message: skip, outer, inner."""
        cuts = [len(self.skip), len(self.skip) + len(self.outer)]
        skip, outer, inner = (part.copy() for part in np.split(values, cuts))
        skip_sums, outer_sums, inner_sums = (part.copy() for part in np.split(sums, cuts))
        shape = self.inner.shape
        return _Network(skip, outer, inner.reshape(shape), skip_sums, outer_sums, inner_sums.reshape(shape), examples)
