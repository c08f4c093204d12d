"""What a student is taught on: read line by line, refused by line and column, seen in an order that can be repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.distill.data import Pair, read_data
from edgecompress.distill.examples import IGNORED, Example, collate, make_examples, order_of
from edgecompress.distill.tokenizers import load_tokenizer
from edgecompress.errors import UsageError
from tests.tiny import save_tokenizer


def write(folder: Path, content: str, name: str = "d.jsonl") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_texts_are_read_once_each(tmp_path: Path) -> None:
    data = read_data(write(tmp_path, '{"text": "one"}\n\n{"text": "two\\nlines", "id": 3}\r\n{"text": "one"}\n'))
    assert data.texts == ("one", "two\nlines")
    assert len(data) == 2
    plain = read_data(write(tmp_path, "one\n  two \n\n", "d.txt"))
    assert plain.texts == ("one", "two")


def test_pairs_are_prompts_or_conversations(tmp_path: Path) -> None:
    lines = '{"prompt": "p", "response": "r"}\n{"messages": [{"role": "user", "content": "q"}], "response": null}\n'
    user = {"role": "user", "content": "p"}
    assert read_data(write(tmp_path, lines)).pairs == (
        Pair(messages=(user,), response="r"),
        Pair(messages=(user | {"content": "q"},), response=None),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"text": "a"}\n{"text": "b",}\n', "line 2, column 1[34]: "),
        ('{"text": "a"}\n["b"]\n', "line 2, column 1: the line is not a JSON object"),
        ('{"txt": "a"}\n', "line 1, column 1: the line has neither"),
        ('{"text": "a", "prompt": "b"}\n', "text and prompt exclude each other"),
        ('{"id": 7, "text": 3}\n', "line 1, column 11: 'text' must be a string"),
        ('{"prompt": "a", "response": " "}\n', "line 1, column 17: 'response' must be a string"),
        ('{"messages": [{"role": "user"}]}\n', "line 1, column 2: 'messages' must have a role and a content"),
        ('{"text": "a"}\n{"prompt": "b"}\n', "line 2, column 1: texts and prompts are mixed"),
        ('{"text": "a\0"}\n', "is binary"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_data(write(tmp_path, content))
    assert caught.value.hint


def test_files_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data file"):
        read_data(tmp_path / "none.jsonl")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_data(tmp_path / "d.txt")


def test_texts_of_an_encoder_are_cut(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    data = read_data(write(tmp_path, "the cat\n" + "the dog " * 30 + "\n", "d.txt"))
    examples = make_examples(data, tokenizer, 8, next_token=False)
    assert [len(example.ids) for example in examples] == [4, 8]
    assert all(example.ids[0] == tokenizer.cls_token_id or example.ids[0] == 2 for example in examples)
    pairs = read_data(write(tmp_path, '{"prompt": "a", "response": "b"}'))
    with pytest.raises(UsageError, match="the student is an encoder"):
        make_examples(pairs, tokenizer, 8, next_token=False)


def test_a_decoders_texts_stand_in_a_row(small_decoder_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small_decoder_dir)
    data = read_data(write(tmp_path, "\n".join(f"a sentence of number {n}" for n in range(40)), "d.txt"))
    examples = make_examples(data, tokenizer, 32, next_token=True)
    stream = [token for example in examples for token in example.ids]
    assert {len(example.ids) for example in examples[:-1]} == {32}
    assert stream.count(tokenizer.eos_token_id) >= 38
    assert stream[0] == tokenizer.bos_token_id


def test_only_the_response_is_scored(small_decoder_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small_decoder_dir)
    data = read_data(write(tmp_path, '{"prompt": "a question", "response": "the answer"}'))
    (example,) = make_examples(data, tokenizer, 64, next_token=True)
    assert tokenizer.decode(example.ids[: example.scored]).endswith("<|assistant|>")
    assert tokenizer.decode(example.ids[example.scored :]) == f"the answer{tokenizer.eos_token}"
    cut = read_data(write(tmp_path, '{"prompt": "a question", "response": "the answer", "finish": "length"}'))
    (unended,) = make_examples(cut, tokenizer, 64, next_token=True)
    assert unended.ids == example.ids[:-1]
    batch = collate([(7, example), (9, Example(ids=(1, 2)))], pad_token_id=0)
    assert (batch["labels"][0, : example.scored] == IGNORED).all()
    assert batch["labels"][0, example.scored :].tolist() == list(example.ids[example.scored :])
    assert batch["labels"][1].tolist() == [1, 2] + [IGNORED] * (len(example.ids) - 2)
    assert batch["attention_mask"].sum(1).tolist() == [len(example.ids), 2]
    assert batch["numbers"].tolist() == [7, 9]
    with pytest.raises(UsageError, match=r"no example in d\.jsonl fits"):
        make_examples(data, tokenizer, 8, next_token=True)


def test_the_order_is_whole_and_the_same_again() -> None:
    lengths = [5, 9, 3, 7, 7, 2, 8, 4, 6, 1]
    order = order_of(lengths, batch=4, steps=5, seed=3)
    assert len(order) == 20
    assert np.bincount(order).tolist() == [2] * 10  # two rounds, each example once in each
    assert (order == order_of(lengths, batch=4, steps=5, seed=3)).all()
    assert (order != order_of(lengths, batch=4, steps=5, seed=4)).any()
    spans = [np.ptp(np.array(lengths)[rows]) for rows in order.reshape(5, 4)]
    assert np.mean(spans) < 4  # like lengths together: at random it would be about 6
