"""Writes the bundle's README.md: a Hugging Face model card that states only what is known."""

from __future__ import annotations

from edgecompress.kinds import find_kind
from edgecompress.lineage.hub_card import bundle_metadata, front_matter, prose
from edgecompress.types.bundle import Manifest, Variant
from edgecompress.types.provenance import Lineage
from edgecompress.types.report import Report

_EXAMPLE = ('bundle = load("path/to/this/folder")',)  # for kinds without an example


def _plain(variant: Variant) -> list[str]:
    """How to load the model in plain ONNX Runtime, and what an engine needs."""
    if variant.engine is not None:
        engine = variant.engine
        capability = ".".join(map(str, engine.compute_capability))
        return [
            f"`{engine.path}` runs only on GPUs of compute capability {capability}, with {engine.builder}",
            f"{engine.version}. `{engine.layers}` lists the data type of each layer. The engine was not run when this",
            f"bundle was made. `{variant.path}` is the graph that it was built from, and also loads in plain",
            "onnxruntime.",
            "",
        ]
    if variant.kernels is None:
        return [f"`{variant.path}` also loads in plain onnxruntime; `manifest.json` lists its inputs.", ""]
    return [
        f"`{variant.path}` needs the custom ops in `{variant.kernels.path}` ({variant.kernels.isa}). To load it in",
        f"plain onnxruntime, call `SessionOptions().register_custom_ops_library('{variant.kernels.path}')`, or export",
        "with `--kernels none`.",
        "",
    ]


def model_card(manifest: Manifest, report: Report, lineage: Lineage) -> str:
    """The card as Markdown with front matter. ``base_model`` is the student, with the relation "quantized"."""
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
        "`lineage.json` is the full record, with unknown facts marked as unknown. `sbom.cdx.json` is the same record",
        "as a CycloneDX ML-BOM, and `build.intoto.json` lists what this bundle was built from. To print the record,",
        "run `edgecompress lineage`.",
        "",
    ]
    return front_matter(metadata) + "\n" + "\n".join(lines)
