"""Decoder bundles made by hand: a tiny graph as the runtime takes it, its tokenizer, and NumPy in float64 beside it.

Two layers of attention over a KV cache, learned positions, random weights; no PyTorch, so that the runtime is tested
against nothing but its own contract. With scales, [Hk, D] for keys and values of each layer in turn, its cache is int8
and NumPy rounds as the kernel does. A scripted bundle has the same graph with weights that say which token follows at
each position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.runtime import load
from edgecompress.types.bundle import GenerationSettings, TensorSpec, TextSettings
from tests.tiny_bundle import write_tiny_bundle

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
TAGS = ["<think>", "</think>"]
PAD, BOS, EOS = 0, 1, 2
TRAINING = [
    "the cat sat on the mat and looked at the dog in the garden",
    "why is the sky blue? because light is scattered by the air",
    "def add(a, b):\n    return a + b\n",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>' }}{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Scales = Sequence[npt.NDArray[np.float32]]
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, SIZE = 400, 48, 2, 4, 2, 16


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE that puts <s> in front; every byte is a token, so that it can write any text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TRAINING, trainer)
    made.add_tokens(TAGS)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


@dataclass(kw_only=True)
class Reference:
    """The graph in float64, from scratch for every token."""

    weights: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)

    def logits(self, ids: Sequence[int], scales: Scales = ()) -> npt.NDArray[np.float64]:
        """float64 [T, V] of a whole text."""
        return self._run(ids, scales)[0]

    def cache(self, ids: Sequence[int], scales: Scales = ()) -> list[npt.NDArray[np.float64]]:
        """Keys and values of each layer in turn before they are rounded, float64 [Hk, T, D]."""
        return self._run(ids, scales)[1]

    def _run(self, ids: Sequence[int], scales: Scales) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float64]]]:
        made: list[npt.NDArray[np.float64]] = []
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        length = len(ids)
        x = w["embedding"][list(ids)] + w["positions"][:length]
        causal = np.tril(np.ones((length, length), dtype=bool))
        for layer in range(LAYERS):
            q = (x @ w[f"q{layer}"]).reshape(length, HEADS, SIZE)
            k, v = ((x @ w[f"{n}{layer}"]).reshape(length, KV_HEADS, SIZE) for n in "kv")
            made += [k.transpose(1, 0, 2), v.transpose(1, 0, 2)]
            if scales:
                k, v = (
                    np.clip(np.rint(a / s), -128, 127) * s for a, s in zip((k, v), scales[2 * layer :], strict=False)
                )
            k, v = (a.repeat(HEADS // KV_HEADS, axis=1) for a in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE)
            scores = np.where(causal, scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(length, HEADS * SIZE) @ w[f"o{layer}"]
        return x @ w["head"], made

    def greedy(self, ids: Sequence[int], count: int, scales: Scales = ()) -> tuple[list[int], float]:
        """The next ``count`` tokens (fewer if the text ends), and the smallest lead of a chosen token over the next."""
        text, lead = list(ids), np.inf
        for _ in range(count):
            last = self.logits(text, scales)[-1]
            second, first = np.sort(last)[-2:]
            lead = min(lead, first - second)
            text.append(int(last.argmax()))
            if text[-1] == EOS:
                break
        return text[len(ids) :], float(lead)


def random_weights(context: int, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, scale: float) -> npt.NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    weights = {
        "embedding": normal(VOCAB, HIDDEN, 1.0),
        "positions": normal(context, HIDDEN, 0.5),
        "head": normal(HIDDEN, VOCAB, 0.05),
    }
    weights["head"][:, [PAD, BOS, EOS]] = 0.0  # texts of random weights are not to end at once
    for layer in range(LAYERS):
        weights[f"q{layer}"] = normal(HIDDEN, HEADS * SIZE, 0.12)
        weights[f"k{layer}"] = normal(HIDDEN, KV_HEADS * SIZE, 0.12)
        weights[f"v{layer}"] = normal(HIDDEN, KV_HEADS * SIZE, 0.3)
        weights[f"o{layer}"] = normal(HEADS * SIZE, HIDDEN, 0.3)
    return weights


def scripted_weights(context: int, script: Mapping[int, int]) -> dict[str, npt.NDArray[np.float32]]:
    """The token at position p + 1 is script[p + 1], whatever stands before; <s> where the script says nothing."""
    rng = np.random.default_rng(1)
    weights = {
        "embedding": np.zeros((VOCAB, context), dtype=np.float32),
        "positions": np.eye(context, dtype=np.float32),
        "head": np.zeros((context, VOCAB), dtype=np.float32),
    }
    for layer in range(LAYERS):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{name}{layer}"] = rng.standard_normal((context, heads * SIZE)).astype(np.float32)
        weights[f"o{layer}"] = np.zeros((HEADS * SIZE, context), dtype=np.float32)
    for position in range(context - 1):
        weights["head"][position, script.get(position + 1, BOS)] = 10.0
    return weights


def decoder_model(weights: Mapping[str, npt.NDArray[np.float32]], scales: Scales = ()) -> onnx.ModelProto:
    """The contract's inputs and outputs around GroupQueryAttention."""
    small = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8} if scales else {}
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["tokens"]),
        helper.make_node("Gather", ["positions", "position_ids"], ["places"]),
        helper.make_node("Add", ["tokens", "places"], ["x0"]),
        helper.make_node("ReduceSum", ["attention_mask", "axis1"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one"], ["before"]),
        helper.make_node("Cast", ["before"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "axis1_scalar"], ["width"]),
        helper.make_node("Cast", ["width"], ["total"], to=TensorProto.INT32),
    ]
    for layer in range(LAYERS):
        nodes += [helper.make_node("MatMul", [f"x{layer}", f"{n}{layer}"], [f"{n}_{layer}"]) for n in "qkv"]
        nodes += [
            helper.make_node(
                "GroupQueryAttention",
                [
                    *(f"{n}_{layer}" for n in "qkv"),
                    f"past_key_values.{layer}.key",
                    f"past_key_values.{layer}.value",
                    "seqlens_k",
                    "total",
                    *(["", "", "", "", "", f"k_scale{layer}", f"v_scale{layer}"] if scales else []),
                ],
                [f"attention{layer}", f"present.{layer}.key", f"present.{layer}.value"],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                **small,
            ),
            helper.make_node("MatMul", [f"attention{layer}", f"o{layer}"], [f"mixed{layer}"]),
            helper.make_node("Add", [f"x{layer}", f"mixed{layer}"], [f"x{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Gather", [f"x{LAYERS}", "logits_positions"], ["wanted"], axis=1),
        helper.make_node("MatMul", ["wanted", "head"], ["logits"]),
    ]
    int64, float32 = TensorProto.INT64, TensorProto.FLOAT
    kept = TensorProto.INT8 if scales else float32
    sides = [f"{layer}.{side}" for layer in range(LAYERS) for side in ("key", "value")]
    cache_shape = ["B", KV_HEADS, "C", SIZE]
    inputs = [
        helper.make_tensor_value_info("input_ids", int64, ["B", "T"]),
        helper.make_tensor_value_info("attention_mask", int64, ["B", "S"]),
        helper.make_tensor_value_info("position_ids", int64, ["B", "T"]),
        helper.make_tensor_value_info("logits_positions", int64, ["N"]),
        *(helper.make_tensor_value_info(f"past_key_values.{side}", kept, cache_shape) for side in sides),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", float32, ["B", "N", VOCAB]),
        *(helper.make_tensor_value_info(f"present.{side}", kept, cache_shape) for side in sides),
    ]
    constants = {"axis1": np.array([1]), "axis1_scalar": np.array(1), "one": np.array(1)}
    constants |= {f"{'kv'[i % 2]}_scale{i // 2}": scale for i, scale in enumerate(scales)}
    initializers = [numpy_helper.from_array(v, n) for n, v in {**weights, **constants}.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def decoder_bundle(
    folder: Path,
    weights: Mapping[str, npt.NDArray[np.float32]] | None = None,
    *,
    context: int = 256,
    template: str | None = TEMPLATE,
    vocab_size: int = VOCAB,
    kv_scales: Scales = (),
    **generation: object,
) -> Path:
    """Write a whole bundle and return its folder; ``generation`` overrides its GenerationSettings."""
    settings = {
        "context_length_tokens": context,
        "layers": LAYERS,
        "kv_heads": KV_HEADS,
        "head_size": SIZE,
        "vocab_size": vocab_size,
        "bos_token_id": BOS,
        "eos_token_ids": (EOS,),
        "pad_token_id": PAD,
        "chat_template": None if template is None else "chat_template.jinja",
    }
    model = decoder_model(random_weights(context) if weights is None else weights, kv_scales)
    files: dict[str, Path | bytes] = {
        "model.onnx": model.SerializeToString(),
        "tokenizer.json": tokenizer().to_str().encode(),
    }
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    return write_decoder_bundle(folder, files, GenerationSettings(**{**settings, **generation}))  # type: ignore[arg-type]


def write_decoder_bundle(folder: Path, files: Mapping[str, Path | bytes], settings: GenerationSettings) -> Path:
    """Write a bundle of ``files``, among them model.onnx and tokenizer.json, for this machine and one thread."""
    text = TextSettings(tokenizer="tokenizer.json", max_length_tokens=settings.context_length_tokens)
    return write_tiny_bundle(
        folder,
        files,
        name="tiny",
        kind="decoder",
        task="text-generation",
        inputs=("input_ids",),
        output=TensorSpec(name="logits", dtype="float32", shape=("B", "N", settings.vocab_size)),
        settings=DecoderSettings(text=text, generation=settings),
    )


def scripted_bundle(folder: Path, prompt_tokens: int, new: Sequence[int], **options: object) -> Path:
    """A bundle that answers any prompt of ``prompt_tokens`` tokens with ``new``, and then </s>."""
    script = {prompt_tokens + i: token for i, token in enumerate([*new, EOS])}
    return decoder_bundle(folder, scripted_weights(256, script), **options)  # type: ignore[arg-type]


def thinking_bundle(folder: Path, prompt: str, answer: str) -> Path:
    """A bundle in ``folder`` that says ``answer`` to ``prompt`` in a chat, reasoning between <think> tags included."""
    with load(decoder_bundle(folder / "probe")) as probe:
        assert isinstance(probe, Generator)
        length = len(probe.token_ids([{"role": "user", "content": prompt}]))
    new = tokenizer().encode(answer, add_special_tokens=False).ids
    return scripted_bundle(folder / "b", length, new, think_start="<think>", think_end="</think>")
