"""``edgecompress run`` on a decoder: stream a text, or chat."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgecompress.errors import UsageError
from edgecompress.kinds.base import FlagGroup
from edgecompress.terminal import emit_json, note, read_inputs

if TYPE_CHECKING:
    from edgecompress.kinds.decoder.runtime import Generator, Session
    from edgecompress.runtime.prompts import Options
    from edgecompress.runtime.results import Statistics
    from edgecompress.runtime.stream import Stream

PURPOSE = "text generation"

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_REASONING, _ANSWER = "── reasoning ──", "── answer ──"
# flag -> name of the runtime's option
_OPTIONS = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    "lookup": "lookup_tokens",
    "top_k": "top_k",
}


def add_arguments(group: FlagGroup) -> None:
    group.add_argument("--max-new-tokens", type=int, help="maximum new tokens (default: until the model ends the text)")
    group.add_argument("--temperature", type=float, help="0 is greedy (default: the checkpoint's)")
    group.add_argument(
        "--top-k", type=int, help="sample from this many of the most probable tokens (default: the checkpoint's)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        help="sample from the most probable tokens that reach this probability (default: the checkpoint's)",
    )
    group.add_argument(
        "--min-p", type=float, help="drop tokens below this share of the most probable token's probability"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        help="above 1: discourage tokens already in the text (default: the checkpoint's)",
    )
    group.add_argument("--seed", type=int, help="random seed; the same seed gives the same text")
    group.add_argument("--stop", action="append", help="end the text before this string; can be repeated")
    group.add_argument(
        "--lookup", type=int, metavar="N", help="prompt lookup: draft up to N tokens from the text itself (greedy only)"
    )
    group.add_argument("--system", metavar="TEXT", help="system message")
    group.add_argument("--raw", action="store_true", help="use the prompt as it is, without the chat template")
    group.add_argument(
        "--chat", action="store_true", help="chat over stdin, one turn per line; keeps the KV cache between turns"
    )


def run(generator: Generator, options: Namespace) -> int:
    if options.system is not None and (options.raw or not generator.has_chat_template):
        raise UsageError("--system needs a chat template", hint="Put the system message into the prompt.")
    if options.chat:
        return _chat(generator, options)
    texts = read_inputs(options.inputs, options.file, what="prompt", by_line=False)
    prompts = [_prompt(generator, text, options) for text in texts]
    if len(prompts) == 1 and not options.json:
        with generator.stream(prompts[0], **_sampling(options)) as stream:
            _show(stream)
        _note(stream.statistics)
        return 0
    results = generator.generate(prompts, **_sampling(options))
    if options.json:
        outputs = [
            {
                "input": prompt,
                "output": str(text),
                "answer": text.answer,
                "reasoning": text.reasoning,
                "token_ids": text.token_ids,
                "finish": text.finish,
            }
            for prompt, text in zip(prompts, results, strict=True)
        ]
        emit_json({"task": generator.manifest.task, "results": outputs, "statistics": generator.statistics})
        return 0
    for number, text in enumerate(results, start=1):
        print(f"── {number} ──")
        _show_parts([("reasoning", text.reasoning), ("answer", text.answer)])
    _note(generator.statistics)
    return 0


def _chat(generator: Generator, options: Namespace) -> int:
    """Chat, one turn per line. Later turns see earlier answers without their reasoning."""
    if options.json or options.inputs or options.file is not None:
        raise UsageError("--chat reads its turns from stdin", hint="Omit --json, --file and the texts.")
    if not generator.has_chat_template or options.raw:
        raise UsageError("--chat needs a bundle with a chat template", hint="Omit --chat, or omit --raw.")
    messages: list[dict[str, str]] = []
    if options.system is not None:
        messages.append({"role": "system", "content": options.system})
    if sys.stdin.isatty():
        note("One turn per line. Ctrl-C stops an answer, Ctrl-D ends the chat.")
    with generator.session() as session:
        while (line := _turn()) is not None:
            if line.strip():
                _reply(session, [*messages, {"role": "user", "content": line}], messages, options)
    return 0


def _reply(session: Session, asked: list[dict[str, str]], messages: list[dict[str, str]], options: Namespace) -> None:
    """Stream one answer, then add the turn to the conversation. A rejected turn is not added."""
    with session.stream(asked, **_sampling(options)) as stream:
        try:
            _show(stream)
        except KeyboardInterrupt:
            print()
    messages[:] = [*asked, {"role": "assistant", "content": stream.result.answer}]
    _note(stream.statistics)


def _turn() -> str | None:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _prompt(generator: Generator, text: str, options: Namespace) -> Any:
    if options.raw or not generator.has_chat_template:
        return text
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, {"role": "user", "content": text}]


def _sampling(options: Namespace) -> Options:
    named: Options = {}
    for flag, name in _OPTIONS.items():
        value = getattr(options, flag)
        if value is not None:
            named[name] = value  # type: ignore[literal-required]
    return named


def _show(stream: Stream) -> None:
    _show_parts((piece.kind, piece.text) for piece in stream)


def _show_parts(parts: Iterable[tuple[str, str]]) -> None:
    """On a terminal, print the reasoning dimmed, between marks; else print it to stderr and the answer to stdout."""
    terminal = sys.stdout.isatty()
    before: str | None = None
    for kind, text in parts:
        if not text:
            continue
        out = sys.stdout if terminal or kind == "answer" else sys.stderr
        if kind != before:
            if before == "reasoning":
                print(_PLAIN if terminal else "", file=sys.stdout if terminal else sys.stderr)
            if kind == "reasoning":
                print(f"{_DIM if terminal else ''}{_REASONING}", file=out)
            elif before == "reasoning":
                print(_ANSWER, file=sys.stdout if terminal else sys.stderr)
            before = kind
        print(text, end="", file=out, flush=True)
    print(_PLAIN if terminal and before == "reasoning" else "", flush=True)


def _note(statistics: Statistics) -> None:
    reused = f" ({statistics.reused_tokens} of them in the KV cache already)" if statistics.reused_tokens else ""
    parts = [
        f"{statistics.prompt_tokens} prompt tokens{reused} at {statistics.prefill_tokens_per_s:.1f} tok/s",
        f"first token after {statistics.ttft_ms:.0f} ms",
        f"{statistics.new_tokens} tokens at {statistics.decode_tokens_per_s:.1f} tok/s",
    ]
    parts.append(f"{statistics.kv_cache_dtype} KV cache of {statistics.kv_cache_bytes:_} bytes")
    if statistics.drafted_tokens:
        parts.append(f"{statistics.accepted_tokens} of {statistics.drafted_tokens} drafted tokens accepted")
    if "length" in statistics.finish:
        parts.append("cut at --max-new-tokens or the context's end")
    note("; ".join(parts))
