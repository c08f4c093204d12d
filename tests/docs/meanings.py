"""What each key of a file means, for the tables of the reference. ``tests.docs.generated`` fails where one is missing.

Types, defaults and flags come from the dataclasses and the command line, not from here.
"""

from __future__ import annotations

from collections.abc import Mapping

RECIPE: Mapping[str, Mapping[str, str]] = {
    "": {
        "target": "A name from `edgecompress targets`, the path of a target file, or `local` for this machine.",
        "backend": "One of the target's backends. Unset: the target's first.",
        "precision": "`auto` or a [precision](../how-to/choose-a-precision.md).",
        "format": "`bundle`, or `genai` for a decoder that onnxruntime-genai runs too.",
        "schema_version": "Schema of this file. A newer one than this version knows is refused.",
    },
    "student": {
        "source": "Checkpoint directory or hub id.",
        "revision": "Branch, tag or commit of a hub id. Unset: the default branch; the commit is recorded.",
        "task": "One of the [tasks](supported-models.md#tasks). Unset: found from the checkpoint.",
        "max_length_tokens": "Longest text, at least 8 tokens. Unset: what the checkpoint says.",
        "allow_pickle": "Load pickled weights. Unpickling can run code.",
        "trust_remote_code": "Run Python code that the checkpoint brings along.",
    },
    "quantize": {
        "smooth_alpha": "SmoothQuant's migration strength, 0 to 1; 0 turns it off "
        "([arXiv 2211.10438](https://arxiv.org/abs/2211.10438)). Of the precisions that round what layers read.",
        "bias_correction": "Correct each bias for the mean error of its layer "
        "([arXiv 1906.04721](https://arxiv.org/abs/1906.04721)).",
        "quantize_embeddings": "Embedding tables in int8, one scale a row, in every int8 and int4 precision.",
        "block_size": "Weights that share one scale in the weight-only precisions: a power of two, 16 to 256.",
        "method": "Rounding of the weight-only precisions: `rtn` (to nearest), `hqq` or `gptq` (calibrated).",
        "symmetric": "`false` gives each block of weights a zero point of its own.",
        "head_bits": "Bits of a decoder's last layer, 4 or 8. Unset: those of the precision.",
        "embedding_bits": "Bits of a decoder's embedding table, 4 or 8. Unset: those of the precision.",
        "mean_bits": "Mean bits a weight of `mixed-weights`, 4 to 8; scales are not counted.",
        "accuracy_level": "Of ONNX Runtime's MatMulNBits: 0 or 1 keep inputs in float32, 4 rounds them to int8 in "
        'blocks and is two to three times as fast. `"auto"` measures 4 and 1.',
        "kv_cache": "`fp32` or `int8`: what a decoder's keys and values are kept in. `int8` is calibrated.",
    },
    "calibration": {
        "text": "`builtin`, a UTF-8 text file with one text a line, or `dataset:ID[:COLUMN]`.",
        "samples": "Texts to calibrate on.",
        "max_length_tokens": "Calibration texts are cut at this length, at least 8 tokens.",
        "method": "Range of an activation: `minmax`, `percentile` or `entropy`.",
        "percentile": "Share of values inside the range, for `percentile`: above 50, at most 100.",
    },
    "quality": {
        "min_fidelity": "Least mean cosine to the PyTorch output, for embeddings.",
        "max_kl": "Largest mean KL divergence from PyTorch's output, in nats, for heads and decoders.",
        "min_top1": "Least share of held-out samples whose first choice is PyTorch's, for heads.",
        "max_perplexity_ratio": "Largest perplexity on held-out text over PyTorch's, for decoders.",
        "samples": "Held-out samples to verify on, at least 2; calibration never sees them.",
        "limits": "Limits on the measures of a kind of student from another package, by name.",
    },
    "runtime": {
        "threads": "Threads of the runtime, at least 1. Unset: the target's cores.",
        "kernels": "`auto`, `none`, or names of [kernels](../how-to/own-kernels.md) with commas between them.",
    },
    "engine": {
        "batch": "Texts at once: min, opt, max of the optimization profile. Unset: 1, 8, 32; of a decoder 1, 1, 4.",
        "length_tokens": "Tokens of a text: min, opt, max. Unset: 1, half the student's maximum, the maximum. "
        "Of a decoder the new tokens of one call: 1, 1, 512.",
        "context_tokens": "Tokens that a decoder's KV cache holds. Unset: the student's maximum, at most 4096.",
        "workspace_mib": "Memory in MiB that a layer may use while TensorRT builds on the device, at least 16.",
        "hardware_compatibility": "Other GPUs that a TensorRT engine runs on: `none`, `ampere-plus` or "
        "`same-compute-capability`.",
        "version_compatible": "The TensorRT engine also runs with later versions of TensorRT.",
    },
    "provenance": {
        "policy": "`off`, `record`, `warn` or `enforce`: what to do about terms that are restricted or unknown.",
        "teacher": "The model that taught the student.",
        "data": "The data that it was taught on.",
        "status": "What the terms allow, as you read them: `permitted`, `conditional`, `restricted` or `unknown`.",
        "terms_url": "Where the terms are published.",
        "terms_retrieved": "ISO date on which you read them.",
        "terms_sha256": "sha256 of their text on that date.",
        "conditions": "Conditions of the terms, in words.",
        "notices": "Licence and notice files to copy into the bundle.",
        "name_prefix": "Prefix that the terms ask for in the name of a derived model.",
        "accept": "Reason for an export that `enforce` would refuse; recorded in the bundle for good.",
    },
}
"""Table of a recipe -> key -> meaning; "" for the keys that stand outside a table."""

TARGET: Mapping[str, str] = {
    "name": "Name of the target. Must be the file's name without `.toml`.",
    "title": "The hardware in words.",
    "arch": "`x86_64` or `aarch64`.",
    "accelerator": "`cpu` or `cuda`: where the model computes.",
    "isa": "CPU features that a bundle may rely on, as `edgecompress targets detect` names them. A machine that lacks "
    "one of them refuses the bundle.",
    "backends": "Backends in order of preference: `onnxruntime`, `tensorrt`, `tensorrt-rtx`.",
    "computes": "Types it computes in: `float32`, `float16`, `bfloat16`, `float8`, `int8`, `int4`. They decide which "
    "precisions are offered.",
    "opset": "ONNX opset of its graphs, 18 to 24. CPUs use 21, GPUs 23.",
    "cores": "CPU cores; the default number of threads.",
    "memory_bytes": "Memory, or GPU memory.",
    "memory_bandwidth_bytes_per_s": "Peak memory bandwidth. `estimate` needs it.",
    "l2_cache_bytes": "L2 cache of one core.",
    "l3_cache_bytes": "L3 cache.",
    "peak_ops_per_s": "Peak dense operations a second by type, as in `{ float32 = 1e11 }`. `estimate` needs it.",
    "kernel_isa": "[Instruction set](../how-to/own-kernels.md#instruction-sets) of its kernels. Unset: the best one "
    "that `isa` allows.",
    "compute_capability": "Compute capability of a GPU: `[8, 9]`.",
    "power_mode": "Power mode that its figures hold in, as in `15W`.",
    "sources": "Key -> where its figure comes from.",
    "notes": "Remarks in words.",
    "schema_version": "Schema of this file.",
}

MANIFEST: Mapping[str, Mapping[str, str]] = {
    "Manifest": {
        "tool_version": "Version of edgecompress that wrote the bundle.",
        "name": "Name of the student.",
        "kind": "Kind of student, which reads `settings`: `encoder`, `decoder`, `vision`.",
        "task": "Task, in the hub's words.",
        "architecture": "`model_type` of the checkpoint.",
        "precision": "Precision that was chosen.",
        "target": "What a load checks before anything runs.",
        "models": "Models by name; a bundle of one model calls it `model`.",
        "settings": "Settings of the kind: tokenizer, prompts, labels, generation, image size.",
        "files": "File -> `sha256` and `bytes`, for every file but the manifest, the measurements and the signature.",
        "versions": "Versions of Python and of the packages that made the bundle.",
        "schema_version": "2.",
    },
    "ModelRecord": {"variants": "Ways to run the model. The first one is used."},
    "Variant": {
        "backend": "`onnxruntime-cpu`, `onnxruntime-cuda`, `tensorrt` or `tensorrt-rtx`.",
        "path": "ONNX file. Beside an engine: the graph that the engine was built from.",
        "inputs": "Name, dtype and shape of each input; a string in a shape is a dynamic axis.",
        "outputs": "The same of each output.",
        "runtime": "Session settings for the target: threads, session options, how `encode` forms batches.",
        "providers": "ONNX Runtime execution providers. All must be active in the session.",
        "kernels": "Library of [kernels](../how-to/own-kernels.md), its instruction set, and the weights it reads.",
        "engine": "TensorRT engine: path, builder and version, compute capability, optimization profile.",
        "build": "How `edgecompress build` makes the engine on the device.",
        "data": "File of the weights, where they are beside the ONNX file.",
    },
    "TargetRecord": {
        "name": "Name of the target.",
        "arch": "CPU architecture.",
        "isa": "CPU features that the model relies on.",
        "isa_reason": "Why a CPU without them is refused.",
    },
}

SCHEMAS: Mapping[str, str] = {
    "manifest": "`manifest.json` of a bundle",
    "recipe": "a [recipe](recipe.md), and `recipe.toml` of a bundle",
    "target": "a [target file](../how-to/own-target.md)",
    "report": "`report.json` of a bundle",
    "lineage": "`lineage.json` of a bundle",
    "measurements": "`measurements.json` of a bundle",
    "profile": "`profile.json` of `edgecompress profile -o`",
    "comparison": "`edgecompress compare --json`",
    "estimates": "`edgecompress estimate --json`",
    "fleet": "`edgecompress profile --fleet --json`",
    "error": "[any command that fails](json.md), with `--json`",
    "distill-recipe": "a recipe of `edgecompress distill`",
    "distillation": "`distillation.json` of a distilled checkpoint",
}

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    2: "usage or input: a flag, a path, a checkpoint, a recipe, a text",
    3: "environment: a package, a CPU feature, a GPU, a device, a network",
    4: "the quality budget is missed",
    6: "the provenance policy refuses the licence terms",
    7: "the bundle is not valid, or its verification failed",
    70: "a defect in edgecompress",
    130: "interrupted by Ctrl-C or SIGTERM",
}
