"""Where a model's files are: a local directory as it is, a hub repository through huggingface_hub.

The hub client is imported only when a spec names a hub repository. Tokens, offline mode, cache and resumption are its
own settings and doings. What it returns is a folder named after a commit: a branch is resolved once.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.spec.deployment import HubSource, LocalSource, Source
from blockc.tune.checkpoint import PICKLES, report_pickles

# Everything a chain needs, and nothing that holds code or pickles. Files in folders are other formats' copies.
# (Patterns also match in folders; what of those is wanted is how sentence-transformers pools.)
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["consolidated*", *(f"*/{pattern}" for pattern in _WANTED if pattern != "*.json"), "[!1]*/*.json"]
# What a plan without weights is made from.
_CONFIGURATION = [
    "config.json", "adapter_config.json", "generation_config.json", "modules.json", "1_Pooling/*.json",
    "sentence_bert_config.json", "config_sentence_transformers.json",
]  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}")


def written_as(source: Source) -> str:
    """How the spec names it."""
    return source.written if isinstance(source, LocalSource) else f"hf({source.repo})"


def locate(source: Source, *, diags: Diagnostics, at: Span, configuration_only: bool = False) -> Path | None:
    """The directory with the files, of a repository all or its configuration. Problems go to ``diags`` (BC201)."""
    if isinstance(source, LocalSource):
        if source.path.is_dir():
            return source.path
        diags.report(
            "BC201", f"there is no directory {source.written}", at=at, label="looked here",
            help="the path is relative to the file of the spec",
        )  # fmt: skip
        return None
    return download(source, diags=diags, at=at, configuration_only=configuration_only)


def commit_of(source: Source, directory: Path) -> str | None:
    """The revision that ``directory`` holds: the commit of a hub snapshot, None for a local directory."""
    if isinstance(source, LocalSource):
        return None
    return directory.name if _COMMIT.fullmatch(directory.name) else source.revision


def download(
    source: HubSource, *, diags: Diagnostics, at: Span | None = None, configuration_only: bool = False
) -> Path | None:
    """The snapshot of a hub repository, fetched as far as the cache lacks it. Problems go to ``diags``; then None."""
    from huggingface_hub import snapshot_download

    try:
        wanted, unwanted = (_CONFIGURATION, None) if configuration_only else (_WANTED, _UNWANTED)
        root = Path(
            snapshot_download(source.repo, revision=source.revision, allow_patterns=wanted, ignore_patterns=unwanted)
        )
        if configuration_only:
            return root
        if not any(root.glob("*.safetensors")) and (pickled := _pickles(source.repo, root.name)):
            report_pickles(pickled, written=written_as(source), diags=diags, at=at)
            return None
        return root
    except Exception as error:  # the client passes on errors of its HTTP libraries, which share no base class
        reason, help_ = _explain(error, source)
    diags.report("BC201", f"cannot get {source.repo} from the hub", at=at, notes=(reason,), help=help_)
    return None


def _pickles(repo: str, commit: str) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return [name for name in HfApi().list_repo_files(repo, revision=commit) if Path(name).suffix in PICKLES]
    except OfflineModeIsEnabled:
        return []


def _explain(error: Exception, source: HubSource) -> tuple[str, str]:
    """What happened and what to do about it."""
    from huggingface_hub import constants, errors

    answer = next((each for each in (error, error.__cause__) if isinstance(each, errors.HfHubHTTPError)), None)
    status = answer.response.status_code if answer is not None else None
    if isinstance(error, errors.GatedRepoError):
        return "its owner grants access on request", "ask for access on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "the hub has no such repository, or this account may not see it"
        return reason, "check the name; for a private one log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision `{source.revision}`", "name a branch, a tag or a commit that it has"
    if status in (401, 403):
        return f"the hub refuses this account ({status})", "log in again with `hf auth login`, or correct HF_TOKEN"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "make room, or set HF_HUB_CACHE to a folder on a larger disk; what is there is kept"
    if isinstance(error, errors.IncompleteSnapshotError):
        held = "the cache holds only a part of it"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        held = "the cache does not hold it"
    else:
        return (_first_line(error), "try again: what was fetched is kept; or download it and name the directory")
    if constants.HF_HUB_OFFLINE:
        return f"{held}, and HF_HUB_OFFLINE forbids to fetch it", "unset HF_HUB_OFFLINE once, or name a local directory"
    why = "cannot be reached" if status is None else f"answers with an error ({status})"
    return f"the hub {why}, and {held}", "check the connection, or download it and name the directory"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
