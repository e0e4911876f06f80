"""Whether the weights in a folder have the shapes that its ``config.json`` asks for; with torch, without the weights.

The model is made on torch's meta device, where tensors have shapes and no memory, and compared with the headers of the
safetensors files. So a checkpoint that does not fit is found in a second, whatever its size, and before anything is
loaded, made up or written down.
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
import torch
from transformers import AutoConfig, AutoModel

from workers.checkpoint import Shape, refuse_shapes, tensor_shapes
from workers.devices import out_of_memory
from workers.folders import MULTILINGUAL
from workers.models import ModelChoice, ModelInfo, describe_model

__all__ = ["check_shapes", "check_weights"]


def check_weights(choice: str | ModelChoice) -> ModelInfo:
    """As :func:`workers.models.describe_model`, and the shapes of all weights are looked at too; imports torch.

    Raises:
        SettingsError: also when a tensor has another shape than the model.
    """
    info = describe_model(choice)
    if info.name != MULTILINGUAL:
        check_shapes(info)
    return info


def check_shapes(info: ModelInfo) -> None:
    """See that each tensor in the model's folder has the shape it has in the model.

    Tensors that only one of both has are none of this function's business: which ones may be missing, and which are
    renamed on loading, is seen when they are loaded.

    Raises:
        SettingsError: names the first tensors that differ, with both shapes; or when transformers cannot make such a
            model.
    """
    try:
        config = AutoConfig.from_pretrained(info.folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # a folder may be wrong in ways that transformers does not foresee
        if out_of_memory(error):
            raise
        raise info.refusal(
            f"transformers makes no model of {info.folder / 'config.json'}: {error}; fetch the model again, or take "
            "one that the installed transformers knows"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A checkpoint saved with a head on top (as for a language model) has the name of the part before each tensor.
    part = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, Shape] = {}
    for name, shape in tensor_shapes(sorted(info.folder.glob("*.safetensors"))).items():
        found[name if name in expected else name.removeprefix(part)] = shape
    both = sorted(found.keys() & expected.keys())
    refuse_shapes(info.name, info.folder, [(name, found[name], expected[name]) for name in both])
