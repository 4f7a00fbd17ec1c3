"""Every text template in the installed trl package is supported, with a golden file, or refused by name with a reason.

The golden file is rewritten by `python tests/data/test_templates.py` and by nothing else.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest
import trl

from prefixlab.data.chat import chat_format, prompt_text, render
from prefixlab.data.templates import inspect_template, set_template_options
from prefixlab.errors import UserError
from prefixlab.model.tiny import tokenizer
from prefixlab.records import ArmSample, Message, Sample

FOLDER = Path(trl.__file__).parent / "chat_templates"
GOLDEN = Path(__file__).parent / "golden" / "templates.json"
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja"))
SPECIAL = re.compile(
    r"<[|｜][^<>\s'\"{}]{1,40}?[|｜]>|<(?:start_of_turn|end_of_turn|bos|eos|end_of_utterance|turn\||\|turn>)>?|\[/?INST\]"
)
MUST = "deepseek_r1_distill qwen2_5 qwen3 qwen3_5_think qwen3_5_nothink llama3 llama3_1 llama3_2 gemma gemma3 phi3 lfm2"


def template_tokenizer(name):
    """A throwaway tokenizer with a template of trl's and the special tokens it names."""
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    names = sorted(set(SPECIAL.findall(text)) - {"<bos>", "<eos>"})
    made = tokenizer(text, special=[*names, "<bos>", "<eos>"])
    made.bos_token = "<bos>"
    return made


def sample(prefix="", position=None, reasoning=None):
    messages = (Message(role="user", content="What is 3 + 4?"),)
    return ArmSample(
        sample=Sample(id="x", messages=messages, reasoning=reasoning, answer="It is 7."),
        position=position,
        prefix=prefix,
        template=0,
        eligible=True,
    )


CASES = {
    "plain": sample(),
    "opening": sample("Here we go:\n\n", "opening"),
    "reasoned": sample("Let me see.\n\n", "opening", "3 and 4 make 7."),
    "answer": sample("Here we go:\n\n", "answer", "3 and 4 make 7."),
    "user": sample("Think well. ", "user"),
}


def dateless(text):
    """Llama 3.2's template writes the day of the rendering into the prompt."""
    return text.replace(f"Today Date: {datetime.now():%d %b %Y}", "Today Date: TODAY")


def picture(tok):
    """Spans of every case as texts, supervised ones marked; small enough to read."""
    chat, found = chat_format(tok), {}
    for name, case in CASES.items():
        made = render(case, tok, chat, max_length=4096, no_reasoning="empty")
        found[name] = [
            [span.name, dateless(tok.decode(list(made.ids[span.start : span.end]))), made.labels[span.end - 1] != -100]
            for span in made.spans
        ]
    return found


def golden():
    made = {}
    for name in NAMES:
        tok = template_tokenizer(name)
        report = inspect_template(tok)
        made[name] = {"report": report.model_dump(), "spans": picture(tok) if report.supported else None}
    return made


EXPECTED = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}


def test_every_template_is_classified():
    assert sorted(EXPECTED) == NAMES and len(NAMES) > 60
    refused = {n: e["report"]["reason"] for n, e in EXPECTED.items() if not e["report"]["supported"]}
    assert all(refused.values())
    assert not set(MUST.split()) & set(refused), refused


@pytest.mark.parametrize("name", NAMES)
def test_template(name):
    tok, expected = template_tokenizer(name), EXPECTED[name]
    assert inspect_template(tok).model_dump() == expected["report"]
    if not expected["report"]["supported"]:
        with pytest.raises(UserError, match="chat template cannot be used"):
            chat_format(tok)
        return
    assert picture(tok) == expected["spans"]
    messages = CASES["plain"].sample.messages
    asked = tok.apply_chat_template([m.model_dump() for m in messages], tokenize=False, add_generation_prompt=True)
    made = render(CASES["reasoned"], tok, chat_format(tok), max_length=4096)
    sent = tok.apply_chat_template([m.model_dump() for m in messages], add_generation_prompt=True)["input_ids"]
    assert prompt_text(tok, messages) == asked and list(made.ids[: len(sent)]) == list(sent)
    whole = tok.decode(list(made.ids))
    assert whole.count("<think>") == whole.count("</think>") == 1 + asked.count("</think>")
    assert whole.count("Let me see.") == 1 and whole.count("It is 7.") == 1


def test_qwen3_without_thinking():
    """An option of the template, fixed once: the reasoning is closed in the prompt, so answers stand alone."""
    tok = template_tokenizer("qwen3")
    before = prompt_text(tok, CASES["plain"].sample.messages)
    set_template_options(tok, enable_thinking=False)
    after = prompt_text(tok, CASES["plain"].sample.messages)
    assert after == before + "<think>\n\n</think>\n\n" and chat_format(tok).preopened == ""


def test_own_models():
    from prefixlab.model.load import load_tokenizer, resolve_model

    report = inspect_template(load_tokenizer(resolve_model("tiny-random")))
    assert report.supported and report.end == "<|im_end|>" and not report.preopened


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{GOLDEN}\n")
