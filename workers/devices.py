"""The device a model computes on, and the numbers it computes in; with torch."""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
from pathlib import Path

import torch

from workers.models import Precision
from workers.placement import device_of

__all__ = ["TORCH_TYPES", "cpu_has_bfloat16", "devices_like", "out_of_memory", "pick_device", "pick_precision"]

_BFLOAT16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))
_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator on Linux
    "not enough memory",  # and elsewhere
    "Cannot allocate memory",  # the operating system, told by safetensors and by torch in two ways when mapping a file
    "std::bad_alloc",
)
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
    """The device that ``encoder.device`` names; of several each process takes one, by its index.

    Raises:
        SettingsError: when there is no such device here.
    """
    return torch.device(device_of(name, index, _cuda_devices()))


def devices_like(device: torch.device) -> int:
    """How many devices of this kind there are, this one included; the processor is one."""
    return max(1, _cuda_devices()) if device.type == "cuda" else 1


def pick_precision(wanted: Precision, device: torch.device) -> str:
    """The precision wanted; of ``auto`` the fastest that the device multiplies in hardware."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory is exhausted. The processor's allocator of torch raises a plain RuntimeError, and
    where a file cannot be mapped the operating system's own error comes, as text only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
