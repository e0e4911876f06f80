"""Everything that reads bytes from outside: valid messages for it, and what it may say to those it cannot use.

Records go on from their decoders to whatever takes the values next (the fold, the replica's state, the learners), for
a value that is valid by type and ends the process there does the same harm. What counts as refused is what the callers
of that code catch, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import zstandard

from schemas import decode
from schemas.arrays import pack_float32, pack_float64
from schemas.cloudevents import event_type, headers, parse
from schemas.messages import (
    FactorBasis,
    Interaction,
    Item,
    ItemFactors,
    ItemSignals,
    ItemVector,
    Rule,
    RuleWhere,
    TrainingExample,
    TrainingExamples,
    Transition,
    Transitions,
)
from stream_app.adapters.adapter import Adapter
from stream_app.adapters.file import AdapterFile, Training
from stream_app.delivery.dead_letters import dead_letter
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage, NewerVersion, SettingsError, SnapshotError
from stream_app.factors.live import LiveFactors
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.features import feature_names
from stream_app.ranking.recommender import Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import Settings, load_settings
from stream_app.spaces.whitening import Whitening
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.textify import Textifier
from stream_app.textify.templates import load_languages
from stream_app.users.fold import Folder
from stream_app.users.profiles import fold_profile, profile_of
from stream_app.users.showing import Showing
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.users.state import Flood, Profile, UserState, decode_state, encode_state
from tests.fuzz import operators, pictures
from tests.fuzz.mutate import Form, json_bytes, msgpack_bytes
from tests.fuzz.target import Read, Sample, Target, from_file, loop, never
from workers import frames

__all__ = ["targets"]

GOLDEN = Path(__file__).parents[1] / "golden" / "messages"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
DIMENSIONS = 8
FACTORS = 4
_ITEMS = [f"sku-{number}" for number in range(24)]
_TOPIC_OF = {
    "interactions": "user_id",
    "items": "item_id",
    "users": "user_id",
    "rules": "rule_id",
    "recommendations": "user_id",
    "item-vectors": "item_id",
    "item-signals": "item_id",
    "item-factors": "item_id",
    "ranker-weights": "variant",
    "factor-basis": "space",
    "spaces": "space",
}


def fuzz_settings(**more: Any) -> Settings:
    """Small in every direction, so that bounds are met."""
    return load_settings(
        factors={"dimensions": FACTORS}, slate={"size": 5, "rules": 20}, replica={"unknown_items": 50}, **more
    )


def targets(folder: Path) -> list[Target]:
    """All of them; ``folder`` is for those that read files."""
    return [
        *_public(),
        *_internal(),
        *_replica(),
        *_learners(),
        *_stored(),
        *_frames(),
        *_files(folder),
        *pictures.targets(folder),
        *operators.targets(folder),
    ]


# Records of the public topics.


def _golden(topic: str) -> list[Sample]:
    key, said = _TOPIC_OF.get(topic, ""), ()
    samples = []
    for path in sorted(GOLDEN.glob(f"{topic}.*.json")):
        value = path.read_bytes()
        document = orjson.loads(value)
        if topic in ("interactions", "items", "users", "rules"):
            at = datetime.fromtimestamp(NOW, UTC)
            said = tuple(headers(event_type(topic), source="/shop", id="1", time=at))  # type: ignore[assignment]
        samples.append(Sample(value, document[key].encode() if key else None, said))
    assert samples, topic
    return samples


def _public() -> list[Target]:
    settings = fuzz_settings()
    fold = Folder(settings.event_types, settings.users, settings.items)
    textifier = Textifier.of(settings.textify)
    showing = Showing(limit=100)

    def interaction(sample: Sample) -> object:
        event = decode.decode_interaction(
            sample.key,
            sample.value,
            sample.headers,
            event_types=settings.event_types,
            now=NOW,
            oldest=datetime(2000, 1, 1, tzinfo=UTC).timestamp(),
            future_tolerance_s=300.0,
        )
        state = UserState(event.user_id)
        for offset in range(2):
            fold(state, event, partition=0, offset=offset, appended_s=NOW)
        return decode_state(event.user_id, encode_state(state)) == state or never("a state is not what was stored")

    def item(sample: Sample) -> object:
        _, found = decode.decode_item(sample.key, sample.value, sample.headers)
        return found is not None and textifier.item(found).encode()

    def user(sample: Sample) -> object:
        user_id, found = decode.decode_user(sample.key, sample.value, sample.headers)
        state = UserState(user_id)
        profile = None if found is None else profile_of(found, settings.users, textifier)
        fold_profile(state, profile, partition=0, offset=0, appended_s=NOW)
        return decode_state(user_id, encode_state(state)) == state or never("a profile is not what was stored")

    def slate(sample: Sample) -> object:
        user_id, found = decode.decode_slate(sample.key, sample.value, sample.headers)
        return found is not None and showing.standing(user_id, found, partition=0)

    def letter(sample: Sample) -> object:
        """Whatever a record is, a letter about it can be written and read."""
        record = InRecord("t", 0, 1, sample.key, sample.value, sample.headers, 1.0)  # type: ignore[arg-type]
        try:
            return decode.decode_item(sample.key, sample.value, sample.headers)
        except InvalidMessage as error:
            made = dead_letter(
                record, error, topic="d", stage="catalogue", attempts=1, now=NOW, max_message_bytes=65_536
            )
            return decode.decode_dead_letter(made.value)

    return [
        Target("interactions", _golden("interactions"), interaction, key="user_id", share=4),
        Target("items", _golden("items"), item, key="item_id", share=4),
        Target("users", _golden("users"), user, key="user_id", share=2),
        Target(
            "rules", _golden("rules"), lambda one: decode.decode_rule(one.key, one.value, one.headers), key="rule_id"
        ),
        Target("recommendations", _golden("recommendations"), slate, key="user_id"),
        Target("dead-letter", _golden("dead-letter"), lambda one: decode.decode_dead_letter(one.value)),
        Target("letters", _golden("items"), letter, key="item_id"),
        Target(
            "headers",
            [Sample(orjson.dumps([[name, content.decode()] for name, content in _golden("items")[0].headers]))],  # type: ignore[union-attr]
            _headers,
            (),
        ),
    ]


def _headers(sample: Sample) -> object:
    try:
        pairs = [
            (str(name), str(content).encode("utf-8", "surrogatepass"))
            for name, content in orjson.loads(sample.value or b"")
        ]
    except (ValueError, TypeError):
        return None
    return parse(pairs)


# Records of the internal topics.


def _internal() -> list[Target]:
    readers: dict[str, Read] = {
        "item-vectors": lambda one: decode.decode_item_vector(one.key, one.value),
        "item-signals": lambda one: decode.decode_item_signals(one.key, one.value),
        "ranker-weights": lambda one: decode.decode_ranker_weights(one.key, one.value),
        "item-factors": lambda one: decode.decode_item_factors(one.key, one.value),
        "factor-basis": lambda one: decode.decode_factor_basis(one.key, one.value),
        "spaces": lambda one: decode.decode_vector_space(one.key, one.value),
        "transitions": lambda one: decode.decode_transitions(one.value),
        "training-examples": lambda one: decode.decode_training_examples(one.value),
    }
    found = [Target(name, _golden(name), read, key=_TOPIC_OF.get(name, "")) for name, read in readers.items()]
    control = [Sample(one.value, b"spaces") for one in _golden("space-control")]
    return [*found, Target("space-control", control, lambda one: decode.decode_space_control(one.key, one.value))]


# What a replica makes of them (``Replica._apply_one`` catches InvalidMessage and ValueError).

_BY_REPLICA = (InvalidMessage, ValueError)


def _unit(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


def serving_state(settings: Settings) -> ServingState:
    """A small catalogue with vectors."""
    serving = ServingState(settings, space="s", dimensions=DIMENSIONS)
    for seed, item_id in enumerate(_ITEMS):
        serving.apply_item(item_id, Item(item_id=item_id, title=f"Thing {seed}", categories=["a", "b"], price=1.0))
        vector = pack_float32(_unit(seed))
        serving.apply_vector(
            item_id, ItemVector(item_id=item_id, space="s", text_hash="", dimensions=DIMENSIONS, vector=vector)
        )
    return serving


def _replica_corpus(settings: Settings) -> dict[str, list[Sample]]:
    def rows(made: Sequence[Any], field: str) -> list[Sample]:
        return [Sample(decode.encode(one), getattr(one, field).encode()) for one in made]

    serving = serving_state(settings)
    space = serving.fit_space()()
    assert space is not None
    numbers = pack_float32(np.linspace(-1, 1, FACTORS))
    return {
        "items": rows(
            [Item(item_id=_ITEMS[0], title="A", price=2.0, tags=["x"], expires_at=datetime.now(UTC))], "item_id"
        ),
        "item-vectors": rows(
            [
                ItemVector(
                    item_id=one, space="s", text_hash="h", dimensions=DIMENSIONS, vector=pack_float32(_unit(seed))
                )
                for seed, one in enumerate([*_ITEMS[:3], "new"])
            ],
            "item_id",
        ),
        "item-signals": rows(
            [
                ItemSignals(
                    item_id=one,
                    at=NOW,
                    counts=[1.0, 2.0, 3.0, 4.0],
                    neighbours=_ITEMS[4:7],
                    symmetric=pack_float64(np.ones(3)),
                    directed=pack_float64(np.ones(3)),
                    applied={"0": 3},
                    shown=1.0,
                )
                for one in _ITEMS[:3]
            ],
            "item_id",
        ),
        "item-factors": rows(
            [
                ItemFactors(
                    item_id=one,
                    space="s",
                    context=numbers,
                    target=numbers,
                    bias=0.1,
                    accumulators=[0.1, 0.2, 0.3],
                    applied={"0": 3},
                )
                for one in _ITEMS[:3]
            ],
            "item_id",
        ),
        "factor-basis": rows(
            [
                FactorBasis(
                    space="s",
                    dimensions=DIMENSIONS,
                    factors=FACTORS,
                    mean=pack_float32(np.zeros(DIMENSIONS)),
                    matrix=pack_float32(np.linspace(-1, 1, DIMENSIONS * FACTORS)),
                )
            ],
            "space",
        ),
        "ranker-weights": rows([serving.ranker.weights_message()], "variant"),
        "spaces": rows([space], "space"),
        "rules": rows(
            [
                Rule(rule_id="r1", kind="pin", where=RuleWhere(item_ids=[_ITEMS[0]]), rank=1),
                Rule(rule_id="r2", kind="boost", where=RuleWhere(categories=["a"], max_price=3.0), boost=1.0),
                Rule(rule_id="r3", kind="cap", at_most=1, per="category", first=3),
            ],
            "rule_id",
        ),
    }


def _replica() -> list[Target]:
    settings = fuzz_settings()
    corpus = _replica_corpus(settings)

    def reader(topic: str) -> Callable[[], Read]:
        def renew() -> Read:
            serving = serving_state(settings)
            stage = UserStage(settings, serving, Recommender(settings, serving))
            seen = [0]

            def read(sample: Sample) -> object:
                _apply(serving, topic, sample)
                seen[0] += 1
                if seen[0] % 8 == 1:
                    _served(serving, stage, seen[0])
                return None

            return read

        return renew

    return [
        Target(
            f"replica: {topic}",
            samples,
            lambda _: None,
            _BY_REPLICA,
            key=_TOPIC_OF[topic],
            renew=reader(topic),
            share=0.5,
        )
        for topic, samples in corpus.items()
    ]


def _apply(serving: ServingState, topic: str, sample: Sample) -> None:
    """As a replica does."""
    key, value = sample.key, sample.value
    if topic == "items":
        serving.apply_item(*decode.decode_item(key, value))
    elif topic == "item-vectors":
        serving.apply_vector(*decode.decode_item_vector(key, value))
    elif topic == "item-signals":
        item_id, signals = decode.decode_item_signals(key, value)
        if signals is not None:
            serving.apply_all_signals([(item_id, signals)])
        serving.apply_signals(item_id, signals)
    elif topic == "item-factors":
        item_id, factors = decode.decode_item_factors(key, value)
        if factors is not None:
            serving.apply_all_factors([(item_id, factors)])
        serving.apply_factors(item_id, factors)
    elif topic == "factor-basis":
        space, basis = decode.decode_factor_basis(key, value)
        serving.forget_basis(space) if basis is None else serving.apply_basis(basis)
    elif topic == "ranker-weights":
        _, weights = decode.decode_ranker_weights(key, value)
        if weights is not None:
            serving.apply_weights(weights)
    elif topic == "spaces":
        model, coming = decode.decode_vector_space(key, value)
        serving.apply_space(coming, space=model)
        while serving.migrating:
            serving.advance_space()
    else:
        serving.apply_rule(*decode.decode_rule(key, value), now=NOW)


def _served(serving: ServingState, stage: UserStage, number: int) -> None:
    """After whatever was applied, a user is still ranked, and the slate can be read."""
    events = [
        SourcedEvent(
            Interaction(
                event_id=f"{number}-{item}",
                user_id="u",
                type="click",
                item_id=_ITEMS[item],
                occurred_at=datetime.fromtimestamp(NOW + item, UTC),
            ),
            0,
            item,
        )
        for item in range(3)
    ]
    try:
        result = stage.process(events, {"u": UserState("u")}, now=NOW)
        for slate in result.slates:
            if not all(np.isfinite(item.score) for item in slate.items):
                never("a score is not finite")
    except ValueError as error:  # would pass for a refusal
        raise AssertionError(f"a slate cannot be made: {error}") from error


# What the learning roles make of them.


def _learners() -> list[Target]:
    settings = fuzz_settings()
    names = list(feature_names(settings.items))
    transitions = Transitions(
        source_topic="t.interactions.v1",
        source_partition=0,
        rows=[
            Transition(
                offset=7, at=NOW, item_id=one, count=1.0, previous=_ITEMS[:2], symmetric=[1.0, 0.9], directed=[0.7, 0.0]
            )
            for one in _ITEMS[2:5]
        ],
    )
    examples = TrainingExamples(
        source_topic="t.interactions.v1",
        source_partition=0,
        feature_names=names,
        examples=[
            TrainingExample(
                offset=7,
                at=NOW,
                weight=1.0,
                rows=3,
                features=pack_float32(np.linspace(-1, 1, 3 * len(names))),
                item_id=_ITEMS[0],
                previous=_ITEMS[1:3],
            )
        ],
    )

    def statistics() -> Read:
        owned, offset = ItemStatistics(0, 1, settings.items), iter(range(10**9))

        def read(sample: Sample) -> object:
            owned.apply(decode.decode_transitions(sample.value), offset=next(offset))
            rows = owned.take(100)
            for item_id, signals in rows:
                if signals is not None:
                    decode.decode_item_signals(item_id.encode(), decode.encode(signals))
            return owned.taken_are_durable()

        return read

    def taken_over() -> Read:
        owned = ItemStatistics(0, 1, settings.items)

        def read(sample: Sample) -> object:
            _, signals = decode.decode_item_signals(sample.key, sample.value)
            return signals is not None and owned.restore(signals)

        return read

    def ranker() -> Read:
        model = SoftmaxRanker(feature_names(settings.items), settings.ranker)

        def read(sample: Sample) -> object:
            model.learn(decode.decode_training_examples(sample.value))
            if not np.isfinite(model.weights_message().weights).all():
                never("a weight is not finite")
            return None

        return read

    def factors() -> Read:
        live, offset = LiveFactors(settings.factors, space="s", dimensions=DIMENSIONS), iter(range(10**9))
        for seed, one in enumerate(_ITEMS):
            live.apply_item(one, there=True)
            live.apply_vector(
                one,
                ItemVector(
                    item_id=one, space="s", text_hash="", dimensions=DIMENSIONS, vector=pack_float32(_unit(seed))
                ),
            )
        basis = live.due(wanted=True)
        assert basis is not None
        live.adopt(basis)

        def read(sample: Sample) -> object:
            return live.learn(decode.decode_training_examples(sample.value), offset=next(offset))

        return read

    learnt = (InvalidMessage, ValueError, ArithmeticError)
    signals = _replica_corpus(settings)["item-signals"]
    return [
        Target("items role", [Sample(decode.encode(transitions))], lambda _: None, renew=statistics),
        Target("items role: rows", signals, lambda _: None, _BY_REPLICA, renew=taken_over, key="item_id"),
        Target("ranker role", [Sample(decode.encode(examples))], lambda _: None, learnt, renew=ranker, share=0.5),
        Target(
            "ranker role: factors", [Sample(decode.encode(examples))], lambda _: None, learnt, renew=factors, share=0.5
        ),
    ]


# What is stored.


def _stored() -> list[Target]:
    settings = fuzz_settings()
    fold = Folder(settings.event_types, settings.users, settings.items)
    states = [UserState("u")]
    for number, kind in enumerate(["click", "purchase", "hide", "search", "impression", "visit"] * 3):
        state = states[-1].copy()
        event = Interaction(
            event_id=f"e{number}",
            user_id="u",
            type=kind,
            occurred_at=datetime.fromtimestamp(NOW + number, UTC),
            item_id=None if kind in ("search", "impression", "visit") else _ITEMS[number],
            items=_ITEMS[:5] if kind == "impression" else [],
            text="lamp" if kind == "search" else None,
        )
        fold(state, event, partition=number % 2, offset=number, appended_s=NOW)
        states.append(state)
    states[-1].profile = Profile(texts=("a",), liked=("sku-1",), blocked=(5,), language="zh")
    states[-1].flood = Flood(3, 4, 5, 6, 7)
    corpus = [Sample(encode_state(state)) for state in states]

    def state_of(sample: Sample) -> object:
        state = decode_state("u", sample.value or b"")
        event = Interaction(
            event_id="new", user_id="u", type="click", item_id="sku-1", occurred_at=datetime.fromtimestamp(NOW, UTC)
        )
        # What was read can be gone on with.
        with contextlib.suppress(OverflowError):  # numbers of a state that no fold makes
            state.copy().excluded(NOW)
        del event
        return encode_state(state)

    def embedding(sample: Sample) -> object:
        class Row:
            async def mget(self, keys: Sequence[str]) -> list[bytes | None]:
                return [sample.value for _ in keys]

        cache = EmbeddingCache(
            Row(),  # type: ignore[arg-type]
            prefix="p",
            space="s",
            dimensions=DIMENSIONS,
            ttl_s=60,
            memory=4,
        )
        found = loop().run_until_complete(cache.get_many(["a"]))
        return all(np.isfinite(vector).all() for vector in found.values()) or never("a vector is not finite")

    return [
        # A byte may say that a later release wrote it, which ends the process: no message can, only what Redis holds.
        Target("user states", corpus, state_of, (ValueError, NewerVersion), (_state_document, _state_bytes), share=4),
        Target("embedding cache", [Sample(_unit(1).tobytes())], embedding, (), None, share=0.5),
    ]


def _state_document(data: bytes) -> Any:
    return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[1:]))


def _state_bytes(document: Any) -> bytes:
    return b"\x04" + zstandard.ZstdCompressor().compress(msgpack_bytes(document))


# Between processes.


def _frames() -> list[Target]:
    vectors = np.ones((2, DIMENSIONS), np.float32)
    from_child = [
        frames.pack_frame(
            frames.Vectors(batch=1, rows=2, dimensions=DIMENSIONS, seconds=0.1, tokens_read=1, tokens_computed=2),
            vectors.tobytes(),
        ),
        frames.pack_frame(frames.Failed(kind="memory", detail="x", batch=1)),
        frames.pack_frame(
            frames.Ready(space="s", dimensions=8, device="cpu", precision="float32", lanes=1, pid=1, load_s=0.1)
        ),
    ]
    from_parent = [frames.pack_frame(frames.Encode(batch=1, urgent=False, texts=["a", "b"]))]

    async def read(data: bytes) -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        message, payload = await frames.read_frame(reader)
        return frames.vectors_of(message, payload) if isinstance(message, frames.Vectors) else message

    def child(sample: Sample) -> object:
        return loop().run_until_complete(read(sample.value or b""))

    def parent(sample: Sample) -> object:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall((sample.value or b"")[:100_000])
            ours.shutdown(socket.SHUT_WR)
            return frames.receive_frame(theirs)

    form: Form = (_frame_document, _frame_bytes)
    return [
        Target("frames to the parent", [Sample(one) for one in from_child], child, (ValueError, EOFError), form),
        Target("frames to a process", [Sample(one) for one in from_parent], parent, (ValueError, EOFError), form),
    ]


def _frame_document(data: bytes) -> Any:
    _, size, _ = frames._HEAD.unpack(data[: frames._HEAD.size])
    start = frames._HEAD.size
    return {"header": msgspec.msgpack.decode(data[start : start + size]), "payload": data[start + size :]}


def _frame_bytes(document: Any) -> bytes:
    header = msgpack_bytes(document["header"])
    payload = document["payload"] if isinstance(document["payload"], bytes) else b""
    return frames._HEAD.pack(b"TRE1", len(header), len(payload)) + header + payload


# Files.


def _files(folder: Path) -> Iterator[Target]:
    file = folder / "adapter.safetensors"
    _adapter().save(file)
    yield Target(
        "adapter file",
        [Sample(file.read_bytes())],
        from_file(file, AdapterFile.load),
        (SettingsError,),
        None,
        share=0.1,
    )
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    shipped = Path(load_languages.__code__.co_filename).parent / "templates"
    toml = texts / "en.toml"
    yield Target(
        "templates",
        [Sample(path.read_bytes()) for path in sorted(shipped.glob("*.toml"))],
        from_file(toml, lambda path: load_languages(path.parent)),
        (ValueError,),
        None,
        share=0.05,
    )
    settings = fuzz_settings()
    state = folder / "state"
    serving = serving_state(settings)
    serving.save(state)

    def snapshot(_: Path) -> object:
        return ServingState.load(state, settings, space="s", dimensions=DIMENSIONS)

    for path in sorted(state.iterdir()):
        whole = path.read_bytes()
        yield Target(
            f"snapshot: {path.name}",
            [Sample(whole)],
            from_file(path, snapshot, then=whole),
            # What Snapshots.load catches.
            (OSError, ValueError, msgspec.MsgspecError, RuntimeError, KeyError, SnapshotError),
            (orjson.loads, json_bytes) if path.suffix == ".json" else None,
            share=0.02,
        )


def _adapter() -> AdapterFile:
    random_ = np.random.default_rng(0)
    whitening = Whitening(
        mean=np.full(DIMENSIONS, 0.1, np.float32),
        axes=np.eye(2, DIMENSIONS, dtype=np.float16),
        scales=np.full(2, 0.5, np.float32),
    )
    adapter = Adapter(
        whitening=whitening,
        trunk=random_.normal(size=(DIMENSIONS, 3)).astype(np.float32),
        bias=np.zeros(3, np.float32),
        heads={"click": random_.normal(size=(3, DIMENSIONS)).astype(np.float32)},
        shares={"click": 1.0},
    )
    training = Training(
        data="log", events=1, examples={"click": 1}, items=1, first=None, last=None, windows=1, seed=0, options={}
    )
    return AdapterFile(adapter=adapter, base_space="s", training=training)


def workspace() -> tempfile.TemporaryDirectory[str]:
    """A folder for :func:`targets`."""
    return tempfile.TemporaryDirectory(prefix="fuzz-")
