"""The runtime on a model whose KV cache is int8: a quarter of the memory, written in place, reused by sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import BundleError, HostError
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import memory
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.cancellation import Cancellation
from tests.decoder_bundle import KV_HEADS, LAYERS, SIZE, Reference, decoder_bundle, random_weights, tokenizer
from tests.runtime.test_generator import CHAT, CONTEXT, PROMPTS, opened

LEVELS = 127


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(weights=random_weights(CONTEXT))


@pytest.fixture(scope="module")
def scales(reference: Reference) -> list[np.ndarray]:
    """Of keys and values of each layer in turn, float32 [Hk, D]; a few of the texts that follow are clipped by them."""
    texts = [np.random.default_rng(i).integers(5, 330, size=64).tolist() for i in range(8)]
    held = [reference.cache(ids) for ids in texts]
    return [
        (np.max([np.abs(arrays[i]).max(axis=1) for arrays in held], axis=0) / LEVELS).astype(np.float32)
        for i in range(2 * LAYERS)
    ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, scales: list[np.ndarray]) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("d") / "b", context=CONTEXT, kv_scales=scales, kv_dtype="int8")


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return opened(bundle)


def test_the_integers_are_written_in_place(
    generator: Generator, reference: Reference, scales: list[np.ndarray]
) -> None:
    decoder, cancel = generator.decoder, Cancellation()
    ids = tokenizer().encode(PROMPTS[0]).ids
    cache = KVCache(decoder.tensors, 2, 64)
    addresses = [buffer.ctypes.data + buffer[0].nbytes for buffer in cache.buffers]
    binding = cache.binding(decoder.model._session, 1, 1).io
    past = 0
    for width in (4, 3, *[1] * (len(ids) - 7)):
        decoder.run(cache, 1, np.array([ids[past : past + width]]), np.array([past]), np.array([0]), cancel)
        past += width
        outputs = {o.data_ptr() for o in binding.get_outputs()}
        assert set(addresses) < outputs, "ONNX Runtime put the present somewhere else"
    for buffer, exact, scale in zip(cache.buffers, reference.cache(ids, scales), scales, strict=True):
        assert buffer.dtype == np.int8
        expected = np.clip(np.rint(exact / scale[:, None]), -128, 127)
        difference = np.abs(buffer[1, :, : len(ids)] - expected)
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.99
        assert not buffer[1, :, len(ids) :].any()
        assert not buffer[0].any()
    assert cache.bytes_copied == 0


def test_logits_are_those_of_the_rounded_cache(
    generator: Generator, reference: Reference, scales: list[np.ndarray]
) -> None:
    """Nearer to NumPy that rounds as the kernel does than to NumPy that does not."""
    decoder, cancel = generator.decoder, Cancellation()
    ids = tokenizer().encode(PROMPTS[2]).ids
    cache = KVCache(decoder.tensors, 1, 64)
    found, past = [], 0
    for width in (5, 7, *[1] * (len(ids) - 12)):
        part = np.array([ids[past : past + width]])
        logits, _ = decoder.run(cache, 0, part, np.array([past]), np.arange(width), cancel)
        found.append(logits[0].copy())
        past += width
    got = np.concatenate(found)
    rounded, exact = reference.logits(ids, scales), reference.logits(ids)
    effect = np.sqrt(np.square(rounded - exact).mean())
    assert effect > 1e-3, "int8 changes nothing: nothing is tested"
    assert np.sqrt(np.square(got - rounded).mean()) < 0.05 * effect


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_reference(
    generator: Generator, reference: Reference, scales: list[np.ndarray], prompt: str
) -> None:
    ids = tokenizer().encode(prompt).ids
    expected, lead = reference.greedy(ids, 24, scales)
    assert lead > 1e-3, "the reference itself is undecided"
    text = generator.generate(prompt, max_new_tokens=24, temperature=0.0)
    assert list(text.token_ids) == expected
    statistics = generator.statistics
    assert statistics.bytes_copied == 0
    assert statistics.kv_cache_dtype == "int8"
    assert statistics.kv_cache_bytes == (len(ids) + 24) * 2 * LAYERS * KV_HEADS * SIZE


def test_a_batch_gives_what_its_prompts_give_alone(generator: Generator) -> None:
    together = generator.generate(PROMPTS, max_new_tokens=20, temperature=0.0)
    alone = [generator.generate(prompt, max_new_tokens=20, temperature=0.0) for prompt in PROMPTS]
    assert [t.token_ids for t in together] == [a.token_ids for a in alone]


def test_a_session_reuses_its_prefix(generator: Generator) -> None:
    messages = list(CHAT)
    with generator.session() as session:
        for turn in range(3):
            fresh = generator.generate(messages, max_new_tokens=10, temperature=0.0)
            text = session.generate(messages, max_new_tokens=10, temperature=0.0)
            assert text.token_ids == fresh.token_ids
            assert (generator.statistics.reused_tokens > 0) == (turn > 0)
            messages += [{"role": "assistant", "content": str(text)}, {"role": "user", "content": "and then?"}]


def test_memory_is_predicted_in_bytes_of_int8(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(decoder_bundle(tmp_path / "b", context=CONTEXT)) as plain:
        assert plain.kv_cache_bytes(100) == 4 * generator.kv_cache_bytes(100)
        room = generator.kv_cache_bytes(len(generator.token_ids("why")) + 100)
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        assert generator.generate("why", max_new_tokens=100, temperature=0.0)
        with pytest.raises(HostError, match=f"{4 * room:_} bytes of memory"):
            plain.generate("why", max_new_tokens=100, temperature=0.0)


def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, scales: list[np.ndarray]) -> None:
    wrong = decoder_bundle(tmp_path / "b", context=CONTEXT, kv_scales=scales)
    with pytest.raises(BundleError, match="the KV cache is float32 in the manifest, but int8 in the model"):
        opened(wrong)
