"""The files of weights: all there, whole, and of a kind that can be read without running code from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workers.folders import ModelFolder

__all__ = ["check_whole", "weight_files"]

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: ModelFolder) -> list[Path]:
    """The safetensors files of ``folder``, in order of their names. Does not open them.

    Raises:
        SettingsError: when there are none, when a part of a checkpoint in several parts is missing, when one is a link
            to nowhere or no file, or when the weights are those of an adapter, which are nothing without another model.
    """
    if folder.has("adapter_config.json"):
        raise folder.refusal(
            f"{folder.path} holds an adapter (adapter_config.json), not a model; merge it into its base model "
            "(peft: merge_and_unload) and save that"
        )
    files = sorted(folder.path.glob("*.safetensors"))
    # A cache that was copied without what its links point to, or cleaned, leaves the links.
    if broken := [file.name for file in files if not folder.has(file.name)]:
        raise folder.refusal(
            f"{broken[:3]} in {folder.path} are links to files that are not there, or no files; fetch the model again "
            "(when copying, follow links: cp -L)"
        )
    if folder.has(_INDEX):
        parts = folder.read_object(_INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise folder.refusal(f"{folder.path / _INDEX} has no weight_map; fetch the model again")
        if missing := sorted({str(part) for part in parts.values()} - {file.name for file in files}):
            raise folder.refusal(f"{len(missing)} parts of the weights are missing in {folder.path}: {missing[:3]}")
    elif files and not folder.has("model.safetensors"):
        raise folder.refusal(
            f"neither model.safetensors nor {_INDEX} in {folder.path}, only {[file.name for file in files[:3]]}"
        )
    if not files:
        pickled = sorted(file.name for kind in _PICKLED for file in folder.path.glob(kind))
        found = f", only {pickled[:3]}, which may run code when opened" if pickled else ""
        raise folder.refusal(
            f"no *.safetensors in {folder.path}{found}; convert the weights to safetensors "
            "(transformers: model.save_pretrained) or fetch the model's safetensors"
        )
    return files


def check_whole(files: Sequence[Path]) -> None:
    """See that each safetensors file is as long as its header says. Reads the headers only.

    Raises:
        ValueError: names the file that is cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is cut off or damaged ({error}); fetch it again") from error
