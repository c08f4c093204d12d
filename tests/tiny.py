"""Tiny checkpoints with random weights and a real tokenizer, saved as a user would find them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

_TEXT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _TEXT),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 120, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128},
    ),
    "roberta": ("RobertaConfig", _TEXT),
    "xlm-roberta": ("XLMRobertaConfig", _TEXT),
    "electra": ("ElectraConfig", _TEXT | {"embedding_size": 32}),
    "albert": ("AlbertConfig", _TEXT | {"embedding_size": 16}),
    "camembert": ("CamembertConfig", _TEXT),
    "modernbert": (
        "ModernBertConfig",
        _TEXT
        | {
            "num_hidden_layers": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 3,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
    ),
    "nomic_bert": ("NomicBertConfig", _TEXT),
    "mpnet": ("MPNetConfig", _TEXT),
    "deberta-v2": ("DebertaV2Config", _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "vit": ("ViTConfig", _IMAGE),
    "deit": ("DeiTConfig", _IMAGE),
    "dinov2": ("Dinov2Config", _IMAGE),
    "qwen2": ("Qwen2Config", _TEXT | {"num_key_value_heads": 2}),
}
SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "a dog ran after the cat in the garden",
    "paris is the capital of france",
    "the price of bread rose again this year",
]


def tiny_checkpoint(folder: Path, model_type: str, auto: str = "AutoModel", **overrides: Any) -> Path:
    """Save a checkpoint of ``model_type`` with the head of ``auto``, and what its processor needs."""
    name, options = CONFIGS[model_type]
    config = getattr(transformers, name)(**(options | overrides))
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, auto).from_config(config)
    for parameter in model.parameters():  # the default of 0.02 makes every layer nearly the identity
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    if options is _IMAGE:
        processor = {
            "size": {"height": 32, "width": 32},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 2,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of at most 120 tokens, trained on SENTENCES."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "mask_token": "[MASK]", "model_max_length": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
