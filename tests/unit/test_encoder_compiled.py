"""``encoder.compile``: the same vectors whatever batch and thread, few programs, and errors that say what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from tests.checkpoints import make_bert
from workers.compiling import CACHE_VARIABLE, MOST_PROGRAMS, program_folder
from workers.models import load_model
from workers.pool import EncoderPool
from workers.process import Encoder

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

COMPILER = os.environ.get("CXX", "g++")
MOST_TOKENS = 64


def load(model: Path, **options: object) -> Encoder:
    chosen = EncoderSettings(model=str(model), max_tokens=MOST_TOKENS)
    return load_model(chosen, device="cpu", precision="float32", threads=1, batch=32, batch_tokens=4_096, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """One for all tests: compiling takes most of their time."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not there (CXX names another one)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("programs")))
        yield load(model, compile=True)


@pytest.fixture(scope="module")
def plain(model: Path) -> Encoder:
    return load(model)


def texts_of(rng: np.random.Generator) -> list[str]:
    """A batch of 1 to 32 texts of 3 to 64 tokens (a letter is a token)."""
    return ["x" * int(rng.integers(1, 63)) for _ in range(int(rng.integers(1, 33)))]


def programs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
def test_compiled_vectors_are_those_of_the_model_for_any_shape_and_take_two_programs(
    compiled: Encoder, plain: Encoder
) -> None:
    before = programs()
    rng = np.random.default_rng(0)
    batches = [texts_of(rng) for _ in range(200)] + [[""], ["x"], ["x" * 500], ["a", ""]]
    for texts in batches:
        np.testing.assert_allclose(compiled.encode(texts), plain.encode(texts), atol=1e-5)
    assert programs() == before, "shapes that were not tried at the start compile while texts wait"
    assert before == 2, "one for a single row, one for all else"
    assert compiled.space == plain.space


@pytest.mark.slow
def test_threads_encode_with_one_compiled_program_at_once(compiled: Encoder, plain: Encoder) -> None:
    rng = np.random.default_rng(1)
    batches = [texts_of(rng) for _ in range(60)]
    with ThreadPoolExecutor(3) as lanes:
        found: list[NDArray[np.float32]] = list(lanes.map(compiled.encode, batches))
    for texts, vectors in zip(batches, found, strict=True):
        np.testing.assert_allclose(vectors, plain.encode(texts), atol=1e-5)


@pytest.mark.slow
def test_beyond_the_most_programs_is_an_error_and_nothing_is_computed_otherwise(compiled: Encoder) -> None:
    import torch
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    assert config.recompile_limit == MOST_PROGRAMS
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # programs are made for a number of threads
    try:
        with config.patch(recompile_limit=2), pytest.raises(FailOnRecompileLimitHit):
            compiled.encode(["a third program"])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
async def test_without_a_compiler_the_start_says_so_and_never_goes_on_without(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pool's own process, which has nothing compiled yet: the setting gets there, and the error back."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    for name, value in (("CXX", "/nowhere/g++"), ("HOME", str(home)), ("TMPDIR", str(temporary))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHDYNAMO_SUPPRESS_ERRORS", "1")
    pool = EncoderPool(EncoderSettings(model=str(model), device="cpu", threads=1, start_timeout_s=500, compile=True))
    await pool.start()
    try:
        with pytest.raises(SettingsError) as caught:
            await pool.ready()
    finally:
        await pool.close()
    said = str(caught.value)
    assert f"encoder.model = '{model}': encoder.compile = true, and the model in {model} cannot be compiled" in said
    for words in ("InvalidCxxCompiler", "apt-get install g++", "CXX", "python3-dev", "set encoder.compile = false"):
        assert words in said, said
    assert not list(home.rglob("*")), "written outside the temporary directory"
    assert (temporary / f"tailrace-compiled-{os.getuid()}").is_dir()
    others = [file for file in temporary.glob("torchinductor_*/**/*") if file.is_file()]
    assert not others, "kept where others may have written before"


def test_programs_are_kept_in_a_folder_of_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = program_folder()
    assert folder == program_folder() == tmp_path / f"tailrace-compiled-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(CACHE_VARIABLE, "/somewhere/else")
    assert program_folder() == Path("/somewhere/else")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "torchinductor_us"))  # as torch itself sets it
    assert program_folder() == folder


def others_write(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def a_link(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (others_write, "others may write to"),
        (a_link, "others may write to"),
        (Path.touch, "cannot be kept in"),
    ],
)
def test_a_folder_that_others_may_have_filled_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, said: str
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    change(tmp_path / f"tailrace-compiled-{os.getuid()}")  # type: ignore[operator]
    with pytest.raises(SettingsError, match=rf"encoder\.compile = true: .*{said}.*{CACHE_VARIABLE}"):
        program_folder()


def test_the_multilingual_model_has_nothing_to_compile() -> None:
    with pytest.raises(SettingsError, match=r"encoder\.compile = true: .*does not run on torch"):
        load_model("multilingual", compile=True)
