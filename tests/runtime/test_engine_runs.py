"""Engines that run, on doubles of driver and TensorRT: the numbers, the order of calls, and what is held and freed.

What a device computes is not tested here: nothing of this has run on one.
"""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli import main
from edgecompress.errors import BundleError, HostError, UsageError
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.runtime import load
from edgecompress.runtime.cuda.device import DeviceMemoryError
from edgecompress.runtime.engine_runner import EngineRunner
from tests.runtime.engine_bundles import Machine, altered, engine_bundle
from tests.runtime.fake_tensorrt import engine_file
from tests.tiny import tiny_checkpoint

CONTEXT = 320
TEXTS = ["a cat", "the dog in the garden barks at every cat that it sees", "a cat", "why"]


@pytest.fixture(scope="module")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return engine_bundle(tiny_checkpoint(folder / "bert", "bert"), folder / "bert.bundle")


@pytest.fixture(scope="module")
def decoder_bundle(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "decoder.bundle"
    return engine_bundle(small_decoder_dir, path, "--engine-context", str(CONTEXT), "--engine-batch", "1,1,2")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def encoder(bundle: Path) -> Encoder:
    made = load(bundle)
    assert isinstance(made, Encoder)
    return made


def generator(bundle: Path) -> Generator:
    made = load(bundle)
    assert isinstance(made, Generator)
    return made


def runner_of(model: Encoder | Generator) -> EngineRunner:
    found: EngineRunner = model.model.runner if isinstance(model, Encoder) else model.decoder.model.runner  # type: ignore[attr-defined]
    return found


@pytest.mark.slow
def test_an_encoder_gives_what_its_graph_gives(encoder_bundle: Path, machine: Machine) -> None:
    with encoder(encoder_bundle) as model:
        once = model.encode(TEXTS)
        again = model.encode(TEXTS)
        alone = np.concatenate([model.encode(text) for text in TEXTS])
        assert model.encode(TEXTS, batch_size=1000).shape == once.shape
    assert once.dtype == np.float32
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(once, alone, atol=0.02)
    np.testing.assert_array_equal(once[0], once[2])


@pytest.mark.slow
def test_verify_holds_an_engine_against_pytorch(
    encoder_bundle: Path, decoder_bundle: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle in (encoder_bundle, decoder_bundle):
        assert main(["verify", str(bundle)]) == 0
        assert "verified" in capsys.readouterr().out
        assert machine.trt.contexts[-1].executed, "it was the engine that ran"
    assert machine.cuda.held == {}, "everything is freed"


def test_a_run_that_comes_again_is_one_graph(encoder_bundle: Path, machine: Machine) -> None:
    with encoder(encoder_bundle) as model:
        first = model.encode("a cat")
        assert machine.cuda.count("cuStreamBeginCapture") == 0, "its first run is step by step"
        copies = machine.cuda.count("cuMemcpyHtoDAsync")
        assert copies > 0
        np.testing.assert_array_equal(model.encode("a cat"), first)
        assert machine.cuda.count("cuStreamBeginCapture") == 1
        copies = machine.cuda.count("cuMemcpyHtoDAsync")
        other = model.encode("a dog")
        np.testing.assert_array_equal(model.encode("a cat"), first)
        assert not np.array_equal(other, first), "a graph reads what is there when it is launched"
        assert machine.cuda.count("cuGraphLaunch") == 3
        assert machine.cuda.count("cuMemcpyHtoDAsync") == copies
    assert machine.cuda.held == {}


def test_graphs_are_forgotten_oldest_first(
    encoder_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.runtime.engine_runner._MOST_GRAPHS", 2)
    with encoder(encoder_bundle) as model:
        for text in ["a", "a", "a cat", "a cat", "a cat sat", "a cat sat", "a cat sat on", "a cat sat on"]:
            model.encode(text)
        assert machine.cuda.held["graphs"] == 2
    assert machine.cuda.held == {}


def test_what_cannot_be_captured_is_run_step_by_step(encoder_bundle: Path, machine: Machine) -> None:
    machine.cuda.captures = False
    with encoder(encoder_bundle) as model:
        first = model.encode("a cat")
        for _ in range(3):
            np.testing.assert_array_equal(model.encode("a cat"), first)
        assert machine.cuda.count("cuStreamBeginCapture") == 1, "it is tried once"
        assert not runner_of(model).captures
    assert machine.cuda.held == {}


def test_longer_texts_take_larger_buffers(encoder_bundle: Path, machine: Machine) -> None:
    with encoder(encoder_bundle) as model:
        first = model.encode("a cat")
        for words in (10, 20, 40):
            model.encode("cat " * words)
        np.testing.assert_array_equal(model.encode("a cat"), first)
    assert machine.cuda.held == {}


def test_threads_wait_for_each_other(encoder_bundle: Path, machine: Machine) -> None:
    with encoder(encoder_bundle) as model:
        expected = {text: model.encode(text) for text in TEXTS}
        wrong: list[str] = []

        def work(text: str) -> None:
            for _ in range(20):
                if not np.array_equal(model.encode(text), expected[text]):
                    wrong.append(text)

        threads = [threading.Thread(target=work, args=(text,)) for text in TEXTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_closed_engine_is_told_so(encoder_bundle: Path, machine: Machine) -> None:
    model = encoder(encoder_bundle)
    runner = runner_of(model)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        model.encode("a cat")
    with pytest.raises(UsageError, match="was closed"):
        runner.run({})
    assert machine.cuda.held == {}


def test_one_that_nobody_closes_is_freed(encoder_bundle: Path, machine: Machine) -> None:
    model = encoder(encoder_bundle)
    model.encode("a cat")
    assert machine.cuda.held
    del model
    machine.trt.contexts.clear()
    gc.collect()
    assert machine.cuda.held == {}


def test_shapes_that_it_was_not_built_for(encoder_bundle: Path, machine: Machine) -> None:
    manifest, _ = open_bundle(encoder_bundle)
    engine = manifest.variant().engine
    assert engine is not None
    rows, tokens = engine.profile["input_ids"].largest
    with encoder(encoder_bundle) as model:
        ids = np.ones((rows + 1, 4), dtype=np.int64)
        feed = {name: ids for name in model.inputs}
        with pytest.raises(UsageError, match=rf"is {rows + 1}×4, but the engine was built for 1×1 to {rows}×{tokens}"):
            model.run(feed)
        assert machine.trt.contexts[0].executed == []
        with pytest.raises(UsageError, match=f"longer than the model's {tokens} tokens"):
            model.encode("cat " * 500)
        assert model.encode("cat " * 500, truncate=True).shape[0] == 1
        model.encode(["a cat"] * (rows + 1), batch_size=1000)
        assert max(shapes["input_ids"][0] for shapes in machine.trt.contexts[0].executed) == rows


def test_tensorrt_rtx_captures_by_itself_and_keeps_what_it_compiled(
    encoder_bundle: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = altered(encoder_bundle, tmp_path / "b", builder="tensorrt-rtx", gpu="", build=None)
    for times in (1, 2):
        machine.install("tensorrt-rtx", "11.4.0", rtx=True)
        with encoder(bundle) as model:
            model.encode("a cat"), model.encode("a cat")
        (context,) = machine.trt.contexts
        assert context.config.cuda_graph_strategy == 1
        assert machine.cuda.count("cuStreamBeginCapture") == 0
        (kept,) = (tmp_path / "cache" / "edgecompress" / "engines").iterdir()
        assert kept.read_bytes() == b"compiled " * times
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file: nothing can be kept, and nothing fails
    machine.install("tensorrt-rtx", "11.4.0", rtx=True)
    with encoder(bundle) as model:
        assert model.encode("a cat").shape[0] == 1
    assert machine.cuda.held == {}


def test_memory_that_is_short(encoder_bundle: Path, decoder_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, memory=300)
    with encoder(encoder_bundle) as model, pytest.raises(DeviceMemoryError, match="out of memory") as caught:
        model.encode("a cat")
    assert "smaller batches" in caught.value.hint
    assert caught.value.exit_code == 3
    del caught  # its frames hold buffers
    gc.collect()
    assert machine.cuda.held == {}
    machine = Machine(monkeypatch, memory=4096)
    with (
        generator(decoder_bundle) as model_,
        pytest.raises(DeviceMemoryError, match=r"takes [\d_]+ bytes of memory on GPU 0"),
    ):
        model_.generate("the", max_new_tokens=2)
    assert machine.cuda.held == {}


def test_an_engine_that_does_not_open(encoder_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.install("tensorrt", "11.4.0", refuses="Serialization assertion failed. Version tag does not match")
    with pytest.raises(BundleError, match="cannot be opened: Serialization assertion failed") as caught:
        load(encoder_bundle)
    assert "edgecompress build BUNDLE --force" in caught.value.hint
    machine.install("tensorrt", "11.4.0", refuses="Cuda Runtime (out of memory)")
    with pytest.raises(DeviceMemoryError, match=r"1_073_741_824 bytes are free on GPU 0"):
        load(encoder_bundle)
    machine.install("tensorrt", "11.4.0")
    manifest, folder = open_bundle(encoder_bundle)
    graphs = folder.with_suffix(".graphs")
    graph = graphs / manifest.variant().path
    file = engine_file(graph, graph, no_memory="OutOfMemory: 4096")
    with pytest.raises(DeviceMemoryError, match="needs 4_096 bytes beside its weights"):
        load(altered(encoder_bundle, tmp_path / "b", file))
    assert machine.cuda.held == {}


def test_a_run_that_fails_says_so_and_the_next_goes_on(encoder_bundle: Path, machine: Machine) -> None:
    with encoder(encoder_bundle) as model:
        first = model.encode("a cat")
        (context,) = machine.trt.contexts
        for said, kind in (("CUDA error 700: misaligned", HostError), ("out of memory", DeviceMemoryError)):
            context.fails = said
            with pytest.raises(kind, match=said):
                model.encode("a dog that nobody saw before")
        context.fails = ""
        np.testing.assert_array_equal(model.encode("a cat"), first)
    assert machine.cuda.held == {}


def test_a_decoder_writes_what_its_graph_writes(decoder_bundle: Path, machine: Machine) -> None:
    """Chunks, steps and rows of unequal length against the whole text in one run of the same graph, with no cache."""
    prompts = ["the", "a class is a thing that has members, and members"]
    with generator(decoder_bundle) as model:
        alone = [model.generate(prompt, max_new_tokens=12, temperature=0.0) for prompt in prompts]
        together = model.generate(prompts, max_new_tokens=12, temperature=0.0)
        assert [text.token_ids for text in together] == [text.token_ids for text in alone]
        statistics = model.statistics
        assert statistics.kv_cache_dtype == "float16"
        assert statistics.kv_cache_tokens == CONTEXT
        decoder = model.decoder
        cache = decoder.make_cache(1, 1)
        for prompt, text in zip(prompts, alone, strict=True):
            ids = np.array([[*model.token_ids(prompt), *text.token_ids]])
            every = np.arange(ids.shape[1])
            from edgecompress.runtime.cancellation import Cancellation

            logits, _ = decoder.run(cache, 0, ids, np.zeros(1, dtype=np.int64), every, Cancellation())
            best = logits[0].argmax(1)
            assert tuple(best[len(ids[0]) - len(text.token_ids) - 1 : -1]) == text.token_ids
        del cache
    assert machine.cuda.held == {}


def test_a_step_is_one_graph_for_128_tokens(decoder_bundle: Path, machine: Machine) -> None:
    with generator(decoder_bundle) as model:
        text = model.generate("the", max_new_tokens=140, temperature=0.0, stop=())
        assert len(text.token_ids) == 140 or text.finish == "eos"
        (context,) = machine.trt.contexts
        read = {shapes["attention_mask"][1] for shapes in context.executed}
        assert read <= {128, 256}
        # A prompt, and for each length that is read a first step, and a second that is captured.
        assert machine.cuda.count("cuStreamBeginCapture") == len(read)
        assert machine.cuda.count("cuGraphLaunch") >= len(text.token_ids) - 2 * len(read) - 1
    assert machine.cuda.held == {}


def test_a_row_that_ends_makes_room(decoder_bundle: Path, machine: Machine) -> None:
    """The second row moves into the place of the first, on the device."""
    with generator(decoder_bundle) as model:
        long = model.generate("members of a class", max_new_tokens=10, temperature=0.0)
        first = model.generate("the", max_new_tokens=10, temperature=0.0)
        stop = first[2:5]
        rows = model.generate(["the", "members of a class"], max_new_tokens=10, temperature=0.0, stop=(stop,))
        assert rows[0].finish == "stop"
        expected = model.generate("members of a class", max_new_tokens=10, temperature=0.0, stop=(stop,))
        assert rows[1] == expected
        assert long.startswith(expected)
        assert machine.cuda.count("cuMemcpy2DAsync") > 0
    assert machine.cuda.held == {}


def test_a_session_keeps_its_cache(decoder_bundle: Path, machine: Machine) -> None:
    with generator(decoder_bundle) as model, model.session() as session:
        first = session.generate("the members of", max_new_tokens=6, temperature=0.0)
        longer = "the members of" + first
        again = session.generate(longer, max_new_tokens=4, temperature=0.0)
        assert model.statistics.reused_tokens > 0
        assert again == model.generate(longer, max_new_tokens=4, temperature=0.0)
        assert session.generate("the", max_new_tokens=4, temperature=0.0, lookup_tokens=4) == model.generate(
            "the", max_new_tokens=4, temperature=0.0
        )
    assert machine.cuda.held == {}


def test_more_than_a_decoder_was_built_for(decoder_bundle: Path, machine: Machine) -> None:
    with generator(decoder_bundle) as model:
        with pytest.raises(UsageError, match="'input_ids' is 3×1, but the engine was built for 1×1 to 2×"):
            model.generate(["a", "b", "c"], max_new_tokens=2)
        with pytest.raises(UsageError, match=f"context is {CONTEXT}"):
            model.generate("the " * CONTEXT, max_new_tokens=2)
        cache = model.decoder.make_cache(2, 8)
        with pytest.raises(UsageError, match=f"but the engine was built for {CONTEXT}"):
            cache.ensure(CONTEXT + 1, 0, 10_000)
        with pytest.raises(UsageError, match=f"but the engine was built for {CONTEXT}"):
            model.decoder.make_cache(1, CONTEXT + 1)
        del cache
    assert machine.cuda.held == {}


def test_cancelled_and_closed_while_it_writes(decoder_bundle: Path, machine: Machine) -> None:
    model = generator(decoder_bundle)
    stream = model.stream("the", max_new_tokens=200, temperature=0.0)
    next(iter(stream))
    model.cancel()
    rest = list(stream)
    assert stream.result.finish == "cancelled"
    assert len(rest) <= 2
    stream = model.stream("the", max_new_tokens=200, temperature=0.0)
    next(iter(stream))
    model.close()
    list(stream)
    assert stream.result.finish == "cancelled"
    del stream
    gc.collect()
    assert machine.cuda.held == {}


def test_an_engine_whose_cache_is_not_in_place(
    decoder_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.runtime import fake_tensorrt

    monkeypatch.setattr(fake_tensorrt.FakeEngine, "get_aliased_input_tensor", lambda self, name: "")
    with pytest.raises(BundleError, match=r"does not update 'past_key_values\.0\.key' in place: 'present\.0\.key' has"):
        load(decoder_bundle)
    assert machine.cuda.held == {}


def test_stages_on_the_device_are_timed_apart(encoder_bundle: Path, machine: Machine) -> None:
    """Each is waited for, the numbers are the same, and afterwards a run is one graph again."""
    with encoder(encoder_bundle) as model:
        before = model.encode(TEXTS[:1])
        runner = runner_of(model)
        with runner.timing() as stages:
            assert np.array_equal(model.encode(TEXTS[:1]), before)
            assert [len(times) for times in stages.values()] == [1, 1, 1]
            model.encode(TEXTS[:1])
        assert list(stages) == ["host-to-device", "compute", "device-to-host"]
        assert all(len(times) == 2 and min(times) > 0 for times in stages.values())
        assert machine.cuda.count("cuGraphLaunch") == 0
        model.encode(TEXTS[:1])
        assert machine.cuda.count("cuGraphLaunch") == 1
        assert all(len(times) == 2 for times in stages.values())


def test_a_profile_of_an_engine_has_the_stages_on_the_device(
    encoder_bundle: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shapes", "1x16", "--percentile", "50", "--no-cold-start", "--json"]
    assert main(["profile", str(encoder_bundle), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    (measured,) = found["measurements"]
    names = ["tokenize", "batch", "host-to-device", "compute", "device-to-host"]
    assert [stage["name"] for stage in measured["stages"]] == names
    assert any("timed in separate calls" in remark for remark in measured["remarks"])
    assert found["device_bytes"] > 1000
    assert machine.cuda.held == {}
    assert any("operators are not measurable here" in remark for remark in found["remarks"])
