"""CLIP and SigLIP folders: vectors of pictures and texts, and clear words where a folder is wrong."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_app.errors import SettingsError
from stream_app.images.sources import ImageSource
from tests.checkpoints import make_bert
from tests.image_checkpoints import SIDE, make_clip, make_siglip, picture
from workers.devices import cpu_has_bfloat16
from workers.image_models import describe_image_model
from workers.picture_requests import Reason, Unusable, ask_for_data, ask_for_text, reason_of

pytestmark = pytest.mark.model


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    models = tmp_path_factory.mktemp("models")
    return {"clip": make_clip(models / "Tiny CLIP"), "siglip": make_siglip(models / "siglip")}


@pytest.fixture(name="kind", params=["clip", "siglip"])
def _kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="model")
def _model(folders: dict[str, Path], kind: str) -> Path:
    return folders[kind]


@pytest.fixture(name="copy")
def _copy(model: Path, tmp_path: Path) -> Path:
    """The model, to be spoilt."""
    return Path(shutil.copytree(model, tmp_path / model.name))


def encoder(model: Path, **options: Any) -> Any:
    from workers.images import ImageEncoder

    given = {"folder": None, "max_bytes": 1_000_000, "max_pixels": 100_000, "device": "cpu", "precision": "float32"}
    return ImageEncoder(describe_image_model(str(model)), **given | options)


def test_what_is_known_of_a_folder_without_loading_it(folders: dict[str, Path]) -> None:
    clip, siglip = (describe_image_model(str(folders[kind])) for kind in ("clip", "siglip"))
    assert (clip.kind, clip.dimensions, clip.max_tokens, clip.side) == ("clip", 24, 16, SIDE)
    assert (siglip.kind, siglip.dimensions, siglip.max_tokens, siglip.side) == ("siglip", 32, 16, SIDE)
    assert clip.space.startswith("tiny-clip/clip/24/")
    assert siglip.space.startswith("siglip/siglip/32/")


@pytest.mark.parametrize("file", ["model.safetensors", "preprocessor_config.json", "tokenizer.json", "config.json"])
def test_another_file_is_another_space(copy: Path, file: str) -> None:
    before = describe_image_model(str(copy)).space
    with (copy / file).open("ab") as changed:
        changed.write(b" ")
    assert describe_image_model(str(copy)).space != before


def test_the_same_files_elsewhere_are_the_same_space(model: Path, copy: Path) -> None:
    assert describe_image_model(str(copy)).space == describe_image_model(str(model)).space


def test_pictures_and_texts_have_unit_vectors_of_one_length(model: Path) -> None:
    loaded = encoder(model)
    for vectors in (
        loaded.encode_images([picture(seed=seed) for seed in range(3)]),
        loaded.encode_texts(["a lamp", "", "日本語 🙂", "long " * 500]),
    ):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == loaded.dimensions
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_it_is_what_transformers_computes(model: Path, kind: str) -> None:
    """Against the plain way: the folder's processor, the model's own features, nothing of ours."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

    squares = np.random.default_rng(4).integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
    plain = AutoModel.from_pretrained(model).eval()
    processor = (CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil).from_pretrained(model)
    pixels = processor(images=[Image.fromarray(squares)], return_tensors="pt")["pixel_values"]
    options = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {}
    tokens = AutoTokenizer.from_pretrained(model)(["a lamp"], return_tensors="pt", **options)
    if kind == "siglip":
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.inference_mode():
        image = plain.get_image_features(pixel_values=pixels).pooler_output[0].numpy()
        text = plain.get_text_features(**tokens).pooler_output[0].numpy()
    file = BytesIO()
    Image.fromarray(squares).save(file, "PNG")
    loaded = encoder(model)
    np.testing.assert_allclose(loaded.encode_images([file.getvalue()])[0], image / np.linalg.norm(image), atol=1e-5)
    np.testing.assert_allclose(loaded.encode_texts(["a lamp"])[0], text / np.linalg.norm(text), atol=1e-5)


def test_a_vector_does_not_depend_on_the_batch(model: Path) -> None:
    pictures = [picture(seed=seed, size=(30 + seed, 50 - seed)) for seed in range(7)]
    texts = ["a", "a lamp", "", "a very long rope of many letters", "cup", "b", "c"]
    loaded, other = encoder(model), encoder(model, batch=2)
    np.testing.assert_allclose(
        loaded.encode_images(pictures), np.concatenate([loaded.encode_images([one]) for one in pictures]), atol=1e-5
    )
    np.testing.assert_allclose(loaded.encode_images(pictures), other.encode_images(pictures), atol=1e-5)
    np.testing.assert_allclose(
        loaded.encode_texts(texts), np.concatenate([loaded.encode_texts([one]) for one in texts]), atol=1e-5
    )
    np.testing.assert_allclose(loaded.encode_texts(texts), other.encode_texts(texts), atol=1e-5)


def test_another_picture_or_text_has_another_vector(model: Path) -> None:
    loaded = encoder(model)
    one, other = loaded.encode_images([picture(color="red"), picture(color="blue")])
    assert one @ other < 0.999
    one, other = loaded.encode_texts(["lamp", "rope"])
    assert one @ other < 0.999


def test_the_text_tower_of_siglip_does_not_see_capitals(folders: dict[str, Path]) -> None:
    one, other = encoder(folders["siglip"]).encode_texts(["A LAMP", "a lamp"])
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_less_precision_gives_nearly_the_same(model: Path, precision: str) -> None:
    if precision == "bfloat16" and not cpu_has_bfloat16():
        pytest.skip("bfloat16 is emulated here")
    pictures = [picture(seed=seed) for seed in range(4)]
    loaded = encoder(model, precision=precision)
    assert loaded.precision == precision
    cosines = (encoder(model).encode_images(pictures) * loaded.encode_images(pictures)).sum(axis=1)
    assert cosines.min() > 0.999


def test_requests_of_every_kind_are_answered_in_order(model: Path, tmp_path: Path) -> None:
    (tmp_path / "lamp.png").write_bytes(picture(seed=1))
    (tmp_path / "broken.jpg").write_bytes(picture(seed=1, kind="JPEG", size=(200, 200))[:300])
    (tmp_path / "huge.png").write_bytes(picture(size=(1_000, 1_000)))
    small = picture(seed=2, size=(8, 8))
    source = ImageSource(tmp_path)
    loaded = encoder(model, folder=tmp_path, batch=2)
    answers = loaded.encode(
        [
            source.request("lamp.png"),
            ask_for_text("a lamp"),
            source.request("broken.jpg"),
            ask_for_data("data:image/png;base64," + base64.b64encode(small).decode()),
            source.request("huge.png"),
            ask_for_text(""),
            "nonsense",
        ]
    )
    images = loaded.encode_images([picture(seed=1), small])
    texts = loaded.encode_texts(["a lamp", ""])
    np.testing.assert_allclose(answers[[0, 3]], images, atol=1e-5)
    np.testing.assert_allclose(answers[[1, 5]], texts, atol=1e-5)
    assert [reason_of(row) for row in answers] == [
        None,
        None,
        Reason.DAMAGED,
        None,
        Reason.TOO_MANY_PIXELS,
        None,
        Reason.MISSING,
    ]
    assert loaded.encode([]).shape == (0, loaded.dimensions)


def test_one_picture_that_is_none_is_said_to_whoever_asks_for_vectors_alone(model: Path) -> None:
    with pytest.raises(Unusable, match="format"):
        encoder(model).encode_images([picture(), b"nothing"])


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def refused(model: Path) -> str:
    with pytest.raises(SettingsError, match=r"encoder\.image_model = ") as caught:
        encoder(model)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("config.json", "config.json is missing"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no *.safetensors"),
    ],
)
def test_a_file_that_is_missing_is_named(copy: Path, file: str, says: str) -> None:
    (copy / file).unlink()
    assert says in refused(copy)


def test_weights_that_are_there_and_cannot_be_read_are_named(copy: Path) -> None:
    """Weights in a cache are links, and what they lead to may be deleted; or the file is another user's."""
    part = copy / "part-2.safetensors"
    part.symlink_to(copy / "gone")
    assert f"{part} cannot be read (No such file or directory); fetch the model again" in refused(copy)
    part.unlink()
    part.mkdir()  # tests may run as root, who may read every file
    assert f"{part} cannot be read (Is a directory)" in refused(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", "nul", '{"model_type": "clip", "text_config": 3}'])
def test_a_configuration_that_cannot_be_read_is_named(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, "utf-8")
    assert "config.json" in refused(copy)


def test_a_folder_that_is_not_there_or_a_text_model_is_said_so(tmp_path: Path) -> None:
    assert "not a folder" in refused(tmp_path / "nothing")
    bert = make_bert(tmp_path / "bert")
    assert "model_type 'bert'" in refused(bert)


def test_weights_that_are_cut_off_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused(copy)


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_model.encoder"))
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert name in refused(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    weights[name] = weights[name][:, :8].copy()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "shape" in refused(copy)


def test_pickles_are_not_opened(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "convert the weights" in refused(copy)


def test_a_processor_that_makes_pictures_of_another_size_is_refused(copy: Path) -> None:
    def smaller(config: dict[str, Any]) -> None:
        config["size"] = {"height": 16, "width": 16}
        config["crop_size"] = {"height": 16, "width": 16}

    rewrite(copy / "preprocessor_config.json", smaller)
    assert "(3, 16, 16)" in refused(copy)


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    def more(config: dict[str, Any]) -> None:
        config["model"]["vocab"] |= {f"word{number}": 1_000 + number for number in range(5)}

    rewrite(copy / "tokenizer.json", more)
    assert "not of one model" in refused(copy)


def test_weights_that_are_not_finite_are_refused(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    nothing = {name: np.full_like(one, np.nan) for name, one in weights.items()}
    save_file(nothing, copy / "model.safetensors", metadata={"format": "pt"})
    assert "no finite vectors" in refused(copy)


def test_code_in_the_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    """``auto_map`` names a class in a file of the folder."""
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n", "utf-8")
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        rewrite(
            copy / file,
            lambda config: config.update(
                auto_map={
                    "AutoModel": "own.Own",
                    "AutoConfig": "own.Own",
                    "AutoImageProcessor": "own.Own",
                    "AutoTokenizer": ["own.Own", "own.Own"],
                }
            ),
        )
    with suppress(SettingsError):
        encoder(copy)
    assert not (tmp_path / "ran").exists()
