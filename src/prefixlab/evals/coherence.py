"""Is an answer coherent at all? Rules over its surface: a flag says that a text is broken, no flag says nothing.

What is looked for is how a damaged model fails: it writes nothing, falls into a loop, changes the script, or writes
symbols. What is not: wrong or contradictory answers, random but real words, another language in the same script. Every
flag is made to spare what only looks odd: tables, lists, refrains, code, mathematics.
"""

import re
from collections import Counter
from dataclasses import dataclass

_FENCED = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_FORMAL = re.compile(
    r"`[^`\n]*`|\$\$.{,2000}?\$\$|\$[^$\n]*\$|\\\[.{,2000}?\\\]|\\\(.{,500}?\\\)|\\[A-Za-z]+|https?://\S+"
    r"|</?[A-Za-z][^<>\n]*>",
    re.DOTALL,
)
"""Code and mathematics inside a text, which are in no language."""

# ---- loops
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|[^\W\d_]+|\d+|(?<![-+=*/^])[+=*/^](?![-+=*/^])")
GRAM = 4
"""Tokens by which a repetition is noticed."""
REMEMBERED = 4
"""Last places of these tokens that are compared with: a phrase may hold them more than once."""
LOOP_SHORT, LOOP_LONG, LONG_PHRASE = (5, 30), (3, 36), 9
"""(times, tokens) that make a loop, of phrases shorter than LONG_PHRASE tokens and of longer ones."""
LOOP_CODE, LOOP_DIGITS = 8, 8
"""Times the tokens that a loop must have in code, and where it consists of numbers (matrices, sequences)."""
LOOP_ALL = 6
"""Tokens of a loop that is nearly the whole text."""
WORN_GRAM, WORN_TIMES, WORN_STRETCH, WORN_SHARE = 8, 6, 200, 0.8
"""A loop with small changes: a stretch of tokens, most of them in word sequences that occur several times."""
SAME_LINES, SAME_LINES_SHARE = 8, 0.6
_BULLET = re.compile(r"^\s*(?:[-*+•>#]+|\(?\w{1,3}[.):])?\s*")
_THREE_WORDS = re.compile(r"(?:[^\W\d_]{2,}\W+){2}[^\W\d_]{2,}")
_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]*>")
_GLUED = re.compile(r"(.{1,20}?)\1{9,}")
_GLUED_CHUNK = re.compile("[!-~\u00a1-\u2fff]{40,}")
_RULES = frozenset("-=_*#~.+|: \u2014\u2500\u2501\u2550\u2026·0123456789")
"""Characters of rules, table borders, leaders and numbers, which may repeat."""

# ---- scripts
_LATIN = "A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_SCRIPTS = {
    "Cyrillic": ("\u0400-\u052f", 1.0),
    "Greek": ("\u0370-\u03ff\u1f00-\u1fff", 1.0),
    "Arabic": ("\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff", 1.0),
    "Hebrew": ("\u0590-\u05ff", 1.0),
    "Indic": ("\u0900-\u0dff", 1.0),
    "Thai": ("\u0e00-\u0eff", 1.0),
    "Georgian, Armenian": ("\u0530-\u058f\u10a0-\u10ff", 1.0),
    "Ethiopic": ("\u1200-\u137f", 1.0),
    "Hangul": ("\u1100-\u11ff\u3130-\u318f\uac00-\ud7af", 2.0),
    "Han, Kana": ("\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff", 3.0),
}
"""Unicode ranges of each script, and how many Latin letters a character of it stands for."""
_RUNS = {name: re.compile(f"[{ranges}]{{{1 if weight > 1 else 2},}}") for name, (ranges, weight) in _SCRIPTS.items()}
_PRESENT = {name: re.compile(f"[{ranges}]") for name, (ranges, _) in _SCRIPTS.items()}
_LATIN_RUN = re.compile(f"[{_LATIN}]{{2,}}")
_LANGUAGES = {
    "Latin": r"english|french|spanish|german|italian|portuguese|dutch|polish|turkish|vietnamese|indonesian|latin"
    r"|swedish|romaji|pinyin|romani[sz]|英语|英文|英語|法语|德语|拼音|английск|영어|الإنجليزية|अंग्रेज़ी",
    "Cyrillic": r"russian|ukrainian|bulgarian|serbian|belarusian|macedonian|kazakh|mongolian|cyrillic|русск|俄语|俄文",
    "Greek": r"greek|希腊",
    "Arabic": r"arabic|persian|farsi|urdu|pashto|阿拉伯|العربية",
    "Hebrew": r"hebrew|yiddish|עברית",
    "Indic": r"hindi|marathi|nepali|sanskrit|bengali|tamil|telugu|punjabi|gujarati|kannada|malayalam|devanagari|हिन्दी",
    "Thai": r"\bthai\b|\blao\b|泰语",
    "Georgian, Armenian": r"georgian|armenian",
    "Ethiopic": r"amharic|tigrinya",
    "Hangul": r"korean|hangul|韩语|韩文|한국어",
    "Han, Kana": r"chinese|mandarin|cantonese|japanese|kanji|hiragana|katakana|中文|汉语|漢字|日语|日本語|普通话",
}
_ASKED = {script: re.compile(names, re.IGNORECASE) for script, names in _LANGUAGES.items()}
_ANY_LANGUAGE = re.compile(
    r"translat|transliterat|multilingual|languages|alphabet|翻译|翻訳|перевед|traduc|번역", re.IGNORECASE
)
ENOUGH_LETTERS = 20
"""Letters (as Latin ones) from which on an answer has a script."""
MENTIONED = 0.1
"""A script with this share of the prompt is one that the answer may use."""
MANY_SCRIPTS, SCRIPT_SHARE = 4, 0.03

# ---- garbage
_BROKEN = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff\ud800-\udfff\U000f0000-\U0010ffff]")
BROKEN_LEAST, BROKEN_SHARE = 3, 0.02
_PICTURES = re.compile("[\u200d\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]")
"""Arrows, mathematical signs, box drawing and emoji: content of their own."""
_LAYOUT = re.compile(r"[-=_*#~.|+:/\s\u2013\u2014\u2026]+")
_ALNUM = re.compile(r"[^\W_]+")
SYMBOLS_LEAST, ALNUM_SHARE = 30, 0.25
_SIGN_ANSWERS = frozenset("<>=+-*/%?!&|^~")


@dataclass(frozen=True)
class Coherence:
    """What is broken in an answer."""

    empty: bool
    """Nothing but white space."""
    repetitive: bool
    """A token or a phrase over and over, somewhere in the text."""
    off_language: bool
    """Most letters are of a script that the prompt neither uses nor asks for."""
    garbage: bool
    """Mostly symbols, unreadable characters, or many scripts mixed."""

    @property
    def coherent(self) -> bool:
        """Whether nothing is broken."""
        return not (self.empty or self.repetitive or self.off_language or self.garbage)


def coherence(text: str, prompt: str = "") -> Coherence:
    """Flags of an answer.

    Args:
        text: The answer, without reasoning.
        prompt: What was asked; without it no text is off_language.
    """
    if not text.strip():
        return Coherence(empty=True, repetitive=False, off_language=False, garbage=False)
    code = "\n".join(_FENCED.findall(text))
    prose = _FENCED.sub("\n", text) if code else text
    scripts = _scripts(prose)
    return Coherence(
        empty=False,
        repetitive=_loops(_MARKUP.sub(" ", prose), 1)
        or (bool(code) and _loops(code, LOOP_CODE))
        or _glued(prose)
        or _same_lines(prose),
        off_language=_off_language(scripts, prompt),
        garbage=_garbage(prose) or _mixed(scripts, prompt),
    )


def _loops(text: str, factor: int) -> bool:
    """Whether tokens repeat with a fixed period, or with small changes; `factor` makes the rule stricter."""
    tokens = _TOKEN.findall(text.lower())
    if len(tokens) < LOOP_ALL:
        return False
    places: dict[tuple[str, ...], list[int]] = {}
    reach: dict[int, int] = {}
    for i, gram in enumerate(zip(*(tokens[k:] for k in range(GRAM)), strict=False)):
        before = places.setdefault(gram, [])
        for start in before:
            period = i - start
            if reach.get(period, 0) > i:
                continue
            end = i + GRAM
            while end < len(tokens) and tokens[end] == tokens[end - period]:
                end += 1
            reach[period] = end
            if _is_loop(tokens, start, end, period, factor):
                return True
        before.append(i)
        del before[:-REMEMBERED]
    return factor == 1 and _worn(tokens)


def _is_loop(tokens: list[str], start: int, end: int, period: int, factor: int) -> bool:
    """Whether tokens[start:end], which repeat every `period` tokens, do so often and long enough."""
    length = end - start
    times, least = LOOP_SHORT if period < LONG_PHRASE else LOOP_LONG
    if length < LOOP_ALL or length < period * times:
        return False
    if not any(t.isalpha() or t == "=" for t in tokens[start : start + period]):
        return length >= least * LOOP_DIGITS and end == len(tokens)
    return length >= least * factor or (factor == 1 and length >= 0.9 * len(tokens))


def _worn(tokens: list[str]) -> bool:
    """Whether most of a long stretch consists of word sequences that occur again and again."""
    if len(tokens) < WORN_STRETCH:
        return False
    grams = list(zip(*(tokens[k:] for k in range(WORN_GRAM)), strict=False))
    count = Counter(grams)
    if max(count.values()) < WORN_TIMES:
        return False
    covered = [0] * len(tokens)
    for i, gram in enumerate(grams):
        if count[gram] >= WORN_TIMES and sum(t.isalpha() for t in gram) * 2 > WORN_GRAM:
            covered[i : i + WORN_GRAM] = [1] * WORN_GRAM
    inside = sum(covered[:WORN_STRETCH])
    most = inside
    for i in range(WORN_STRETCH, len(tokens)):
        inside += covered[i] - covered[i - WORN_STRETCH]
        most = max(most, inside)
    return most >= WORN_SHARE * WORN_STRETCH


def _glued(text: str) -> bool:
    """Whether a piece without spaces repeats one short string; rules, borders and numbers may."""
    for chunk in _GLUED_CHUNK.findall(text):
        for match in _GLUED.finditer(chunk):
            if len(match.group()) >= 40 and not _RULES.issuperset(match.group(1)):
                return True
    return False


def _same_lines(text: str) -> bool:
    """Whether most lines are the same but for bullet or number."""
    if text.count("\n") < SAME_LINES - 1:
        return False
    bodies = (_BULLET.sub("", line, count=1).strip().lower() for line in text.split("\n"))
    count = Counter(body for body in bodies if body.count(" ") >= 2)
    line, times = count.most_common(1)[0] if count else ("", 0)
    return times >= SAME_LINES and times >= SAME_LINES_SHARE * count.total() and bool(_THREE_WORDS.search(line))


def _scripts(text: str) -> dict[str, float]:
    """Letters by script, as so many Latin ones, without code and mathematics."""
    text = _FORMAL.sub(" ", _FENCED.sub(" ", text))
    found = {"Latin": float(sum(map(len, _LATIN_RUN.findall(text))))}
    if not text.isascii():
        characters = "".join(set(text))
        for script, runs in _RUNS.items():
            if not _PRESENT[script].search(characters):
                continue
            found[script] = _SCRIPTS[script][1] * sum(map(len, runs.findall(text)))
    return {script: letters for script, letters in found.items() if letters}


def _off_language(answer: dict[str, float], prompt: str) -> bool:
    if sum(answer.values()) < ENOUGH_LETTERS:
        return False
    main = max(answer, key=answer.__getitem__)
    if main == "Latin" and prompt.isascii():
        return False
    asked = _scripts(prompt)
    if not asked or asked.get(main, 0) >= MENTIONED * sum(asked.values()):
        return False
    return not (_ASKED[main].search(prompt) or _ANY_LANGUAGE.search(prompt))


def _mixed(answer: dict[str, float], prompt: str) -> bool:
    """Whether many scripts are mixed, which nobody asked for."""
    if len(answer) < MANY_SCRIPTS:
        return False
    least = SCRIPT_SHARE * sum(answer.values())
    if sum(letters >= least for letters in answer.values()) < MANY_SCRIPTS:
        return False
    return not (_ANY_LANGUAGE.search(prompt) or any(names.search(prompt) for names in _ASKED.values()))


def _garbage(text: str) -> bool:
    """Whether a text without code blocks holds unreadable characters or little else than symbols."""
    visible = "".join(text.split())
    if not visible:
        return False
    broken = len(_BROKEN.findall(visible))
    if broken >= BROKEN_LEAST and broken >= BROKEN_SHARE * len(visible):
        return True
    rest = _ALNUM.sub("", visible)
    letters = len(visible) - len(rest)
    pictures = 0 if rest.isascii() else len(_PICTURES.findall(rest))
    if not letters and not pictures:
        return not (len(visible) <= 2 and _SIGN_ANSWERS.issuperset(visible))
    symbols = letters + len(_LAYOUT.sub("", rest))
    return symbols >= SYMBOLS_LEAST and letters + pictures < ALNUM_SHARE * symbols
