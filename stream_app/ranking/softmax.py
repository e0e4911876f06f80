"""A linear ranker that keeps learning: softmax over the taken item and those it was compared with.

One example is one choice: the gradient is the expected features under the current model minus the features of what
was taken (conditional logit, McFadden 1974; as an online ranker with sampled alternatives). Steps are AdaGrad
(Duchi, Hazan and Singer 2011), pulled towards the start weights, and every example's gradient is bounded, so that
one user or a burst of events cannot turn the weights over.

The whole state travels in :class:`schemas.messages.RankerWeights`, with how far each source partition was learned:
learning the same examples again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import unpack_float32
from schemas.messages import RankerWeights, TrainingExample, TrainingExamples
from stream_app.ranking.features import start_weights
from stream_app.settings import RankerSettings

__all__ = ["SoftmaxRanker"]

_GRADIENT_LIMIT = 4.0
_WEIGHT_LIMIT = 4.0
_FIRST_ACCUMULATOR = 1.0
"""AdaGrad's sum starts here: the first steps are as careful as if one unit gradient had been seen."""


class SoftmaxRanker:
    """Weights by feature, and how they learn.

    Args:
        names: features, in the order of the columns.
        settings: learning rate and pull towards the start.
        variant: which of several rankers this is; the key of its weights.
    """

    def __init__(self, names: Sequence[str], settings: RankerSettings, *, variant: str = "default") -> None:
        self.names = tuple(names)
        self.variant = variant
        self._settings = settings
        self._start = start_weights(self.names)
        self.weights: NDArray[np.float64] = self._start.copy()
        self._accumulators = np.full(len(self.names), _FIRST_ACCUMULATOR)
        self._applied: dict[str, int] = {}
        self.examples = 0
        self.version = 0

    def score(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of scaled features: float64 [..., features] -> float64 [...]; differences are log-odds."""
        scores: NDArray[np.float64] = values @ self.weights
        return scores

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
                    self.step(self._features(example, columns), weight=example.weight)
                self.examples += 1
                self._applied[partition] = example.offset
                learned += 1
        finally:
            # Also when an example is wrong: what came before it was learned, and has to be broadcast.
            if learned:
                self.version += 1
        return learned

    def step(self, features: NDArray[np.float64], *, weight: float = 1.0) -> float:
        """One gradient step; returns the loss before it (negative log-likelihood of the choice).

        Args:
            features: float64 [rows, features]; row 0 was taken.
            weight: how much the choice says; bounded by 4.
        """
        scores = features @ self.weights
        scores -= scores.max()
        likelihoods = np.exp(scores)
        likelihoods /= likelihoods.sum()
        gradient = likelihoods @ features - features[0]
        length = float(np.sqrt(gradient @ gradient))
        if length > _GRADIENT_LIMIT:
            gradient *= _GRADIENT_LIMIT / length
        gradient *= min(weight, _WEIGHT_LIMIT)
        gradient += self._settings.l2 * (self.weights - self._start)
        self._accumulators += gradient * gradient
        self.weights = self.weights - self._settings.learning_rate * gradient / np.sqrt(self._accumulators)
        return float(-np.log(max(likelihoods[0], 1e-300)))

    def weights_message(self) -> RankerWeights:
        """The whole state."""
        return RankerWeights(
            variant=self.variant,
            version=self.version,
            feature_names=list(self.names),
            weights=self.weights.tolist(),
            accumulators=self._accumulators.tolist(),
            examples=self.examples,
            applied=dict(self._applied),
        )

    def restore(self, message: RankerWeights) -> bool:
        """Take over a state; False when it is another variant's or holds less than ours.

        Features the message does not know keep their start weights, features it alone knows are dropped.
        """
        if message.variant != self.variant:
            return False
        if any(message.applied.get(partition, -1) < offset for partition, offset in self._applied.items()):
            return False
        if message.version < self.version:
            return False
        held = dict(zip(message.feature_names, zip(message.weights, message.accumulators, strict=True), strict=True))
        fresh = zip(self._start.tolist(), [_FIRST_ACCUMULATOR] * len(self.names), strict=True)
        pairs = [held.get(name, start) for name, start in zip(self.names, fresh, strict=True)]
        self.weights = np.array([weight for weight, _ in pairs])
        self._accumulators = np.array([accumulator for _, accumulator in pairs])
        self._applied = dict(message.applied)
        self.examples = message.examples
        self.version = message.version
        return True

    def _columns(self, names: list[str]) -> NDArray[np.intp] | None:
        """Where our features are in a message of other features; None when they are the same."""
        if tuple(names) == self.names:
            return None
        place = {name: index for index, name in enumerate(names)}
        return np.array([place.get(name, len(names)) for name in self.names], np.intp)

    def _features(self, example: TrainingExample, columns: NDArray[np.intp] | None) -> NDArray[np.float64]:
        values = unpack_float32(example.features).astype(np.float64)
        if example.rows < 2 or len(values) % example.rows:
            raise ValueError(f"example at offset {example.offset}: {len(values)} values are not {example.rows} rows")
        table = values.reshape(example.rows, -1)
        if columns is not None:
            table = np.concatenate([table, np.zeros((example.rows, 1))], axis=1)[:, columns]
        if table.shape[1] != len(self.names) or not np.isfinite(table).all():
            raise ValueError(
                f"example at offset {example.offset}: {table.shape[1]} finite features expected to be {len(self.names)}"
            )
        return table
