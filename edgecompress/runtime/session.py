"""One ONNX Runtime session for a bundle, on the target that the bundle names or not at all."""

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
    """Raises HostError if this CPU lacks what the bundle was made for."""
    target = manifest.target
    if target.arch != host_arch():
        raise HostError(
            f"the bundle is for {target.name} ({target.arch}) and this machine is {host_arch()}",
            hint="Export it for this machine, or pass allow_mismatch (--allow-mismatch) to try all the same.",
        )
    missing = sorted(set(target.isa) - host_features())
    if missing:
        raise HostError(
            f"the bundle is for {target.name} and this CPU lacks {', '.join(missing)}: {target.isa_reason}",
            hint="Export it for this machine, or pass allow_mismatch (--allow-mismatch) to try all the same.",
        )


def thread_count(variant: Variant, threads: int | None) -> int:
    """What was asked for, else the bundle's choice, else this machine's cores. Raises UsageError."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads are at least 1, not {threads}", hint="Leave it out for the target's choice.")
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
    """Open a bundle's model with the settings stored for its target, and make sure that its providers are live.

    ``providers`` as onnxruntime takes them, with their options; the variant's unless given. ``config``: further entries
    of the session. ``huge_pages`` asks for them where the weights lie, in a thread of its own, so that nothing waits
    for the kernel. ``profile_to``: the beginning of the file that ONNX Runtime writes each node's times to, when the
    session's ``end_profiling`` is called. Raises HostError rather than fall back to another provider.
    """
    settings, wanted = variant.runtime, list(variant.providers)
    available = ort.get_available_providers()
    absent = [provider for provider in wanted if provider not in available]
    if absent:
        raise HostError(
            f"the bundle needs {absent[0]}, and this onnxruntime {ort.__version__} has only {', '.join(available)}",
            hint="Install the onnxruntime package that has it; `edgecompress doctor` shows what is here.",
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said in our words
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
            hint="`edgecompress inspect` shows the versions that it was made with.",
        ) from error
    live = session.get_providers()
    silent = [provider for provider in wanted if provider not in live]
    if silent:
        raise HostError(
            f"{silent[0]} was asked for and the session runs on {', '.join(live)}",
            hint="A library it needs is missing; `edgecompress doctor` shows what is here.",
        )
    session.edgecompress_weights = kept  # they live as long as the session that reads them
    if huge_pages:
        threading.Thread(target=collapse_new, args=(before,), name="edgecompress-pages", daemon=True).start()
    return session


def _add_kernels(options: ort.SessionOptions, folder: Path, variant: Variant) -> list[Any]:
    """Register the bundle's custom ops and read the weights they take; return what must be kept.

    Raises HostError if the library is for another CPU or ONNX Runtime, BundleError if its weights are not there.
    """
    if variant.kernels is None:
        return []
    arch = _arch_of(folder / variant.kernels.path)
    if arch not in ("", host_arch()):
        raise HostError(
            f"the kernels in '{variant.kernels.path}' are for {arch} and this machine is {host_arch()}",
            hint="Export it for this machine, or with --kernels none.",
        )
    try:
        options.register_custom_ops_library(str(folder / variant.kernels.path))
    except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
        raise HostError(
            f"onnxruntime {ort.__version__} cannot take the kernels for {variant.kernels.isa} in "
            f"'{variant.kernels.path}': {str(error).splitlines()[0][:200]}",
            hint="Use onnxruntime 1.18 or later on Linux and a CPU that they are for, or export it again for this "
            "machine or with --kernels none.",
        ) from error
    table = read_table(folder / variant.kernels.weights)
    return add_weights(options, table, folder / (variant.data or f"{variant.path}.data")) if table else []


def _arch_of(library: Path) -> str:
    """The architecture that an ELF file is for; "" where that is not known."""
    with library.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    return _MACHINES.get(int.from_bytes(head[18:20], "little"), "")
