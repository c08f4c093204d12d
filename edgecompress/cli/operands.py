"""What a path on the command line is, and what to do with it where something else is needed."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path

from edgecompress.errors import BundleError, EdgeCompressError, StudentError, nearest
from edgecompress.formats.manifest import MANIFEST

CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MOST_SUGGESTED = 200  # entries of a folder that a misspelt name is compared with


def check_operands(command: str, options: Namespace) -> None:
    """Raises BundleError or StudentError for an operand that is not what the command takes.

    Only what is certain is refused here: whether a bundle or a checkpoint is valid is for those who read it.
    """
    if isinstance(bundle := getattr(options, "bundle", None), Path):
        require_bundle(bundle)
    for side in getattr(options, "sides", ()):
        if ":" not in side or Path(side).exists():
            _require_side(Path(side))
    if command == "distill" and not options.teacher.startswith("openai:"):
        require_checkpoint(options.teacher, command)
    if isinstance(subject := getattr(options, "subject", None), Path):
        _require_either(subject)


def require_bundle(path: Path) -> None:
    """Raises BundleError for what is certainly no bundle."""
    if (path / MANIFEST).is_file():
        return
    if is_checkpoint(path):
        raise BundleError(f"{path} is a checkpoint, not a bundle", hint=_export_first(path))
    _refuse(path, "a bundle", BundleError, "Give the folder that `edgecompress export` wrote.", MANIFEST)


def require_checkpoint(source: str, command: str = "export") -> None:
    """Raises StudentError for what is certainly no checkpoint. A hub id passes."""
    path = Path(source).expanduser()
    if (path / CONFIG).is_file() or (not path.exists() and _is_hub_id(source)):
        return
    if (path / MANIFEST).is_file():
        raise StudentError(
            f"{source} is a bundle, and `edgecompress {command}` takes a checkpoint",
            hint=f"Run the bundle: `edgecompress run {_quoted(path)} …`; "
            f"`edgecompress lineage {_quoted(path)}` names the checkpoint that it was exported from.",
        )
    hint = "Give a checkpoint folder, or a hub id such as owner/name."
    _refuse(path, "a checkpoint", StudentError, hint, CONFIG)


def is_checkpoint(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / MANIFEST).is_file()


def _require_side(path: Path) -> None:
    if is_checkpoint(path):
        raise BundleError(
            f"{path} is a checkpoint, not a bundle",
            hint=f"Give torch:{_quoted(path)} to run it in PyTorch, or export it first.",
        )
    if path.suffix == ".onnx" and path.is_file():
        raise BundleError(f"{path} is an ONNX file, not a bundle", hint=f"Give onnx:{_quoted(path)}.")
    require_bundle(path)


def _require_either(path: Path) -> None:
    if not (path / MANIFEST).is_file() and not is_checkpoint(path):
        _refuse(path, "a bundle or checkpoint", StudentError, "Give the folder of one.", f"{MANIFEST} and no {CONFIG}")


def _refuse(path: Path, wanted: str, error: type[EdgeCompressError], hint: str, lacks: str) -> None:
    """Raise for a path that is neither a bundle nor a checkpoint. ``lacks``: the file that would make it ``wanted``."""
    if not path.exists():
        meant = _nearest_sibling(path)
        raise error(
            f"there is no {wanted.removeprefix('a ')} at {path}{'.' * bool(meant)}{meant}",
            hint=_absent(path, wanted, hint),
        )
    what, instead = _describe(path)
    if what:
        raise error(f"{path} is {what}, not {wanted}", hint=instead or hint)
    if len(inner := [each for each in sorted(path.iterdir()) if _is_wanted(each, wanted)]) == 1:
        raise error(f"{path} is not {wanted}, but the folder of one", hint=f"Give {_quoted(inner[0])}.")
    raise error(f"{path} is not {wanted}: it has no {lacks}", hint=hint)


def _is_wanted(path: Path, wanted: str) -> bool:
    return ("bundle" in wanted and (path / MANIFEST).is_file()) or ("checkpoint" in wanted and is_checkpoint(path))


def _absent(path: Path, wanted: str, hint: str) -> str:
    name = str(path)
    if not _is_hub_id(name) or wanted == "a checkpoint":  # a hub id would do for that, so it is none
        return hint
    if "checkpoint" in wanted:
        return f"A hub id? Download it first: `hf download {name} --local-dir {path.name}`."
    return (
        f"If it is a checkpoint on the hub: `edgecompress export {name} -o {path.name}.bundle`.\n"
        f"If it is a bundle on the hub: `hf download {name} --local-dir {path.name}`, then give {path.name}."
    )


def _describe(path: Path) -> tuple[str, str]:
    """What it is and what to do with it; empty strings where that is not known."""
    original = "Give the checkpoint that it was converted from: a folder with config.json and model.safetensors."
    if path.is_file():
        magic = _first_bytes(path)
        if magic.startswith(b"GGUF"):
            return "a GGUF file of llama.cpp", original
        if path.suffix == ".onnx":
            return "an ONNX file", f"{original}\n`edgecompress compare` takes it as onnx:{_quoted(path)}."
        if path.name == MANIFEST:
            return "a bundle's manifest", f"Give its folder: {_quoted(path.parent)}."
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name == CONFIG:
            return "one file of a checkpoint", f"Its folder, if it is whole: {_quoted(path.parent)}."
        if path.suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
            return "an archive", "Unpack it, and give the folder."
        return "a file", ""
    names = {each.name for each in path.iterdir()}
    if not names:
        return "an empty folder", ""
    if "adapter_config.json" in names:
        return "a LoRA adapter", "Merge it into its base model (`merge_and_unload()` of peft), save that, and give it."
    if "snapshots" in names and "refs" in names:
        newest = sorted((path / "snapshots").iterdir(), key=lambda each: each.stat().st_mtime)
        name = path.name.removeprefix("models--").replace("--", "/", 1)
        return "the hub's cache of a repository", f"Give {_quoted(newest[-1])}." if newest else f"Give {name}."
    if any(name.endswith(".gguf") for name in names):
        return "a folder of GGUF files", original
    if any(name.endswith(".onnx") for name in names):
        return "a folder of ONNX files", f"{original}\n`edgecompress compare` takes a model as onnx:FILE."
    return "", ""


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _export_first(path: Path) -> str:
    bundle = _quoted(Path(f"{path.name or 'student'}.bundle"))
    return f"Export it first: `edgecompress export {_quoted(path)} -o {bundle}`, then give {bundle}."


def _nearest_sibling(path: Path) -> str:
    """A suggestion where the last part of a path is misspelt."""
    try:
        siblings = [each.name for each in sorted(path.parent.iterdir()) if each.is_dir()]
    except OSError:
        return ""
    return nearest(path.name, siblings[:_MOST_SUGGESTED], cutoff=0.7) if len(path.name) > 2 else ""


def _is_hub_id(text: str) -> bool:
    return _HUB_ID.fullmatch(text) is not None and not Path(text).parent.is_dir()


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
