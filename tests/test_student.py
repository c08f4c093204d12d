"""Reading a checkpoint's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.errors import CalibrationError, StudentError
from edgecompress.kinds.checkpoints import load_student
from edgecompress.quantize.texts import load_texts
from edgecompress.types.recipe import CalibrationRecipe, StudentRecipe
from tests.tiny import tiny_checkpoint


def test_the_real_student(minilm_dir: Path) -> None:
    student = load_student(StudentRecipe(source=str(minilm_dir)))
    assert (student.architecture, student.task, student.max_length_tokens) == ("bert", "sentence-similarity", 256)
    assert student.pooling is not None
    assert student.pooling.modes == ("mean",)
    assert student.pooling.normalize
    assert student.parameters == 22_713_728
    assert student.revision is None


def test_a_hub_id_is_read_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    tiny_checkpoint(repository / "snapshots" / commit, "bert")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    student = load_student(StudentRecipe(source="someone/tiny"))
    assert (student.revision, student.source) == (commit, "someone/tiny")
    assert load_student(StudentRecipe(source="someone/tiny", revision=commit)).revision == commit
    with pytest.raises(StudentError, match="not in the local cache"):
        load_student(StudentRecipe(source="someone/tiny", revision="1" * 40))


def sentence_model(folder: Path, modules: list[tuple[str, str, dict[str, object]]]) -> Path:
    tiny_checkpoint(folder, "bert")
    entries = []
    for index, (kind, path, config) in enumerate(modules):
        entries.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
        if path:
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


def test_pooling_is_read_in_both_forms(tmp_path: Path) -> None:
    old = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    folder = sentence_model(tmp_path / "a", [("Transformer", "", {}), ("Pooling", "1_Pooling", old)])
    student = load_student(StudentRecipe(source=str(folder)))
    assert student.pooling is not None
    assert student.pooling.modes == ("cls", "max")
    assert not student.pooling.normalize
    new = {"embedding_dimension": 32, "pooling_mode": "mean"}
    modules = [("Transformer", "", {}), ("Pooling", "1_Pooling", new), ("Normalize", "2_Normalize", {})]
    student = load_student(StudentRecipe(source=str(sentence_model(tmp_path / "b", modules))))
    assert student.pooling is not None
    assert (student.pooling.modes, student.pooling.normalize) == (("mean",), True)


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "a", [("Transformer", "", {}), ("WordWeights", "1_W", {})])
    with pytest.raises(StudentError, match="module 'WordWeights'"):
        load_student(StudentRecipe(source=str(folder)))


def test_a_task_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    with pytest.raises(StudentError, match="no head for fill-mask"):
        load_student(StudentRecipe(source=str(folder), task="fill-mask"))
    with pytest.raises(StudentError, match=r"no modules\.json"):
        load_student(StudentRecipe(source=str(folder), task="sentence-similarity"))


def test_lengths(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "roberta")
    assert load_student(StudentRecipe(source=str(folder))).max_length_tokens == 100  # the tokenizer's
    (folder / "tokenizer_config.json").unlink()
    assert load_student(StudentRecipe(source=str(folder))).max_length_tokens == 126  # two positions are padding's
    with pytest.raises(StudentError, match="126 positions"):
        load_student(StudentRecipe(source=str(folder), max_length_tokens=127))


def test_held_out_text_was_never_calibrated_on(tmp_path: Path) -> None:
    texts = load_texts(CalibrationRecipe(samples=200), 200)
    assert len(texts.calibration) == len(texts.held_out) == 200
    assert not set(texts.calibration) & set(texts.held_out)
    assert load_texts(CalibrationRecipe(samples=200), 200) == texts
    own = tmp_path / "own.txt"
    own.write_text("\n".join(f"text number {i}" for i in range(30)))
    texts = load_texts(CalibrationRecipe(text=str(own), samples=20), 10)
    assert not set(texts.calibration) & set(texts.held_out)
    assert all(text.startswith("text number") for text in (*texts.calibration, *texts.held_out))
    fewer = load_texts(CalibrationRecipe(text=str(own), samples=25), 10)
    assert "held out: pydoc_data.topics" in fewer.source
    with pytest.raises(CalibrationError, match="30 calibration texts, but the recipe needs 40"):
        load_texts(CalibrationRecipe(text=str(own), samples=40), 10)
