"""Finds a checkpoint's files and looks at its weights, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edgecompress.errors import StudentError
from edgecompress.formats.manifest import file_sha256
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task

# What an export reads; a hub repository often holds other formats of the same weights, which are left where they are.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "*/*.json", "*/*.safetensors"]
_WANTED += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "distill.toml"]  # for the lineage
_UNWANTED = ["onnx/*", "openvino/*", "flax_model*", "tf_model*", "coreml/*"]
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin")


def locate(recipe: StudentRecipe) -> tuple[Path, str | None]:
    """The local folder of the checkpoint and, for a hub id, the commit it is of. Raises StudentError."""
    source = recipe.source
    if not source:
        raise StudentError("no checkpoint was given", hint="Give a directory or a hub id.")
    path = Path(source).expanduser()
    if path.is_dir():
        if recipe.revision is not None:
            raise StudentError(
                f"--revision {recipe.revision} was given for the directory {source}",
                hint="Revisions are of hub ids.",
            )
        return path.resolve(), None
    if path.exists():
        raise StudentError(f"{source} is a file, not a checkpoint directory", hint="Give the folder that holds it.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or source.endswith("/"):
        raise StudentError(
            f"there is no directory {source}", hint="Give a checkpoint directory, or a hub id such as owner/name."
        )
    return _download(recipe)


def _download(recipe: StudentRecipe) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = _WANTED + (["*.bin"] if recipe.allow_pickle else []) + (["*.py"] if recipe.trust_remote_code else [])
    try:
        folder = Path(
            snapshot_download(
                recipe.source, revision=recipe.revision, allow_patterns=patterns, ignore_patterns=_UNWANTED
            )
        )
    except LocalEntryNotFoundError as error:
        raise StudentError(
            f"'{recipe.source}' is no directory, and it is not in the local cache either (the hub cannot be reached)",
            hint="Go online, or give the directory of a downloaded checkpoint.",
        ) from error
    except RepositoryNotFoundError as error:
        raise StudentError(
            f"there is no directory and no hub repository '{recipe.source}'",
            hint="Check the spelling; a private repository needs `hf auth login`.",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StudentError(
            f"'{recipe.source}' cannot be fetched: {str(error).splitlines()[0][:200]}",
            hint="Give the directory of a downloaded checkpoint.",
        ) from error
    return folder, folder.name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if the file is not there. Raises StudentError if it is not one."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"{path.name} of the checkpoint cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise StudentError(f"{path.name} of the checkpoint is not a JSON object")
    return data


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The safetensors files; an empty list if the weights are pickled and that is allowed. Raises StudentError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        absent = [name for name in names if not (folder / name).exists()]
        if absent:
            raise StudentError(f"the checkpoint lacks {absent[0]}, which its index names", hint="Download it again.")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles and allow_pickle:
        return []
    if pickles:
        raise StudentError(
            f"the checkpoint has its weights only as a pickle ({pickles[0]}), and loading one runs code from it",
            hint="Convert it to safetensors, or pass --allow-pickle if you trust its author.",
        )
    raise StudentError(f"{folder.name} has no weights: no model.safetensors", hint="Give a whole checkpoint.")


def inspect_weights(files: list[Path]) -> tuple[int, int]:
    """Number of parameters and bytes. Raises StudentError if a file is truncated or a weight is NaN or infinite."""
    parameters = 0
    for path in files:
        try:
            for name, tensor in _tensors(path):
                parameters += tensor.size
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise StudentError(
                        f"weight '{name}' in {path.name} holds NaN or infinite values",
                        hint="The checkpoint is broken, as by a diverged training; take an earlier one.",
                    )
        except SafetensorError as error:
            raise StudentError(f"{path.name} is truncated or damaged: {error}", hint="Download it again.") from error
    return parameters, sum(path.stat().st_size for path in files)


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
    """One tensor at a time, so that memory holds the largest of them and not the file."""
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if file.get_slice(name).get_dtype() == "BF16":
                import torch  # NumPy has no bfloat16

                with safe_open(path, framework="pt") as half:
                    yield name, half.get_tensor(name).to(torch.float32).numpy()
            else:
                yield name, file.get_tensor(name)


def hashes(folder: Path) -> Mapping[str, str]:
    """sha256 of every file of the checkpoint that an export may read."""
    names = {p for pattern in _WANTED for p in folder.glob(pattern) if p.is_file()}
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(names)}


def head_of(config: Mapping[str, Any]) -> str:
    """The class that the checkpoint was saved from, "BertForMaskedLM"; "" where config.json does not say."""
    return str((config.get("architectures") or [""])[0])


def is_pair(config: Mapping[str, Any]) -> bool:
    """An encoder and a decoder together."""
    return bool(config.get("is_encoder_decoder"))


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """A language model that takes more than text."""
    return head_of(config).endswith("ForConditionalGeneration")


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a head's classes, in order."""
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


def read_student(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """What every checkpoint of transformers in safetensors says; its kind adds what it knows beyond.

    Raises StudentError for weights that are missing, pickled, truncated or not finite.
    """
    parameters, size = inspect_weights(weight_files(checkpoint.folder, recipe.allow_pickle))
    return Student(
        source=recipe.source,
        path=checkpoint.folder,
        architecture=checkpoint.architecture,
        task=task.name,
        auto_class=task.auto_class,
        parameters=parameters,
        weights_bytes=size,
        trust_remote_code=recipe.trust_remote_code,
        allow_pickle=recipe.allow_pickle,
        files=hashes(checkpoint.folder),
    )
