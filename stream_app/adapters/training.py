"""Training an adapter: each choice against the other choices of its batch, and against what the user passed over.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748): a softmax over cosines between the pooled items a user had taken
before and the items of the batch. What is taken often is in more batches, so it would be pushed away for being popular;
each logit is corrected by the logarithm of how likely the item is in a batch (Bengio and Senécal 2008; for two towers
Yi et al. 2019, doi 10.1145/3298689.3346996). With the whole of the correction the softmax learns how popular items are,
and new items, which are not, fall behind; with none it unlearns what the texts say about that.
``TrainingOptions.correction`` lies between.

The only module of the application that imports torch. It runs in a process of its own (``tailrace adapter train``),
never in one that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stream_app.adapters.adapter import TASKS, Adapter
from stream_app.adapters.choices import Batch, Choices
from stream_app.spaces.whitening import Whitening

__all__ = ["Trainer", "TrainingOptions"]

_LEAST_BATCH: Final = 2
"""A choice alone has nothing to be compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Attributes:
        hidden: width of the trunk.
        epochs: times each part of the log is gone through when it has been ranked.
        batch: choices at once.
        learning_rate: of Adam (Kingma and Ba 2015, arXiv:1412.6980).
        temperature: cosines are divided by it to begin with; training goes on from there.
        correction: how much of the sampling bias is corrected, 0 to 1.
        anchor: how much it costs to take an item away from where the half-whitened space has it. A new item has
            nothing but its text, and is only found by it as long as the known ones have not all moved elsewhere.
        dropout: share of the trunk's outputs left out at random, so that no item is known by one of them.
        input_dropout: share of the vectors' components left out at random.
        hard: how much of a term for what the user passed over there is, beside those of the batch.
        history: items before a choice that are looked at.
        decay: what an item counts less than the one after it.
        threads: of torch; with one a run can be repeated bit by bit.
        seed: of what is drawn.
    """

    hidden: int = 256
    epochs: int = 4
    batch: int = 1024
    learning_rate: float = 2e-3
    temperature: float = 0.1
    correction: float = 0.25
    anchor: float = 1.0
    dropout: float = 0.3
    input_dropout: float = 0.0
    hard: float = 1.0
    history: int = 50
    decay: float = 1.0
    threads: int = 1
    seed: int = 0

    def facts(self) -> dict[str, float | int]:
        """As they are written into the file."""
        return asdict(self)


class Trainer:
    """The state of a training that goes on from part to part of a log.

    Args:
        whitening: of the catalogue.
        vectors: float32 [items, dimensions], the model's unit vectors by row; zeros where there is none.
        options: how to train.
        start: an adapter to begin with, of the same model; its whitening is left, for this catalogue has its own.

    Raises:
        ValueError: when ``start`` has other dimensions.
    """

    def __init__(
        self,
        whitening: Whitening,
        vectors: NDArray[np.float32],
        options: TrainingOptions,
        *,
        start: Adapter | None = None,
    ) -> None:
        dimensions = whitening.dimensions
        if start is not None and start.dimensions != dimensions:
            raise ValueError(f"an adapter of {start.dimensions} dimensions cannot begin one of {dimensions}")
        self._options = options
        self._whitening = whitening
        self._inputs = torch.from_numpy(whitening.apply(vectors))
        self._random = torch.Generator().manual_seed(options.seed)
        self._order = np.random.default_rng(options.seed)
        hidden = options.hidden if start is None else start.hidden
        if start is None:
            bound = dimensions**-0.5
            trunk = torch.empty(dimensions, hidden).uniform_(-bound, bound, generator=self._random)
            bias = torch.empty(hidden).uniform_(-bound, bound, generator=self._random)
            heads = {task: torch.zeros(hidden, dimensions) for task in TASKS}
        else:
            trunk, bias = torch.from_numpy(start.trunk.copy()), torch.from_numpy(start.bias.copy())
            served = sum(np.float32(start.shares.get(task, 0.0)) * head for task, head in start.heads.items())
            # A task nobody taught the start begins where its served space is.
            heads = {
                task: torch.from_numpy(np.array(start.heads.get(task, served), np.float32, copy=True)) for task in TASKS
            }
        self._trunk, self._bias, self._heads = trunk, bias, heads
        self._scale = torch.tensor(1.0 / options.temperature).log()
        self._parameters = [trunk, bias, *heads.values(), self._scale]
        for parameter in self._parameters:
            parameter.requires_grad_()
        self._adam = torch.optim.Adam(self._parameters, lr=options.learning_rate)

    def learn(
        self,
        choices: Choices,
        first: int,
        *,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> float | None:
        """Learn from the choices from number ``first`` on; the mean loss of the last time through, None without any.

        Args:
            choices: of the log so far.
            first: the first one that is new.
            on_progress: told how many choices were gone through, and how many there are to go through.
        """
        options, count = self._options, len(choices) - first
        loss: float | None = None
        threads = torch.get_num_threads()
        torch.set_num_threads(options.threads)
        try:
            popularity = torch.from_numpy(choices.popularity / max(int(choices.popularity.sum()), 1))
            for epoch in range(options.epochs):
                order = first + self._order.permutation(count)
                total = weight = 0.0
                for start in range(0, count, options.batch):
                    part = order[start : start + options.batch]
                    if len(part) < _LEAST_BATCH:
                        continue
                    batch = choices.batch(part)
                    found = self._step(batch, popularity[torch.from_numpy(batch.rows).long()])
                    total, weight = total + found * len(part), weight + len(part)
                    on_progress(epoch * count + start + len(part), options.epochs * count)
                loss = total / weight if weight else None
        finally:
            torch.set_num_threads(threads)
        return loss

    def adapter(self, shares: Mapping[str, float]) -> Adapter:
        """What was learned so far.

        Args:
            shares: by task, what it counts in the served space, in any unit; tasks without one are left out. Of none at
                all every task counts the same.
        """
        shares = {task: share for task, share in shares.items() if share > 0} or dict.fromkeys(TASKS, 1.0)
        total = sum(shares.values())
        arrays = {task: self._heads[task].detach().numpy().copy() for task in shares}
        return Adapter(
            whitening=self._whitening,
            trunk=self._trunk.detach().numpy().copy(),
            bias=self._bias.detach().numpy().copy(),
            heads=arrays,
            shares={task: share / total for task, share in shares.items()},
        )

    def _step(self, batch: Batch, popularity: Tensor) -> float:
        """One step of Adam; the loss before it. ``popularity``: float64 [items of the batch], share of all choices."""
        weight = torch.from_numpy(batch.weight)
        trunk = self._features(self._inputs[torch.from_numpy(batch.rows).long()])
        losses = []
        for number, task in enumerate(TASKS):
            mine = np.flatnonzero(batch.task == number)
            if len(mine):
                found = self._loss(_of(batch, mine), *trunk, self._heads[task], popularity)
                losses.append((found * weight[torch.from_numpy(mine)]).sum())
        loss = torch.stack(losses).sum() / weight.sum()
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        return float(loss.detach())

    def _features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The half-whitened vectors, and the trunk's output for them."""
        hidden = self._left_out(inputs, self._options.input_dropout) @ self._trunk + self._bias
        return inputs, self._left_out(functional.gelu(hidden, approximate="tanh"), self._options.dropout)

    def _left_out(self, values: Tensor, share: float) -> Tensor:
        """Dropout (Srivastava et al. 2014) with random numbers of our own."""
        if not share:
            return values
        return values * (torch.rand(values.shape, generator=self._random) >= share) / (1.0 - share)

    def _loss(self, batch: Batch, inputs: Tensor, trunk: Tensor, head: Tensor, popularity: Tensor) -> Tensor:
        """The loss of each choice of one task, float32 [n]."""
        adapted = functional.normalize(inputs + trunk @ head, dim=1)
        pooled = functional.embedding_bag(
            torch.from_numpy(batch.before),
            adapted,
            torch.from_numpy(batch.starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(batch.pooled),
        )
        users = functional.normalize(pooled, dim=1)
        taken, where = np.unique(batch.taken, return_inverse=True)
        others = torch.from_numpy(taken)
        scale = self._scale.exp()
        # How likely an item is among the choices of a batch: it is there once, however often it was chosen.
        present = -torch.expm1(len(batch.taken) * torch.log1p(-popularity[others].clamp(max=1.0 - 1e-6)))
        logits = users @ adapted[others].T * scale - self._options.correction * present.log().float()
        if self._options.hard and (batch.hard >= 0).any():
            hard = torch.from_numpy(batch.hard)
            passed = (adapted[hard.clamp(min=0)] * users[:, None, :]).sum(dim=2) * scale
            # A share of what the batch's terms are, whatever their number.
            passed = passed + float(np.log(self._options.hard))
            passed = passed.masked_fill(hard < 0, -torch.inf)
            logits = torch.cat([logits, passed], dim=1)
        losses = functional.cross_entropy(logits, torch.from_numpy(where.astype(np.int64)), reduction="none")
        if self._options.anchor:
            losses = losses + self._options.anchor * (1.0 - (adapted * inputs).sum(dim=1)).mean()
        return losses


def _of(batch: Batch, mine: NDArray[np.int64]) -> Batch:
    """The choices of a batch with these numbers, over the same rows."""
    if len(mine) == len(batch.taken):
        return batch
    ends = np.append(batch.starts[1:], len(batch.before))
    kept = np.concatenate([np.arange(batch.starts[one], ends[one]) for one in mine])
    lengths = (ends - batch.starts)[mine]
    return Batch(
        rows=batch.rows,
        before=batch.before[kept],
        starts=np.cumsum([0, *lengths[:-1]]).astype(np.int64),
        pooled=batch.pooled[kept],
        taken=batch.taken[mine],
        hard=batch.hard[mine],
        task=batch.task[mine],
        weight=batch.weight[mine],
    )
