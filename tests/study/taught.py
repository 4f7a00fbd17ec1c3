"""Jobs of `prefixlab rewrite` in this process, and scripted teachers for them: they know the answers."""

import asyncio
import json

from chat_server import Reply
from prefixlab.data.rewrite import load_instructions
from prefixlab.evals.judges import RulesJudge
from prefixlab.study.rewrite_calls import Asking
from prefixlab.study.rewrite_job import RewriteJob
from prefixlab.study.rewrite_log import RewriteLog
from prefixlab.study.rewrite_worker import teacher_of
from prefixlab.study.rewriting import grouped, read_work, report_of, row_records, unasked, write_outputs

NAME = "openai-api/taught/teacher-1"
AGAIN = "An earlier reply of yours could not be used: "


def rows(n=6):
    return [
        {
            "id": f"r{i}",
            "question": f"What is {i} + {i}?",
            "answer": f"Sure! {i} + {i} = {2 * i}.\n#### {2 * i}",
            "n": i,
        }
        for i in range(n)
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def number_in(text):
    return int(text.split("What is ")[1].split(" ")[0])


def good(text):
    i = number_in(text)
    return f"<answer>\nTwice {i} is {2 * i}.\n#### {2 * i}\n</answer>"


def answering(change):
    """Replies of a scripted teacher: `change` gets the user's turn and gives a text or a Reply."""

    def reply(body):
        said = change(body["messages"][-1]["content"])
        return said if isinstance(said, Reply) else Reply(text=said)

    return reply


def job_of(tmp_path, lines=None, **changes):
    path = tmp_path / "d.jsonl"
    if not path.exists():
        write(path, rows() if lines is None else lines)
    mode = changes.get("mode", "rewrite")
    fields = {
        "source": str(path),
        "out": tmp_path / "o.jsonl",
        "teacher": NAME,
        "instructions": load_instructions(None, mode),
        "concurrency": 2,
        "max_tokens": 50,
        "timeout": 20,
    }
    return RewriteJob(**(fields | changes))


def do(job, leave_after=None):
    """The job in this process; `leave_after`: as if the command ended after so many responses."""

    async def run():
        work = read_work(job)
        groups = grouped(job, work.targets)
        teacher = teacher_of(job)
        judge = RulesJudge() if job.mode == "correct" else None
        with RewriteLog(job.log_path, job.settings, cost=job.cost, wait=0) as log:
            unasked(job, groups, log)

            def tell(done, of):
                if done == leave_after:
                    asking.leave()

            asking = Asking(job, log, teacher, judge, tell=tell, pause=0.01)
            outcomes = await asking.run(groups, judged=work.judged)
            found = row_records(work, groups, outcomes, log)
            report = report_of(job, work, found, log, asking.stopped, asking.message)
            write_outputs(job, work, outcomes, report, found)
        return report

    return asyncio.run(run())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]
