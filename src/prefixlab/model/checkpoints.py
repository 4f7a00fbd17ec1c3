"""Checkpoints of one training that survive a kill at any moment: sealed when whole, ignored otherwise.

The Trainer writes FOLDER/checkpoint-N. A seal beside it lists its files with their sizes and names the training it
belongs to; it is written last, and only then are older checkpoints removed.
"""

import json
import shutil
from pathlib import Path

from prefixlab.errors import UserError
from prefixlab.records import Record


class Seal(Record):
    """Content of checkpoint-N.json."""

    identity: str
    """Hash of everything that the training depends on."""
    step: int
    files: dict[str, int]
    """Path below the checkpoint -> bytes."""


def _files(checkpoint: Path) -> dict[str, int]:
    return {str(f.relative_to(checkpoint)): f.stat().st_size for f in sorted(checkpoint.rglob("*")) if f.is_file()}


def seal(folder: Path, step: int, identity: str) -> None:
    """Declare FOLDER/checkpoint-<step> whole, then remove the others."""
    checkpoint = folder / f"checkpoint-{step}"
    text = Seal(identity=identity, step=step, files=_files(checkpoint)).model_dump_json()
    scratch = folder / f".checkpoint-{step}.new"
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(folder / f"checkpoint-{step}.json")
    for other in folder.glob("checkpoint-*"):
        if other.name not in (checkpoint.name, f"{checkpoint.name}.json"):
            shutil.rmtree(other) if other.is_dir() else other.unlink(missing_ok=True)


def latest(folder: Path, identity: str) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; None where there is none.

    Raises:
        UserError: It belongs to a training of another configuration.
    """
    seals = []
    for file in folder.glob("checkpoint-*.json"):
        try:
            seals.append(Seal.model_validate(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            continue
    for found in sorted(seals, key=lambda s: -s.step):
        checkpoint = folder / f"checkpoint-{found.step}"
        if found.identity != identity:
            raise UserError(
                f"the checkpoint {str(checkpoint)!r} belongs to a training of another configuration (model, data, "
                "recipe, seed, processes or library versions differ); delete it or choose another output folder"
            )
        if checkpoint.is_dir() and _files(checkpoint) == found.files:
            return checkpoint, found.step
    return None
