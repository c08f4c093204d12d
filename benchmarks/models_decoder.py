"""The peers' models of the decoder benchmark, each made by its maker's own tool from the same checkpoint.

A file that is there already is kept. Tools that do not live beside ours are run by the python of their own environment;
``python -m benchmarks.models_decoder CHECKPOINT FILE KIND`` is what runs there for llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GGUF_KINDS = ("q4_0", "q4_k_m")


def make_genai(checkpoint: Path, out_dir: Path, block_size: int, python: str) -> Path:
    """onnxruntime-genai's own builder, int4 on the CPU. Block 32 is its default."""
    if not (out_dir / "genai_config.json").exists():
        cache = out_dir.with_name(out_dir.name + "-cache")
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out_dir)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(cache)]
        command += ["--extra_options", "accuracy_level=4", f"block_size={block_size}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.rmtree(cache, ignore_errors=True)
    return out_dir


def make_openvino(checkpoint: Path, out_dir: Path, python: str) -> Path:
    """optimum-intel's export with its default int4: asymmetric, groups of 128; head and embedding table in int8."""
    if not (out_dir / "openvino_tokenizer.xml").exists():
        command = [str(Path(python).with_name("optimum-cli")), "export", "openvino", "-m", str(checkpoint)]
        command += ["--task", "text-generation-with-past", "--weight-format", "int4", str(out_dir)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return out_dir


def make_gguf(checkpoint: Path, path: Path, kind: str, python: str) -> Path:
    """One of GGUF_KINDS, in a process of ``python``, which has gguf, torch and llama_cpp."""
    if not path.exists():
        command = [python, "-m", "benchmarks.models_decoder", str(checkpoint), str(path), kind]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return path


def quantize_gguf(source: Path, path: Path) -> None:
    """Q4_K_M by llama.cpp's own quantizer, which gives some matrices more bits."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params)
    if failed:
        raise SystemExit(f"llama.cpp cannot quantize {source}: {failed}")


def write_gguf(checkpoint: Path, path: Path, kind: str) -> None:
    """The checkpoint as GGUF: "q4_0" with the head in Q8_0, or "f16"."""
    import gguf
    import numpy as np
    import torch
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0 if kind == "q4_0" else gguf.LlamaFileType.MOSTLY_F16)
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                data = file.get_tensor(name).to(torch.float32).numpy()
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if data.ndim == 1:
                    writer.add_tensor(target, data)
                    continue
                if kind == "f16":
                    writer.add_tensor(target, data.astype(np.float16))
                    continue
                bits = gguf.GGMLQuantizationType.Q8_0 if name == "lm_head.weight" else gguf.GGMLQuantizationType.Q4_0
                writer.add_tensor(target, gguf.quants.quantize(data, bits), raw_dtype=bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("kind", choices=GGUF_KINDS)
    args = parser.parse_args()
    if args.kind == "q4_0":
        write_gguf(args.checkpoint, args.path, "q4_0")
        return 0
    whole = args.path.with_suffix(".f16.gguf")  # 3.6 GB for 1.78 B parameters, for as long as this runs
    try:
        write_gguf(args.checkpoint, whole, "f16")
        quantize_gguf(whole, args.path)
    finally:
        whole.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
