"""The bundle's README.md: a Hugging Face model card made of what is known, and silent on what is not."""

from __future__ import annotations

from edgecompress.kinds import find_kind
from edgecompress.lineage.hub_card import bundle_metadata, front_matter, prose
from edgecompress.types.bundle import Manifest, Variant
from edgecompress.types.provenance import Lineage
from edgecompress.types.report import Report

_EXAMPLE = ('bundle = load("path/to/this/folder")',)  # of a kind that shows no use of its own


def _plain(variant: Variant) -> list[str]:
    """How plain ONNX Runtime loads the model, and what an engine needs."""
    if variant.engine is not None:
        engine = variant.engine
        capability = ".".join(map(str, engine.compute_capability))
        return [
            f"`{engine.path}` is for GPUs of compute capability {capability} and {engine.builder} {engine.version};",
            f"`{engine.layers}` says what each of its layers computes in. `load` runs it there and on nothing else.",
            f"It was not run before. `{variant.path}` is the graph that it was built from, and loads in plain",
            "onnxruntime.",
            "",
        ]
    if variant.kernels is None:
        return [f"`{variant.path}` loads in plain onnxruntime too; its inputs are in `manifest.json`.", ""]
    return [
        f"`{variant.path}` needs the custom ops in `{variant.kernels.path}` ({variant.kernels.isa}). In plain",
        f"onnxruntime: `SessionOptions().register_custom_ops_library('{variant.kernels.path}')`. An export with",
        "`--kernels none` does without.",
        "",
    ]


def model_card(manifest: Manifest, report: Report, lineage: Lineage) -> str:
    """Markdown with the card's front matter. ``base_model`` is the student itself: the relation is "quantized"."""
    metadata = {"library_name": "edgecompress", "pipeline_tag": manifest.task, **bundle_metadata(lineage)}
    fidelity, kind = report.fidelity, find_kind(manifest.kind)
    has_card = kind.has("card")
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
    lines += [f"| {label} | {text} |" for label, text in (kind.card.rows(manifest, report) if has_card else ())]
    lines += [
        "",
        "```python",
        "from edgecompress.runtime import load",
        "",
        *(kind.card.example(manifest) if has_card else _EXAMPLE),
        "```",
        "",
        *(line for variant in manifest.variants for line in _plain(variant)),
        *prose(lineage),
        "`lineage.json` has it whole, and what nobody has said as unknown; `sbom.cdx.json` is the same as a CycloneDX",
        "ML-BOM, `build.intoto.json` says what this bundle was built from. `edgecompress lineage` shows it.",
        "",
    ]
    return front_matter(metadata) + "\n" + "\n".join(lines)
