"""Trains a small decoder, so that quality figures of quantization mean something without downloaded weights.

    python -m benchmarks.small_decoder small-decoder/ --minutes 8 --threads 2

Qwen2's architecture (grouped-query attention, biases on q, k and v, an untied head) with a byte-level BPE tokenizer of
its own, trained on prose that every machine has: ``pydoc_data.topics`` and the docstrings of the standard library and
of installed packages. The result is a Hugging Face checkpoint with a chat template. Held-out text is never trained on:
every other topic (the half that ``edgecompress export`` verifies on) and the modules that a hash picks.

The same packages, seed, threads and number of steps give the same weights; ``--minutes`` measures this machine's speed
and chooses the number of steps, which is printed, so that ``--steps`` can repeat it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import math
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PACKAGES = ("numpy", "torch", "transformers", "onnx")
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SPECIAL = (PAD, BOS, EOS, "<|user|>", "<|assistant|>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SHORTEST = 80  # characters of a docstring worth reading
_HELD_OUT_SHARE = 16  # one module in so many


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The shape of the model and of its training."""

    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 768
    context_tokens: int = 256
    batch: int = 8
    learning_rate: float = 3e-3
    characters: int = 16_000_000  # of training text, at most
    held_out_tokens: int = 32_768
    seed: int = 0
    packages: tuple[str, ...] = PACKAGES


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    folder: Path
    parameters: int
    steps: int
    tokens: int
    held_out_perplexity: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents; none of ``held_out`` is in ``train``."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def load_corpus(settings: Settings) -> Corpus:
    """The prose, in a fixed order."""
    train: list[str] = []
    held_out: list[str] = []
    for index, name in enumerate(sorted(topics)):
        (held_out if index % 2 else train).append(topics[name].strip())
    held_out_size = train_size = 0
    for module, path in _modules(settings.packages):
        held = int(hashlib.sha256(module.encode()).hexdigest(), 16) % _HELD_OUT_SHARE == 0
        if held and held_out_size > settings.held_out_tokens * 4:
            continue
        found = docstrings(path)
        if held:
            held_out += found
            held_out_size += sum(map(len, found))
            continue
        train += found
        train_size += sum(map(len, found))
        if train_size > settings.characters:
            break
    known = set(train)
    return Corpus(
        train=tuple(dict.fromkeys(train)), held_out=tuple(t for t in dict.fromkeys(held_out) if t not in known)
    )


def _modules(packages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib", "pydoc_data"}
    for path in sorted(library.rglob("*.py")):
        if not skipped & set(path.relative_to(library).parts):
            yield path.relative_to(library).as_posix(), path
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            if not {"test", "tests", "_tests"} & set(path.relative_to(root).parts):
                yield f"{package}/{path.relative_to(root).as_posix()}", path


def docstrings(path: Path) -> list[str]:
    """Every docstring of a module that is long enough to be prose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= _SHORTEST:
                found.append(inspect.cleandoc(text))
    return found


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE that puts ``<|begin|>`` before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """All documents in a row, each between its marks, int64 [tokens]."""
    end = tokenizer.token_to_id(EOS)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids += [*encoding.ids, end]
    return torch.tensor(ids, dtype=torch.long)


def make_model(settings: Settings, tokenizer: Tokenizer) -> transformers.Qwen2ForCausalLM:
    config = transformers.Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=8 * settings.context_tokens,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    torch.manual_seed(settings.seed)
    return transformers.Qwen2ForCausalLM(config)


def perplexity(model: torch.nn.Module, stream: torch.Tensor, context_tokens: int, batch: int = 16) -> float:
    """Of a token stream in windows of ``context_tokens``, each on its own."""
    windows = stream[: len(stream) // context_tokens * context_tokens].view(-1, context_tokens)
    total = count = 0.0
    model.eval()
    with torch.no_grad():
        for rows in windows.split(batch):
            logits = model(input_ids=rows).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
            total += float(loss)
            count += rows[:, 1:].numel()
    return math.exp(total / count)


def train(
    folder: Path,
    settings: Settings | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    show: bool = False,
    corpus: Corpus | None = None,
) -> TrainingResult:
    """Train and save a checkpoint. Give the number of steps, or the minutes that training may take here.

    ``corpus``: what :func:`load_corpus` found, where that was called before.
    """
    settings = settings or Settings()
    started = time.perf_counter()
    corpus = corpus or load_corpus(settings)
    tokenizer = train_tokenizer(corpus.train, settings.vocab_size)
    stream = token_stream(tokenizer, corpus.train)
    held_out = token_stream(tokenizer, corpus.held_out)[: settings.held_out_tokens]
    model = make_model(settings, tokenizer)
    if show:
        print(f"{len(stream)} tokens of text, read in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(settings.seed)
    deadline = time.perf_counter() + 60 * (minutes or 0)
    total = steps
    offsets = torch.arange(settings.context_tokens + 1)
    step = 0
    while total is None or step < total:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, total)
        first = torch.randint(len(stream) - len(offsets), (settings.batch, 1), generator=generator)
        rows = stream[first + offsets]
        logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step == 2:
            second = time.perf_counter()
        if total is None and step == 12:
            total = step + max(int((deadline - time.perf_counter()) / ((time.perf_counter() - second) / 10)), 1)
        if show and step % 50 == 0:
            print(f"step {step} of {total}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    found = perplexity(model, held_out, settings.context_tokens)
    save(folder, model, tokenizer, settings)
    return TrainingResult(
        folder=folder,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=step,
        tokens=step * settings.batch * settings.context_tokens,
        held_out_perplexity=round(found, 3),
        seconds=round(time.perf_counter() - started, 1),
    )


def _schedule(step: int, total: int | None) -> float:
    """Warm-up over 50 steps, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / 50)
    if total is None:
        return warm
    return warm * (0.55 + 0.45 * math.cos(math.pi * min(step / max(total, 1), 1.0)))


def save(folder: Path, model: transformers.Qwen2ForCausalLM, tokenizer: Tokenizer, settings: Settings) -> None:
    """config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=8 * settings.context_tokens,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # transformers would put the template into a file of its own; both places are read, this one is read everywhere.
    config["chat_template"] = CHAT_TEMPLATE
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--minutes", type=float, help="minutes of training on this machine (5)")
    parser.add_argument("--steps", type=int, help="number of steps instead of --minutes, which makes it repeatable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    minutes = options.minutes if options.minutes or options.steps else 5.0
    settings = Settings(seed=options.seed)
    trained = train(options.folder, settings, steps=options.steps, minutes=minutes, show=True)
    print(json.dumps(asdict(trained) | {"settings": asdict(settings), "threads": options.threads}, default=str))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
