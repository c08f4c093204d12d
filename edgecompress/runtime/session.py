"""Opens an ONNX Runtime session for a bundle, on the bundle's target only."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.formats.cpu import host_arch, host_cores, host_features
from edgecompress.runtime.pages import anonymous_regions, collapse_new
from edgecompress.runtime.weights import add_weights, read_table
from edgecompress.types.bundle import Manifest, Variant

_MACHINES = {62: "x86_64", 183: "aarch64"}  # of ELF


def check_host(manifest: Manifest) -> None:
    """Raises HostError if this CPU lacks an architecture or a feature that the bundle's target has."""
    target = manifest.target
    if target.arch != host_arch():
        raise HostError(
            f"the bundle is for {target.name} ({target.arch}) and this machine is {host_arch()}",
            hint="Export the student for this machine, or pass allow_mismatch=True (--allow-mismatch) to try anyway.",
        )
    missing = sorted(set(target.isa) - host_features())
    if missing:
        raise HostError(
            f"the bundle is for {target.name}, but this CPU lacks {', '.join(missing)}: {target.isa_reason}",
            hint="Export the student for this machine, or pass allow_mismatch=True (--allow-mismatch) to try anyway.",
        )


def thread_count(variant: Variant, threads: int | None) -> int:
    """``threads`` if given, else the bundle's setting, else the number of cores. Raises UsageError."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}", hint="Omit it to use the target's setting.")
    return threads or variant.runtime.threads or host_cores()


def make_session(
    folder: Path,
    variant: Variant,
    threads: int,
    *,
    providers: Sequence[Any] | None = None,
    config: Mapping[str, str] | None = None,
    huge_pages: bool = False,
    profile_to: Path | None = None,
) -> ort.InferenceSession:
    """Open a bundle's model with its target's settings, and check that its execution providers are active.

    ``providers``: onnxruntime providers with options; default: the variant's. ``config``: additional session config
    entries. ``huge_pages``: move the weights to huge pages, in a background thread. ``profile_to``: path prefix of the
    file to which ONNX Runtime writes node times when ``end_profiling`` is called. Raises HostError instead of falling
    back to another provider.
    """
    settings, wanted = variant.runtime, list(variant.providers)
    available = ort.get_available_providers()
    absent = [provider for provider in wanted if provider not in available]
    if absent:
        raise HostError(
            f"the bundle needs {absent[0]}, but onnxruntime {ort.__version__} has only {', '.join(available)}",
            hint="Install an onnxruntime package with this provider; `edgecompress doctor` shows what is installed.",
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised with our own messages
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if profile_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
    options.enable_cpu_mem_arena = settings.cpu_memory_arena
    if settings.graph_optimization == "disabled":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in {**settings.session_config, **(config or {})}.items():
        options.add_session_config_entry(key, value)
    kept = _add_kernels(options, folder, variant)
    huge_pages = huge_pages and not kept
    before = anonymous_regions() if huge_pages else {}
    try:
        session = ort.InferenceSession(str(folder / variant.path), options, providers=list(providers or wanted))
    except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load '{variant.path}': {str(error).splitlines()[0][:200]}",
            hint="Run `edgecompress inspect BUNDLE` for the versions that made it.",
        ) from error
    live = session.get_providers()
    silent = [provider for provider in wanted if provider not in live]
    if silent:
        raise HostError(
            f"{silent[0]} did not start: the session runs on {', '.join(live)}",
            hint="Run `edgecompress doctor` to find the library that it is missing.",
        )
    session.edgecompress_weights = kept  # kept alive as long as the session
    if huge_pages:
        threading.Thread(target=collapse_new, args=(before,), name="edgecompress-pages", daemon=True).start()
    return session


def _add_kernels(options: ort.SessionOptions, folder: Path, variant: Variant) -> list[Any]:
    """Register the bundle's custom ops and read their weights; return the objects that must stay alive.

    Raises HostError if the library is for another CPU or ONNX Runtime, BundleError if its weights are missing.
    """
    if variant.kernels is None:
        return []
    arch = _arch_of(folder / variant.kernels.path)
    if arch not in ("", host_arch()):
        raise HostError(
            f"the kernels in '{variant.kernels.path}' are for {arch} and this machine is {host_arch()}",
            hint="Export the student for this machine, or with --kernels none.",
        )
    try:
        options.register_custom_ops_library(str(folder / variant.kernels.path))
    except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
        raise HostError(
            f"onnxruntime {ort.__version__} cannot load the kernels for {variant.kernels.isa} in "
            f"'{variant.kernels.path}': {str(error).splitlines()[0][:200]}",
            hint="Use onnxruntime 1.18 or later on Linux, on a CPU that they support. Or export the student for this "
            "machine, or with --kernels none.",
        ) from error
    table = read_table(folder / variant.kernels.weights)
    return add_weights(options, table, folder / (variant.data or f"{variant.path}.data")) if table else []


def _arch_of(library: Path) -> str:
    """The architecture of an ELF file, or "" if unknown."""
    with library.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    return _MACHINES.get(int.from_bytes(head[18:20], "little"), "")
