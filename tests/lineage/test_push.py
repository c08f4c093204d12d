"""A push, by the real client of the hub, to a small hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.cli import main
from edgecompress.formats.manifest import open_bundle
from edgecompress.types.provenance import ProvenanceRecipe
from tests.lineage.folders import checkpoint, keys, small_bundle
from tests.lineage.hub import TOKEN, Hub, hub

MIT = "---\nlicense: mit\n---\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    made = small_bundle(folder / "b.bundle", checkpoint(folder / "s", MIT))
    private, _ = keys(folder)
    assert main(["sign", str(made), "--key", str(private)]) == 0
    return made


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def push(
    server: Hub | str, bundle: Path, *flags: str, token: str | None = TOKEN, offline: str = "0"
) -> tuple[int, str, str]:
    """In a process of its own: the client reads its settings when it is imported."""
    endpoint = server if isinstance(server, str) else server.endpoint
    home = bundle.parent / "hf-home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "HUGGING" not in k}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(home)}
    environment |= {"HF_TOKEN": token} if token is not None else {}
    command = [sys.executable, "-m", "edgecompress", "push", str(bundle), "org/name", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_bundle_arrives_whole(server: Hub, bundle: Path) -> None:
    server.files = {".gitattributes": b"", "manifest.json": b"an older bundle", "model.old": b"1"}
    code, out, err = push(server, bundle, "--private")
    assert code == 0, err
    assert f"{server.endpoint}/org/name/commit/1" in out
    assert server.private is True
    expected = {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert {name: content for name, content in server.files.items() if name != ".gitattributes"} == expected
    assert "model.sig" in expected


def test_what_the_hub_hands_out_opens(server: Hub, bundle: Path, tmp_path: Path) -> None:
    assert push(server, bundle)[0] == 0
    server.files[".gitattributes"] = b"*.onnx filter=lfs"
    server.files[".cache/huggingface/download/README.md.metadata"] = b"0"
    for name, content in server.files.items():
        path = tmp_path / "down" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    open_bundle(tmp_path / "down")


def test_another_s_repository_is_left_alone(server: Hub, bundle: Path) -> None:
    server.files = {"thesis.tex": b"mine"}
    code, _, err = push(server, bundle)
    assert code == 2
    assert err.startswith("edgecompress: org/name holds files that are not a bundle's: thesis.tex")
    assert server.files == {"thesis.tex": b"mine"}


def test_what_is_to_be_private_is_not_sent_where_all_see_it(server: Hub, bundle: Path) -> None:
    server.public_already = True
    code, _, err = push(server, bundle, "--private")
    assert (code, server.files) == (2, {})
    assert "org/name exists and is public" in err


@pytest.mark.parametrize(
    ("token", "offline", "forbidden", "lost", "message"),
    [
        (None, "0", "", "", "this machine has no token for the hub"),
        ("hf_wrong", "0", "", "", "this token may not write to org/name (401)"),
        (TOKEN, "0", "/api/models/org/name/commit", "", "this token may not write to org/name (403)"),
        (TOKEN, "1", "", "", "HF_HUB_OFFLINE is set, so nothing can be sent"),
        (TOKEN, "0", "", "/api/whoami", "no connection to the hub"),
        (TOKEN, "0", "", "/api/repos", "no connection to the hub"),
    ],
)
def test_each_failure_is_one_message(
    server: Hub, bundle: Path, token: str | None, offline: str, forbidden: str, lost: str, message: str
) -> None:
    server.forbidden, server.lost = forbidden, lost
    code, out, err = push(server, bundle, token=token, offline=offline)
    assert code == 3, err
    lines = err.splitlines()
    assert lines[0].startswith(f"edgecompress: {message}")
    assert len(lines) == 2, "one message, and one hint"
    assert "hf_" not in err, "no token is written anywhere"
    assert out == ""
    assert server.files == {}


def test_nobody_at_that_address(bundle: Path) -> None:
    code, _, err = push("http://127.0.0.1:9", bundle)
    assert code == 3
    assert "no connection to the hub" in err


def test_a_dry_run_asks_nobody(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(bundle), "org/name", "--dry-run", "--private"]) == 0
    out = capsys.readouterr().out
    assert "would be sent to org/name (private, if it does not exist yet): 11 files" in out
    assert "model.onnx.data" in out
    assert "base_model_relation: quantized" in out


def test_what_is_refused_before_anything_is_asked(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = small_bundle(tmp_path / "u.bundle", checkpoint(tmp_path / "u"))
    accepted = small_bundle(tmp_path / "a.bundle", checkpoint(tmp_path / "a"), ProvenanceRecipe(accept="ours"))
    altered = small_bundle(tmp_path / "x.bundle", checkpoint(tmp_path / "x", MIT))
    (altered / "model.onnx").write_bytes(b"other")
    for arguments, code, message in (
        ([unknown, "org/name", "--provenance", "enforce"], 6, "the terms of u are unknown"),
        ([altered, "org/name"], 7, "altered"),
        ([bundle, "name"], 2, "'name' has no owner"),
        ([bundle, "a/b/c"], 2, "'a/b/c' is not a repository name"),
        ([bundle, "org/name", "--provenance", "never"], 2, "no provenance policy named 'never'"),
    ):
        assert main(["push", *map(str, arguments), "--dry-run"]) == code
        assert message in capsys.readouterr().err
    assert main(["push", str(unknown), "org/name", "--dry-run"]) == 0
    assert "provenance: the terms of u are unknown" in capsys.readouterr().err
    assert main(["push", str(accepted), "org/name", "--dry-run", "--provenance", "enforce"]) == 0
    assert 'accepted, and recorded: "ours"' in capsys.readouterr().err
