"""`prefixlab push`: adapters, arms or a report as a repository on the hub, with a card.

Adapters become a model repository, arms a data set, a report a static Space: the report is a page, and a static Space
is what shows one. Repositories are made private unless told otherwise: rows and completions may be licensed, or
harmful. Only files that are not there yet are sent, by huggingface_hub, and nothing on the hub is deleted.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]  # lazily

from prefixlab import __version__
from prefixlab.data.hub import TRANSPORT, UNREACHED, reason
from prefixlab.errors import UserError
from prefixlab.records import Record
from prefixlab.study.hub_cards import TAG
from prefixlab.study.hub_pack import CARD, Ask, What, pack
from prefixlab.study.hub_scrub import refuse_secrets

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo, SpaceInfo

REPO_TYPE: dict[What, Literal["model", "dataset", "space"]] = {
    "adapters": "model",
    "arms": "dataset",
    "report": "space",
}
STARTERS = (".gitattributes", CARD, "index.html", "style.css")
"""Files that the hub itself puts into a new repository."""
MAIN = "main"
NO_ANSWER = (TRANSPORT, OfflineModeIsEnabled, ConnectionError, TimeoutError)
"""Errors on the way to the hub, and those it answers with."""


class Pushed(Record):
    """What was sent, or would be."""

    what: What
    repo: str
    repo_type: Literal["model", "dataset", "space"]
    private: bool
    branch: str
    files: dict[str, int]
    """Path in the repository -> bytes."""
    card: str
    missing: tuple[str, ...]
    """What is not finished and was left out."""
    commit: str | None = None
    """The branch's commit afterwards; None where nothing was sent."""
    changed: bool = False
    """Whether there was anything that the repository did not have yet."""
    url: str | None = None


def push(
    folder: Path, repo: str, *, what: What | None, public: bool, branch: str | None, dry_run: bool, bars: bool
) -> Pushed:
    """Push a run's adapters, arms or report, a folder of arms, or an adapter.

    Args:
        folder: Of a run, of `prefixlab arms` or of `prefixlab train`.
        repo: "owner/name"; made if it is not there.
        what: Of a run: which of the three.
        public: Whether a new repository can be seen by everyone, and an existing one may.
        branch: Branch; made if it is not there; main where None.
        dry_run: Lay everything out and send nothing.
        bars: Whether uploads show progress bars.

    Raises:
        UserError: Nothing to push, a bad id, no token, no right, a repository of somebody else's, no network.
    """
    _check_id(repo)
    if not dry_run:
        _check_access()
    with tempfile.TemporaryDirectory(prefix="prefixlab-push-") as scratch:
        stage = Path(scratch)
        packed = pack(Ask(folder, repo, what, branch, _licence), stage)
        refuse_secrets(stage)
        files = {str(f.relative_to(stage)): f.stat().st_size for f in sorted(stage.rglob("*")) if f.is_file()}
        found = Pushed(
            what=packed.what,
            repo=repo,
            repo_type=REPO_TYPE[packed.what],
            private=not public,
            branch=branch or MAIN,
            files=files,
            card=packed.card,
            missing=tuple(packed.missing),
        )
        if dry_run:
            return found
        with _one_line(found):
            return _send(found, stage, f"{packed.what} of {packed.subject}, prefixlab {__version__}", bars)


def _check_id(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {repo!r}: {reason(error)}") from error
    if repo.count("/") != 1:
        raise UserError(f"--repo {repo!r}: write owner/name, with your user name or an organisation as owner")


def _check_access() -> None:
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, and a push needs the hub; unset it, or look with --dry-run")
    if get_token() is None:
        raise UserError("no token for the hub: run hf auth login, or set HF_TOKEN to a token that may write")


def _licence(name: str, revision: str | None) -> str | None:
    """What the card of a data set on the hub says; None where it says nothing or cannot be asked."""
    try:
        card = HfApi().dataset_info(name, revision=revision, timeout=10).card_data
    except UNREACHED:
        return None
    licence = card.get("license") if card else None
    return ", ".join(licence) if isinstance(licence, list) else licence


def _send(asked: Pushed, stage: Path, message: str, bars: bool) -> Pushed:
    """Make the repository and the branch, and upload what they lack."""
    if not bars:
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # says by warnings what the result says
    api, kind = HfApi(library_name="prefixlab", library_version=__version__), asked.repo_type
    before = _existing(api, asked)
    if before is None:
        sdk = "static" if kind == "space" else None
        api.create_repo(asked.repo, repo_type=kind, private=asked.private, exist_ok=True, space_sdk=sdk)
    if asked.branch != MAIN:
        api.create_branch(asked.repo, branch=asked.branch, repo_type=kind, exist_ok=True)
    head = api.repo_info(asked.repo, repo_type=kind, revision=asked.branch).sha
    done = api.upload_folder(
        repo_id=asked.repo, repo_type=kind, folder_path=stage, revision=asked.branch, commit_message=message
    )
    private = before.private if before is not None else asked.private
    url = str(done.commit_url)
    return asked.model_copy(update={"commit": done.oid, "changed": done.oid != head, "url": url, "private": private})


def _existing(api: HfApi, asked: Pushed) -> "ModelInfo | DatasetInfo | SpaceInfo | None":
    """The repository, if it is there and may be written to.

    Raises:
        UserError: It is public and --public is not given, or it is somebody else's work.
    """
    try:
        found = api.repo_info(asked.repo, repo_type=asked.repo_type)
    except RepositoryNotFoundError:
        return None
    if asked.private and not found.private:
        raise UserError(
            f"{asked.repo_type} {asked.repo!r} is public; add --public if everyone may see what you push, or choose "
            "another --repo"
        )
    info = cast("ModelInfo | DatasetInfo | SpaceInfo", found)
    others = [s.rfilename for s in info.siblings or () if s.rfilename not in STARTERS]
    tags = {*(info.tags or ()), *((info.card_data.get("tags") or ()) if info.card_data else ())}
    if others and TAG not in tags:
        raise UserError(
            f"{asked.repo_type} {asked.repo!r} was not made by prefixlab and holds {others[0]!r}; choose another "
            f"--repo, or give its card the tag {TAG!r}"
        )
    return info


@contextmanager
def _one_line(asked: Pushed) -> Iterator[None]:
    """What goes wrong on the way to the hub, in one line.

    Raises:
        UserError: No right, no network, or the hub's own words.
    """
    where = f"{asked.repo_type} {asked.repo!r}"
    again = "the same command goes on from what is there"
    try:
        yield
    except (*NO_ANSWER, RuntimeError, ValueError) as error:
        told = next((e for e in _chain(error) if isinstance(e, NO_ANSWER)), None)
        if isinstance(told, HfHubHTTPError):
            status = told.response.status_code
            if status == 401:
                raise UserError(f"the hub does not accept your token ({reason(told)}); run hf auth login") from error
            if status in (403, 404):
                raise UserError(
                    f"your token may not write to {where} ({reason(told)}); use a token that may write there, or "
                    "another --repo"
                ) from error
            raise UserError(f"{where} could not be written: {reason(told)}; {again}") from error
        if told is not None:
            raise UserError(f"the hub cannot be reached ({reason(told)}); check the network: {again}") from error
        if isinstance(error, ValueError):  # a card that the hub does not take
            raise UserError(f"{where} could not be written: {reason(error)}") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
