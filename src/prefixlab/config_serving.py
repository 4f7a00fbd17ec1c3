"""The `serving` block of a study file: a server of the OpenAI protocol that answers the evaluations."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefixlab.errors import unknown

URL = re.compile(r"https?://[^\s/]+(/\S*)?")
HASH = "{hash}"
FIELDS = re.compile(r"\{(\w*)\}")
"""What stands in braces in a command or a name."""


class ServingConfig(BaseModel):
    """A model server in place of the local engine, for every evaluation of the study (docs/decisions/0016)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_url: str | dict[str, str] | None = None
    """Address of a server that runs already, with its version, e.g. `http://node7:8000/v1`; or one for each model of
    the study, by name."""
    command: str | None = None
    """Command that starts one, e.g. `vllm serve {model} --port {port} --enable-lora --max-lora-rank 64`. The run starts
    it before the first evaluation of a model and stops it after the last. `{model}` is the model's folder or hub id,
    `{port}` a free port; with a port of your own, give `base_url` too. No shell reads it."""
    start_minutes: float = Field(default=15.0, gt=0)
    """How long `command` may take until the server answers."""
    names: dict[str, str] = {}
    """Name of a model on its server, where it is not the folder or hub id that prefixlab loads it from."""
    adapters: Literal["load", "preloaded"] = "load"
    """`load`: each adapter is loaded when it is needed, by vLLM's /v1/load_lora_adapter (the server needs
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and the run folder under the same path). `preloaded`: you put them there."""
    adapter_name: str = f"prefixlab-{HASH}"
    """An adapter's name on the server; `{hash}` is the first 12 digits of the hash of its weights and configuration."""
    prompts: Literal["exact", "chat"] = "exact"
    """`exact` sends what the local engine would read: token ids where the server takes them, else the text that has
    exactly these ids. `chat` sends messages, to which the server applies its own template; conditions that put words
    into the model's mouth are then not supported."""
    engine: str = ""
    """What serves, in your words, e.g. `vllm 0.11 bfloat16`. Part of every evaluation's id: change it when you change
    something that can move an output, and the evaluations are done again."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key; the key itself is never written down."""
    connections: int = Field(default=32, gt=0)
    """Requests at once."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds one attempt at one completion may take."""
    retries: int = Field(default=6, ge=0)
    """Further attempts after dropped connections, time-outs, status 408, 409, 425, 429 and 5xx, and answers that are
    none, with growing pauses, or those that the server asks for."""

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if self.base_url is None and self.command is None:
            raise ValueError("base_url (of a server that runs) or command (that starts one) is needed")
        urls = self.base_url.values() if isinstance(self.base_url, Mapping) else [self.base_url or "http://x"]
        for url in urls:
            if not URL.fullmatch(url):
                raise ValueError(f"base_url {url!r} is no address; it looks like http://HOST:PORT/v1")
        if self.command is not None:
            self._command_fits(self.command)
        if self.adapter_name.count(HASH) != 1:
            raise ValueError(
                f"adapter_name {self.adapter_name!r} needs {HASH} once: names without the content's hash would let an "
                "old adapter answer for a new one"
            )
        return self

    def _command_fits(self, command: str) -> None:
        asked = set(FIELDS.findall(command))
        if asked - {"model", "port"}:
            raise ValueError(
                f"command: {{{min(asked - {'model', 'port'})}}} is not known; allowed: {{model}}, {{port}}"
            )
        if not command.strip():
            raise ValueError("command is empty")
        if ("port" in asked) == (self.base_url is not None):
            raise ValueError("command needs either {port}, for which a free one is put in, or base_url beside it")
        if isinstance(self.base_url, Mapping):
            raise ValueError("command starts one server at a time: base_url is then one address")

    def check_models(self, models: Sequence[str]) -> None:
        """Refuse names of models that the study does not have, and models without an address.

        Raises:
            ValueError: Which one.
        """
        urls = self.base_url if isinstance(self.base_url, Mapping) else None
        for key, named in (("names", self.names), ("base_url", urls or {})):
            for model in named:
                if model not in models:
                    raise ValueError(str(unknown("model", model, models, where=f"serving.{key}")))
        if urls is not None and (without := [m for m in models if m not in urls]):
            raise ValueError(f"serving.base_url has no address for the model {without[0]!r}")

    def identity(self) -> dict[str, str]:
        """What of it can change an output: part of the ids of evaluations. The address is none of it."""
        return {"prompts": self.prompts, "engine": self.engine}
