"""The command line as a user meets it: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgecompress.cli import COMMANDS, main
from edgecompress.kinds.architectures import architectures
from tests.tiny import SENTENCES, save_tokenizer, tiny_checkpoint


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("students") / "tiny", "bert")


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object, code: int = 2) -> str:
    """Run an export that must fail; return its message. One line of error, a hint, no leftovers, no traceback."""
    before = sorted(folder.iterdir())
    got, out, err = cli(capsys, "export", *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("edgecompress: provenance: ")]
    assert got == code, err
    assert out == ""
    assert lines[0].startswith("edgecompress: ")
    assert len(lines) >= 2, "no hint was given"
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before
    return lines[0]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, command, "--help")
    assert code == 0
    assert "--json" in out


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from edgecompress.cli import main\n"
    script += "for command in ([], ['export'], ['run']): main([*command, '--help'])\n"
    script += "sys.exit(bool({'numpy', 'torch', 'onnxruntime', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_a_wrong_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capsys, "exprot")
    assert code == 2
    assert "Did you mean 'export'?" in err


def test_errors_are_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "inspect", "/nowhere", "--json")
    assert code == 7
    assert json.loads(out)["error"]["exit_code"] == 7


def test_students_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "b"
    assert "there is no checkpoint at" in refused(capsys, tmp_path, tmp_path / "nothing", "-o", out)
    assert "local cache" in refused(capsys, tmp_path, "nobody/nothing", "-o", out)
    assert "no checkpoint was given" in refused(capsys, tmp_path, "-o", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is an empty folder, not a checkpoint" in refused(capsys, tmp_path, empty, "-o", out)


@pytest.mark.slow
def test_students_that_are_not_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    student, out = tiny_checkpoint(tmp_path / "s", "bert"), tmp_path / "b"
    weights = load_file(student / "model.safetensors")
    name = next(key for key in weights if key.endswith("query.weight"))
    broken = {key: value.clone() for key, value in weights.items()}
    broken[name][0, 0] = float("nan")
    save_file(broken, student / "model.safetensors", metadata={"format": "pt"})
    assert f"weight '{name}'" in refused(capsys, tmp_path, student, "-o", out)
    whole = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(whole[:-100])
    assert "truncated or damaged" in refused(capsys, tmp_path, student, "-o", out)
    (student / "model.safetensors").unlink()
    assert "no weights" in refused(capsys, tmp_path, student, "-o", out)
    torch.save(weights, student / "pytorch_model.bin")
    assert "only as a pickle" in refused(capsys, tmp_path, student, "-o", out)
    assert cli(capsys, "export", student, "-o", out, "--precision", "fp32", "--allow-pickle")[0] == 0


def test_a_missing_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    student = tiny_checkpoint(tmp_path / "s", "bert")
    (student / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(capsys, tmp_path, student, "-o", tmp_path / "b")
    save_tokenizer(student)


@pytest.mark.slow
def test_architectures_outside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    both = tiny_checkpoint(tmp_path / "d", "bert")
    config = json.loads((both / "config.json").read_text()) | {"is_encoder_decoder": True}
    (both / "config.json").write_text(json.dumps(config))
    assert "is an encoder-decoder" in refused(capsys, tmp_path, both, "-o", tmp_path / "b")
    mpnet = tiny_checkpoint(tmp_path / "m", "mpnet")
    assert str(architectures()["mpnet"][1].refused) in refused(
        capsys, tmp_path, mpnet, "-o", tmp_path / "b", "--precision", "fp32"
    )
    config = json.loads((mpnet / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling.Own"}}
    (mpnet / "config.json").write_text(json.dumps(config))
    assert "its own Python code" in refused(capsys, tmp_path, mpnet, "-o", tmp_path / "b")


def test_architectures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "architectures")
    assert code == 0
    assert all(word in out for word in ("qwen2 ", "mpnet", "supported"))
    code, out, _ = cli(capsys, "architectures", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert listed["qwen2"]["refused"] is None
    assert listed["mpnet"]["refused"]
    code, out, err = cli(capsys, "architectures", "qwen22")
    assert code == 2
    assert "Did you mean 'qwen2'?" in err


def test_targets_and_precisions(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "b"
    assert "Did you mean 'raspberry-pi-5'?" in refused(capsys, tmp_path, tiny, "-o", out, "--target", "raspbery-pi5")
    assert "Did you mean 'int8-dynamic'?" in refused(capsys, tmp_path, tiny, "-o", out, "--precision", "int8-dynamik")
    assert "does not compute in float16" in refused(capsys, tmp_path, tiny, "-o", out, "--precision", "fp16", code=3)
    message = refused(capsys, tmp_path, tiny, "-o", out, "--target", "jetson-orin-nano-8gb")
    assert "an engine cannot be timed where it is built" in message
    assert "no task named" in refused(capsys, tmp_path, tiny, "-o", out, "--task", "text-clasification")


def test_calibration_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    out, text = tmp_path / "b", tmp_path / "t.txt"
    text.write_text("\n\n")
    assert "is empty" in refused(capsys, tmp_path, tiny, "-o", out, "--calibration", text)
    text.write_bytes(b"\x7fELF\x00\x01")
    assert "is binary" in refused(capsys, tmp_path, tiny, "-o", out, "--calibration", text)
    text.write_text("\n".join(SENTENCES))
    message = refused(capsys, tmp_path, tiny, "-o", out, "--calibration", text, "--calibration-samples", 9)
    assert "has 4 calibration texts, but the recipe needs 9" in message
    assert "no calibration file" in refused(capsys, tmp_path, tiny, "-o", out, "--calibration", tmp_path / "none")


def test_outputs(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "already exists" in refused(capsys, tmp_path, tiny, "-o", taken)
    (tmp_path / "file").write_text("x")
    assert "cannot write in" in refused(capsys, tmp_path, tiny, "-o", tmp_path / "file" / "b")
    assert "no output was given" in refused(capsys, tmp_path, tiny)


@pytest.mark.slow
def test_a_quality_budget_that_is_missed_names_layers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path
) -> None:
    message = refused(
        capsys, tmp_path, tiny, "-o", tmp_path / "b", "--precision", "int4-weights", "--min-fidelity", 0.99999, code=4
    )
    assert "misses the quality budget: mean cosine" in message
    assert "encoder.layer." in message


def test_dry_run_writes_nothing_and_its_recipe_is_the_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path
) -> None:
    flags = ["--precision", "int8-static", "--smooth-alpha", "0.5", "--threads", "1", "--calibration-samples", "20"]
    code, out, _ = cli(capsys, "export", tiny, *flags, "--dry-run")
    assert code == 0
    assert "estimates:" in out
    assert "calibrate" in out
    recipe = tmp_path / "r.toml"
    recipe.write_text(out[: out.index("\n\nstage ")])
    first = cli(capsys, "export", tiny, *flags, "--dry-run", "--json")[1]
    second = cli(capsys, "export", "--recipe", recipe, "--dry-run", "--json")[1]
    assert json.loads(first) == json.loads(second)
    assert sorted(tmp_path.iterdir()) == [recipe]


def test_a_recipe_with_a_slip_names_the_key(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[quantize]\nsmoth_alpha = 0.5\n")
    message = refused(capsys, tmp_path, tiny, "-o", tmp_path / "b", "--recipe", recipe)
    assert "quantize.smoth_alpha" in message
    assert "Did you mean 'smooth_alpha'?" in message


@pytest.mark.slow
def test_auto_run_inspect_and_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    bundle = tmp_path / "b"
    code, out, err = cli(capsys, "export", tiny, "-o", bundle)
    assert code == 0, err
    assert "chosen" in out
    assert "int8-dynamic" in out
    code, out, _ = cli(capsys, "inspect", bundle, "--json")
    assert code == 0
    inspected = json.loads(out)
    assert inspected["report"]["fidelity"]["mean_cosine"] >= 0.99
    assert inspected["measurements"]["latencies"]
    assert "who says so" in cli(capsys, "inspect", bundle)[1]
    assert cli(capsys, "verify", bundle)[1].endswith("verified\n")
    code, out, _ = cli(capsys, "run", bundle, *SENTENCES, "--json")
    assert len(json.loads(out)["results"]) == len(SENTENCES)
    assert "the input is empty" in cli(capsys, "run", bundle, "")[2]
    code, _, err = cli(capsys, "run", bundle, "cat " * 200)
    assert (code, err.splitlines()[0]) == (2, "edgecompress: text 0 is longer than the model's 100 tokens")
    assert cli(capsys, "run", bundle, "cat " * 200, "--truncate")[0] == 0
    with (bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    code, _, err = cli(capsys, "verify", bundle)
    assert code == 7
    assert "tokenizer.json" in err


@pytest.mark.slow
def test_a_foreign_target_is_not_measured_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path
) -> None:
    code, out, err = cli(capsys, "export", tiny, "-o", tmp_path / "b", "--target", "raspberry-pi-5")
    assert code == 0, err
    assert "not measured: this machine is not a raspberry-pi-5" in out
    code, _, err = cli(capsys, "run", tmp_path / "b", "a text")
    assert code == 3
    assert "aarch64" in err


def test_targets_are_listed_shown_and_detected(capsys: pytest.CaptureFixture[str]) -> None:
    assert "raspberry-pi-5" in cli(capsys, "targets")[1]
    assert "not run yet" in cli(capsys, "targets")[1]
    assert "https://" in cli(capsys, "targets", "show", "h200")[1]
    assert json.loads(cli(capsys, "targets", "detect", "--json")[1])["name"] == "local"
    assert cli(capsys, "targets", "show")[0] == 2


def test_doctor_finds_this_installation_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["fit"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_interrupted_in_a_stage(number: signal.Signals, code: int, tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, "-m", "edgecompress", "export", str(tiny), "-o", str(tmp_path / "b")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob(".edgecompress-*/captured.onnx")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "nothing was left behind" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
