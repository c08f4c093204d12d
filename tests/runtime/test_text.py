"""Text out of tokens: put together, the pieces are what the tokenizer makes of all tokens at once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgecompress.errors import UsageError
from edgecompress.runtime.results import Piece
from edgecompress.runtime.text import Detokenizer, PromptTokenizer, ReasoningSplit, StopStrings, TextStream
from tests.decoder_bundle import BOS, EOS, TRAINING, VOCAB, tokenizer

TEXTS = [
    "plain ASCII, then a family 👨‍👩‍👧‍👦 and a flag 🇧🇷.",
    "naïve café — 中文字符和日本語 😀😀 ﷽",
    "def f(x):\n\treturn  x\n\n",
    "the cat sat on the mat",
    "",
]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    tokenizer().save(str(path))
    return PromptTokenizer(path, VOCAB)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """As Llama's: a mark for each space, bytes for what is not in the vocabulary, the first space dropped."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(TRAINING, trainer)
    data = json.loads(made.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"<0x{i:02X}>": len(vocabulary) + i for i in range(256)}
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    path.write_text(json.dumps(data))
    return PromptTokenizer(path, 400)


def pushed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokens: PromptTokenizer = request.getfixturevalue(kind)
    ids = tokens.encode(text, special_tokens=False)
    pieces = pushed(Detokenizer(tokens), ids)
    assert "".join(pieces) == tokens.decode(ids) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_any_tokens_at_all_make_up_their_text(byte_level: PromptTokenizer) -> None:
    """Random bytes, whole and broken characters in any order, and ids that no token has."""
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(0, VOCAB) for _ in range(rng.randrange(1, 9))]
        assert "".join(pushed(Detokenizer(byte_level), ids)) == byte_level.decode(ids)


def test_an_emoji_over_several_tokens_comes_whole(byte_level: PromptTokenizer) -> None:
    ids = byte_level.encode("😀", special_tokens=False)
    assert len(ids) == 4
    assert pushed(Detokenizer(byte_level), ids) == ["", "", "", "😀", ""]


def test_broken_bytes_are_not_held_for_ever(byte_level: PromptTokenizer) -> None:
    lone = byte_level.encode("😀", special_tokens=False)[0]
    pieces = pushed(Detokenizer(byte_level), [lone] * 40)
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 40
    assert any(pieces[:20])
    assert pushed(Detokenizer(byte_level), [lone]) == ["", "\N{REPLACEMENT CHARACTER}"]


def test_the_first_word_keeps_its_space_behind_a_prompt(sentencepiece: PromptTokenizer) -> None:
    prompt = sentencepiece.encode("the cat", special_tokens=False)
    whole = sentencepiece.encode("the cat sat on", special_tokens=False)
    assert whole[: len(prompt)] == prompt
    assert "".join(pushed(Detokenizer(sentencepiece, prompt), whole[len(prompt) :])) == " sat on"
    assert "".join(pushed(Detokenizer(sentencepiece), whole[len(prompt) :])) == "sat on"


def test_special_tokens_are_no_text(byte_level: PromptTokenizer) -> None:
    ids = [BOS, *byte_level.encode("hi", special_tokens=False), EOS]
    assert "".join(pushed(Detokenizer(byte_level), ids)) == "hi"
    assert byte_level.encode("hi", special_tokens=True)[0] == BOS
    assert "".join(pushed(Detokenizer(byte_level, spelled=["</s>"]), ids)) == "hi</s>"


def test_stop_strings_across_pieces() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.push(part) for part in ("abc", " E", "N", "x", "\n")] == ["abc", " ", "", "ENx", ""]
    assert stops.push("\nmore") == ""
    assert stops.found
    held = StopStrings(["END"])
    assert held.push("the E") + held.flush() == "the E"
    assert not held.found
    first = StopStrings(["late", "early"])
    assert first.push("an early and a late one") == "an "
    assert StopStrings([]).push("END") == "END"


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_reasoning_is_told_from_the_answer(step: int) -> None:
    text = "<think>\nfirst <b> then\n</think>\n\nThe answer quotes <think> and </think>."
    expected = [("first <b> then\n", "reasoning"), ("The answer quotes <think> and </think>.", "answer")]
    assert split(text, step, inside=False) == expected
    assert split(text.removeprefix("<think>"), step, inside=True) == expected
    assert split("No tags at all < here", step, inside=False) == [("No tags at all < here", "answer")]
    assert split("never ends </thi", step, inside=True) == [("never ends </thi", "reasoning")]


def split(text: str, step: int, *, inside: bool) -> list[tuple[str, str]]:
    splitter = ReasoningSplit("<think>", "</think>", inside=inside)
    parts: list[tuple[str, str]] = []
    for start in range(0, len(text), step):
        parts += splitter.push(text[start : start + step])
    parts += splitter.flush()
    joined = {kind: "".join(text for text, k in parts if k == kind) for kind in ("reasoning", "answer")}
    return [(text, kind) for kind, text in joined.items() if text]


def test_the_three_in_a_row(byte_level: PromptTokenizer) -> None:
    ids = byte_level.encode("<think>so 😀</think>Yes. STOP here", special_tokens=False)
    stream = TextStream(
        Detokenizer(byte_level, (), ["<think>", "</think>"]),
        StopStrings(["STOP"]),
        ReasoningSplit("<think>", "</think>", inside=False),
    )
    pieces: list[Piece] = []
    used = 0
    while not stream.stopped:
        pieces += stream.push(ids[used])
        used += 1
    pieces += stream.finish()
    assert stream.text == "<think>so 😀</think>Yes. "
    assert stream.of_kind("reasoning") == "so 😀"
    assert stream.of_kind("answer") == "Yes. "
    assert "".join(str(p) for p in pieces) == "so 😀Yes. "
    assert [i for p in pieces for i in p.token_ids] == ids[: len([i for p in pieces for i in p.token_ids])]


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "t.json"))
    narrow = PromptTokenizer(tmp_path / "t.json", 50)
    with pytest.raises(UsageError, match="outside the model's vocabulary of 50"):
        narrow.encode("the cat", special_tokens=True)
    with pytest.raises(UsageError, match="token -1"):
        narrow.check([-1])
