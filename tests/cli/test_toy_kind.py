"""A kind of somebody else's works in every verb that a device has, with no edit inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from edgecompress import registry
from edgecompress.cli import main
from edgecompress.errors import UsageError
from edgecompress.formats.manifest import read_manifest
from edgecompress.kinds import find_kind
from edgecompress.runtime import load
from edgecompress.serve.app import Service
from tests.decoder_bundle import decoder_bundle
from tests.serve.running import running
from tests.toy_kind.bundle import adder_bundle, install

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path / "site-packages", monkeypatch)
    yield
    registry.plug_ins.cache_clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return adder_bundle(tmp_path / "b")


def test_it_runs(bundle: Path, capsys: Captured) -> None:
    assert main(["run", str(bundle), "1", "2", "--times", "2"]) == 0
    assert capsys.readouterr().out == "1 + 2\n  sum 6.0000\n"
    assert main(["run", str(bundle), "1", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == [{"input": "1 + 2", "output": {"sum": 3.0}}]
    with load(bundle) as adder:
        assert adder.add(1.5, 2.0) == 3.5


def test_flags_are_refused_where_they_say_nothing(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["run", str(bundle), "1", "2", "--seed", "1"]) == UsageError.exit_code
    assert "--seed is for text generation, and this bundle is for addition" in capsys.readouterr().err
    assert main(["run", str(decoder_bundle(tmp_path / "d")), "x", "--times", "2"]) == UsageError.exit_code
    assert "--times is for sums, and this bundle is for text-generation" in capsys.readouterr().err
    assert main(["run", str(bundle), "1", "2", "--top-k", "3"]) == 0, "a flag of several kinds is everyone's"
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "sums:\n  --times" in shown
    assert "for sums: nothing here" in " ".join(shown.split())


def test_it_is_verified_by_its_own_metric(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "fidelity  largest error 0.0000" in capsys.readouterr().out
    assert main(["verify", str(adder_bundle(tmp_path / "wrong", error=0.5))]) == 7
    assert "FAILED: a sum is wrong by 0.5" in capsys.readouterr().out


def test_it_is_inspected(bundle: Path, capsys: Captured) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "sum of    2 numbers" in shown
    assert "fidelity  largest error 0.0000" in shown
    assert find_kind("adder").card.example(read_manifest(bundle))


def test_it_is_served(bundle: Path, tmp_path: Path) -> None:
    with running(bundle) as server:
        answer = httpx2.post(f"{server.url}/sums", json={"numbers": [1, 2]})
        assert answer.json() == {"sum": 3.0}
        assert httpx2.post(f"{server.url}/sums", json={"numbers": [1]}).status_code == 400
        error = httpx2.post(f"{server.url}/embeddings", json={"input": "x"}).json()["error"]
        assert error["message"] == "the model 'tiny' is an adder; use /v1/sums"
        assert error["code"] == "unsupported_task"
    with running(decoder_bundle(tmp_path / "d")) as server:
        error = httpx2.post(f"{server.url}/sums", json={"numbers": [1, 2]}).json()["error"]
        assert error["message"] == "the model 'tiny' is a decoder; use /v1/chat/completions or /v1/completions"


def test_what_a_kind_does_not_have_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A package with the runtime alone."""
    package = tmp_path / "site-packages" / "bare_kind"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "runtime.py").write_text("from tests.toy_kind.runtime import open_bundle as open_bundle\n")
    install(tmp_path / "site-packages", monkeypatch, "bare_kind")
    for command, said in (("run", "`edgecompress run` cannot run"), ("verify", "`edgecompress verify` cannot check")):
        assert main([command, str(bundle)]) == UsageError.exit_code
        assert said in capsys.readouterr().err
    with load(bundle) as model, pytest.raises(UsageError, match="addition, which has no endpoint in OpenAI's protocol"):
        Service(model, "tiny", 1)
