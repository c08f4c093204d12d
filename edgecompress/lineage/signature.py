"""Signatures of bundles in OpenSSF's model-signing format, with the user's elliptic-curve key; offline.

Each file is hashed whole with sha256, so the digests in the signature equal those in the manifest. ADR 24 compares
shards and BLAKE3.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.errors import BundleError, HostError, OutputError, UsageError, first_line
from edgecompress.formats.manifest import SIGNATURE, UNSIGNED

_CURVES = "P-256, P-384 or P-521"
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
_PUBLIC = "openssl ec -in private.pem -pubout -out public.pem"
_CHUNK_BYTES = 1 << 20
_NO_MATCH = "it does not match the key and the digests in it"


@dataclass(frozen=True, kw_only=True)
class SignatureInfo:
    path: Path  # of the signature
    files: int
    key: str  # sha256 of the public key, as in the signature


def signature_of(folder: Path) -> Path | None:
    """The signature in the bundle, or next to it as ``<name>.sig``; None if there is none."""
    places = (folder / SIGNATURE, folder.resolve().with_name(f"{folder.resolve().name}.sig"))
    return next((place for place in places if place.is_file()), None)


def sign(folder: Path, key: Path, *, force: bool = False, password: str | None = None) -> SignatureInfo:
    """Sign the bundle in ``folder``, whose hashes the caller has checked. Raises OutputError, UsageError."""
    path = folder / SIGNATURE
    if path.exists() and not force:
        raise OutputError(f"{folder} is already signed", hint="Use --force to replace the signature.")
    signing = _model_signing().signing
    _require_private(key, password)
    part = folder.parent / f".{folder.name}.{os.getpid()}.sig"
    try:
        config = signing.Config().set_hashing_config(_hashing())
        config.use_elliptic_key_signer(private_key=key, password=_bytes(password)).sign(folder, part)
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}", hint="Nothing was written.") from error
    finally:
        part.unlink(missing_ok=True)
    return _read_signature(path)


def verify(folder: Path, key: Path) -> SignatureInfo:
    """Check every file of ``folder`` against its signature and the public ``key``.

    Raises UsageError if ``key`` is not a public key, and BundleError for any difference from the signed state.
    """
    _require_public(key)
    path = signature_of(folder)
    if path is None:
        raise BundleError(
            f"{folder} is not signed: it has no {SIGNATURE}, and there is no {folder.resolve().name}.sig next to it",
            hint="Sign your own bundle with `edgecompress sign`.",
        )
    told = _read_signature(path)
    digest = _key_digest(key)
    if told.key != digest:
        raise BundleError(
            f"{folder.name} was signed with another key: {told.key[:16]}…, but {key} is {digest[:16]}…",
            hint="Give the public key of the expected signer; if this is that key, do not trust the bundle.",
        )
    config = _model_signing().verifying.Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_verifier(public_key=key).verify(folder, path)
    except Exception as error:  # the library raises whatever its parsers and ciphers raise
        raise _difference(folder, path, error) from error
    return told


def _hashing() -> Any:
    """Covers every file except the unsigned ones; git's files are included."""
    hashing = _model_signing().hashing.Config().use_file_serialization(chunk_size=_CHUNK_BYTES)
    return hashing.set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _difference(folder: Path, path: Path, error: Exception) -> BundleError:
    """An error that names the first difference."""
    again = "Copy the bundle again from its source; do not trust this copy."
    try:
        here, signed = _file_digests(folder), _resources(path)
    except ValueError as odd:  # a link, or neither a file nor a folder
        return BundleError(
            f"{folder.name} differs from the signed bundle: {first_line(odd, _NO_MATCH)[:200]}", hint=again
        )
    reasons = [
        *(f"'{name}' was added" for name in sorted(set(here) - set(signed))),
        *(f"'{name}' was removed" for name in sorted(set(signed) - set(here))),
        *(f"'{name}' was changed" for name in sorted(here) if name in signed and here[name] != signed[name]),
    ]
    if type(error).__name__ == "InvalidSignature" or not reasons:
        return BundleError(
            f"the signature of {folder.name} is not valid: {first_line(error, _NO_MATCH)[:200]}", hint=again
        )
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return BundleError(f"{folder.name} differs from the signed bundle: {reasons[0]}{more}", hint=again)


def _file_digests(folder: Path) -> Mapping[str, str]:
    found = _hashing().hash(folder)
    return {item.identifier: item.digest.digest_hex for item in found.resource_descriptors()}


def _read_signature(path: Path) -> SignatureInfo:
    """What a signature claims, before verification. Raises BundleError."""
    said = _payload(path)
    try:
        key = str(json.loads(path.read_bytes())["verificationMaterial"]["publicKey"]["hint"])
        left_out = {str(name) for name in said["predicate"]["serialization"].get("ignore_paths", [])}
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    more = sorted(left_out - set(UNSIGNED))
    if more:
        raise BundleError(
            f"the signature {path.name} does not cover '{more[0]}'",
            hint="`edgecompress sign` signs every file except measurements.json; do not trust this signature.",
        )
    return SignatureInfo(path=path, files=len(_resources(path)), key=key)


def _resources(path: Path) -> Mapping[str, str]:
    try:
        return {str(item["name"]): str(item["digest"]) for item in _payload(path)["predicate"]["resources"]}
    except (KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _payload(path: Path) -> Any:
    try:
        return json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"the signature {path.name} cannot be read: {type(error).__name__}", hint="Sign the bundle again."
    )


def _require_private(key: Path, password: str | None) -> None:
    content = _read_key(key)
    if b"PUBLIC KEY" in content:
        raise UsageError(f"{key} is a public key, but signing needs a private key", hint=f"Create one: {_MAKE}")
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(content, _bytes(password))
    except TypeError:
        what = "needs a password" if password is None else "has no password, but one is given"
        raise UsageError(f"{key} {what}", hint="Set or unset EDGECOMPRESS_KEY_PASSWORD, the key's password.") from None
    except ValueError:
        why = "is not a private key in PEM" if password is None else "cannot be decrypted with this password"
        raise UsageError(f"{key} {why}", hint=f"Create a key: {_MAKE}") from None
    _require_curve(key, loaded.public_key())


def _require_public(key: Path) -> None:
    content = _read_key(key)
    if b"PRIVATE KEY" in content:
        raise UsageError(f"{key} is a private key, but verification needs the public key", hint=f"Derive it: {_PUBLIC}")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        loaded = load_pem_public_key(content)
    except ValueError:
        raise UsageError(f"{key} is not a public key in PEM", hint=f"Derive it: {_PUBLIC}") from None
    _require_curve(key, loaded)


def _require_curve(key: Path, public: Any) -> None:
    name = getattr(getattr(public, "curve", None), "name", type(public).__name__.lstrip("_"))
    if name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise UsageError(f"the curve of {key} is {name}, not {_CURVES}", hint=f"Create a key: {_MAKE}")


def _read_key(key: Path) -> bytes:
    _model_signing()
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError(f"the key {key} cannot be read: {error.strerror}", hint=f"Create a key: {_MAKE}") from error


def _key_digest(key: Path) -> str:
    """The key's name in model-signing: sha256 of the public key's PEM."""
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    public = load_pem_public_key(key.read_bytes())
    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _bytes(password: str | None) -> bytes | None:
    return password.encode() if password is not None else None


def _model_signing() -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise HostError(
            "signatures need the package 'model-signing'", hint="pip install 'edgecompress[sign]'"
        ) from error
    return model_signing
