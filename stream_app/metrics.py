"""Prometheus metrics of a process, updated once per batch (the stock per-event sensor of Faust costs 26 µs)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream_app import __version__
from stream_app.waits import Waits

__all__ = ["Computed", "Metrics"]

_FRESHNESS_BUCKETS_S = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class Computed(Collector):
    """A gauge whose samples are made when it is asked for, in the thread that asks.

    Attributes:
        samples: gives the values of the labels and the value, of each sample.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self.samples: Callable[[], Iterable[tuple[Sequence[str], float]]] = tuple
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, value in self.samples():
            family.add_metric(labels, value)
        yield family


@dataclass(slots=True)
class Metrics:
    """All metrics of a process, in a registry of their own so that several can live in one test."""

    registry: CollectorRegistry = field(default_factory=_registry)
    events_in: Counter = field(init=False)
    records_out: Counter = field(init=False)
    dead_letters: Counter = field(init=False)
    skipped: Counter = field(init=False)
    freshness_event: Histogram = field(init=False)
    freshness_append: Histogram = field(init=False)
    objective_missed: Counter = field(init=False)
    batch_events: Histogram = field(init=False)
    batch_seconds: Histogram = field(init=False)
    lag: Gauge = field(init=False)
    retries: Counter = field(init=False)
    encoder_queue: Gauge = field(init=False)
    encoder_texts: Counter = field(init=False)
    encoder_batches: Counter = field(init=False)
    encoder_tokens: Counter = field(init=False)
    encoder_seconds: Counter = field(init=False)
    encoder_late: Counter = field(init=False)
    encoder_poison: Counter = field(init=False)
    encoder_cache: Counter = field(init=False)
    encoder_restarts: Counter = field(init=False)
    item_images: Counter = field(init=False)
    index_items: Gauge = field(init=False)
    space_version: Gauge = field(init=False)
    space_number: Gauge = field(init=False)
    index_deleted: Gauge = field(init=False)
    replica_offset_age: Gauge = field(init=False)
    replica_ready: Gauge = field(init=False)
    replica_position: Gauge = field(init=False)
    replica_records: Counter = field(init=False)
    slates_replaced: Counter = field(init=False)
    users_cached: Gauge = field(init=False)
    users_indexed: Gauge = field(init=False)
    new_items: Counter = field(init=False)
    offers: Counter = field(init=False)
    offer_seconds: Histogram = field(init=False)
    ranker_examples: Gauge = field(init=False)
    factor_examples: Counter = field(init=False)
    factor_rows_waiting: Gauge = field(init=False)
    ready: Gauge = field(init=False)
    waiting: Waits = field(init=False)
    health: Computed = field(init=False)
    build: Gauge = field(init=False)

    def __post_init__(self) -> None:
        r = self.registry
        self.events_in = Counter("tailrace_events_in", "Records taken from a topic.", ["role"], registry=r)
        self.records_out = Counter("tailrace_records_out", "Records acknowledged by the broker.", ["topic"], registry=r)
        self.dead_letters = Counter("tailrace_dead_letters", "Dead letters written.", ["role", "reason"], registry=r)
        self.skipped = Counter(
            "tailrace_events_skipped", "Events with no effect: replayed or duplicate.", ["why"], registry=r
        )
        self.freshness_event = Histogram(
            "tailrace_freshness_occurred_seconds",
            "From the event's occurred_at to its slate's acknowledgement.",
            buckets=_FRESHNESS_BUCKETS_S,
            registry=r,
        )
        self.freshness_append = Histogram(
            "tailrace_freshness_append_seconds",
            "From the broker's append of the event to its slate's acknowledgement.",
            buckets=_FRESHNESS_BUCKETS_S,
            registry=r,
        )
        self.objective_missed = Counter(
            "tailrace_freshness_objective_missed", "Slates later than metrics.freshness_objective_ms.", registry=r
        )
        self.batch_events = Histogram(
            "tailrace_batch_events", "Records per batch.", ["role"], buckets=_BATCH_BUCKETS, registry=r
        )
        self.batch_seconds = Histogram(
            "tailrace_batch_seconds", "Seconds per batch, by step.", ["role", "step"], registry=r
        )
        self.lag = Gauge("tailrace_consumer_lag", "Records behind the high watermark.", ["role"], registry=r)
        self.retries = Counter("tailrace_retries", "Writes or reads tried again.", ["what"], registry=r)
        self.encoder_queue = Gauge(
            "tailrace_encoder_queue", "Texts waiting for an encoder process.", ["priority"], registry=r
        )
        self.encoder_texts = Counter("tailrace_encoder_texts", "Texts embedded.", registry=r)
        self.encoder_batches = Counter("tailrace_encoder_batches", "Batches embedded.", registry=r)
        self.encoder_tokens = Counter(
            "tailrace_encoder_tokens", "Tokens computed: read from texts, or padding.", ["kind"], registry=r
        )
        self.encoder_seconds = Counter(
            "tailrace_encoder_seconds",
            "Seconds of computing, summed over the process's lanes.",
            ["process"],
            registry=r,
        )
        self.encoder_late = Counter(
            "tailrace_encoder_late", "Texts of queries and events not embedded by encoder.deadline_s.", registry=r
        )
        self.encoder_poison = Counter(
            "tailrace_encoder_poison", "Texts given up because they end encoder processes.", registry=r
        )
        self.encoder_cache = Counter("tailrace_encoder_cache", "Embedding cache lookups.", ["result"], registry=r)
        self.encoder_restarts = Counter("tailrace_encoder_restarts", "Encoder processes started again.", registry=r)
        self.item_images = Counter(
            "tailrace_item_images", "Items embedded with images on, by what became of theirs.", ["outcome"], registry=r
        )
        self.index_items = Gauge("tailrace_index_items", "Vectors that can be found.", registry=r)
        self.space_version = Gauge("tailrace_space_version", "Version of the half-whitened space served.", registry=r)
        self.space_number = Gauge("tailrace_space_number", "Number of the model's space served.", registry=r)
        self.index_deleted = Gauge("tailrace_index_churn", "Vectors deleted or replaced since the build.", registry=r)
        self.replica_offset_age = Gauge(
            "tailrace_replica_age_seconds", "Age of the newest record the replica applied.", registry=r
        )
        self.replica_ready = Gauge("tailrace_replica_ready", "1 when the replica has caught up.", registry=r)
        self.replica_position = Gauge(
            "tailrace_replica_position", "Sum of the next offsets the replica will read.", ["topic"], registry=r
        )
        self.replica_records = Counter("tailrace_replica_records", "Records applied.", ["topic"], registry=r)
        self.slates_replaced = Counter(
            "tailrace_slates_replaced", "Slates made again because an item in them was withdrawn.", registry=r
        )
        self.users_cached = Gauge("tailrace_users_cached", "User states in memory.", registry=r)
        self.users_indexed = Gauge("tailrace_users_indexed", "Users that new items can find.", registry=r)
        self.new_items = Counter(
            "tailrace_new_items", "New items to find users for: taken or dropped.", ["result"], registry=r
        )
        self.offers = Counter(
            "tailrace_new_item_users",
            "Users near new items: published, unchanged, left_out or failed.",
            ["result"],
            registry=r,
        )
        self.offer_seconds = Histogram(
            "tailrace_new_item_seconds",
            "From the record that completed a new item to the acknowledgement of a slate with it.",
            buckets=_FRESHNESS_BUCKETS_S,
            registry=r,
        )
        self.ranker_examples = Gauge("tailrace_ranker_examples", "Examples in the weights in use.", registry=r)
        self.factor_examples = Counter(
            "tailrace_factor_examples", "Examples the item factors learned from.", registry=r
        )
        self.factor_rows_waiting = Gauge(
            "tailrace_factor_rows_waiting", "Changed item factors that are not broadcast yet.", registry=r
        )
        self.ready = Gauge("tailrace_ready", "1 when every role of the process takes events.", registry=r)
        self.waiting = Waits(r)
        self.health = Computed("tailrace_health", "1 when a check of health is ok, else 0.", ["probe", "check"], r)
        self.build = Gauge("tailrace_build", "Version, as a label.", ["version"], registry=r)
        self.build.labels(__version__).set(1)

    def observe_freshness(self, *, event_s: Iterable[float], append_s: Iterable[float], objective_s: float) -> None:
        """Freshness of the slates of one batch, in seconds."""
        for value in event_s:
            self.freshness_event.observe(value)
        missed = 0
        for value in append_s:
            self.freshness_append.observe(value)
            missed += value > objective_s
        if missed:
            self.objective_missed.inc(missed)
