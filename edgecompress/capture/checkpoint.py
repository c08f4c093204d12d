"""Finds a checkpoint's files and checks its weights, without importing torch unless a weight is bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edgecompress.errors import HubError, StudentError, first_line
from edgecompress.formats.manifest import file_sha256
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Student
from edgecompress.types.task import Task

# What an export reads; hub repositories often hold the same weights in other formats, which are not downloaded.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "*/*.json", "*/*.safetensors"]
_WANTED += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "distill.toml"]  # for the lineage
_UNWANTED = ["onnx/*", "openvino/*", "flax_model*", "tf_model*", "coreml/*"]
_DOWNLOAD = "Download the checkpoint again."
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin")


def locate(recipe: StudentRecipe) -> tuple[Path, str | None]:
    """The checkpoint's local folder and, for a hub id, its commit. Raises StudentError if it cannot be found."""
    source = recipe.source
    if not source:
        raise StudentError("no checkpoint was given", hint="Give a directory or a hub id.")
    path = Path(source).expanduser()
    if path.is_dir():
        if recipe.revision is not None:
            raise StudentError(
                f"--revision {recipe.revision} does not apply to {source}, which is a local directory",
                hint="Leave out --revision, or give a hub id such as owner/name.",
            )
        return path.resolve(), None
    if path.exists():
        raise StudentError(f"{source} is a file, not a checkpoint directory", hint="Give the folder that contains it.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or source.endswith("/"):
        raise StudentError(
            f"there is no directory {source}", hint="Give a checkpoint directory, or a hub id such as owner/name."
        )
    return _download(recipe)


def _download(recipe: StudentRecipe) -> tuple[Path, str]:
    import httpx2
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
            f"'{recipe.source}' is not a directory and not in the local cache, and the hub cannot be reached",
            hint="Connect to the network, or give the directory of a downloaded checkpoint.",
        ) from error
    except RepositoryNotFoundError as error:
        raise StudentError(
            f"'{recipe.source}' is neither a directory nor a hub repository",
            hint="Check the spelling; a private repository needs `hf auth login`.",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StudentError(
            f"'{recipe.source}' cannot be downloaded: {first_line(error, type(error).__name__)[:200]}",
            hint="Give the directory of a downloaded checkpoint.",
        ) from error
    except httpx2.HTTPError as error:
        raise HubError(
            f"'{recipe.source}' cannot be downloaded: {first_line(error, type(error).__name__)[:200]}",
            hint="Check the network and HTTPS_PROXY, then run it again, which resumes the download; or give the "
            "directory of a downloaded checkpoint.",
        ) from error
    except (KeyError, TypeError) as error:  # a proxy or mirror whose JSON is not the hub's
        raise StudentError(
            f"'{recipe.source}' cannot be downloaded: the hub's answer is not what its client expects",
            hint="Check HF_ENDPOINT and the proxy, or give the directory of a downloaded checkpoint.",
        ) from error
    return folder, folder.name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file does not exist. Raises StudentError if it is not a JSON object."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"{path.name} of the checkpoint cannot be read: {error}", hint=_DOWNLOAD) from error
    if not isinstance(data, dict):
        raise StudentError(f"{path.name} of the checkpoint is not a JSON object", hint=_DOWNLOAD)
    return data


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The safetensors files; empty if the weights are a pickle and ``allow_pickle`` is set. Raises StudentError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        absent = [name for name in names if not (folder / name).exists()]
        if absent:
            raise StudentError(f"{absent[0]} is missing from the checkpoint, but {index.name} lists it", hint=_DOWNLOAD)
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles and allow_pickle:
        return []
    if pickles:
        raise StudentError(
            f"the checkpoint has its weights only as a pickle ({pickles[0]}), and loading a pickle runs code from it",
            hint="Convert it to safetensors, or give --allow-pickle if you trust its author.",
        )
    raise StudentError(f"{folder.name} has no weights (no model.safetensors)", hint="Give a complete checkpoint.")


def inspect_weights(files: list[Path]) -> tuple[int, int]:
    """(parameters, bytes) of the files. Raises StudentError if a file is truncated or a weight is NaN or infinite."""
    parameters = 0
    for path in files:
        try:
            for name, tensor in _tensors(path):
                parameters += tensor.size
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise StudentError(
                        f"weight '{name}' in {path.name} holds NaN or infinite values",
                        hint="The checkpoint is broken, for example by diverged training; give an earlier one.",
                    )
        except SafetensorError as error:
            raise StudentError(f"{path.name} is truncated or damaged: {error}", hint=_DOWNLOAD) from error
    return parameters, sum(path.stat().st_size for path in files)


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
    """Yield one tensor at a time, so that memory holds the largest tensor, not the whole file."""
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if file.get_slice(name).get_dtype() == "BF16":
                import torch  # NumPy has no bfloat16

                with safe_open(path, framework="pt") as half:
                    yield name, half.get_tensor(name).to(torch.float32).numpy()
            else:
                yield name, file.get_tensor(name)


def hashes(folder: Path) -> Mapping[str, str]:
    """File name -> sha256, for every file of the checkpoint that an export may read."""
    names = {p for pattern in _WANTED for p in folder.glob(pattern) if p.is_file()}
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(names)}


def head_of(config: Mapping[str, Any]) -> str:
    """The class that saved the checkpoint, e.g. "BertForMaskedLM"; "" if config.json does not say."""
    return str((config.get("architectures") or [""])[0])


def is_pair(config: Mapping[str, Any]) -> bool:
    """Whether it is an encoder-decoder."""
    return bool(config.get("is_encoder_decoder"))


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether it is a language model that takes more than text."""
    return head_of(config).endswith("ForConditionalGeneration")


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of a classification head, in order."""
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


def read_student(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """Read what all transformers checkpoints have in common; the student's kind adds the rest.

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
