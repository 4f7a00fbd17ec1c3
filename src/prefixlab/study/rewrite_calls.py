"""Asking a teacher about every response: replies kept before they are used, retries, the cap, a stop without loss.

One event loop, `concurrency` workers over one list. Whatever stops a run (the budget, a signal, a teacher that does not
answer) only stops new requests: replies on their way are awaited and written down, and the next run goes on from there.
"""

import asyncio
from collections.abc import Callable, Sequence

from prefixlab.data.rewrite import Reply, Target, fill, read_reply, target_text
from prefixlab.evals.judging import Judge, JudgeDown
from prefixlab.evals.rewriting import Checked, check_correction, check_rewrite
from prefixlab.evals.teacher import Teacher, TeacherFailed
from prefixlab.study.rewrite_job import Outcome, RewriteJob, Stop
from prefixlab.study.rewrite_log import Asked, Got, Leaving, Lost, RewriteLog, Tokens, content_key

PAUSE = 3.0
"""Seconds before the first further try; each next one waits twice as long."""
LONGEST = 60.0
PATIENT = 600.0
"""Longest pause that a service may ask for; one that asks for more (a day's quota is used up) ends the run."""
SILENT = 3
"""Responses in a row without a reply after which a teacher counts as down; no fewer than there are workers."""


class Asking:
    """A run of a job.

    Args:
        job: What to ask, and how often.
        log: Requests and replies.
        teacher: Who is asked.
        judge: Of the mode `correct`.
        tell: Called with (responses done, of how many).
        pause: Seconds before the first further try.
    """

    def __init__(
        self,
        job: RewriteJob,
        log: RewriteLog,
        teacher: Teacher,
        judge: Judge | None,
        *,
        tell: Callable[[int, int], None] = lambda done, of: None,
        pause: float = PAUSE,
    ) -> None:
        self._job, self._log, self._teacher, self._judge = job, log, teacher, judge
        self._tell, self._first_pause = tell, pause
        self._in_flight = self._silent = 0
        self._turned_away: dict[str, str] = {}
        self._why: dict[str, str] = {}
        """By key, why a request has got no reply."""
        self._freed, self._ended = asyncio.Event(), asyncio.Event()
        self.stopped: Stop = ""
        self.message = ""
        """Why it stopped; else why the last response without a reply has none."""

    def leave(self) -> None:
        """Send nothing more. Other processes may wait for this one from now on."""
        if self.stopped != "interrupted":
            self._log.add(Leaving())
            self._stop("interrupted", "stopped by a signal")

    def _stop(self, why: Stop, message: str) -> None:
        if not self.stopped or why == "interrupted":
            self.stopped, self.message = why, message
        self._freed.set()
        self._ended.set()

    async def run(self, groups: Sequence[Sequence[Target]], *, judged: bool) -> dict[int, Outcome]:
        """What every response came to, by row.

        Args:
            groups: Targets about which the teacher is asked the same; they share its replies.
            judged: Whether they are known to be unsafe.
        """
        found: dict[int, Outcome] = {}
        queue, done = iter(groups), 0

        async def work() -> None:
            nonlocal done
            for same in queue:
                outcome = await self._settle(same[0], judged)
                found.update((target.row, outcome) for target in same)
                done += 1
                self._tell(done, len(groups))
                await asyncio.sleep(0)

        async def careful() -> None:
            try:
                await work()
            except BaseException:
                # The others send nothing more; what is on its way to them is paid for, and is awaited.
                self._stop("failed", "")
                raise

        workers = [careful() for _ in range(min(self._job.concurrency, len(groups)))]
        for ended in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended
        return found

    async def _settle(self, target: Target, judged: bool) -> Outcome:
        job = self._job
        text = fill(job.instructions, target, job.form)
        reasons: list[str] = []
        keys: list[str] = []
        try:
            if self._judge is not None and not judged:
                first = await self._original(target)
                if first is not None:
                    return first
            for attempt in range(1, job.attempts + 1):
                key = content_key(job.settings, text, attempt)
                asked = text if attempt == 1 else fill(job.instructions, target, job.form, reasons[-1])
                got = self._log.got.get(key) or await self._reply(key, asked)
                if got is None:
                    if key in self._turned_away:
                        why = f"turned away by the teacher's provider: {self._turned_away[key]!r}"
                        return Outcome("refused", reasons=(*reasons, why), keys=tuple(keys))
                    return Outcome("open", reasons=(*reasons, self._why.get(key, "not asked")), keys=tuple(keys))
                keys.append(key)
                reply = read_reply(got.text, target.thinks(job.form))
                checked = await self._checked(target, got, reply)
                if not checked.reason and not isinstance(reply, str):
                    return Outcome("rewritten", reply, tuple(reasons), tuple(keys), checked.final_answer)
                reasons.append(checked.reason)
            return Outcome("refused", reasons=tuple(reasons), keys=tuple(keys))
        except JudgeDown as error:
            self._stop("judge", str(error))
            return Outcome("open", reasons=(*reasons, "the judge gave no verdict"), keys=tuple(keys))

    async def _original(self, target: Target) -> Outcome | None:
        """What a response that needs no correction comes to; None where it is unsafe."""
        assert self._judge is not None
        if self.stopped:
            return Outcome("open", reasons=("not asked",))
        text = target.answer if self._judge.name == "rules" else target_text(target.reasoning, target.answer)
        said = await self._judge.judge(target.prompt, text)
        if said.verdict == "unsafe":
            return None
        if said.verdict == "safe":
            return Outcome("kept")
        return Outcome("skipped", reasons=(f"the judge gave no verdict on the response ({said.reason})",))

    async def _checked(self, target: Target, got: Got, reply: Reply | str) -> Checked:
        if self._judge is not None:
            return await check_correction(target, got.stop, reply, self._judge)
        # In a thread, since a formula can take math-verify seconds.
        return await asyncio.to_thread(check_rewrite, target, got.stop, reply)

    async def _reply(self, key: str, text: str) -> Got | None:
        """Ask until there is a reply, trying again as often as the job says; None where there is none."""
        job, log, most = self._job, self._log, self._job.most(text)
        for n in range(job.retries + 1):
            if not await self._admitted(most):
                return None
            call = log.calls + 1
            log.add(Asked(key=key, call=call, most=most))
            self._in_flight += 1
            try:
                said = await self._teacher.ask(text)
            except TeacherFailed as error:
                failed = error
                log.add(Lost(key=key, call=call, why=str(error), free=error.free))
            else:
                self._silent = 0
                got = Got(
                    key=key,
                    call=call,
                    text=said.text,
                    stop=said.stop,
                    tokens_in=said.tokens_in,
                    tokens_out=said.tokens_out,
                )
                log.add(got)
                return got
            finally:
                self._in_flight -= 1
                self._freed.set()
            self._why[key] = f"no reply: {str(failed)!r}"
            if failed.hopeless:
                self._stop("teacher", f"teacher {job.teacher!r} turns requests away ({failed})")
                return None
            if failed.wait > PATIENT:
                self._stop("teacher", f"teacher {job.teacher!r} asks to wait {failed.wait:,.0f} s ({failed})")
                return None
            if not failed.again:
                self._turned_away[key] = str(failed)
                if log.got:  # a teacher that answers others is not down
                    self.message = self.message if self.stopped else str(failed)
                    return None
                break
            if n < job.retries:
                await self._wait(failed.wait or min(LONGEST, self._first_pause * 2**n))
        last = self._turned_away.get(key) or self._why[key]
        self._silent += 1
        if not self.stopped:
            self.message = last
        if self._silent >= max(SILENT, job.concurrency):
            self._stop(
                "teacher",
                f"teacher {job.teacher!r} gave no reply about {self._silent} responses in a row; last: {last}",
            )
        return None

    async def _wait(self, seconds: float) -> None:
        """A pause that a stop cuts short."""
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    async def _admitted(self, tokens: Tokens) -> bool:
        """Whether a request may be sent: not after a stop, and not if the cap could be passed."""
        budget, most = self._job.budget, self._job.cost(*tokens) or 0.0
        while not self.stopped:
            if budget is None or self._log.spent + most <= budget:
                return True
            if not self._in_flight:
                self._stop(
                    "budget",
                    f"budget ${budget:g}: ${self._log.spent:.4f} is spent, and the next request can cost up to "
                    f"${most:.4f}",
                )
                break
            # Requests on their way count at their most, so that a reply frees a part of the budget.
            self._freed.clear()
            await self._freed.wait()
        return False
