"""Reading from the hub: which commit a revision is, and a data set's rows at exactly that commit.

A branch or a tag is turned into the commit it stands for before anything is read, and the commit is what is read.
Where the hub is out of reach (HF_HUB_OFFLINE, no network, a server that is down) the commit that a revision had when
it was last seen is taken from the hub library's own cache. `datasets` by itself, out of reach, gives whichever
revision it cached last; here it is that commit or an error.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)

from prefixlab.errors import UserError

TRANSPORT: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
"""What the hub's HTTP library raises without a network; which library that is depends on huggingface_hub's version."""
UNREACHED = (TRANSPORT, OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError, OSError)
"""What it looks like when something cannot be had from the hub."""
Kind = Literal["model", "dataset"]
WORDS: dict[Kind, str] = {"model": "model", "dataset": "data set"}


def reason(error: BaseException) -> str:
    """What an error of the hub says, in one line: the server's own words where it gave some."""
    text = str(error)
    if isinstance(error, HfHubHTTPError):
        text = error.server_message or " ".join(text.split("\n", 3)[:3])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub id and the revision behind its "@": "org/name@v1" -> ("org/name", "v1"); None where there is no "@"."""
    repo, at, revision = name.partition("@")
    return repo, (revision if at else None)


def fetching(name: str, kind: Kind, revision: str | None, config: str | None = None) -> str:
    """The command that puts a model or data set into this machine's cache."""
    if kind == "model":
        return f"hf download {name}" + (f" --revision {revision}" if revision else "")
    more = (f", {config!r}" if config else "") + (f", revision={revision!r}" if revision else "")
    return f'python -c "from datasets import load_dataset; load_dataset({name!r}{more})"'


def not_cached(name: str, kind: Kind, revision: str | None, config: str | None = None) -> UserError:
    """The error for what is neither here nor within reach."""
    at = f" at {revision!r}" if revision else ""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return UserError(
        f"{WORDS[kind]} {name!r}{at} could not be read from the hub ({why}) and is not in this machine's cache; fetch "
        f"it once with the network: {fetching(name, kind, revision, config)}"
    )


def commit_of(
    name: str,
    kind: Kind,
    revision: str | None = None,
    *,
    config: str | None = None,
    hint: str = "check the id and the revision",
) -> str:
    """The commit that a revision stands for, now or when the hub was last within reach.

    Args:
        name: "owner/name".
        kind: Of the repository.
        revision: Branch, tag or commit; the default branch where None. A commit is taken as it is.
        config: Part of a data set, for the command that would fetch it.
        hint: What to do about an answer other than a commit.

    Raises:
        UserError: There is no such repository or revision, or the hub is out of reach and was not asked before.
    """
    try:
        found = HfApi().resolve_revision(
            name, repo_type=kind, revision=revision, local_files_only=constants.HF_HUB_OFFLINE
        )
        return found.resolved
    except RevisionResolutionError as error:
        raise not_cached(name, kind, revision, config) from error
    except (*UNREACHED, ValueError) as error:
        at = f" at {revision!r}" if revision else ""
        raise UserError(
            f"{WORDS[kind]} {name!r}{at} could not be read from the hub ({reason(error)}); {hint}"
        ) from error


def check_cached(name: str, revision: str | None, commit: str) -> None:
    """Refuse a model that would have to be fetched while the hub may not be asked.

    Raises:
        UserError: It is not in the cache; names the command that fetches it.
    """
    if constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(name, "config.json", revision=commit), str):
        raise not_cached(name, "model", revision) from ConnectionError()


def load_rows(name: str, split: str | None, revision: str | None, config: str | None) -> Iterable[dict[str, Any]]:
    """Rows of a data set on the hub, at the commit that a revision stands for.

    Args:
        name: "owner/name".
        split: "train" where None.
        revision: Branch, tag or commit; the default branch where None.
        config: Part, of a data set that has several.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be read, or neither the hub nor a copy is at hand.
    """
    try:
        from datasets import load_dataset  # noqa: PLC0415  (an extra, heavy, and needed for the hub only)
        from datasets.exceptions import DatasetsError  # noqa: PLC0415
    except ImportError as error:
        raise UserError(f"data set {name!r}: reading from the hub needs pip install 'prefixlab[hub]'") from error
    commit, wanted = commit_of(name, "dataset", revision, config=config), split or "train"
    if constants.HF_HUB_OFFLINE or (config is not None and config in _cached_parts(name, commit)):
        return _cached_rows(name, wanted, revision, commit, config)
    try:
        loaded = load_dataset(name, config, split=wanted, revision=commit)
    except (ConnectionError, TRANSPORT):
        return _cached_rows(name, wanted, revision, commit, config)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # the last: it has a script, which is not run
        # What goes wrong while it is prepared is told by what that came from.
        told = error.__cause__ or error
        raise UserError(f"data set {name!r} could not be read from the hub: {reason(told)}") from error
    files = loaded.cache_files
    if files and Path(files[0]["filename"]).parent.name != commit:  # out of reach: it took what it had, of any commit
        return _cached_rows(name, wanted, revision, commit, config)
    return loaded  # type: ignore[no-any-return]


def _cached_parts(name: str, commit: str) -> dict[str, Path]:
    """Parts that `datasets` prepared at a commit before; its cache has a folder part/version/commit for each."""
    import datasets  # noqa: PLC0415  (as above)
    from datasets.naming import camelcase_to_snakecase  # noqa: PLC0415

    owner, own = name.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / f"{owner}___{camelcase_to_snakecase(own)}"
    return {p.parts[-3]: p for p in root.glob(f"*/*/{commit}") if (p / "dataset_info.json").is_file()}


def _cached_rows(
    name: str, split: str, revision: str | None, commit: str, config: str | None
) -> Iterable[dict[str, Any]]:
    """Rows that `datasets` prepared at that commit before.

    Raises:
        UserError: There are none, or several parts and none is named.
    """
    from datasets.packaged_modules.cache.cache import Cache  # noqa: PLC0415  (as above)

    found = _cached_parts(name, commit)
    part = config or (next(iter(found)) if len(found) == 1 else "default")
    if part not in found:
        if found and config is None:
            raise UserError(f"data set {name!r} has several parts in the cache ({', '.join(sorted(found))}); name one")
        raise not_cached(name, "dataset", revision, config) from ConnectionError()
    own, version = name.split("/")[1], found[part].parts[-2]
    builder = Cache(repo_id=name, dataset_name=own, config_name=part, version=version, hash=commit)
    try:
        rows: Iterable[dict[str, Any]] = builder.as_dataset(split=split)
    except (OSError, ValueError) as error:
        raise UserError(f"data set {name!r}, part {part!r}, as it is in the cache: {reason(error)}") from error
    return rows
