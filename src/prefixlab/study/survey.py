"""Which nodes of a cluster take part in a run: each is asked what it is before it gets a step."""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from prefixlab.errors import UserError
from prefixlab.study.cluster import Node, last_line, on
from prefixlab.study.execute import Journal, Work
from prefixlab.study.host import NodeReport
from prefixlab.study.needs import Need, models_of
from prefixlab.study.schedule import Lane
from prefixlab.study.steps import installed, package_hash

LOOK = 180.0
"""Seconds that a node has to say what it is: a new process there, and a built-in model made once."""


def _probe() -> Any:
    """The task that looks at a node; an inner function travels as code, and so runs where prefixlab is missing."""

    def probe(package: str, *arguments: object) -> str:
        from importlib import metadata  # noqa: PLC0415

        try:
            has = f"another prefixlab ({metadata.version('prefixlab')})"
        except metadata.PackageNotFoundError:
            has = "no prefixlab"
        try:
            from prefixlab.study.host import look  # noqa: PLC0415
            from prefixlab.study.steps import package_hash  # noqa: PLC0415
        except Exception as error:  # whatever the reason, the node cannot do a step
            return f"has {has}; install the same commit there ({type(error).__name__}: {error})"
        if package_hash() != package:
            return f"has prefixlab {metadata.version('prefixlab')} with other files; install the same commit there"
        return look(*arguments)  # type: ignore[arg-type]

    return ray.remote(num_cpus=0, max_retries=1)(probe)


class Survey:
    """Nodes that are asked what they are, while other work goes on."""

    def __init__(self, work: Work, need: Need | None) -> None:
        """Leave a word in the run folder that the nodes must find.

        Args:
            work: What there is to do.
            need: Of the model lane, if it has steps.
        """
        from huggingface_hub import constants  # noqa: PLC0415  (as heavy as the libraries that the plan has loaded)

        root, token = work.store.root.absolute(), secrets.token_hex(8)
        for left in (*root.glob(".probe-*"), *root.glob(".stop-*")):  # of drivers that were killed
            left.unlink(missing_ok=True)
        self._need, self._file, self._task = need, root / f".probe-{token}", _probe()
        models = [ref.model_dump(mode="json") for ref in models_of(work.plan, work.pending)]
        gpus, offline = need is not None and need.gpus > 0, constants.HF_HUB_OFFLINE
        self._asks = (package_hash(), str(root), token, os.getcwd(), _named_files(work), models, gpus, offline)
        self._file.write_text(token)
        self.waiting: dict[Any, tuple[Node, float]] = {}
        """The answer to come -> the node, and until when it has time."""

    def ask(self, members: Sequence[Node]) -> None:
        """Ask nodes; `answers` has what they say."""
        for node in members:
            ref = self._task.options(scheduling_strategy=on(node.id)).remote(*self._asks)
            self.waiting[ref] = (node, time.monotonic() + LOOK)

    def answers(self, seconds: float = 0.0) -> list[tuple[Node, NodeReport | str]]:
        """What was said since the last call: a node's report, or why it cannot be used.

        Args:
            seconds: How long to wait for all that were asked.
        """
        if not self.waiting:
            return []
        ready, _ = ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=seconds)
        late = [ref for ref, (_, end) in self.waiting.items() if ref not in ready and time.monotonic() >= end]
        found: list[tuple[Node, NodeReport | str]] = []
        for ref in (*ready, *late):
            node, _ = self.waiting.pop(ref)
            found.append((node, self._answer(ref) if ref in ready else f"did not say within {LOOK:.0f} s what it is"))
        return found

    def close(self) -> None:
        """Take the word out of the run folder."""
        self._file.unlink(missing_ok=True)

    def _answer(self, ref: Any) -> NodeReport | str:
        try:
            said = ray.get(ref)
        except ray.exceptions.RayError as error:
            return f"cannot run Python ({last_line(error)})"
        if not said.startswith("{"):
            return str(said)
        report = NodeReport.model_validate_json(said)
        return _unfit(report, self._need) or report


def _named_files(work: Work) -> list[str]:
    """Local files that steps read by the study's names."""
    capabilities = work.study.capabilities.values()
    suites = [s for c in capabilities for s in c.suites]
    tasks = [s.suite.removeprefix("inspect:").partition("@")[0] for s in suites if s.suite.startswith("inspect:")]
    sources = [*(c.data.source for c in capabilities), *(s.source for s in suites), *tasks]
    return sorted({s for s in sources if s and Path(s).expanduser().exists()})


def _unfit(report: NodeReport, need: Need | None) -> str:
    """Why a node cannot be used; empty if it can."""
    mine = installed()
    other = [
        f"{k} {report.versions.get(k, 'missing')} where it is {v} here"
        for k, v in mine.items()
        if report.versions.get(k) != v
    ]
    if other:
        return f"has {', '.join(other)}; install the same there (constraints.txt pins them)"
    if report.trouble:
        return report.trouble
    if need is not None and need.gpus and not report.gpus:
        return "has a torch that sees no GPU (built for CPUs, or the driver is too old)"
    smallest = min((size for _, size in report.gpus), default=0)
    if need is not None and need.gpus and smallest < need.gpu_memory:
        return f"has a GPU of {smallest / 1e9:.1f} GB, and the largest base alone takes {need.gpu_memory / 1e9:.1f} GB"
    return ""


def survey_all(survey: Survey, members: list[Node], journal: Journal) -> dict[str, NodeReport]:
    """Reports of the nodes, all of which must be usable.

    Raises:
        UserError: One is not.
    """
    survey.ask(members)
    said: list[tuple[Node, NodeReport | str]] = []
    while survey.waiting:
        said += survey.answers(1.0)
    refused = [(node, why) for node, why in said if isinstance(why, str)]
    if refused:
        more = f" ({len(refused) - 1} more nodes cannot be used)" if len(refused) > 1 else ""
        raise UserError(f"node {refused[0][0].name} {refused[0][1]}{more}")
    reports = {node.id: report for node, report in said if isinstance(report, NodeReport)}
    unlocked = [node.name for node, _ in said if not reports[node.id].locked]
    if unlocked:
        journal.say(
            f"the lock of the run folder does not reach node {unlocked[0]}: the file system keeps locks to one "
            "machine, and a second run started there would not be refused"
        )
    return reports


def with_room(members: list[Node], asked: dict[Lane, Need], journal: Journal) -> list[Node]:
    """The nodes on which a worker has room; the others are named.

    Raises:
        UserError: There is none.
    """
    found = [n for n in members if n.seats(asked)]
    if not found:
        beside = " and 1 CPU for scoring beside it" if "plain" in asked and "model" in asked else ""
        want = asked.get("model") or asked["plain"]
        largest = max(members, key=lambda n: (n.gpus, n.cpus, n.memory))
        has = f"{largest.cpus:g} CPUs, {largest.gpus:g} GPUs and {largest.memory / 1e9:.1f} GB for Ray"
        raise UserError(
            f"no node of the cluster has room for a worker: it takes {want.said()}{beside}; the largest, "
            f"{largest.name}, has {has}. Lower hardware.threads or hardware.processes, or give Ray more of the node "
            "(ray start --num-cpus, --num-gpus, --memory)"
        )
    small = [n.name for n in members if n not in found and (n.cpus or n.gpus)]
    if small:
        more = f" and {len(small) - 1} more nodes are" if len(small) > 1 else " is"
        journal.say(f"{small[0]}{more} too small for a worker and left out (`ray status`, docs/cluster.md)")
    return found


def described(members: list[Node], reports: Mapping[str, NodeReport]) -> list[dict[str, Any]]:
    """The nodes for env.json."""
    return [
        {"host": n.name, "cpus": n.cpus, "gpus": [name for name, _ in reports[n.id].gpus], "memory": n.memory}
        for n in members
    ]
