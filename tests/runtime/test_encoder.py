"""The runtime on the real student's bundle, and on heads of tiny ones."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.export.pipeline import export
from edgecompress.formats.manifest import read_manifest, write_manifest
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.runtime import load
from edgecompress.runtime.batching import plan_batches
from edgecompress.runtime.lanes import Lanes
from edgecompress.types.bundle import with_variant
from edgecompress.types.recipe import Recipe, StudentRecipe
from tests.serve.encoder_bundle import encoder_bundle
from tests.tiny import SENTENCES, tiny_checkpoint


@pytest.fixture(scope="module")
def encoder(minilm_bundle: Path) -> Encoder:
    return load(minilm_bundle, threads=1)


def tiny_bundle(tmp_path: Path, model_type: str, auto: str, **overrides: object) -> Path:
    """An fp32 bundle, which must answer as PyTorch does."""
    source = tiny_checkpoint(tmp_path / "student", model_type, auto, **overrides)
    export(Recipe(precision="fp32", student=StudentRecipe(source=str(source))), tmp_path / "b")
    return tmp_path / "b"


def test_vectors_are_normalized_float32_and_mean_what_they_should(encoder: Encoder) -> None:
    vectors = encoder.encode(["A cat sits on the mat.", "A feline rests on a rug.", "Interest rates rose again."])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_order_and_batching_do_not_change_the_answer(encoder: Encoder) -> None:
    texts = [f"{'word ' * (i * 7 % 40 + 1)}number {i}" for i in range(70)]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    together = encoder.encode(texts, batch_size=16)
    # Dynamic quantization takes its range from the batch, so equality is that of the quantized model.
    assert (alone * together).sum(1).min() > 0.99
    np.testing.assert_array_equal(encoder.encode(texts, batch_size=16), together)
    np.testing.assert_allclose(encoder.encode(iter(texts), batch_size=16), together, atol=1e-6)


def test_ten_thousand_texts(encoder: Encoder) -> None:
    texts = [f"text {i}" for i in range(10_000)]
    vectors = encoder.encode(texts)
    assert vectors.shape == (10_000, 384)
    for i in (0, 4095, 4096, 9_999):
        assert vectors[i] @ encoder.encode([texts[i]])[0] > 0.99


def test_empty_single_and_too_long(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode("one string").shape == (1, 384)
    assert encoder.encode([""]).shape == (1, 384)
    long = "word " * 1000
    np.testing.assert_array_equal(encoder.encode([long], truncate=True), encoder.encode(["word " * 254]))
    with pytest.raises(UsageError, match="text 1 is longer than the model's 256 tokens"):
        encoder.encode(["short", long])
    with pytest.raises(UsageError, match="text 0 is longer than the model's 256 tokens"):
        encoder.predict([long])
    with pytest.raises(UsageError, match="text 2 is a int"):
        encoder.encode(["a", "b", 3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="no prompt named 'query'"):
        encoder.encode(["a"], prompt="query")
    with pytest.raises(UsageError, match="batch_size"):
        encoder.encode(["a"], batch_size=0)


def test_threads_may_share_an_encoder(encoder: Encoder) -> None:
    texts = [[f"thread {t} text {i} {'x ' * i}" for i in range(12)] for t in range(6)]
    expected = [encoder.encode(batch) for batch in texts]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for got, want in zip(pool.map(encoder.encode, texts), expected, strict=True):
                np.testing.assert_array_equal(got, want)


def test_a_closed_bundle_says_so(minilm_bundle: Path) -> None:
    with load(minilm_bundle) as encoder:
        encoder.encode(["a"])
    with pytest.raises(UsageError, match="was closed"):
        encoder.encode(["a"])


def test_lanes_answer_as_one_session_does(minilm_bundle: Path, encoder: Encoder) -> None:
    """Three threads take the batches of many texts one each; the answers are those of one thread, in order."""
    texts = [f"{'word ' * (i * 7 % 40 + 1)}number {i}" for i in range(70)]
    expected = encoder.encode(texts)
    with load(minilm_bundle, threads=3) as wide:
        for _ in range(3):
            np.testing.assert_array_equal(wide.encode(texts), expected)
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(wide.encode, [texts] * 8):
                np.testing.assert_array_equal(got, expected)
        left = wide.batches(texts)
        next(left)
        left.close()  # what was not asked for any more does not block close()
    with pytest.raises(UsageError, match="was closed"):
        wide.encode(texts)


def test_lanes_only_where_they_are_sooner() -> None:
    def never() -> object:
        raise AssertionError("no session is made to find out")

    lanes = Lanes(never, 4)  # type: ignore[arg-type]
    assert not lanes.pay([10])
    assert not lanes.pay([10, 10])  # two of four threads would be idle
    assert not lanes.pay([250, 9, 8, 7])  # three would wait for the fourth
    assert lanes.pay([10, 9, 8, 7])
    assert not Lanes(never, 1).pay([10, 9, 8, 7])  # type: ignore[arg-type]


def test_batches_are_unpadded_complete_and_bounded(rng: np.random.Generator) -> None:
    lengths = [int(n) for n in rng.integers(3, 256, 500)]
    batches = list(plan_batches(lengths, 8, 512))
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    for batch in batches:
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) <= 8
        assert lengths[batch[0]] * len(batch) <= 512
    assert list(plan_batches([300, 300], 8, 256)) == [[0], [1]]  # a text is never cut to fit a batch


def test_batches_of_mixed_lengths_are_full(rng: np.random.Generator) -> None:
    lengths = [int(n) for n in rng.integers(3, 256, 500)]
    batches = list(plan_batches(lengths, 32, 512, mixed=True))
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert max(tokens) <= 512
    for batch, size, following in zip(batches, tokens, batches[1:], strict=False):
        assert len(batch) == 32 or size + lengths[following[0]] > 512
    assert list(plan_batches([300, 300, 5], 8, 256, mixed=True)) == [[0], [1], [2]]


def altered(bundle: Path, folder: Path, variant: Mapping[str, object] | None = None, **target: object) -> Path:
    """A copy whose manifest asks for something else, with a sidecar that fits."""
    import shutil

    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    manifest = with_variant(manifest, replace(manifest.variant(), **(variant or {})))  # type: ignore[arg-type]
    write_manifest(replace(manifest, target=replace(manifest.target, **target)), folder)  # type: ignore[arg-type]
    return folder


def test_a_cpu_without_the_target_features_is_refused(minilm_bundle: Path, tmp_path: Path) -> None:
    folder = altered(minilm_bundle, tmp_path / "b", isa=("amx_nonsense",), isa_reason="u8s8 saturates")
    with pytest.raises(HostError, match="lacks amx_nonsense: u8s8 saturates") as error:
        load(folder)
    assert "--allow-mismatch" in error.value.hint
    assert load(folder, allow_mismatch=True).encode(["a"]).shape == (1, 384)


def test_another_architecture_is_refused(minilm_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="riscv64"):
        load(altered(minilm_bundle, tmp_path / "b", arch="riscv64"))


def test_an_absent_provider_is_refused_not_replaced(minilm_bundle: Path, tmp_path: Path) -> None:
    folder = altered(
        minilm_bundle, tmp_path / "b", {"backend": "onnxruntime-cuda", "providers": ("CUDAExecutionProvider",)}
    )
    with pytest.raises(HostError, match=r"the NVIDIA driver's libcuda\.so\.1 is not"):
        load(folder)


def test_a_changed_byte_is_seen_at_load(minilm_bundle: Path, tmp_path: Path) -> None:
    folder = altered(minilm_bundle, tmp_path / "b")
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"'model\.onnx' was altered"):
        load(folder)


@pytest.mark.slow
def test_classification_gives_labels(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "bert", "AutoModelForSequenceClassification", num_labels=3)
    with load(bundle) as encoder:
        results = encoder.predict(SENTENCES, top_k=3)
    assert all(sum(row["score"] for row in result) == pytest.approx(1, abs=1e-4) for result in results)
    assert {row["label"] for row in results[0]} == {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.slow
def test_ranking_takes_pairs(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "bert", "AutoModelForSequenceClassification", num_labels=1)
    with load(bundle) as encoder:
        assert encoder.manifest.task == "text-ranking"
        results = encoder.predict([("the cat", text) for text in SENTENCES])
    assert len({result["logit"] for result in results}) == len(SENTENCES)


@pytest.mark.slow
def test_tokens_answers_and_masks(tmp_path: Path) -> None:
    with load(tiny_bundle(tmp_path / "t", "distilbert", "AutoModelForTokenClassification", num_labels=2)) as encoder:
        words = encoder.predict(["the cat sat"])[0]
        assert [w["word"] for w in words] == ["the", "cat", "sat"]
    with load(tiny_bundle(tmp_path / "q", "bert", "AutoModelForQuestionAnswering")) as encoder:
        context = "paris is the capital of france"
        answer = encoder.predict([("what is the capital", context)])[0]
        assert answer["answer"] == context[answer["start"] : answer["end"]] != ""
    with load(tiny_bundle(tmp_path / "m", "bert", "AutoModelForMaskedLM")) as encoder:
        fills = encoder.predict(["the [MASK] sat"], top_k=2)[0]
        assert len(fills) == 2
        assert fills[0]["score"] >= fills[1]["score"]
        with pytest.raises(UsageError, match=r"no \[MASK\] token"):
            encoder.predict(["nothing to fill"])


@pytest.mark.slow
def test_images_run_from_arrays_and_from_files(tmp_path: Path) -> None:
    from PIL import Image

    bundle = tiny_bundle(tmp_path, "vit", "AutoModelForImageClassification", num_labels=4)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "not.png").write_text("no image")
    with load(bundle) as encoder:
        assert len(encoder.predict([str(tmp_path / "picture.png")], top_k=4)[0]) == 4
        with pytest.raises(UsageError, match="is not an image"):
            encoder.predict([str(tmp_path / "not.png")])
        with pytest.raises(UsageError, match="has no encode"):
            encoder.encode(["text"])


@pytest.mark.parametrize(("numbers", "name"), [({"batch_size": 0}, "batch_size"), ({"top_k": 0}, "top_k")])
def test_numbers_below_one_are_refused(numbers: dict[str, int], name: str, tmp_path: Path) -> None:
    with (
        load(encoder_bundle(tmp_path / "b"), allow_mismatch=True) as encoder,
        pytest.raises(UsageError, match=f"{name} must be at least 1, not 0"),
    ):
        encoder.predict(["a cat"], **numbers)
