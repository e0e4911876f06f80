"""Which device each encoder process has, and how many processes there are; pure functions, without torch."""

from __future__ import annotations

from stream_app.errors import SettingsError

__all__ = ["MOST_PROCESSES", "device_of", "named_devices", "process_count"]

MOST_PROCESSES = 64


def named_devices(setting: str) -> tuple[str, ...]:
    """What ``encoder.device`` names, in order: ``("auto",)``, ``("cpu",)``, ``("cuda",)``, or GPUs by number."""
    return tuple(part.strip() for part in setting.split(","))


def process_count(wanted: int, setting: str, present: int) -> int:
    """How many encoder processes a pool has.

    Args:
        wanted: ``encoder.processes``; 0: one per device.
        setting: ``encoder.device``.
        present: devices of the kind in use that the processes see. 1 where that is not known yet: only a process
            that has loaded torch can tell.

    Returns:
        1 to 64: what is wanted, else one for each device that is named by number, or for each that is present.
    """
    if wanted:
        return wanted
    named = named_devices(setting)
    per_device = present if named in (("auto",), ("cuda",)) else len(named)
    return min(max(per_device, 1), MOST_PROCESSES)


def device_of(setting: str, index: int, cuda_devices: int) -> str:
    """The device of the process with this index, for example ``cpu`` or ``cuda:0``; processes take devices in turn.

    Args:
        setting: ``encoder.device``.
        index: of the process, from 0.
        cuda_devices: how many torch sees.

    Raises:
        SettingsError: when there is no such device here.
    """
    named = named_devices(setting)
    name = named[index % len(named)]
    if name == "cpu" or (name == "auto" and cuda_devices == 0):
        return "cpu"
    number = int(name.removeprefix("cuda:")) if ":" in name else index % max(cuda_devices, 1)
    if number >= cuda_devices:
        of = "" if name == setting else f" ({name})"
        raise SettingsError(
            f"encoder.device = {setting!r}{of}: torch sees {cuda_devices} CUDA devices here; use cpu or auto"
        )
    return f"cuda:{number}"
