"""The bundle's README.md: a Hugging Face model card made of what is known, and silent on what is not."""

from __future__ import annotations

from edgecompress.lineage.hub_card import bundle_metadata, front_matter, prose
from edgecompress.types.bundle import Manifest
from edgecompress.types.provenance import Lineage
from edgecompress.types.report import Report

_EXAMPLES = {
    "text-generation": (
        'with load("path/to/this/folder") as generator:',
        '    for piece in generator.stream("a prompt", max_new_tokens=64):',
        '        print(piece, end="", flush=True)',
    ),
    "else": (
        'with load("path/to/this/folder") as encoder:',
        '    print(encoder.predict(["a sentence"]))',
    ),
}


def _plain(manifest: Manifest) -> list[str]:
    """How plain ONNX Runtime loads the model, and what an engine needs."""
    if manifest.engine is not None:
        engine = manifest.engine
        capability = ".".join(map(str, engine.compute_capability))
        return [
            f"`{engine.path}` is for GPUs of compute capability {capability} and {engine.builder} {engine.version};",
            f"`{engine.layers}` says what each of its layers computes in. `load` runs it there and on nothing else.",
            f"It was not run before. `{manifest.model}` is the graph that it was built from, and loads in plain",
            "onnxruntime.",
            "",
        ]
    if manifest.kernels is None:
        return [f"`{manifest.model}` loads in plain onnxruntime too; its inputs are in `manifest.json`.", ""]
    return [
        f"`{manifest.model}` needs the custom ops in `{manifest.kernels.path}` ({manifest.kernels.isa}). In plain",
        f"onnxruntime: `SessionOptions().register_custom_ops_library('{manifest.kernels.path}')`. An export with",
        "`--kernels none` does without.",
        "",
    ]


def model_card(manifest: Manifest, report: Report, lineage: Lineage) -> str:
    """Markdown with the card's front matter. ``base_model`` is the student itself: the relation is "quantized"."""
    metadata = {"library_name": "edgecompress", "pipeline_tag": manifest.task, **bundle_metadata(lineage)}
    fidelity = report.fidelity
    lines = [
        f"# {manifest.name}, {manifest.precision}, for {manifest.target.name}",
        "",
        f"Compiled by edgecompress {manifest.tool_version} from `{lineage.source.value}`.",
        "",
        "| against the PyTorch reference | |",
        "|---|---|",
        f"| held-out samples | {fidelity.samples} |",
    ]
    for label, value in (
        ("mean cosine", fidelity.mean_cosine),
        ("minimum cosine", fidelity.min_cosine),
        ("top-10 neighbours kept", fidelity.top10_agreement),
        ("mean KL divergence, nats", fidelity.mean_kl),
        ("top-1 agreement", fidelity.top1_agreement),
    ):
        if value is not None:
            lines.append(f"| {label} | {value:.4f} |")
    if manifest.generation is not None:
        lines.append(f"| KV cache | {manifest.generation.kv_dtype} |")
    if report.kv_cache is not None:
        lines.append(f"| perplexity ratio of the cache alone | {report.kv_cache.perplexity_ratio:.4f} |")
    lines += [
        "",
        "```python",
        "from edgecompress.runtime import load",
        "",
        *_EXAMPLES.get(manifest.task, _EXAMPLES["else"]),
        "```",
        "",
        *_plain(manifest),
        *prose(lineage),
        "`lineage.json` has it whole, and what nobody has said as unknown; `sbom.cdx.json` is the same as a CycloneDX",
        "ML-BOM, `build.intoto.json` says what this bundle was built from. `edgecompress lineage` shows it.",
        "",
    ]
    return front_matter(metadata) + "\n" + "\n".join(lines)
