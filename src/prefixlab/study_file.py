"""From a YAML file and `--set` options to a validated study; a mistake is one line that names the nearest known key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from prefixlab.config import Config, HardwareConfig, Study, TrainingConfig
from prefixlab.errors import UserError, unknown


def _field_names(location: Sequence[int | str]) -> list[str]:
    """Names allowed where an unknown key stood."""
    node: Any = Study
    for part in location[:-1]:
        if isinstance(node, type) and issubclass(node, BaseModel) and isinstance(part, str):
            node = _inner(node.model_fields[part].annotation) if part in node.model_fields else None
    return list(node.model_fields) if isinstance(node, type) and issubclass(node, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """The Config class inside list[X], dict[str, X] or X | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((i for a in getattr(annotation, "__args__", ()) if (i := _inner(a)) is not None), None)


def _one_line(error: ValidationError, path: str) -> UserError:
    first = error.errors()[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    if first["type"] == "extra_forbidden":
        return unknown("key", first["loc"][-1], _field_names(first["loc"]), where=f"{path}: {where}")
    if first["type"] == "missing":
        return UserError(f"{path}: {where} is missing")
    if first["type"] == "literal_error":
        allowed = str(first["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return unknown("value", first["input"], allowed, where=f"{path}: {where}")
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], dict | list) else f" (got {first['input']!r})"
    return UserError(f"{path}: {where + ': ' if where else ''}{message}{shown}")


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise UserError(f"--set {assignment!r} needs the form KEY=VALUE, e.g. training.epochs=3")
    node: Any = tree
    parts = key.split(".")
    for part in parts[:-1]:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = None
        if not isinstance(node, dict | list):
            raise UserError(f"--set {key}: there is nothing to set below {part!r} in the study")
    last: Any = parts[-1]
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise UserError(f"--set {key}: {last!r} is no index of that list (0 to {len(node) - 1})")
        last = int(last)
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment!r}: not valid YAML: {' '.join(str(error).split())}") from error


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read, override and validate a study file.

    Args:
        path: YAML file.
        overrides: `key.path=value` strings; values are read as YAML.

    Raises:
        UserError: One line that names the key, what is allowed and the nearest match.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"study file {str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a study is a mapping with the keys {', '.join(Study.model_fields)}")
    for assignment in overrides:
        _override(tree, assignment)
    return parse_study(tree, str(path))


class _TrainingAlone(Config):
    """What `prefixlab train` takes from a study."""

    training: TrainingConfig = TrainingConfig()
    """Recipe."""
    hardware: HardwareConfig = HardwareConfig()
    """Device, dtype, threads."""


def load_training(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[TrainingConfig, HardwareConfig]:
    """Recipe and hardware of a training outside a study.

    Args:
        tree: {"training": ..., "hardware": ...}, as in a study file.
        overrides: `training.key=value` and `hardware.key=value` strings.

    Raises:
        UserError: One line that names the key, what is allowed and the nearest match.
    """
    for assignment in overrides:
        if assignment.partition(".")[0] not in _TrainingAlone.model_fields:
            raise UserError(f"--set {assignment!r}: only keys below training and hardware can be set here")
        _override(tree, assignment)
    try:
        made = _TrainingAlone.model_validate(tree)
    except ValidationError as error:
        raise _one_line(error, "--set") from error
    return made.training, made.hardware


def parse_study(tree: dict[str, Any], label: str) -> Study:
    """Validate a study that is already a dictionary; `label` names it in errors."""
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise _one_line(error, label) from error
