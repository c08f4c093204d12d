"""Renders messages to a prompt with the checkpoint's Jinja template, in a sandbox, as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import BundleError, HostError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template. Raises BundleError if it cannot be parsed, HostError if jinja2 is missing."""

    def __init__(self, path: Path, tokens: Mapping[str, str]) -> None:
        """``tokens``: special tokens by their template names, e.g. {"bos_token": "<s>"}."""
        self._tokens = dict(tokens)
        environment = _environment()
        from jinja2.exceptions import TemplateError

        try:
            self._template: Template = environment.from_string(path.read_text(encoding="utf-8"))
        except (TemplateError, OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"the chat template cannot be parsed: {_one_line(error)}", hint="Pass prompts as plain text."
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """Return the prompt for the assistant's next message. Raises UsageError if the template raises."""
        plain = {key: _plain(value) for key, value in (variables or {}).items()}
        given = {"tools": None, "documents": None, **self._tokens, **plain}
        try:
            return self._template.render(messages=_checked(messages), add_generation_prompt=True, **given)
        except UsageError:
            raise
        except Exception as error:  # a template can raise anything its expressions do: TemplateError, TypeError, …
            raise UsageError(
                f"the chat template rejects these messages: {_one_line(error)}",
                hint="Most templates need alternating roles, user first. Or pass the prompt as plain text (--raw).",
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise HostError("chat templates need the package jinja2", hint="pip install edgecompress") from error

    class GenerationBlock(Extension):
        """``{% generation %}`` marks the assistant's tokens for training; here only its body is rendered."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Namespace(jinja2.utils.Namespace):
        """Rejects names that start with an underscore, which would give access to Python internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, rest = args[0], args[1:]
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                _refuse_underscore(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_underscore(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    def _refuse_underscore(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not set the attribute {name!r}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = Namespace
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` escapes HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(
                f"message {index} has no role",
                hint='Pass messages as dicts such as {"role": "user", "content": "Hello"}.',
            )
        plain = _plain(message)
        reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        checked.append(plain)
    return checked


def _plain(value: Any) -> Any:
    """The template is untrusted code: it gets plain JSON values only, and the type's name for anything else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(str.__str__(value)) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _one_line(error: Exception) -> str:
    lines = str(error).split("\n")
    return (lines[0] or type(error).__name__)[:200]
