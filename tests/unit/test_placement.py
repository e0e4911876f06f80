"""Which device each encoder process has, and how many processes there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings, load_settings
from workers.placement import MOST_PROCESSES, device_of, named_devices, process_count


@pytest.mark.parametrize(
    ("wanted", "setting", "present", "expected"),
    [
        (0, "cpu", 1, 1),
        (0, "cpu", 4, 1),  # GPUs that nobody asked for
        (0, "auto", 1, 1),
        (0, "auto", 4, 4),
        (0, "cuda", 4, 4),
        (0, "cuda", 0, 1),  # none at all: the process says so
        (0, "cuda", 200, 64),
        (0, "cuda:2", 4, 1),
        (0, "cuda:0,cuda:2", 4, 2),
        (3, "cuda:0,cuda:2", 4, 3),
        (2, "auto", 4, 2),
        (2, "cpu", 1, 2),
    ],
)
def test_there_is_a_process_per_device_unless_the_settings_say_how_many(
    wanted: int, setting: str, present: int, expected: int
) -> None:
    assert process_count(wanted, setting, present) == expected


@pytest.mark.parametrize(
    ("setting", "cuda_devices", "expected"),
    [
        ("cpu", 4, ["cpu", "cpu", "cpu"]),
        ("auto", 0, ["cpu", "cpu", "cpu"]),
        ("auto", 1, ["cuda:0", "cuda:0", "cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", 2, ["cuda:1", "cuda:1", "cuda:1"]),
        ("cuda:0,cuda:2", 3, ["cuda:0", "cuda:2", "cuda:0"]),
        ("cuda:2 , cuda:0", 3, ["cuda:2", "cuda:0", "cuda:2"]),
    ],
)
def test_processes_take_the_devices_in_turn(setting: str, cuda_devices: int, expected: list[str]) -> None:
    assert [device_of(setting, index, cuda_devices) for index in range(3)] == expected


@given(present=st.integers(1, 100), setting=st.sampled_from(("auto", "cuda")))
def test_with_a_process_per_device_each_has_one_of_its_own(present: int, setting: str) -> None:
    processes = process_count(0, setting, present)
    assert processes == min(present, MOST_PROCESSES)
    assert len({device_of(setting, index, present) for index in range(processes)}) == processes


@pytest.mark.parametrize(
    ("setting", "index", "cuda_devices", "said"),
    [
        ("cuda", 0, 0, r"encoder.device = 'cuda': torch sees 0 CUDA devices here; use cpu or auto"),
        ("cuda:3", 0, 3, r"encoder.device = 'cuda:3': torch sees 3"),
        ("cuda:0,cuda:9", 1, 2, r"encoder.device = 'cuda:0,cuda:9' \(cuda:9\): torch sees 2"),
    ],
)
def test_a_device_that_is_not_there_is_refused(setting: str, index: int, cuda_devices: int, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        device_of(setting, index, cuda_devices)


@pytest.mark.parametrize(
    "setting", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "cuda:0,cuda:2", "cuda:0, cuda:2,cuda:1"]
)
def test_devices_may_be_set(setting: str) -> None:
    assert EncoderSettings(device=setting).device == setting
    assert len(named_devices(setting)) == setting.count(",") + 1


@pytest.mark.parametrize(
    "setting", ["", "tpu", "cuda,cuda", "cpu,cuda:0", "auto,cuda:0", "cuda:", "cuda:0,", "cuda:0;cuda:1", "cuda:0\n"]
)
def test_what_names_no_devices_is_refused_with_the_setting(setting: str) -> None:
    with pytest.raises(SettingsError, match=r"encoder\.device"):
        load_settings(encoder={"device": setting})


def test_a_device_named_twice_is_refused_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"encoder\.device.*names cuda:1 twice; .* set processes"):
        load_settings(encoder={"device": "cuda:1,cuda:0,cuda:1"})
