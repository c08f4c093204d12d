"""The bundle's README.md: a Hugging Face model card made of what is known, and silent on what is not."""

from __future__ import annotations

from edgecompress.kinds.base import Kind
from edgecompress.lineage.hub_card import bundle_metadata, front_matter, prose
from edgecompress.types.bundle import Manifest
from edgecompress.types.provenance import Lineage
from edgecompress.types.report import Report


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


def model_card(manifest: Manifest, report: Report, lineage: Lineage, kind: Kind) -> str:
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
    lines += [f"| {figure.title} | {figure.value:.4f} |" for figure in kind.metric.figures(fidelity)]
    if report.kv_cache is not None:
        lines.append(f"| KV cache | {report.kv_cache.dtype} |")
        lines.append(f"| perplexity ratio of the cache alone | {report.kv_cache.perplexity_ratio:.4f} |")
    lines += [
        "",
        "```python",
        "from edgecompress.runtime import load",
        "",
        *kind.card.example(manifest.task),
        "```",
        "",
        *_plain(manifest),
        *prose(lineage),
        "`lineage.json` has it whole, and what nobody has said as unknown; `sbom.cdx.json` is the same as a CycloneDX",
        "ML-BOM, `build.intoto.json` says what this bundle was built from. `edgecompress lineage` shows it.",
        "",
    ]
    return front_matter(metadata) + "\n" + "\n".join(lines)
