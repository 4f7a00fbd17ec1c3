"""The executor of a Ray cluster: a small loop that keeps every worker busy with what `Schedule` says is next.

A worker is an actor on a node that was looked at first. It holds its CPUs, GPUs and memory, and its loaded base, until
nothing of its lane is left. The run folder lies on a file system that all nodes share; the driver holds its lock, and
only word of what is done travels through Ray. A step that is lost with its worker is started again elsewhere.
"""

import os
import secrets
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.util.queue import Queue

from prefixlab.errors import Stopped, UserError
from prefixlab.study.cluster import Node, last_line, nodes, on
from prefixlab.study.execute import Journal, Work, write_environment
from prefixlab.study.host import PASSED_ON, Host
from prefixlab.study.needs import Need, needs
from prefixlab.study.schedule import Lane, Schedule, base_of
from prefixlab.study.steps import Step
from prefixlab.study.survey import Survey, described, survey_all, with_room

if TYPE_CHECKING:
    from prefixlab.study.launch import Result

CENSUS = 5.0
"""Seconds between two looks at the cluster's nodes, and at what workers tell."""
RETRIES = 3
"""How often a step is started again after its worker was lost; a step that kills its workers must end."""
BOOTS = 3
"""How many workers may fail to start on a node, none in between having started, before it is left out."""
ROOM = 60.0
"""Seconds after which is said that workers wait for CPUs, GPUs or memory that other work on the cluster holds."""
DESERTED = 120.0
"""Seconds without a node that can do a step before the run ends."""
SAVING = 60.0
"""Seconds that steps in progress have to save a checkpoint once a signal asked for an end."""
PAUSE = 0.5
"""Seconds that the loop waits for the end of a step before it looks for signals and nodes."""


@dataclass
class _Seat:
    """A worker and what it is at."""

    lane: Lane
    node: Node
    actor: Any
    base: str = ""
    step: Step | None = None
    since: float = field(default_factory=time.monotonic)


@dataclass
class _Driver:
    """The loop over one run."""

    work: Work
    journal: Journal
    needs: dict[Lane, Need]
    survey: Survey
    usable: set[str]
    """Nodes that may be used."""
    stop_file: str
    schedule: Schedule = field(init=False)
    seats: dict[Any, _Seat] = field(default_factory=dict)
    """The future that a seat waits for, its start or its step -> the seat; idle ones are in `idle`."""
    idle: list[_Seat] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    boots: Counter[str] = field(default_factory=Counter)
    """Node -> workers that failed to start, one after the other."""
    counted: float = 0.0
    alone_since: float | None = None
    told_of_room: bool = False

    def __post_init__(self) -> None:
        gpus = self.work.plan.hardware.device == "cuda"
        self.schedule = Schedule(self.work.pending, self.work.done(), gpus=gpus)
        here = ray.get_runtime_context().get_node_id()
        # Started again should it be killed: nothing but progress is lost with it.
        lasting = {"max_restarts": -1, "max_task_retries": -1}
        self.words = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on(here), **lasting})

    def left(self) -> int:
        """Steps that are neither done nor given up."""
        return sum(self.schedule.left(lane) for lane in self.needs)

    def turn(self) -> None:
        """Staff the nodes, hand out steps, and take in what ended."""
        if time.monotonic() - self.counted >= CENSUS:
            self.counted = time.monotonic()
            self.staff(nodes())
            self.hear()
        self.assign()
        self.collect()

    def staff(self, members: list[Node]) -> None:
        """Start workers where there is room for more and work is left for them; nodes that joined are looked at."""
        self.welcome([n for n in members if n.seats(self.needs)])
        up = {n.id for n in members}
        self.idle = [s for s in self.idle if s.node.id in up]  # a step given to a lost one would count as lost too
        usable = [n for n in members if n.id in self.usable and n.seats(self.needs)]
        everyone = [*self.seats.values(), *self.idle]
        taken = Counter((s.lane, s.node.id) for s in everyone)
        busy = Counter(s.lane for s in everyone)
        for lane, need in self.needs.items():
            # Round by round, so that few workers lie on many nodes.
            for round_ in range(max((n.seats(self.needs) for n in usable), default=0)):
                for node in usable:
                    if taken[lane, node.id] <= round_ < node.seats(self.needs) and busy[lane] < self.schedule.left(
                        lane
                    ):
                        self.start(lane, need, node)
                        taken[lane, node.id] += 1
                        busy[lane] += 1
        self.journal.lanes(max(1, sum(busy.values())))
        self.tell_of_room()
        if usable:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = time.monotonic()
        elif time.monotonic() - self.alone_since > DESERTED:
            raise UserError(
                f"no node of the cluster has been able to do a step for {DESERTED:.0f} s; finished steps are kept: run "
                "the same command again when nodes are back"
            )

    def welcome(self, members: list[Node]) -> None:
        """Ask nodes that joined what they are, and take in those that have said it."""
        asked = {node.id for node, _ in self.survey.waiting.values()}
        self.survey.ask([n for n in members if n.id not in self.usable | self.refused | asked])
        for node, said in self.survey.answers():
            if isinstance(said, str):
                self.refused.add(node.id)
                self.journal.say(f"node {node.name} joined and is left out: it {said}")
            else:
                self.usable.add(node.id)
                self.journal.say(f"node {node.name} joined")

    def tell_of_room(self) -> None:
        """Say once that nothing goes on since other work has the cluster."""
        waiting = [time.monotonic() - s.since for s in self.seats.values() if s.step is None]
        if waiting and len(waiting) == len(self.seats) and min(waiting) > ROOM and not self.told_of_room:
            self.told_of_room = True
            self.journal.say(
                f"no worker has started for {ROOM:.0f} s: other work may hold the cluster's CPUs, GPUs or memory "
                "(`ray status` shows it); waiting for it to end"
            )

    def start(self, lane: Lane, need: Need, node: Node) -> None:
        """Start a worker on a node."""
        words: Any = self.words.actor

        def told(slug: str, share: float) -> None:
            words.put_nowait.remote((slug, share))  # nobody waits for it; lost with the driver at worst

        kind = ray.remote(Host).options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory,
            max_restarts=0,
            scheduling_strategy=on(node.id),
        )
        root = str(self.work.store.root.absolute())
        variables = {k: os.environ[k] for k in PASSED_ON if k in os.environ}
        actor: Any = kind.remote(
            root, self.work.study, self.work.plan.study, os.getcwd(), variables, self.stop_file, told
        )
        self.seats[actor.__ray_ready__.remote()] = _Seat(lane, node, actor)

    def assign(self) -> None:
        """Give every idle worker its next step; one for which nothing is left goes and frees what it held."""
        held = {
            lane: Counter(s.base for s in (*self.seats.values(), *self.idle) if s.lane == lane) for lane in self.needs
        }
        waiting, self.idle = self.idle, []
        for seat in waiting:
            held[seat.lane][seat.base] -= 1
            step = self.schedule.take(seat.lane, seat.base, held[seat.lane])
            if step is None:
                others = sum(s.lane == seat.lane for s in self.seats.values())
                if self.schedule.left(seat.lane) <= others:
                    ray.kill(seat.actor)
                else:
                    held[seat.lane][seat.base] += 1
                    self.idle.append(seat)
                continue
            seat.step, seat.base = step, base_of(step) or seat.base
            held[seat.lane][seat.base] += 1
            self.journal.begin(step)
            self.seats[seat.actor.do.remote(step, secrets.token_hex(4))] = seat

    def collect(self) -> None:
        """Take in what ended, waiting a moment for it."""
        if not self.seats:
            time.sleep(PAUSE)
            return
        ready, _ = ray.wait(list(self.seats), num_returns=1, timeout=PAUSE)
        if ready:  # those that ended together
            ready, _ = ray.wait(list(self.seats), num_returns=len(self.seats), timeout=0)
        for ref in ready:
            seat = self.seats.pop(ref)
            try:
                result = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error, OSError):  # a defect; its text has the worker's traceback
                    raise
                self.lost(seat, error)  # the node's file system or network fails
            except ray.exceptions.RayError as error:
                self.lost(seat, error)
            else:
                self.arrived(seat, result)

    def hear(self) -> None:
        """Pass on how far steps are."""
        at = {s.step.slug: s.step for s in self.seats.values() if s.step is not None}
        for slug, share in self.words.get_nowait_batch(self.words.size()):
            if slug in at:
                self.journal.tick(at[slug], share)

    def arrived(self, seat: _Seat, result: "Result | bool") -> None:
        """A worker is up, or has ended a step."""
        if seat.step is None:
            self.boots[seat.node.id] = 0
            self.idle.append(seat)
            return
        assert not isinstance(result, bool)
        step, seat.step = seat.step, None
        self.idle.append(seat)
        if result.kind == "user error":
            raise UserError(result.message)
        if result.kind == "stopped":
            self.journal.drop(step)
            self.schedule.again(step)
            return
        if result.kind == "step error":
            self.give_up(step, result.message)
            return
        self.schedule.end(step)
        self.journal.end(step)

    def lost(self, seat: _Seat, error: Exception) -> None:
        """A worker is gone: its step waits again, unless it has lost too many."""
        ray.kill(seat.actor)
        self.counted = 0.0
        said = last_line(error)
        if seat.step is None:
            self.no_start(seat.node, said)
            return
        step = seat.step
        self.losses[step.slug] += 1
        self.journal.drop(step)
        if self.losses[step.slug] > RETRIES:
            self.give_up(
                step, f"its worker was lost {self.losses[step.slug]} times, the last on {seat.node.name}: {said}"
            )
            return
        self.journal.say(f"worker on {seat.node.name} lost; {step.slug} is done again elsewhere")
        self.schedule.again(step)

    def no_start(self, node: Node, said: str) -> None:
        """A worker did not start: a node on which several do not is left out."""
        self.boots[node.id] += 1
        if self.boots[node.id] < BOOTS or node.id not in {n.id for n in nodes()}:
            return
        self.usable.discard(node.id)
        self.refused.add(node.id)
        why = f"{BOOTS} workers in a row could not be started on node {node.name}: {said}"
        if not self.usable:
            raise UserError(why)
        self.journal.say(f"{why}; it is left out")

    def give_up(self, step: Step, reason: str) -> None:
        """A step failed, and with it those that need it."""
        self.journal.fail(step, reason)
        for follower, need in self.schedule.fail(step):
            self.journal.blocked(follower, f"needs {need}, which failed")

    def wind_up(self) -> None:
        """Let steps in progress save what they have; finished ones are still taken in."""
        end = time.monotonic() + SAVING
        while time.monotonic() < end and any(
            s.step is not None and s.step.kind == "train" for s in self.seats.values()
        ):
            self.collect()

    def dismiss(self) -> None:
        """Let all workers go, and with them what they hold; tables and report need none."""
        for seat in (*self.seats.values(), *self.idle):
            ray.kill(seat.actor)
        self.words.shutdown(force=True)


class RayExecutor:
    """Does a study's steps on the cluster that this process has joined (`cluster.joined`)."""

    def __call__(self, work: Work, journal: Journal) -> None:
        """Do the work.

        Raises:
            UserError: A node cannot be used, no node has room for a step, or what `Executor` says.
            Stopped: A signal asked for an end; checkpoints were saved.
        """
        if work.study.serving is not None and work.study.serving.command is not None:
            raise UserError(
                "serving.command starts a server on one machine, and a cluster has several; start it yourself where "
                "every worker reaches it, and name it as serving.base_url"
            )
        asked = needs(work.plan, work.pending)
        members = with_room(nodes(), asked, journal)
        survey = Survey(work, asked.get("model"))
        try:
            reports = survey_all(survey, members, journal)
            write_environment(work.store, nodes=described(members, reports))
            seats = sum(n.seats(asked) for n in members)
            takes = (asked.get("model") or asked["plain"]).said()
            journal.say(f"{len(members)} nodes with room for {seats} workers of {takes}")
            _drive(work, journal, asked, survey, set(reports))
        finally:
            survey.close()


def _drive(work: Work, journal: Journal, asked: dict[Lane, Need], survey: Survey, usable: set[str]) -> None:
    """Do the steps on nodes that were looked at.

    Raises:
        UserError: See `RayExecutor`.
        Stopped: A signal asked for an end.
    """
    from prefixlab.model.trainer import StopRequest  # noqa: PLC0415  (torch)

    stop_file = work.store.root.absolute() / f".stop-{secrets.token_hex(4)}"
    # There from the start: a node remembers for a minute that a file on NFS is missing, but looks into one that is not.
    stop_file.touch()
    stop = StopRequest()
    try:
        driver = _Driver(work, journal, asked, survey, usable, str(stop_file))
        with journal.running(), stop.listening():
            try:
                while driver.left() and stop.signal is None:
                    driver.turn()
                if stop.signal is not None:
                    stop_file.write_text(str(int(stop.signal)))
                    driver.wind_up()
                    raise Stopped(
                        stop.signal, f"stopped by {signal.Signals(stop.signal).name}; what is finished is kept"
                    )
            finally:
                driver.dismiss()
        work.store.sweep()  # what lost workers left half-written
    finally:
        stop_file.unlink(missing_ok=True)
