"""The command push: what prefixlab made, as a repository on the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefixlab.cli_shared import JsonOption, QuietOption, err_console, help_text, print_json, say

if TYPE_CHECKING:
    from prefixlab.study.push import Pushed

app = typer.Typer()
LISTED = 5
"""Unfinished steps that are named."""


@app.command(
    help=help_text(
        "Push a run's adapters, arms or report, a folder of arms, or one adapter to the Hugging Face hub, with a card. "
        "Adapters become a model repository with a subfolder each, arms a data set with a part each, a report a static "
        "Space. New repositories are private. What is there already is not sent again, and nothing there is deleted; "
        "of an unfinished run what is finished is pushed, and the same command adds the rest later. Paths of this "
        "machine are replaced by their last name in cards, configurations, manifests and the report; rows of data go "
        "as they are; a file that holds a token or key of this machine stops the push.",
        "prefixlab push runs/quickstart --what adapters --repo org/quickstart-adapters --dry-run",
        "prefixlab push runs/quickstart --what report --repo org/quickstart-report --public",
        "prefixlab push arms --repo org/my-arms --revision v2",
        "prefixlab push adapter --repo org/my-adapter",
    )
)
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of prefixlab run, prefixlab arms or prefixlab train.")
    ],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository; made if it is not there.")],
    what: Annotated[
        Literal["adapters", "arms", "report"] | None, typer.Option(help="Which of the three, of a run folder.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to; made if it is not there.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it. Check licences and content.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and show the card; send nothing.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.push import push as push_folder

    bars = err_console.is_terminal and not (quiet or as_json)
    found = push_folder(folder, repo, what=what, public=public, branch=revision, dry_run=dry_run, bars=bars)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    if quiet:
        return
    if dry_run:
        for path, size in found.files.items():
            say(f"{size:>14,}  {path}")
    say(_summary(found))
    if found.missing:
        more = f" and {len(found.missing) - LISTED} more" if len(found.missing) > LISTED else ""
        say(f"not finished, left out: {', '.join(found.missing[:LISTED])}{more}")
    if dry_run:
        say(f"README.md:\n\n{found.card}")


def _summary(found: "Pushed") -> str:
    seen = "private" if found.private else "public"
    total = f"{len(found.files)} files, {sum(found.files.values()) / 1e6:,.1f} MB"
    where = f"{seen} {found.repo_type} {found.repo}, branch {found.branch}"
    if found.commit is None:
        return f"dry run, nothing was sent: {total} to the {where}"
    if not found.changed:
        return f"nothing has changed: {total} are in the {where} already ({found.url})"
    return f"pushed: {total} to the {where} ({found.url})"
