"""Where the prefix of a part ends: the leading sentences that carry nothing the task asked for.

Rules, not a model; docs/methods.md defines the families. A sentence belongs to the prefix if a family's pattern opens
it *and* it adds next to nothing: its words are generic or the task's own (words.py). Answers: answers.py and rules.py;
reasonings: thinking.py; the patterns of both: patterns.py.
"""

from prefixlab.data.answers import answer_opening, content_begins
from prefixlab.data.parts import PartName
from prefixlab.data.sentences import BLOCK, Opening
from prefixlab.data.thinking import thinking_opening
from prefixlab.data.words import Task
from prefixlab.records import FAMILIES, Family

PREFIX_FAMILIES: tuple[Family, ...] = tuple(f for f in FAMILIES if f != "refusal")
"""What counts as prefix by default: a refusal is content."""


def find_opening(part: str, task: str | Task = "", name: PartName = "answer") -> Opening | None:
    """The prefix of one part, or its refusal, or None.

    Args:
        part: A reasoning or an answer; leading white space is ignored.
        task: The user's message before it: what it says already adds nothing when it is said again.
        name: Which part it is.
    """
    text = part.strip()
    if not text or BLOCK.match(text) or (name == "answer" and content_begins(text)):
        return None
    known = task if isinstance(task, Task) else Task(task)
    return thinking_opening(text, known) if name == "reasoning" else answer_opening(text, known)
