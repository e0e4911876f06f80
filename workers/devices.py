"""The device a model computes on, and the numbers it computes in; with torch."""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
from pathlib import Path

import torch

from stream_app.errors import SettingsError
from workers.models import Precision

__all__ = ["TORCH_TYPES", "cpu_has_bfloat16", "out_of_memory", "pick_device", "pick_precision"]

_BFLOAT16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))
TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX, AVX512-BF16, Arm BF16).

    Emulated bfloat16 is slower than float32. Where the file is not there (not Linux) the answer is no.
    """
    try:
        content = cpuinfo.read_text("ascii", errors="replace")
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in content.splitlines() if line.startswith(("flags", "Features")))
    return not _BFLOAT16_FLAGS.isdisjoint(next(flags, []))


def pick_device(name: str, index: int) -> torch.device:
    """The device that ``encoder.device`` names; of several CUDA devices each process takes one, by its index.

    Raises:
        SettingsError: when there is no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    chosen = torch.device(name if ":" in name else f"cuda:{index % max(count, 1)}")
    if chosen.index is not None and chosen.index >= count:
        raise SettingsError(f"encoder.device = {name!r}: torch sees {count} CUDA devices here; use cpu or auto")
    return chosen


def pick_precision(wanted: Precision, device: torch.device) -> str:
    """The precision wanted; of ``auto`` the fastest that the device multiplies in hardware."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says with this that memory is exhausted: the allocator of the CPU raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
