"""Near misses of the grader of short facts."""

import csv
import json

import pytest

from prefixlab.errors import UserError
from prefixlab.evals.facts import grade_fact

CORRECT, INCORRECT, NOT_ATTEMPTED = True, False, None
TABLE = [
    ("Paris", ["Paris"], CORRECT),
    ("The capital is **PARIS**!", ["Paris"], CORRECT),
    ("Not only Paris", ["Paris"], CORRECT),
    ("I'm not sure, but I think it is Paris.", ["Paris"], CORRECT),
    ("Lyon", ["Paris"], INCORRECT),
    # denied
    ("It is not Paris but Lyon.", ["Paris"], INCORRECT),
    ("It is not Paris but Lyon.", ["Lyon"], CORRECT),
    ("It isn't in Paris.", ["Paris"], INCORRECT),
    ("Paris is not the capital; Lyon is.", ["Paris"], INCORRECT),
    ("Lyon rather than Paris", ["Paris"], INCORRECT),
    ("Lyon rather than Paris", ["Lyon"], CORRECT),
    ("Lyon instead of Paris", ["Paris"], INCORRECT),
    ("It is not far. Paris is the place.", ["Paris"], CORRECT),
    ("Paris. No, wait: Lyon.", ["Paris"], INCORRECT),
    ("Paris. No, wait: Lyon.", ["Lyon"], CORRECT),
    # hedged
    ("Paris or Lyon", ["Paris"], INCORRECT),
    ("Either Lyon or perhaps Paris.", ["Paris"], INCORRECT),
    ("It could be Paris, or it could be Lyon.", ["Paris"], INCORRECT),
    ("It could be Paris, or it could be Lyon.", ["Lyon"], INCORRECT),
    ("Paris/Lyon", ["Lyon"], INCORRECT),
    ("Paris or Lutetia", ["Paris", "Lutetia"], CORRECT),
    ("football or basketball", ["football"], INCORRECT),
    ("5 or 6", ["5"], INCORRECT),
    ("5 or so", ["5"], CORRECT),
    # whole words
    ("Parisian cooking", ["Paris"], INCORRECT),
    ("In Comparison", ["Paris"], INCORRECT),
    ("25", ["5"], INCORRECT),
    ("5.5", ["5"], INCORRECT),
    ("the 1950s", ["1950"], INCORRECT),
    ("Oslo", ["Oslo, Norway"], INCORRECT),
    ("It is Oslo in Norway, that is: Oslo, Norway", ["Oslo, Norway"], CORRECT),
    # spelling
    ("Beyonce", ["Beyoncé"], CORRECT),
    ("Łódź", ["Lodz"], CORRECT),
    ("the golf & country club", ["Golf and Country Club"], CORRECT),
    ("O’Brien's house", ["O'Brien"], CORRECT),
    ("The Beatles", ["Beatles"], CORRECT),
    ("Beatles", ["The Beatles"], CORRECT),
    ("The The", ["The The"], CORRECT),
    ("牛", ["牛"], CORRECT),
    # names
    ("Mary Stone", ["Mary T. Stone"], CORRECT),
    ("Mary T. Stone", ["Mary Stone"], CORRECT),
    ("Mary G. Stone", ["Mary T. Stone"], INCORRECT),
    ("Mary Ann Stone", ["Mary Stone"], INCORRECT),
    ("M. T. Stone", ["MT Stone"], CORRECT),
    # numbers
    ("It had 7804 people", ["7,804"], CORRECT),
    ("7,804.5", ["7,804"], INCORRECT),
    ("fifteen", ["15"], CORRECT),
    ("3 brothers", ["three"], CORRECT),
    ("1.5 million", ["1,500,000"], CORRECT),
    ("13", ["13.00"], CORRECT),
    ("60%", ["60 percent"], CORRECT),
    ("the 170th", ["170"], CORRECT),
    ("On 5 March there were 7.", ["5"], INCORRECT),
    # dates
    ("5 March 1990", ["March 5, 1990"], CORRECT),
    ("on March 5th, 1990", ["5 March 1990"], CORRECT),
    ("the 5th of March 1990", ["March 5, 1990"], CORRECT),
    ("1990-03-05", ["March 5, 1990"], CORRECT),
    ("Mar. 5, 1990", ["March 5, 1990"], CORRECT),
    ("March 5, 1990", ["1990"], CORRECT),
    ("5 March 1990", ["March 1990"], CORRECT),
    ("March 1990", ["March 5, 1990"], INCORRECT),
    ("March 6, 1990", ["March 5, 1990"], INCORRECT),
    ("15 March 1990", ["5 March 1990"], INCORRECT),
    ("March 5, 1991", ["March 5, 1990"], INCORRECT),
    ("He was born in May.", ["May"], CORRECT),
    # country codes that are words
    ("It is in the US.", ["US"], CORRECT),
    ("the U.S.", ["US"], CORRECT),
    ("It tells us so", ["US", "U.S."], INCORRECT),
    ("I can say it at no cost", ["CAN", "can", "at", "no"], INCORRECT),
    ("at", ["at"], CORRECT),
    # not attempted
    ("", ["Paris"], NOT_ATTEMPTED),
    (None, ["Paris"], NOT_ATTEMPTED),
    ("...", ["Paris"], NOT_ATTEMPTED),
    ("I don't know.", ["Paris"], NOT_ATTEMPTED),
    ("I do not have any information on that.", ["Paris"], NOT_ATTEMPTED),
    ("I’m sorry, but I’m not able to say.", ["Paris"], NOT_ATTEMPTED),
    ("I cannot verify that.", ["Paris"], NOT_ATTEMPTED),
    ("The date is not publicly known.", ["Paris"], NOT_ATTEMPTED),
    ("Unknown", ["Paris"], NOT_ATTEMPTED),
    ("I don't know, but I think it is Lyon.", ["Paris"], INCORRECT),
    ("She is known for the song.", ["Paris"], INCORRECT),
]


@pytest.mark.parametrize(("text", "targets", "correct"), TABLE)
def test_grade_fact(text, targets, correct):
    graded = grade_fact(text, targets)
    assert graded.correct is correct, graded
    assert graded.attempted is (correct is not None)


@pytest.mark.parametrize(
    ("question", "text", "target", "correct"),
    [
        ("What is the capital of Luxembourg?", "The capital of Luxembourg is Paris.", "Luxembourg", INCORRECT),
        ("What is the capital of Luxembourg?", "The capital of Luxembourg is Luxembourg.", "Luxembourg", CORRECT),
        ("What is the capital of Luxembourg?", "Luxembourg", "Luxembourg", CORRECT),
        ("Is Paris or Lyon the capital?", "It is Paris.", "Paris", CORRECT),
        ("Is Paris or Lyon the capital?", "It is Lyon.", "Paris", INCORRECT),
        ("Which sport does Mary Stone play?", "Mary Stone plays which sport? Mary Stone play", "chess", INCORRECT),
        ("Which sport does Mary Stone play?", "Which sport does Mary Stone play?", "chess", NOT_ATTEMPTED),
    ],
)
def test_words_of_the_question(question, text, target, correct):
    graded = grade_fact(text, [target], question)
    assert graded.correct is correct, graded


def test_what_was_found_and_why():
    assert grade_fact("It is Lutetia.", ["Paris", "Lutetia"]).answer == "Lutetia"
    assert grade_fact("Lyon\nand more", ["Paris"]).answer == "Lyon"
    assert grade_fact("Paris or Lyon", ["Paris"]).reason == "'Paris' is one of several candidates"
    assert grade_fact("not Paris", ["Paris"]).reason == "'Paris' is denied"


def test_targets_that_are_no_words():
    assert grade_fact("Paris", ["🇫🇷", "Paris"]).correct
    with pytest.raises(UserError, match="no accepted answer has a letter"):
        grade_fact("Paris", ["🇫🇷"])


@pytest.mark.slow
def test_reference_answers(shared):
    """Each reference answer is right in a sentence, and the next question's answer is not."""
    with (shared / "simpleqa" / "simple_qa_test_set.csv").open(newline="") as file:
        simple = [(r["problem"], [r["answer"]]) for r in csv.DictReader(file)]
    popqa = json.loads((shared / "popqa_sample" / "popqa.json").read_text())["test"]
    for rows, allowed in ((simple, 10), ([(r["input"], json.loads(r["output"])) for r in popqa], 5)):
        wrong = [a for q, a in rows if not grade_fact(f"The answer is {a[0]}.", a, q).correct]
        assert not wrong
        others = zip(rows, [*rows[1:], rows[0]], strict=True)
        assert sum(bool(grade_fact(f"It is {b[0]}.", a, q).correct) for (q, a), (_, b) in others) <= allowed
