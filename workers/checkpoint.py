"""The files of weights: all there, whole, and of a kind that can be read without running code from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.folders import ModelFolder, refusal

__all__ = ["Shape", "check_table", "refuse_shapes", "tensor_shapes", "weight_files"]

Shape = tuple[int, ...]
_INDEX = "model.safetensors.index.json"
_WITH_A_TABLE = frozenset(
    (
        *("bert", "camembert", "distilbert", "modernbert", "mpnet", "roberta", "xlm-roberta"),
        *("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
    )
)
"""Architectures with a table of embeddings as wide as their hidden states."""
_TABLES = (".word_embeddings.weight", ".tok_embeddings.weight", "embed_tokens.weight")
_WIDTHS = ("hidden_size", "dim")
_SHOWN = 3
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


def tensor_shapes(files: Sequence[Path]) -> dict[str, Shape]:
    """The shape of each tensor, by name. Reads the headers only, and sees that each file is as long as they say.

    Raises:
        ValueError: names the file that is cut off or damaged.
        OSError: when one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as content:
                for name in content.keys():  # noqa: SIM118 - it has no other way to tell them
                    shapes[name] = tuple(content.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is cut off or damaged ({error}); fetch it again") from error
    return shapes


def check_table(folder: ModelFolder, shapes: Mapping[str, Shape]) -> None:
    """See that the table of embeddings is as long and as wide as ``config.json`` says, where the architecture is one
    whose table is known. All other shapes take torch (:mod:`workers.shapes`).

    Args:
        folder: the model's.
        shapes: of its tensors.

    Raises:
        SettingsError: names the tensor and both shapes.
    """
    config = folder.read_object("config.json")
    width = next((config[name] for name in _WIDTHS if name in config), None)
    rows = config.get("vocab_size")
    if config.get("model_type") not in _WITH_A_TABLE or not isinstance(rows, int) or not isinstance(width, int):
        return
    expected = (rows, width)
    tables = [(name, shape, expected) for name, shape in shapes.items() if name.endswith(_TABLES)]
    refuse_shapes(folder.name, folder.path, tables)


def refuse_shapes(name: str, folder: Path, tensors: Sequence[tuple[str, Shape, Shape]]) -> None:
    """Refuse model ``name`` where one of its tensors has another shape than the model.

    Args:
        name: as in the setting.
        folder: where its files are.
        tensors: each one's name, the shape it has, and the one it has to have.

    Raises:
        SettingsError: names the first tensors that differ, with both shapes.
    """
    wrong = [one for one in tensors if one[1] != one[2]]
    if wrong:
        shown = ", ".join(
            f"{tensor} is {list(has)} and has to be {list(wants)}" for tensor, has, wants in wrong[:_SHOWN]
        )
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise refusal(
            name,
            f"the weights in {folder} have another shape than its config.json says: {shown}{more}; the files do not "
            "belong together: fetch the model again, config.json and weights",
        )
