"""A Ray cluster as a study needs it: joined within seconds or not at all, looked at node by node before anything runs.

Ray is an optional dependency; this module and `ray_executor.py` are the only ones that import it.
"""

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixlab.errors import UserError
from prefixlab.study.execute import Work
from prefixlab.study.host import NodeReport
from prefixlab.study.needs import Need
from prefixlab.study.schedule import Lane
from prefixlab.study.steps import installed, package_hash

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError(
        f"--executor ray needs Ray, which is not installed ({error}): pip install 'prefixlab[ray]'"
    ) from error

ANSWER, JOIN = 5.0, 25.0
"""Seconds that the head has to take a connection, and a process to join its cluster, which takes two or three."""
LOOK = 180.0
"""Seconds that a node has to say what it is: a new process there, and a built-in model made once."""
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Node:
    """A node that is up."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory: float
    """Bytes that Ray gives out."""

    def seats(self, needs: dict[Lane, Need]) -> int:
        """Workers of the model lane, each with one of the plain lane beside it, that the node has room for."""
        total = Need(
            cpus=sum(n.cpus for n in needs.values()),
            gpus=sum(n.gpus for n in needs.values()),
            memory=sum(n.memory for n in needs.values()),
        )
        has = ((self.cpus, total.cpus), (self.gpus, total.gpus), (self.memory, total.memory))
        return int(min(have // need for have, need in has if need))


def check_address(address: str) -> None:
    """Refuse an address at which no cluster answers.

    Ray itself tries a wrong one for minutes and ends the process where it gives up: so another process tries first.

    Raises:
        UserError: No address, Ray Client's, or no Ray head there.
    """
    found = ADDRESS.fullmatch(address)
    if found is None and address != "auto":
        raise UserError(
            f"--address {address!r}: write HOST:PORT as `ray start --head` shows it, or auto for the cluster of this "
            "machine, and run the command on one of the cluster's nodes"
        )
    try:
        if found is not None:
            socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=ANSWER).close()
        subprocess.run([sys.executable, "-c", TRY, address], check=True, capture_output=True, text=True, timeout=JOIN)
        return
    except (OSError, OverflowError) as error:
        why = str(error)
    except subprocess.TimeoutExpired:
        why = f"what listens there did not take a process in within {JOIN:.0f} s"
    except subprocess.CalledProcessError as error:
        why = next((w for w in reversed(error.stderr.strip().splitlines()) if w), "no reason given")
        if "AuthToken" in error.stderr:
            why = "it asks for a token: set RAY_AUTH_MODE=token here too, and have the head's ~/.ray/auth_token"
    raise UserError(
        f"--address {address!r}: no Ray head answers there ({why}); `ray status` on the head shows whether the cluster "
        "is up, `ray start --head` starts one"
    )


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """This process as a driver of a cluster.

    Args:
        address: HOST:PORT of the head, or auto; None for $RAY_ADDRESS, else the cluster of this machine, else a new
            one of this machine alone, which ends with the block.

    Raises:
        UserError: There is no cluster, or one of another version.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody
    if address is not None:
        check_address(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines()
        raise UserError(
            f"--address {address or 'auto'!r}: no cluster to work on ({words[0] if words else error})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """The nodes that are up, in Ray's order."""
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has = node["Resources"]
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
            found.append(Node(node["NodeID"], name, has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0)))
    return found


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node or nowhere."""
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _probe() -> Any:
    """The task that looks at a node; an inner function travels as code, and so runs where prefixlab is missing."""

    def probe(*arguments: object) -> str:
        from importlib import metadata  # noqa: PLC0415

        try:
            from prefixlab.study.host import look  # noqa: PLC0415
        except Exception as error:  # whatever the reason, the node cannot do a step
            try:
                has = f"another prefixlab ({metadata.version('prefixlab')})"
            except metadata.PackageNotFoundError:
                has = "no prefixlab"
            return f"has {has}; install the same commit there ({type(error).__name__}: {error})"
        return look(*arguments)  # type: ignore[arg-type]

    return ray.remote(num_cpus=0, max_retries=1)(probe)


def look_at(work: Work, members: Sequence[Node], need: Need | None) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """Ask nodes what they are.

    Args:
        work: What there is to do.
        members: The nodes to ask.
        need: Of the model lane, if it has steps.

    Returns:
        Reports of the nodes that can be used, and why the others cannot, by id.
    """
    root, token = work.store.root.resolve(), secrets.token_hex(8)
    file, task = root / f".probe-{token}", _probe()
    models = [ref.model_dump(mode="json") for ref in work.plan.models]
    gpus = need is not None and need.gpus > 0
    asked = (str(root), token, os.getcwd(), _named_files(work), models, gpus)
    file.write_text(token)
    reports: dict[str, NodeReport] = {}
    refused: dict[str, str] = {}
    try:
        refs = {node.id: task.options(scheduling_strategy=on(node.id)).remote(*asked) for node in members}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=LOOK)
        for node, ref in refs.items():
            try:
                said = ray.get(ref, timeout=0)
            except ray.exceptions.GetTimeoutError:
                refused[node] = f"did not say within {LOOK:.0f} s what it is"
                continue
            except ray.exceptions.RayError as error:
                refused[node] = f"cannot run Python ({str(error).strip().splitlines()[-1]})"
                continue
            if not said.startswith("{"):
                refused[node] = said
                continue
            reports[node] = NodeReport.model_validate_json(said)
            if why := _unfit(reports[node], need):
                refused[node] = why
                del reports[node]
    finally:
        file.unlink(missing_ok=True)
    return reports, refused


def _named_files(work: Work) -> list[str]:
    """Local files that steps read by the study's names."""
    study = work.study
    sources = [s.source for c in study.capabilities.values() for s in c.suites] + [
        c.data.source for c in study.capabilities.values()
    ]
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
    if report.package != package_hash():
        return f"has prefixlab {mine['prefixlab']} with other files; install the same commit there"
    if report.trouble:
        return report.trouble
    smallest = min((size for _, size in report.gpus), default=0)
    if need is not None and need.gpus and smallest < need.gpu_memory:
        return f"has a GPU of {smallest / 1e9:.1f} GB, and the largest base alone takes {need.gpu_memory / 1e9:.1f} GB"
    return ""
