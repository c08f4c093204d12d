"""Sends a bundle to the Hugging Face hub: every file of it, and nothing else."""

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

_HUB_FILE = ".gitattributes"  # the hub's own
_LOGIN = "`hf auth login`, or HF_TOKEN, gives one that may write there."
_DENIED_STATUSES = (401, 403)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What would be sent, and where to. ``warning``: of the provenance policy, in one line."""

    repository: str
    folder: Path
    manifest: Manifest
    files: dict[str, int]  # name -> bytes
    lineage: Lineage
    warning: str | None


def pack(manifest: Manifest, folder: Path, repository: str, policy: str) -> Parcel:
    """Of a bundle whose hashes were checked. Asks no network. Raises UsageError or ProvenanceError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(
            f"'{repository}' is no name of a repository: {str(error).splitlines()[0][:160]}",
            hint="Give owner/name.",
        ) from error
    if "/" not in repository:
        raise UsageError(f"'{repository}' does not say whose it is", hint="Give owner/name.")
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
    """Send it; the address of the commit. Raises HubError, and OutputError if something else lies there."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(parcel.repository):
        api.whoami()
        api.create_repo(parcel.repository, private=private or None, exist_ok=True)
        if private and not api.model_info(parcel.repository).private:
            raise OutputError(
                f"{parcel.repository} is there already, and it is public",
                hint="Make it private on the hub, or give another name.",
            )
        there = set(api.list_repo_files(parcel.repository)) - {_HUB_FILE}
        old = sorted(there - set(parcel.files))
        if old and MANIFEST not in there:
            raise OutputError(
                f"{parcel.repository} holds something else than a bundle: {', '.join(old[:3])}",
                hint="Give another name: a push replaces what is there.",
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
    """Turns every failure of the hub into a HubError with one message."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    again = "Nothing that is there was taken away; the same command goes on where it stopped."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the hub's advice on cards
            yield
    except LocalTokenNotFoundError as error:
        raise HubError("there is no token for the hub on this machine", hint=_LOGIN) from error
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked", hint="Unset it to push.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _DENIED_STATUSES:
            raise HubError(f"the hub does not let this token write to {repository} ({status})", hint=_LOGIN) from error
        raise HubError(f"the hub answers {status}: {_line(error)}", hint=again) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        why = _line(error) or type(error).__name__
        raise HubError(f"the connection to the hub was lost, or there is none: {why}", hint=again) from error
    except ValueError as error:
        raise HubError(f"the hub does not take the bundle: {_line(error)}", hint="Mend README.md's head.") from error
    except RuntimeError as error:  # of the library that sends large files
        raise HubError(f"the upload failed: {_line(error)}", hint=again) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
