"""The student as a PyTorch module whose forward takes and gives exactly what the bundle will."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional

from edgecompress.errors import StudentError
from edgecompress.types.student import Pooling, Student

_AUTO_CLASS = {
    "feature-extraction": "AutoModel",
    "sentence-similarity": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "text-ranking": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}

_OUTPUTS = {
    "sentence-similarity": ("sentence_embedding",),
    "feature-extraction": ("last_hidden_state",),
    "image-feature-extraction": ("last_hidden_state",),
    "question-answering": ("start_logits", "end_logits"),
}

# A text pair is told apart by token_type_ids; where a task takes one text only they are all zero and are left out.
_PAIR_TASKS = {"text-classification", "text-ranking", "question-answering"}

_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
}


def load_model(student: Student, attention: str, experts: str | None = None) -> torch.nn.Module:
    """Load the checkpoint in float32 with the given attention (and experts) implementation, in evaluation mode.

    Raises ValueError from transformers if the architecture does not take that implementation.
    """
    transformers.utils.logging.disable_progress_bar()
    auto = getattr(transformers, _AUTO_CLASS[student.task])
    options: dict[str, Any] = {
        "attn_implementation": attention,
        "dtype": torch.float32,
        "trust_remote_code": student.trust_remote_code,
        "use_safetensors": None if student.allow_pickle else True,
    }
    if experts is not None:
        options["experts_implementation"] = experts
    config = transformers.AutoConfig.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)
    # from_pretrained shares the config object with the model: a second load must not see the first one's choice.
    model, info = auto.from_pretrained(student.path, config=copy.deepcopy(config), output_loading_info=True, **options)
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise StudentError(
            f"the checkpoint lacks weights for task '{student.task}': {', '.join(sorted(missing)[:3])}",
            hint="Transformers would fill them with random numbers. Give --task for the head it was trained with.",
        )
    return model.eval()  # type: ignore[no-any-return]


class Encoder(torch.nn.Module):
    """Names the outputs of a task, and does sentence-transformers' pooling inside the graph."""

    def __init__(self, model: torch.nn.Module, student: Student) -> None:
        super().__init__()
        self.model = model
        self.task = student.task
        self.pooling = student.pooling
        self.dense = torch.nn.ModuleList(_dense_modules(student.pooling))

    def forward(
        self,
        first: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """``first`` is input_ids or pixel_values; the exporter needs a fixed signature."""
        given = {
            "pixel_values" if self.task.startswith("image-") else "input_ids": first,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        output = self.model(**inputs)
        if self.task == "question-answering":
            return output.start_logits, output.end_logits
        if self.task in ("feature-extraction", "image-feature-extraction"):
            return (output.last_hidden_state,)
        if self.task == "sentence-similarity":
            if self.pooling is None:
                raise StudentError(
                    "the checkpoint has no sentence-transformers modules.json, so its pooling is unknown",
                    hint="Give --task feature-extraction, or the folder that holds modules.json.",
                )
            return (self.pool(self.pooling, output.last_hidden_state, inputs["attention_mask"]),)
        return (output.logits,)

    def pool(self, pooling: Pooling, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, H], mask [B, T] -> [B, dimension], as sentence-transformers' Pooling does it."""
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        parts = []
        for mode in pooling.modes:
            if mode == "cls":
                parts.append(hidden[:, 0])
            elif mode == "max":
                parts.append(hidden.masked_fill(weights == 0, -1e9).amax(1))
            elif mode in ("mean", "mean_sqrt_len_tokens"):
                count = weights.sum(1).clamp(min=1e-9)
                # A product of [B, 1, T] and [B, T, H] sums without writing the masked copy of hidden.
                summed = torch.matmul(weights.transpose(1, 2), hidden).squeeze(1)
                parts.append(summed / (count if mode == "mean" else count.sqrt()))
            elif mode == "weightedmean":
                weighted = weights * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
                parts.append((hidden * weighted).sum(1) / weighted.sum(1).clamp(min=1e-9))
            else:
                raise StudentError(f"pooling mode '{mode}' is not supported", hint="Give --task feature-extraction.")
        vector = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        for module in self.dense:
            vector = module(vector)
        return functional.normalize(vector, dim=-1) if pooling.normalize else vector


def _dense_modules(pooling: Pooling | None) -> list[torch.nn.Module]:
    modules: list[torch.nn.Module] = []
    for folder in pooling.dense if pooling else ():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        activation = config.get("activation_function", "torch.nn.modules.linear.Identity")
        if activation not in _ACTIVATIONS:
            raise StudentError(f"the Dense module in {folder.name} uses {activation}, which is not supported")
        weights = load_file(folder / "model.safetensors")
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
        modules.append(torch.nn.Sequential(linear, _ACTIVATIONS[activation]()))
    return modules


def output_names(student: Student) -> tuple[str, ...]:
    return _OUTPUTS.get(student.task, ("logits",))


def takes_token_types(student: Student, model: torch.nn.Module) -> bool:
    config: Any = model.config
    return student.task in _PAIR_TASKS and (getattr(config, "type_vocab_size", 0) or 0) > 1


def example_inputs(student: Student, model: torch.nn.Module, batch: int, tokens: int, seed: int = 0) -> dict[str, Any]:
    """Random inputs of the right names and dtypes: int64 [batch, tokens], or float32 [batch, channels, height, width].

    The second row of a text batch ends in padding.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    if student.is_vision:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch, config.num_channels, height, width)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    low = min(5, config.vocab_size - 1)
    ids = torch.randint(low, config.vocab_size, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if batch > 1 and tokens > 3:
        mask[1, tokens - tokens // 3 :] = 0
        ids[1, tokens - tokens // 3 :] = getattr(config, "pad_token_id", 0) or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if takes_token_types(student, model):
        types = torch.zeros_like(ids)
        types[:, tokens // 2 :] = 1
        inputs["token_type_ids"] = types
    return inputs
