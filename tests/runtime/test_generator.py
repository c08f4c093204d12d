"""Generation against NumPy in float64 that computes every token from scratch."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.kinds.decoder import runtime as generator_module
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load, memory
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.runtime.decoder import Decoder
from edgecompress.runtime.results import Generated, Piece
from edgecompress.runtime.session_models import CachedSessionModel
from tests.decoder_bundle import BOS, EOS, Reference, decoder_bundle, random_weights, scripted_bundle, tokenizer

CONTEXT = 256
PROMPTS = ["the cat sat on the mat", "why", "def add(a, b):\n    return a + b", "x"]
CHAT = [{"role": "user", "content": "why is the sky blue?"}]


def opened(bundle: Path) -> Generator:
    made = load(bundle)
    assert isinstance(made, Generator)
    return made


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(weights=random_weights(CONTEXT))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("d") / "b", context=CONTEXT)


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return opened(bundle)


def caches(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[KVCache]]:
    """Every cache that is made from now on."""
    made: list[weakref.ref[KVCache]] = []
    make_cache = CachedSessionModel.make_cache

    def make(*arguments: Any) -> Any:
        cache = make_cache(*arguments)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(CachedSessionModel, "make_cache", make)
    return made


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_reference(generator: Generator, reference: Reference, prompt: str) -> None:
    ids = tokenizer().encode(prompt).ids
    assert ids[0] == BOS
    assert generator.token_ids(prompt) == ids
    expected, lead = reference.greedy(ids, 24)
    assert lead > 1e-3, "the reference itself is undecided"
    text = generator.generate(prompt, max_new_tokens=24, temperature=0.0)
    assert list(text.token_ids) == expected
    assert text == tokenizer().decode(expected, skip_special_tokens=True)
    assert text.finish == ("eos" if expected[-1] == EOS else "length")
    statistics = generator.statistics
    assert statistics.prompt_tokens == len(ids)
    assert statistics.new_tokens == len(expected)
    assert statistics.bytes_copied_per_token == 0
    assert statistics.kv_cache_bytes == generator.kv_cache_bytes(len(ids) + 24)
    assert statistics.decode_runs == len(expected) - 1
    assert statistics.ttft_ms > 0
    assert 0 < statistics.outside_run_share < 1


def test_generating_needs_no_torch(bundle: Path) -> None:
    """In a fresh process: load a bundle, chat, and look at what was imported."""
    script = (
        "import sys\n"
        "from edgecompress.runtime import load\n"
        f"with load({str(bundle)!r}) as generator:\n"
        "    assert 'jinja2' in sys.modules\n"
        "    assert generator.generate([{'role': 'user', 'content': 'hello'}], max_new_tokens=4)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'huggingface_hub', 'scipy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_logits_are_the_reference_at_every_position(generator: Generator, reference: Reference) -> None:
    """Through the decoder itself: prefill in two parts, then tokens one by one, in the third row of a cache."""
    decoder, cancel = generator.decoder, Cancellation()
    ids = tokenizer().encode(PROMPTS[2]).ids
    cache = KVCache(decoder.tensors, 3, 64)
    expected = reference.logits(ids)
    past = 0
    for width in (5, 7, *[1] * (len(ids) - 12)):
        part = np.array([ids[past : past + width]])
        logits, _ = decoder.run(cache, 2, part, np.array([past]), np.arange(width), cancel)
        np.testing.assert_allclose(logits[0], expected[past : past + width], atol=1e-4)
        past += width


def test_the_cache_is_written_in_place(generator: Generator, reference: Reference) -> None:
    """The memory that ONNX Runtime has as past and as present is the buffer itself, before and after every step."""
    decoder, cancel = generator.decoder, Cancellation()
    ids = tokenizer().encode(PROMPTS[0]).ids
    cache = KVCache(decoder.tensors, 1, 64)
    addresses = [buffer.ctypes.data for buffer in cache.buffers]
    binding = cache.binding(decoder.model._session, 0, 1).io
    prefill = len(ids) - 4
    decoder.run(cache, 0, np.array([ids[:prefill]]), np.array([0]), np.array([0]), cancel)
    for past in range(prefill, len(ids)):
        decoder.run(cache, 0, np.array([[ids[past]]]), np.array([past]), np.array([0]), cancel)
        assert cache.binding(decoder.model._session, 0, 1).io is binding
        bound = {**binding._bound_inputs, **binding._bound_outputs}
        for tensor, address in zip(cache.tensors, addresses, strict=True):
            assert bound[tensor.past].data_ptr() == bound[tensor.present].data_ptr() == address
        outputs = {o.data_ptr() for o in binding.get_outputs()}
        assert set(addresses) < outputs, "ONNX Runtime put the present somewhere else"
    keys = cache.buffers[0][0]
    np.testing.assert_allclose(keys[:, : len(ids)], reference.cache(ids)[0], atol=1e-5)
    assert not keys[:, len(ids) :].any()
    assert cache.bytes_copied == 0


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 20, "seed": 3}])
def test_a_batch_gives_what_its_prompts_give_alone(generator: Generator, options: dict[str, float]) -> None:
    together = generator.generate(PROMPTS, max_new_tokens=20, **options)  # type: ignore[call-overload]
    assert generator.statistics.decode_runs == 19
    if options["temperature"] == 0.0:
        alone = [generator.generate(prompt, max_new_tokens=20, **options) for prompt in PROMPTS]  # type: ignore[call-overload]
        assert [t.token_ids for t in together] == [a.token_ids for a in alone]
    else:
        alone = generator.generate(PROMPTS[0], max_new_tokens=20, **options)  # type: ignore[call-overload]
        assert together[0].token_ids == alone.token_ids
        again = generator.generate(PROMPTS, max_new_tokens=20, **options)  # type: ignore[call-overload]
        assert again == together


def test_rows_that_end_early_leave_the_batch(generator: Generator) -> None:
    """Each text stops at another token; the ones that go on are what they are alone."""
    alone = [generator.generate(prompt, max_new_tokens=30, temperature=0.0) for prompt in PROMPTS]
    stops = sorted({tokenizer().decode([text.token_ids[5 + i]]) for i, text in enumerate(alone)} - {""})
    stops = [stop for stop in stops if "\N{REPLACEMENT CHARACTER}" not in stop]
    expected = [generator.generate(p, max_new_tokens=30, temperature=0.0, stop=stops) for p in PROMPTS]
    lengths = {len(text.token_ids) for text in expected}
    assert len(lengths) > 1, "all end together: nothing is tested"
    for order in itertools.permutations(range(len(PROMPTS))):
        prompts = [PROMPTS[i] for i in order]
        together = generator.generate(prompts, max_new_tokens=30, temperature=0.0, stop=stops)
        assert [t.token_ids for t in together] == [expected[i].token_ids for i in order]
        assert together == [expected[i] for i in order]
        assert generator.statistics.decode_runs == max(lengths) - 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_a_prefill_in_chunks_is_a_whole_one(tmp_path: Path, reference: Reference, chunk: int) -> None:
    ids = tokenizer().encode(PROMPTS[0] * 2).ids
    with opened(decoder_bundle(tmp_path / "b", context=CONTEXT, prefill_chunk_tokens=chunk)) as generator:
        text = generator.generate(PROMPTS[0] * 2, max_new_tokens=8, temperature=0.0)
        assert generator.statistics.prefill_runs == -(-len(ids) // chunk)
    assert list(text.token_ids) == reference.greedy(ids, 8)[0]


def test_without_a_number_the_cache_grows_and_the_text_is_the_same(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.generate(PROMPTS[0], max_new_tokens=200, temperature=0.0)
    monkeypatch.setattr(generator_module, "_FIRST_NEW_TOKENS", 4)
    with generator.stream(PROMPTS[0], temperature=0.0) as stream:
        ids: list[int] = []
        for piece in stream:
            ids += piece.token_ids
            if len(ids) > 190:
                break
    assert ids == list(expected.token_ids)[: len(ids)]
    assert stream.statistics.bytes_copied > 0
    assert stream.statistics.kv_cache_tokens <= CONTEXT


def test_a_session_reuses_its_prefix(generator: Generator) -> None:
    messages, prompt_tokens = list(CHAT), 0
    with generator.session() as session:
        for turn in range(3):
            fresh = generator.generate(messages, max_new_tokens=10, temperature=0.0)
            before = session.cached_tokens
            text = session.generate(messages, max_new_tokens=10, temperature=0.0)
            assert text.token_ids == fresh.token_ids
            statistics = generator.statistics
            assert (statistics.reused_tokens > 0) == (turn > 0)
            assert statistics.reused_tokens <= before
            # at least the turn before without its answer, whose text may give other tokens when it is read again
            assert statistics.reused_tokens >= prompt_tokens
            prompt_tokens = statistics.prompt_tokens
            messages += [{"role": "assistant", "content": str(text)}, {"role": "user", "content": "really?"}]
        assert session.cached_tokens == prompt_tokens + len(text.token_ids) - 1
        same = session.generate(messages[:-2], max_new_tokens=10, temperature=0.0)
        assert same == text, "the same question again, its prompt whole in the cache"
        assert generator.statistics.reused_tokens == generator.statistics.prompt_tokens - 1
        other = session.generate("x", max_new_tokens=10, temperature=0.0)
        assert other == generator.generate("x", max_new_tokens=10, temperature=0.0)


def test_a_session_is_for_one_text_at_a_time(generator: Generator) -> None:
    session = generator.session(capacity_tokens=64)
    stream = session.stream("x", max_new_tokens=5)
    with pytest.raises(UsageError, match="is already generating a text"):
        session.generate("y", max_new_tokens=1)
    stream.close()
    with pytest.raises(UsageError, match="temperature"):
        session.generate("y", temperature=-1.0)
    assert session.generate("y", max_new_tokens=5, temperature=0.0).finish in ("length", "eos")
    assert generator.statistics.kv_cache_tokens == 64
    session.close()
    with pytest.raises(UsageError, match="was closed"):
        session.generate("y")
    with pytest.raises(UsageError, match="capacity_tokens"):
        generator.session(capacity_tokens=CONTEXT + 1)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("prompt", [*PROMPTS, "the cat sat on the mat. " * 4])
def test_lookup_gives_exactly_the_greedy_text(generator: Generator, prompt: str, penalty: float) -> None:
    plain = generator.generate(prompt, max_new_tokens=60, temperature=0.0, repetition_penalty=penalty)
    fast = generator.generate(prompt, max_new_tokens=60, temperature=0.0, repetition_penalty=penalty, lookup_tokens=6)
    assert fast.token_ids == plain.token_ids
    assert fast.finish == plain.finish
    middle = plain[20:23]
    stopped = [
        generator.generate(
            prompt,
            max_new_tokens=60,
            temperature=0.0,
            repetition_penalty=penalty,
            stop=middle,
            lookup_tokens=lookup,
        )
        for lookup in (0, 6)
    ]
    assert stopped[0] == stopped[1]
    assert stopped[0].token_ids == stopped[1].token_ids
    assert stopped[0].finish == "stop"
    with generator.session() as session:
        session.generate(prompt, max_new_tokens=60, temperature=0.0, lookup_tokens=6)
        assert session.generate(prompt + "x", max_new_tokens=9, temperature=0.0) == generator.generate(
            prompt + "x", max_new_tokens=9, temperature=0.0
        ), "a draft that was wrong is still seen"


def test_lookup_saves_runs_where_text_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda *given: (run(*given)[0], 1.0))  # as if all took the same
    phrase = tokenizer().encode("the cat sat on the mat\n", add_special_tokens=False).ids
    prompt = "the cat sat on the mat\n"
    length = len(tokenizer().encode(prompt).ids)
    with opened(scripted_bundle(tmp_path / "b", length, phrase * 12)) as generator:
        plain = generator.generate(prompt, max_new_tokens=100, temperature=0.0)
        runs = generator.statistics.decode_runs
        fast = generator.generate(prompt, max_new_tokens=100, temperature=0.0, lookup_tokens=8)
        statistics = generator.statistics
    assert fast == plain == "the cat sat on the mat\n" * 12
    assert fast.token_ids == plain.token_ids
    assert statistics.decode_runs * 3 < runs
    assert statistics.accepted_tokens > 0.8 * statistics.drafted_tokens


def test_seeds_reproduce(generator: Generator) -> None:
    def text(**options: float) -> str:
        return generator.generate("why", max_new_tokens=20, temperature=1.5, **options)  # type: ignore[call-overload,no-any-return]

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text() != text()


def test_a_stream_is_the_whole_text_in_whole_characters(tmp_path: Path) -> None:
    answer = "<think>\nhm 🤔\n</think>\n\nBlue: 蓝色 😀!"
    new = tokenizer().encode(answer, add_special_tokens=False).ids
    prompt = CHAT
    with opened(decoder_bundle(tmp_path / "probe")) as probe:
        length = len(probe.token_ids(prompt))
    bundle = scripted_bundle(tmp_path / "b", length, new, think_start="<think>", think_end="</think>")
    with opened(bundle) as generator:
        stream = generator.stream(prompt, max_new_tokens=100, temperature=0.0)
        pieces = list(stream)
        assert all(isinstance(piece, Piece) for piece in pieces)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece.text for piece in pieces)
        assert len(pieces) > 5, "nothing was streamed"
        assert "".join(str(p) for p in pieces if p.kind == "reasoning") == "hm 🤔\n"
        assert "".join(str(p) for p in pieces if p.kind == "answer") == "Blue: 蓝色 😀!"
        text = generator.generate(prompt, max_new_tokens=100, temperature=0.0)
    assert stream.result == text == answer
    assert (text.reasoning, text.answer, text.finish) == ("hm 🤔\n", "Blue: 蓝色 😀!", "eos")
    assert text.token_ids == (*new, EOS)


def test_a_template_that_opens_the_reasoning(tmp_path: Path) -> None:
    template = "<|user|>{{ messages[0].content }}<|assistant|><think>\n"
    length = len(
        tokenizer().encode(f"<|user|>{CHAT[0]['content']}<|assistant|><think>\n", add_special_tokens=False).ids
    )
    new = tokenizer().encode("so</think>Yes", add_special_tokens=False).ids
    options = {"think_start": "<think>", "think_end": "</think>", "template": template}
    with opened(scripted_bundle(tmp_path / "b", length, new, **options)) as generator:
        text = generator.generate(CHAT, max_new_tokens=50, temperature=0.0)
    assert (text.reasoning, text.answer) == ("so", "Yes")


def test_stop_strings_end_the_text(tmp_path: Path) -> None:
    new = tokenizer().encode("one two STOP three", add_special_tokens=False).ids
    new = [*new[:-1], tokenizer().token_to_id("<|user|>"), *new[-1:]]
    length = len(tokenizer().encode("x").ids)
    with opened(scripted_bundle(tmp_path / "b", length, new)) as generator:
        for stop, expected in (("STOP", "one two "), (["zzz", " two"], "one"), ("<|user|>", "one two STOP thre")):
            text = generator.generate("x", max_new_tokens=50, temperature=0.0, stop=stop)
            assert text.finish == "stop"
            assert text == expected or stop == "<|user|>"
            pieces = list(generator.stream("x", max_new_tokens=50, temperature=0.0, stop=stop))
            assert "".join(map(str, pieces)) == text
        assert text.token_ids[-1] == tokenizer().token_to_id("<|user|>")
        cut = generator.generate("x", max_new_tokens=4, temperature=0.0, stop="never")
        assert (cut.finish, len(cut.token_ids)) == ("length", 4)


def test_a_reader_that_stops_frees_everything(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = caches(monkeypatch)
    with generator.stream("why", max_new_tokens=100) as stream:
        next(stream)
    dropped = generator.stream("why", max_new_tokens=100)
    next(dropped)
    del dropped
    never_read = generator.stream("why", max_new_tokens=100)
    del never_read
    gc.collect()
    assert len(made) == 3
    assert [cache() for cache in made] == [None] * 3
    assert not generator._running
    assert stream.result.finish == "cancelled"
    assert stream.statistics.new_tokens >= 1
    assert list(stream) == []
    assert generator.generate("why", max_new_tokens=5, temperature=0.0).finish == "length"


def test_cancel_from_another_thread(generator: Generator) -> None:
    stream = generator.stream("why", max_new_tokens=200, temperature=0.0)
    next(stream)
    thread = threading.Thread(target=generator.cancel)
    thread.start()
    thread.join()
    rest = list(stream)
    assert stream.result.finish == "cancelled"
    assert len(stream.result.token_ids) < 200
    expected = generator.generate("why", max_new_tokens=200, temperature=0.0)
    assert expected.token_ids[: len(stream.result.token_ids)] == stream.result.token_ids
    assert len(rest) <= 2
    alone = generator.stream("why", max_new_tokens=200)
    alone.cancel()
    assert list(alone) == []
    assert alone.result.finish == "cancelled"


def test_cancel_ends_a_run_in_its_middle(tmp_path: Path) -> None:
    """A long prefill does not have to end first: ONNX Runtime itself is told."""
    length = 12_000  # seconds for one run
    with opened(decoder_bundle(tmp_path / "b", context=length, prefill_chunk_tokens=length)) as generator:
        decoder, cancel = generator.decoder, Cancellation()
        cache, ids = KVCache(decoder.tensors, 1, length), np.full((1, length), 7)
        timer = threading.Timer(0.2, cancel.set)
        timer.start()
        with pytest.raises(CancelledError) as error:
            decoder.run(cache, 0, ids, np.array([0]), np.array([0]), cancel)
        timer.join()
        assert error.value.__cause__ is not None, "it ended before the run"
        assert generator.generate("why", max_new_tokens=3, temperature=0.0)


def test_cancel_ends_a_generate_in_another_thread(bundle: Path) -> None:
    with opened(bundle) as generator:
        results: list[Generated] = []
        thread = threading.Thread(target=lambda: results.extend(generator.generate(["x"] * 8, temperature=1.0)))
        thread.start()
        while not generator._running and thread.is_alive():
            pass
        generator.cancel()
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert {text.finish for text in results} == {"cancelled"}


def test_threads_share_a_generator(generator: Generator) -> None:
    expected = [generator.generate(prompt, max_new_tokens=20, temperature=0.0) for prompt in PROMPTS]
    got: dict[int, Generated] = {}

    def work(index: int) -> None:
        got[index] = generator.generate(PROMPTS[index], max_new_tokens=20, temperature=0.0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(PROMPTS))] == expected


def test_memory_is_refused_before_it_is_taken(
    generator: Generator, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = caches(monkeypatch)
    wanted = generator.kv_cache_bytes(len(generator.token_ids("why")) + 100)
    monkeypatch.setattr(memory, "available_bytes", lambda: wanted - 1)
    with pytest.raises(HostError, match=f"{wanted:_} bytes of memory, and {wanted - 1:_} are available"):
        generator.generate("why", max_new_tokens=100)
    assert made == []
    monkeypatch.setattr(memory, "available_bytes", lambda: wanted)
    assert generator.generate("why", max_new_tokens=100, temperature=0.0)
    monkeypatch.setattr(generator_module, "_FIRST_NEW_TOKENS", 4)
    with pytest.raises(HostError, match="a KV cache for"):
        generator.generate("why", temperature=0.0)
    assert not generator._running
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(HostError, match="1_000 are available"):
        load(bundle)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert generator.generate("why", max_new_tokens=3)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("the cat " * 200, {}, "context is 256"),
        ("why", {"max_new_tokens": 300}, "more than the model's context of 256"),
        ("why", {"max_new_tokens": 0}, "max_new_tokens must be an integer"),
        ("why", {"temperature": -1.0}, "temperature"),
        ("why", {"top_p": 0.0}, "top_p"),
        ("why", {"seed": -1}, "seed"),
        ("why", {"seed": 1.5}, "seed"),
        ("why", {"stop": ""}, "stop string"),
        ("why", {"stop": ["a", 3]}, "stop string"),
        ("why", {"lookup_tokens": -1}, "lookup_tokens"),
        ("why", {"lookup_tokens": 4, "temperature": 0.5}, "temperature 0"),
        (["a", "b"], {"lookup_tokens": 4}, "one prompt at a time"),
        ("why", {"max_tokens": 4}, "unknown option 'max_tokens'"),
        ([], {}, "the list of prompts is empty"),
        (5, {}, "not int"),
        (["a", 5], {}, "prompt 1 is a int"),
        ([{"content": "no role"}], {}, "message 0 has no role"),
        ([{"role": "wizard", "content": "x"}], {}, "no role wizard"),
        ([1, 2, 400], {}, "token 400 is outside the model's vocabulary of 400"),
    ],
)
def test_bad_input_is_one_clear_line(
    generator: Generator, prompt: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        generator.generate(prompt, **options)  # type: ignore[call-overload]
    assert "\n" not in error.value.message
    assert error.value.hint
    assert not generator._running


def test_prompts_fill_the_context_to_its_last_token(generator: Generator, reference: Reference) -> None:
    ids = [BOS, *np.random.default_rng(0).integers(10, 300, CONTEXT - 5).tolist()]
    text = generator.generate(ids, temperature=0.0)
    assert list(text.token_ids) == reference.greedy(ids, 4)[0]
    assert text.finish == "length"
    full = [*ids, *text.token_ids]
    assert len(full) == CONTEXT
    with pytest.raises(UsageError, match="has 256 tokens"):
        generator.generate(full)


def test_bundles_that_are_not_what_is_asked(tmp_path: Path, bundle: Path) -> None:
    with opened(decoder_bundle(tmp_path / "plain", template=None)) as plain:
        with pytest.raises(UsageError, match="has no chat template"):
            plain.generate(CHAT)
        assert not plain.has_chat_template
    with (
        opened(decoder_bundle(tmp_path / "narrow", vocab_size=100)) as narrow,
        pytest.raises(UsageError, match="outside"),
    ):
        narrow.generate("the cat sat")
    closed = opened(bundle)
    closed.close()
    for call in (closed.generate, closed.stream, closed.token_ids):
        with pytest.raises(UsageError, match="was closed"):
            call("why")
    with pytest.raises(BundleError, match=r"lost\.jinja"):
        load(decoder_bundle(tmp_path / "lost", template=None, chat_template="lost.jinja"))


def test_a_closed_generator_ends_its_streams(bundle: Path) -> None:
    generator = opened(bundle)
    stream = generator.stream("why", max_new_tokens=200)
    next(stream)
    generator.close()
    assert len(list(stream)) <= 2
    assert stream.result.finish == "cancelled"


def test_the_checkpoints_own_sampling_is_the_default(tmp_path: Path, generator: Generator) -> None:
    own = {"do_sample": True, "temperature": 1.2, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.1}
    with opened(decoder_bundle(tmp_path / "b", context=CONTEXT, **own)) as sampled:
        text = sampled.generate("why", max_new_tokens=20, seed=5)
    named = generator.generate(
        "why", max_new_tokens=20, seed=5, temperature=1.2, top_k=30, top_p=0.95, repetition_penalty=1.1
    )
    assert text == named
    greedy = generator.generate("why", max_new_tokens=20)
    assert greedy == generator.generate("why", max_new_tokens=20, temperature=0.0)
