"""Chat templates render as transformers renders them, and nothing they do reaches further than their text."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.errors import BundleError, UsageError
from edgecompress.runtime.chat import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": 'Why is the sky "blue"? ü'},
    {"role": "assistant", "content": "</think>Because.", "reasoning_content": "thinking"},
    {"role": "user", "content": "Really?"},
]
TEMPLATES = {
    "plain": "{% for m in messages %}\n  {% if m.role == 'user' %}\nU: {{ m.content }}\n  {% endif %}\n{% endfor %}A:",
    "deepseek": (
        "{% set ns = namespace(first=true, system='') %}{{ bos_token }}"
        "{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = m['content'] %}{%- endif %}"
        "{%- endfor %}{{ ns.system }}{%- for m in messages %}"
        "{%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{%- endif %}"
        "{%- if m['role'] == 'assistant' %}{% set c = m['content'] %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + c + eos_token }}{%- endif %}{%- endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
    ),
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ dict(a=1) | tojson }}",
    "controls": (
        "{% for m in messages %}{% if loop.index0 == 3 %}{% break %}{% endif %}"
        "{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.reasoning_content or m.content }}{% endgeneration %}{% endfor %}"
    ),
    "variables": "{{ enable_thinking }}{{ tools is none }}{{ missing }}{{ strftime_now('%Y') | length }}",
}


def template(folder: Path, text: str) -> ChatTemplate:
    (folder / "t.jinja").write_text(text, encoding="utf-8")
    return ChatTemplate(folder / "t.jinja", TOKENS)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_it_renders_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=True, enable_thinking=False, **TOKENS
    )
    assert template(tmp_path, TEMPLATES[name]).render(MESSAGES, {"enable_thinking": False}) == expected[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[99].content.upper() }}", "no element 99|has no element"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% set ns = namespace(a=1) %}{% set ns._x = 1 %}", "_x"),
    ],
)
def test_a_template_that_raises_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        template(tmp_path, text).render(MESSAGES)
    assert error.value.message.startswith("the chat template rejects these messages: ")
    assert "\n" not in error.value.message


def test_templates_and_messages_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be parsed"):
        template(tmp_path, "{% for %}")
    good = template(tmp_path, TEMPLATES["plain"])
    with pytest.raises(UsageError, match="message 1 has no role"):
        good.render([{"role": "user", "content": "x"}, {"content": "y"}])


def test_the_template_sees_plain_values_only(tmp_path: Path) -> None:
    class Loud(str):
        def shout(self) -> str:
            return self.upper()

    seen = template(
        tmp_path, "{{ messages[0].content }}{{ messages[0].image }}{{ messages[0].content.shout is defined }}"
    )
    assert seen.render([{"role": "user", "content": Loud("a"), "image": object()}]) == "a<object>False"
