"""``encoder.compile``: the same vectors whatever batch and thread, few programs, and errors that say what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from tests.checkpoints import make_bert
from workers import compiling
from workers.compiling import CompiledModel
from workers.models import load_model
from workers.pool import EncoderPool
from workers.process import Encoder
from workers.program_folder import CACHE_VARIABLE, drop_damaged, marked, program_folder

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

COMPILER = os.environ.get("CXX", "g++")
MOST_TOKENS = 64


def load(model: Path, **options: object) -> Encoder:
    chosen = EncoderSettings(model=str(model), max_tokens=MOST_TOKENS)
    return load_model(chosen, device="cpu", precision="float32", threads=1, batch=32, batch_tokens=4_096, **options)  # type: ignore[arg-type]


def need_compiler() -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not there (CXX names another one)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """One for all tests: compiling takes most of their time."""
    need_compiler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("programs")))
        yield load(model, compile=True)


@pytest.fixture(scope="module")
def plain(model: Path) -> Encoder:
    return load(model)


def texts_of(rng: np.random.Generator) -> list[str]:
    """A batch of 1 to 32 texts of 3 to 64 tokens (a letter is a token)."""
    return ["x" * int(rng.integers(1, 63)) for _ in range(int(rng.integers(1, 33)))]


def model_of(encoder: Encoder) -> CompiledModel:
    found = encoder._transform  # type: ignore[attr-defined]
    assert isinstance(found, CompiledModel)
    return found


@pytest.mark.slow
def test_compiled_vectors_are_those_of_the_model_for_any_shape_and_take_two_programs(
    compiled: Encoder, plain: Encoder
) -> None:
    made = model_of(compiled).programs
    assert made == 2, "one for a single row, one for all else"
    rng = np.random.default_rng(0)
    batches = [texts_of(rng) for _ in range(200)] + [[""], ["x"], ["x" * 500], ["a", ""]]
    for texts in batches:
        np.testing.assert_allclose(compiled.encode(texts), plain.encode(texts), atol=1e-5)
    assert model_of(compiled).programs == made, "shapes that were not tried at the start compile while texts wait"
    assert compiled.space == plain.space
    assert not list(model_of(compiled).folder.glob("compiling-*")), "the next start would take it for damaged"


@pytest.mark.slow
def test_threads_encode_with_one_compiled_program_at_once(compiled: Encoder, plain: Encoder) -> None:
    made = model_of(compiled).programs
    rng = np.random.default_rng(1)
    batches = [texts_of(rng) for _ in range(60)]
    with ThreadPoolExecutor(3) as lanes:
        found: list[NDArray[np.float32]] = list(lanes.map(compiled.encode, batches))
    for texts, vectors in zip(batches, found, strict=True):
        np.testing.assert_allclose(vectors, plain.encode(texts), atol=1e-5)
    assert model_of(compiled).programs == made, "each thread had programs of its own"


@pytest.mark.slow
def test_beyond_the_most_programs_is_an_error_in_a_thread_of_its_own_too(
    compiled: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a lane: the thread never had torch configured."""
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit

    monkeypatch.setattr(compiling, "MOST_PROGRAMS", 2)

    def a_third() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)  # programs are made for a number of threads
        try:
            compiled.encode(["a third program"])
        finally:
            torch.set_num_threads(threads)

    made = model_of(compiled).programs
    with ThreadPoolExecutor(1) as lane, pytest.raises(FailOnRecompileLimitHit):
        lane.submit(a_third).result()
    assert model_of(compiled).programs == made


IN_A_LANE = """
import sys
import threading

import torch

from workers.compiling import CompiledModel

torch.set_num_threads(1)
model = CompiledModel(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval())
failed = []


def lane() -> None:
    try:
        with torch.inference_mode():
            print(tuple(model(torch.ones(3, 4)).shape), model.programs)
    except BaseException as error:
        failed.append(error)


thread = threading.Thread(target=lane)
thread.start()
thread.join()
if failed:
    raise failed[0]
"""
"""A program made in another thread than the one that asked for the compiled model."""


def in_a_lane(temporary: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    environment |= {"TMPDIR": str(temporary), "HOME": str(temporary), "TORCHDYNAMO_SUPPRESS_ERRORS": "1"}
    command = [sys.executable, "-c", IN_A_LANE]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)


@pytest.mark.slow
def test_a_thread_writes_where_programs_are_kept_and_a_start_repairs_what_a_process_left_there(tmp_path: Path) -> None:
    need_compiler()
    first = in_a_lane(tmp_path)
    assert (first.returncode, first.stdout) == (0, "(3, 4) 1\n"), first.stderr
    kept = tmp_path / f"tailrace-compiled-{os.getuid()}"
    written = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in written if file.parts[0] != kept.name] == []
    libraries = list(kept.rglob("*.so"))
    assert libraries
    for library in libraries:
        os.truncate(library, 4_096)
    damaged = in_a_lane(tmp_path)
    assert damaged.returncode == -signal.SIGBUS, damaged.stderr
    # The start that failed left its mark.
    repaired = in_a_lane(tmp_path)
    assert (repaired.returncode, repaired.stdout) == (0, "(3, 4) 1\n"), repaired.stderr
    assert not list(kept.glob("compiling-*"))


def test_a_compiler_that_is_turned_off_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(SettingsError, match=r"nothing was compiled: TORCHDYNAMO_DISABLE=1 turns .* off; unset that"):
        load(model, compile=True)


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
    kept = temporary / f"tailrace-compiled-{os.getuid()}"
    assert f"empty {kept} where a program in it may be damaged" in said
    assert not list(home.rglob("*")), "written outside the temporary directory"
    assert list(kept.glob("compiling-*")), "a start that did not get through marks the folder"
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
    monkeypatch.setenv(CACHE_VARIABLE, "/data/torchinductor_x")  # as nobody but the operator does
    assert program_folder() == Path("/data/torchinductor_x")


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


def test_ours_is_looked_at_again_where_the_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in every process that one with a compiled model starts."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = tmp_path / f"tailrace-compiled-{os.getuid()}"
    monkeypatch.setenv(CACHE_VARIABLE, str(ours))
    others_write(ours)
    with pytest.raises(SettingsError, match="others may write to"):
        program_folder()


KILLED = """
import os, signal, sys
from pathlib import Path
from workers.program_folder import marked

with marked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGBUS)
"""


def killed_while_compiling(folder: Path) -> None:
    """As a program that is cut short ends its process."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False).returncode == -signal.SIGBUS
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / "program.so").touch()


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return program_folder()


def programs_in(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*.so")]


def test_our_folder_is_emptied_after_a_process_that_ended_while_it_compiled(ours: Path) -> None:
    killed_while_compiling(ours)
    (ours / "link.so").symlink_to("/nowhere")
    drop_damaged(ours)
    assert not programs_in(ours)
    assert not list(ours.glob("compiling-*"))
    (ours / "program.so").touch()
    drop_damaged(ours)
    assert programs_in(ours) == ["program.so"], "nobody left a mark since"


def test_what_ended_well_leaves_no_mark_and_an_error_leaves_one(ours: Path) -> None:
    (ours / "program.so").touch()
    with marked(ours):
        pass
    drop_damaged(ours)
    assert programs_in(ours) == ["program.so"]
    with pytest.raises(ImportError), marked(ours):
        raise ImportError("file too short")
    drop_damaged(ours)
    assert programs_in(ours) == []


def test_while_another_process_compiles_nothing_is_taken_from_it(ours: Path) -> None:
    killed_while_compiling(ours)
    with marked(ours):
        drop_damaged(ours)
        assert programs_in(ours) == ["program.so"]
    drop_damaged(ours)
    assert programs_in(ours) == [], "the mark of the other one waited"


def test_a_folder_that_the_operator_named_is_never_emptied_and_the_log_says_to(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "named"
    monkeypatch.setenv(CACHE_VARIABLE, str(named))
    killed_while_compiling(named)
    drop_damaged(named)
    assert programs_in(named) == ["program.so"]
    assert f"ended while it compiled into {named}" in (said := capfd.readouterr().err)
    assert "empty that folder" in said
    drop_damaged(named)
    assert capfd.readouterr().err == "", "once per process that ended so"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (drop_damaged, lambda folder: marked(folder).__enter__()):
        with pytest.raises(SettingsError, match=rf"programs cannot be kept in {tmp_path}/file/programs: "):
            use(tmp_path / "file" / "programs")


def test_the_longest_texts_are_tried_that_may_come_and_the_folder_is_marked_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest that one text may be, and the longest that several may be at once. Nothing is compiled for that."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "programs"))
    tried: list[tuple[int, ...]] = []
    marks: set[int] = set()

    class Recorded:
        folder, programs = tmp_path, 1

        def __init__(self, model: object) -> None:
            self.model = model

        def __call__(self, **inputs: NDArray[np.int64]) -> object:
            tried.append(tuple(inputs["input_ids"].shape))
            marks.add(len(list(tmp_path.glob("compiling-*"))))
            return self.model(**inputs)  # type: ignore[operator]

    monkeypatch.setattr("workers.transformer.CompiledModel", Recorded)
    long = make_bert(tmp_path / "long", tokens=1_024)
    chosen = EncoderSettings(model=str(long), max_tokens=800)
    load_model(chosen, device="cpu", precision="float32", threads=1, batch_tokens=600, compile=True)
    assert tried[-2:] == [(1, 800), (3, 200)]
    assert marks == {1}, "a program may end the process when it is run, too"
    assert not list(tmp_path.glob("compiling-*"))


def test_the_multilingual_model_is_computed_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that spaces with it are built where the setting is for the others."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "programs"))
    vectors = load_model("multilingual", compile=True).encode(["red lamp"])
    np.testing.assert_array_equal(vectors, load_model("multilingual").encode(["red lamp"]))
    assert not (tmp_path / "programs").exists()
