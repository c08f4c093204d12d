"""Signatures: over every file, by one key, and whatever changed since is named."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edgecompress.cli import main
from edgecompress.errors import BundleError, OutputError, UsageError
from edgecompress.formats.manifest import file_sha256, open_bundle
from edgecompress.lineage.signature import sign, verify
from tests.lineage.folders import checkpoint, keys, small_bundle


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return keys(tmp_path)


@pytest.fixture
def signed(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    student = checkpoint(tmp_path / "s", "---\nlicense: mit\n---\n")
    (student / "LICENSE").write_text("terms")
    bundle = small_bundle(tmp_path / "b.bundle", student)
    sign(bundle, pair[0])
    return bundle


def test_every_file_is_signed_and_the_digests_are_the_manifest_s(signed: Path, pair: tuple[Path, Path]) -> None:
    told = verify(signed, pair[1])
    envelope = json.loads((signed / "model.sig").read_text())["dsseEnvelope"]
    resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
    present = {str(path.relative_to(signed)) for path in signed.rglob("*") if path.is_file()}
    left_out = {"model.sig", "measurements.json", "measurements.json.sha256"}
    digests = {item["name"]: item["digest"] for item in resources}
    assert set(digests) == present - left_out
    assert {"model.onnx.data", "licenses/LICENSE"} <= set(digests)
    assert told.files == len(digests)
    manifest, _ = open_bundle(signed)
    assert {name: entry.sha256 for name, entry in manifest.files.items()}.items() <= digests.items()
    assert digests["manifest.json"] == file_sha256(signed / "manifest.json")


def test_a_signed_bundle_may_be_renamed_and_measured_again(signed: Path, pair: tuple[Path, Path]) -> None:
    (signed / "measurements.json").write_text("{}")
    moved = signed.rename(signed.with_name("other"))
    (moved / ".gitattributes").write_text("of the hub")
    verify(moved, pair[1])
    (moved / "model.sig").rename(moved.with_name("other.sig"))
    assert verify(moved, pair[1]).path == moved.with_name("other.sig"), "it may lie beside the bundle"


def test_the_library_s_own_command_agrees(signed: Path, pair: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed), "--public_key", str(pair[1])]
    command += ["--signature", str(signed / "model.sig")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = keys(tmp_path, "other")
    with pytest.raises(BundleError, match=r"b\.bundle was signed with another key") as refused:
        verify(signed, other)
    assert refused.value.exit_code == 7


def _add(bundle: Path) -> None:
    (bundle / "licenses" / "more.txt").write_text("x")


def _remove(bundle: Path) -> None:
    (bundle / "model.onnx.data").unlink()


def _alter(bundle: Path) -> None:
    path = bundle / "model.onnx.data"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _link(bundle: Path) -> None:
    (bundle / "link").symlink_to("/etc/hostname")


def _git(bundle: Path) -> None:
    (bundle / ".gitignore").write_text("*")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_add, "'licenses/more.txt' was added"),
        (_remove, "'model.onnx.data' was removed"),
        (_alter, "'model.onnx.data' was changed"),
        (_git, "'.gitignore' was added"),
        (_link, "differs from the signed bundle"),
    ],
)
def test_what_changed_after_signing_is_named(
    signed: Path, pair: tuple[Path, Path], change: Callable[[Path], None], reason: str
) -> None:
    change(signed)
    with pytest.raises(BundleError, match="differs from the signed bundle") as refused:
        verify(signed, pair[1])
    assert reason in refused.value.message


def _edit(signature: Path, change: Callable[[dict[str, object]], None], *, payload: bool) -> None:
    bundle = json.loads(signature.read_text())
    if payload:
        inner = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(inner)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(inner).encode()).decode()
    else:
        change(bundle)
    signature.write_text(json.dumps(bundle))


def test_a_forged_signature_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    """Someone alters a file, and writes its new hash into the signature."""
    _alter(signed)
    digest = file_sha256(signed / "model.onnx.data")

    def forge(payload: dict[str, object]) -> None:
        resources = payload["predicate"]["resources"]  # type: ignore[index]
        next(item for item in resources if item["name"] == "model.onnx.data")["digest"] = digest

    _edit(signed / "model.sig", forge, payload=True)
    with pytest.raises(BundleError, match=r"the signature of b\.bundle is not valid"):
        verify(signed, pair[1])


def test_a_signature_that_leaves_files_out_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    def widen(payload: dict[str, object]) -> None:
        payload["predicate"]["serialization"]["ignore_paths"].append("model.onnx.data")  # type: ignore[index]

    _edit(signed / "model.sig", widen, payload=True)
    with pytest.raises(BundleError, match=r"model\.sig does not cover 'model\.onnx\.data'"):
        verify(signed, pair[1])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"dsseEnvelope": {"payload": "!"}}'])
def test_a_damaged_signature_is_refused(signed: Path, pair: tuple[Path, Path], content: str) -> None:
    (signed / "model.sig").write_text(content)
    with pytest.raises(BundleError, match=r"model\.sig cannot be read"):
        verify(signed, pair[1])


def test_a_bundle_without_a_signature_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    (signed / "model.sig").unlink()
    with pytest.raises(BundleError, match="is not signed"):
        verify(signed, pair[1])


def test_a_signature_is_replaced_by_force_alone(signed: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "next")
    with pytest.raises(OutputError, match="is already signed"):
        sign(signed, private)
    sign(signed, private, force=True)
    verify(signed, public)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_keys_that_do_not_serve(signed: Path, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    private, public = pair
    text, weak, odd = tmp_path / "text.pem", tmp_path / "rsa.pem", tmp_path / "odd.pem"
    text.write_text("no key")
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    weak.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*plain))
    odd.write_bytes(ec.generate_private_key(ec.SECP256K1()).private_bytes(*plain))
    for key, message in (
        (tmp_path / "none.pem", "cannot be read: No such file"),
        (public, "is a public key, but signing needs a private key"),
        (text, "is not a private key in PEM"),
        (weak, "the curve of .* is .*RSA"),
        (odd, "is secp256k1, not P-256, P-384 or P-521"),
    ):
        with pytest.raises(UsageError, match=message):
            sign(signed, key, force=True)
    for key, message in (
        (private, "is a private key, but verification needs the public key"),
        (text, "is not a public key in PEM"),
    ):
        with pytest.raises(UsageError, match=message):
            verify(signed, key)


def test_a_key_with_a_password(signed: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    locked, public = tmp_path / "locked.pem", tmp_path / "locked.pub"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="needs a password"):
        sign(signed, locked, force=True)
    with pytest.raises(UsageError, match="cannot be decrypted with this password"):
        sign(signed, locked, force=True, password="wrong")
    sign(signed, locked, force=True, password="secret")
    verify(signed, public)


def test_the_commands(tmp_path: Path, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    private, public = map(str, pair)
    bundle = str(small_bundle(tmp_path / "c.bundle", checkpoint(tmp_path / "c")))
    assert main(["sign", bundle, "--key", private]) == 0
    out = capsys.readouterr().out
    assert "8 files signed with key" in out
    assert "measurements.json is not signed" in out
    assert main(["sign", bundle, "--key", private]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["sign", bundle, "--key", private, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 8
    (tmp_path / "c.bundle" / "model.onnx").write_bytes(b"other")
    assert main(["verify", bundle, "--key", public]) == 7
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "edgecompress: c.bundle differs from the signed bundle: 'model.onnx' was changed"
    assert len(err) == 2
    assert main(["sign", bundle, "--key", private, "--force"]) == 7, "what was altered is not signed"
