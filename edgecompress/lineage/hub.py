"""Sends a bundle's files, and nothing else, to the Hugging Face hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import HubError, OutputError, UsageError
from edgecompress.formats.manifest import MANIFEST, UNSIGNED, read_lineage
from edgecompress.lineage.policy import check
from edgecompress.types.bundle import Manifest
from edgecompress.types.provenance import Lineage

_HUB_FILE = ".gitattributes"  # created by the hub
_LOGIN = "Run `hf auth login`, or set HF_TOKEN, with a token that may write there."
_DENIED_STATUSES = (401, 403)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """The files to send, and the repository. ``warning``: from the provenance policy, in one line."""

    repository: str
    folder: Path
    manifest: Manifest
    files: dict[str, int]  # name -> bytes
    lineage: Lineage
    warning: str | None


def pack(manifest: Manifest, folder: Path, repository: str, policy: str) -> Parcel:
    """Prepare a bundle whose hashes the caller has checked. Works offline. Raises UsageError or ProvenanceError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(
            f"'{repository}' is not a repository name: {str(error).splitlines()[0][:160]}",
            hint="Give owner/name.",
        ) from error
    if "/" not in repository:
        raise UsageError(f"'{repository}' has no owner", hint="Give owner/name.")
    lineage = read_lineage(folder)
    warning = check(lineage, policy)
    beside = [MANIFEST, f"{MANIFEST}.sha256", *(name for name in UNSIGNED if not name.startswith("."))]
    names = [*manifest.files, *(name for name in beside if (folder / name).is_file())]
    return Parcel(
        repository=repository,
        folder=folder,
        manifest=manifest,
        files={name: (folder / name).stat().st_size for name in sorted(names)},
        lineage=lineage,
        warning=warning,
    )


def push(parcel: Parcel, *, private: bool) -> str:
    """Send the bundle; return the commit's URL. Raises HubError; OutputError if the repository holds other files."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(parcel.repository):
        api.whoami()
        api.create_repo(parcel.repository, private=private or None, exist_ok=True)
        if private and not api.model_info(parcel.repository).private:
            raise OutputError(
                f"{parcel.repository} exists and is public",
                hint="Make it private on the hub, or give another name.",
            )
        there = set(api.list_repo_files(parcel.repository)) - {_HUB_FILE}
        old = sorted(there - set(parcel.files))
        if old and MANIFEST not in there:
            raise OutputError(
                f"{parcel.repository} holds files that are not a bundle's: {', '.join(old[:3])}",
                hint="Give another name: a push replaces the repository's content.",
            )
        manifest = parcel.manifest
        commit = api.upload_folder(
            repo_id=parcel.repository,
            folder_path=parcel.folder,
            allow_patterns=list(parcel.files),
            delete_patterns=old or None,
            commit_message=f"{manifest.name}, {manifest.precision} for {manifest.target.name}",
        )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turns every failure of the hub into a HubError."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    again = "Nothing in the repository was deleted; run the same command to resume."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the hub's advice on cards
            yield
    except LocalTokenNotFoundError as error:
        raise HubError("this machine has no token for the hub", hint=_LOGIN) from error
    except OfflineModeIsEnabled as error:
        raise HubError(
            "HF_HUB_OFFLINE is set, so nothing can be sent", hint="Unset it to push; --dry-run works offline."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _DENIED_STATUSES:
            raise HubError(f"this token may not write to {repository} ({status})", hint=_LOGIN) from error
        raise HubError(f"the hub answers {status}: {_line(error)}", hint=again) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        why = _line(error) or type(error).__name__
        raise HubError(f"no connection to the hub: {why}", hint=again) from error
    except ValueError as error:
        raise HubError(
            f"the hub rejects the bundle: {_line(error)}", hint="Correct the front matter of README.md."
        ) from error
    except RuntimeError as error:  # from the library that sends large files
        raise HubError(f"the upload failed: {_line(error)}", hint=again) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
