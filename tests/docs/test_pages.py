"""Every command and every script in the documentation is run, or is named with the reason why no test can."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.cli import COMMANDS, parser_of
from tests.docs.outputs import stale_lines
from tests.docs.pages import ROOT, Page, Step, all_pages, read_page
from tests.docs.setups import all_setups
from tests.installing import extras

PAGES = all_pages()
RUN = [page for page in PAGES if any(not step.not_run and (step.commands or step.script) for step in page.steps)]
NOT_RUN = [(page, step) for page in PAGES for step in page.steps if step.not_run]
SECONDS = 300
BETWEEN = "-- the next command of this block --"


def shell(folder: Path, home: Path) -> dict[str, str]:
    """A reader's environment: our command first on the path, no network, an English terminal."""
    tool = home / "bin" / "edgecompress"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgecompress "$@"\n')
    tool.chmod(0o755)
    python = home / "bin" / "python"  # no link: beside a link Python does not find its virtual environment
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    path = os.pathsep.join([str(tool.parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    lent = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "targets")])
    return {**os.environ, "PATH": path, "PYTHONPATH": lent, "HF_HUB_OFFLINE": "1", "PWD": str(folder)}


def run_page(page: Page, folder: Path, home: Path) -> None:
    environment = shell(folder, home)
    setups = all_setups()
    names: dict[str, object] = {"__name__": "__main__"}
    with ExitStack() as cleanup:
        for name, *words in page.setups:
            if (running := setups[name](folder, *words)) is not None:
                cleanup.enter_context(running)
        for step in page.steps:
            where = f"{page.name}:{step.line}"
            if step.file:
                (folder / step.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / step.file).write_text(step.text)
            elif not step.not_run and step.script:
                exec(compile(step.script, where, "exec"), names)
            elif not step.not_run and step.commands:
                run_commands(step, folder, environment, where)


def run_commands(step: Step, folder: Path, environment: dict[str, str], where: str) -> None:
    """Run a block in one bash; its last command has the block's exit code, and each prints what the page shows."""
    *first, last = step.commands
    between = f"echo; echo '{BETWEEN}'"
    script = "\n".join(["set -e", *(f"{command}\n{between}" for command in first), "set +e", last])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == step.exit_code, f"{where}: {script}\n{done.stdout[-4000:]}"
    fails = [False] * len(first) + [step.exit_code != 0]
    outputs = done.stdout.split(f"{BETWEEN}\n")
    for command, shown, printed, failed in zip(step.commands, step.shown, outputs, fails, strict=True):
        stale = stale_lines(shown, printed, exact=failed)
        assert not stale, f"{where}: {command}\nis shown to print\n{chr(10).join(stale)}\nbut prints\n{printed[-4000:]}"


@pytest.mark.slow
@pytest.mark.pages
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_command_of_a_page_works(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run_page(page, folder, tmp_path / "home")


@pytest.mark.parametrize(("page", "step"), NOT_RUN, ids=lambda item: item.name if isinstance(item, Page) else item.line)
def test_what_is_not_run_has_a_reason_and_flags_that_exist(page: Page, step: Step) -> None:
    assert len(step.not_run) > len("because")
    for command in step.commands:
        for words in simple_commands(command):
            if words[0] == "edgecompress" and len(words) > 1 and words[1] in COMMANDS:
                parser_of(words[1]).parse_intermixed_args(words[2:])


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line, between pipes, ``&&`` and ``;``, without redirections."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set("|&;"):
            commands.append([])
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def test_no_command_hides_in_another_kind_of_block() -> None:
    """A command in a block that no test reads would go stale."""
    hidden = []
    for page in PAGES:
        text = page.path.read_text(encoding="utf-8")
        for found in re.finditer(r"^ *```(?P<info>[^\n`]*)\n(?P<body>.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
            language = found["info"].strip().partition(" ")[0]
            if language not in ("console", "python") and re.search(r"^ *\$ ", found["body"], re.MULTILINE):
                hidden.append(f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}")
    assert not hidden


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_one_title_and_setups_that_exist(page: Page) -> None:
    text = re.sub(r"```.*?```", "", page.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert {name for name, *_ in page.setups} <= set(all_setups())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_on_a_page_exist(page: Page) -> None:
    named = re.findall(r"edgecompress\[([\w,-]+)\]", page.path.read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= set(extras())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Page) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    broken = [link for link in links if "://" not in link and not (page.path.parent / link).exists()]
    assert not broken


def test_a_page_is_read_as_its_author_means_it(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# Title\n<!-- setup: photo cat.png -->\n\n```console\n$ echo a \\\n    b\na b\n$ false\n```\n\n"
        '```toml title="x.toml"\na = 1\n```\n\n<!-- exit: 3 -->\n```console\n$ exit 3\n```\n\n'
        "<!-- not run: needs a GPU -->\n```python\nprint()\n```\n\n```text\nnothing\n```\n"
    )
    page = read_page(path)
    assert page.setups == (("photo", "cat.png"),)
    shown = [(s.commands, s.script, s.file, s.exit_code, s.not_run) for s in page.steps]
    assert shown == [
        (("echo a \\\n    b", "false"), "", "", 0, ""),
        ((), "", "x.toml", 0, ""),
        (("exit 3",), "", "", 3, ""),
        ((), "print()\n", "", 0, "needs a GPU"),
    ]


def test_what_is_shown_below_a_command_is_its_output(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Title\n```console\n$ echo a \\\n    b\na b\n\n…\n$ true\n$ false\nc\n```\n")
    assert read_page(path).steps[0].shown == (("a b", "", "…"), (), ("c",))


PRINTED = """\
edgecompress: the architecture 'gpt9' was never tested. Did you mean 'gpt2'?
It may work: an export is checked against PyTorch before it is written.

target          shape  dominated by
──────────────  ─────  ──────────────
raspberry-pi-5  1x16   memory traffic

files     9 files, 0.1 MB: every sha256 matches the manifest
fidelity  KL 0.0000, top-1 1.0000, against the 8 PyTorch outputs in the bundle
wrote /tmp/here/report.html
"""


@pytest.mark.parametrize(
    ("shown", "exact", "stale"),
    [
        (["edgecompress: the architecture 'qwen9' was never tested. …"], False, False),
        (["edgecompress: 'qwen9' was never tried. Did you mean 'qwen3'?"], False, True),
        (["It may work: an export is checked against PyTorch before it is written."], True, False),
        (["It may work: every export is checked against PyTorch before anything is written."], True, True),
        (["target   shape  dominated by", "───────  ─────  ──────", "raspberry-pi-5  1x128  arithmetic"], False, False),
        (["target   shape  most of it is", "───────  ─────  ──────", "raspberry-pi-5  1x128  products"], False, True),
        (["target   shape  dominated by", "───────  ─────  ──────", "jetson-agx-orin  1x128  arithmetic"], False, True),
        (["files     12 files, 24.0 MB: every sha256 matches the manifest"], False, False),
        (["files     12 files, 24.0 MB: every sha256 is the manifest's"], False, True),
        (["fidelity  cosine 0.9, top-10 0.9, against the 128 PyTorch outputs in the bundle"], False, False),
        (["quality   cosine 0.9, top-10 0.9, against the 128 PyTorch outputs in the bundle"], False, True),
        (["wrote report/report.html", "…", ""], False, False),
        (["report/report.html was written"], False, True),
    ],
)
def test_a_page_with_stale_output_is_found(tmp_path: Path, shown: list[str], exact: bool, stale: bool) -> None:
    (tmp_path / "printed").write_text(PRINTED)
    last = "cat printed; exit 2" if exact else "cat printed"
    step = Step(line=4, commands=("true", last), shown=((), tuple(shown)), exit_code=2 if exact else 0)
    if stale:
        with pytest.raises(AssertionError, match=r"page\.md:4: cat printed"):
            run_commands(step, tmp_path, dict(os.environ), "page.md:4")
    else:
        run_commands(step, tmp_path, dict(os.environ), "page.md:4")


def test_output_belongs_to_the_command_above_it(tmp_path: Path) -> None:
    step = Step(line=4, commands=("cd / && echo one", "echo two; pwd"), shown=(("one",), ("two", "/")))
    run_commands(step, tmp_path, dict(os.environ), "page.md:4")
    with pytest.raises(AssertionError, match=r"is shown to print\s+two"):
        run_commands(replace(step, shown=(("two",), ())), tmp_path, dict(os.environ), "page.md:4")


def test_a_command_that_fails_fails_its_page(tmp_path: Path) -> None:
    step = Step(line=4, commands=("false", "true"), shown=((), ()))
    with pytest.raises(AssertionError, match=r"page\.md:4"):
        run_commands(step, tmp_path, dict(os.environ), "page.md:4")
