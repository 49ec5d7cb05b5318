"""Where a model's files are: a local directory as it is, a hub repository through huggingface_hub.

The hub client is imported only when a spec names a hub repository; offline mode and tokens are its own settings.
"""

from __future__ import annotations

from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.spec.deployment import HubSource, LocalSource, Source

# Everything a chain needs, and nothing that holds code or pickles.
EVERYTHING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
# What a plan without weights is made from.
CONFIGURATION = (
    "config.json", "adapter_config.json", "generation_config.json", "modules.json", "1_Pooling/config.json",
)  # fmt: skip


def written_as(source: Source) -> str:
    """How the spec names it."""
    return source.written if isinstance(source, LocalSource) else f"hf({source.repo})"


def locate(source: Source, files: tuple[str, ...] = EVERYTHING, *, diags: Diagnostics, at: Span) -> Path | None:
    """The directory with the files; of a repository only those. Problems go to ``diags`` (BC201); then None."""
    if isinstance(source, LocalSource):
        if source.path.is_dir():
            return source.path
        diags.report(
            "BC201", f"there is no directory {source.written}", at=at, label="looked here",
            help="the path is relative to the file of the spec",
        )  # fmt: skip
        return None
    return _download(source, files, diags=diags, at=at)


def _download(source: HubSource, files: tuple[str, ...], *, diags: Diagnostics, at: Span) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=list(files)))
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or this account may not see it"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    diags.report(
        "BC201", f"cannot get {source.repo} from the hub", at=at, notes=(reason,),
        help="check the name and the revision, log in with `hf auth login`, or download it and name the directory",
    )  # fmt: skip
    return None
