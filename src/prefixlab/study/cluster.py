"""A Ray cluster as a study needs it: joined within seconds or not at all.

Ray is an optional dependency; this module, `survey.py` and `ray_executor.py` alone import it.
"""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefixlab.errors import UserError
from prefixlab.study.needs import Need
from prefixlab.study.schedule import Lane

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError(
        f"--executor ray needs Ray, which is not installed ({error}): pip install 'prefixlab[ray]'"
    ) from error

ANSWER, JOIN = 5.0, 25.0
"""Seconds that the head has to take a connection, and a process to join its cluster, which takes two or three."""
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b", re.M)
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


def check_address(address: str, named: str = "--address") -> None:
    """Refuse an address at which no cluster answers.

    Ray itself tries a wrong one for minutes and ends the process where it gives up: so another process tries first.

    Args:
        address: HOST:PORT, or auto.
        named: Where it comes from.

    Raises:
        UserError: No address, Ray Client's, no Ray head there, or one of another version.
    """
    found = ADDRESS.fullmatch(address)
    if found is None and address != "auto":
        raise UserError(
            f"{named} {address!r}: write HOST:PORT as `ray start --head` shows it, or auto for the cluster of this "
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
        why = _last_error(error.stderr)
        if "AuthToken" in error.stderr:
            why = "it asks for a token: set RAY_AUTH_MODE=token here too, and have the head's ~/.ray/auth_token"
        if "Version mismatch" in why:
            raise UserError(f"{named} {address!r}: {why}; install the same versions here and there") from None
    raise UserError(
        f"{named} {address!r}: no Ray head answers there ({why}); `ray status` on the head shows whether the cluster "
        "is up, `ray start --head` starts one"
    )


def _last_error(text: str) -> str:
    """The message that a Python process ended with, in one line."""
    found = [m.start() for m in ERROR.finditer(text)]
    words = " ".join(text[found[-1] if found else 0 :].split())
    return words[:300] or "no reason given"


def last_line(error: Exception) -> str:
    """What Ray says last, which is the reason; what comes before names its own processes."""
    return str(error).strip().splitlines()[-1].strip()[:200]


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """This process as a driver of a cluster.

    Args:
        address: HOST:PORT of the head, or auto; None for $RAY_ADDRESS, else the cluster of this machine, else a new
            one of this machine alone, which ends with the block.

    Raises:
        UserError: There is no cluster, or one of another version.
    """
    named = "--address" if address else "$RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody
    if address is not None:
        check_address(address, named)
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
