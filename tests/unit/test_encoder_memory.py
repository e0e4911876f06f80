"""Memory that runs out on the processor: the real errors of the real libraries, recognised and dealt with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stream_app.settings import EncoderSettings
from tests.checkpoints import make_bert
from workers.devices import out_of_memory
from workers.models import load_model
from workers.pool import EncoderPool, Priority

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel bounds a process's memory on Linux only"),
]

COMMAND = (sys.executable, "-m", "tests.unit.little_memory_process")


def test_what_torch_raises_where_there_is_no_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value), caught.value
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, dtype=np.uint8)
    assert out_of_memory(of_numpy.value)


def test_other_errors_of_torch_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not out_of_memory(caught.value)


async def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits(tmp_path: Path) -> None:
    """Of 256 texts of 64 tokens with 4,096 numbers each the inner layer takes 268 MB at once; 200 are there."""
    folder = make_bert(tmp_path / "wide", inner=4_096)
    settings = EncoderSettings(
        model=str(folder),
        device="cpu",
        precision="float32",
        threads=1,
        batch=256,
        batch_tokens=1_048_576,
        max_tokens=64,
    )
    texts = [f"{number} " + "x" * 90 for number in range(256)]
    pool = EncoderPool(settings, command=COMMAND)
    await pool.start()
    try:
        await pool.ready()
        vectors = await pool.encode(texts, Priority.CATALOGUE)
    finally:
        await pool.close()
    assert pool.stats.memory_failures >= 1
    assert pool.stats.restarts == 0
    assert pool.stats.texts_encoded == 256
    assert max(pool.stats.batch_sizes) <= 128
    alone = load_model(settings, device="cpu", precision="float32", batch=1).encode(texts[::50])
    np.testing.assert_allclose(vectors[::50], alone, atol=2e-6)


@pytest.mark.parametrize(
    ("room_mb", "said"),
    [
        (40, "no room to map the weights in .*allow this process more memory, or set a smaller encoder.model"),
        (125, "no room on cpu for the model in .*free the device or set another encoder.device"),
    ],
)
def test_a_model_that_does_not_fit_says_what_to_do(room_mb: int, said: str) -> None:
    """MiniLM has 90 MB of weights: the file cannot be mapped, or its numbers not be copied beside it."""
    code = (
        "import workers.transformer\n"
        "from stream_app.errors import SettingsError\n"
        "from tests.unit.little_memory_process import no_more_than\n"
        "from workers.models import load_model\n"
        f"no_more_than({room_mb} << 20)\n"
        "try:\n"
        "    load_model('minilm', device='cpu', precision='float32', threads=1)\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(f"encoder.model = 'minilm': {said}", done.stdout), (done.stdout, done.stderr[-2_000:])
