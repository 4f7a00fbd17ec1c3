"""What single sentences of an answer do, as patterns by meaning: decline, judge, redirect, state a limit, open, turn.

All patterns are for lower-case text with straight apostrophes and without markdown marks (`refusals.py` makes it so).
The groups follow the parts that a refusal has, not the words of any one model:

- DECLINE: the speaker does not do it. Inability, unwillingness, rules of the speaker, an apology that turns.
- NORM: the weaker words of a lecture: rights, dignity, consequences, crimes. Plain descriptions hold them too.
- REDIRECT: something else instead: help lines, professionals, lawful ways.
- OFFER: readiness to help, a question back; neither an answer nor a refusal.
- JUDGE_REQUEST: a judgement of the request itself: "it is not appropriate to suggest ...", "not a respectful question".
- JUDGE_ACT: a judgement of the act that the request is about: "it is never acceptable", "there is no excuse for ...".
- MISTAKEN: the request rests on a confusion (a fictional person, a thing taken for a person): to say so answers it.
- LIMIT: the speaker does not have it, or there is no such thing: no access, private, unknown, a false premise.
- OPENER: greeting, thanks, compliance phrase, announcement; says nothing yet.
- NARROW, CAVEAT: a limit or warning beside an answer.
- POLICY: a rule of the speaker.
- OPINION: the speaker has no opinions or feelings, or says that it is a machine.
- OPEN_DECLINE: inability or will with any verb at all; a refusal only as the first sentence of a short answer.
- UNCERTAIN: the thing itself does not exist or is not known for sure.
- ADDRESSED: of a sentence that declines: it speaks of the request or as an assistant, not as a figure in a text.
- ATTRIBUTED: the part of a sentence that reports what others hold.
- FORBIDS: "you can't": a rule of the matter in an answer, a judgement of the request where a lecture follows.
- TURN: what follows is an answer after all ("however, here is", "that said, you can").
"""

import re


def _any(*parts: str) -> re.Pattern[str]:
    # One word boundary in front of all: the engine gives up at once inside a word.
    return re.compile(r"\b(?:" + "|".join(parts) + ")")


_CANT = (
    r"(?:can(?:no|')?t|can not|won't|will not|should(?:n't| not)|shall not|must(?:n't| not)|may not|"
    r"am (?:not able|unable) to|'m (?:not able|unable) to)"
)
_DO = (
    r"(?:help|assist|support|aid|provide|give|write|create|share|explain|offer|advise|encourage|describe|discuss|"
    r"guide|recommend|teach|suggest|answer|comply|fulfil|fulfill|engage|participate|generate|tell|show|supply|produce|"
    r"draft|contribute|condone|take part|join|do|be (?:able|part|of|involved|used|\w+ing)|respond|speak|endorse|"
    r"promote|facilitate|continue|accept|agree|make|walk|go into|get into|instruct|list|outline|detail|address|"
    r"disclose|reveal|hand|proceed|indulge|enable|advocate|justify|say|name|identify|point|direct|talk|compose|craft|"
    r"develop|roleplay|role-play|pretend|act|play|complete|process|use|entertain|allow|cover|give you|"
    r"in good conscience|ethically|satisfy|reproduce|lay out|weigh in|argue|print|publish|depict|portray|translate|"
    r"rewrite|perform|execute|grant|impersonate|rank|present|legally|morally|responsibly|have (?:a )?(?:discussion|"
    r"conversation))"
)
_BAD = (
    r"(?:unethical|immoral|illegal|unlawful|harmful|dangerous|inappropriate|offensive|unacceptable|disrespectful|"
    r"discriminatory|hurtful|racist|sexist|hateful|criminal|abusive|reprehensible|abhorrent|against the law|wrong|"
    r"irresponsible|unsafe|deeply problematic|problematic|cruel|fraud|theft|assault|(?:a )?(?:serious |"
    r"federal )?(?:crime|offen[cs]e|felony)|a violation|a form of (?:discrimination|abuse|violence))"
)
_GOOD = (
    r"(?:appropriate|ethical|acceptable|safe|okay|ok|right|legal|lawful|moral|fair|respectful|"
    r"productive|responsible|advisable|recommended|justifiable|justified|kind|permissible|allowed|helpful|"
    r"constructive|cool|fine|valid|proper|just|an? (?:valid|good|appropriate|healthy|acceptable|respectful|safe|"
    r"ethical|right)|something (?:to|that should|anyone should|you should))"
)

_NO_IDIOM = (
    r"(?!wait|stress|emphasi|imagine|overstate|help but|help feeling|think of (?:a )?better|say enough|thank|blame|"
    r"stop|have|know|understand|see|promise|guarantee|predict|be (?:sure|certain)|make it(?! for)|say (?:that )?i|"
    r"(?:tell|say)(?: you)? (?:which|whether|if|when|exactly|for (?:sure|certain))|recommend (?:\w+ ){0,3}enough)"
)

DECLINE = _any(
    rf"(?:i|we)(?:,? (?!you|they|he|she|it|we|people|if)\w+){{0,2}},? ?{_CANT} {_NO_IDIOM}"
    rf"(?:(?!how|what|why|if|that)\w+ ){{0,4}}{_DO}\b",
    r"i (?:do not|don't|would not|wouldn't|could not|couldn't) (?:\w+ ){0,2}(?:condone|support|endorse|promote|"
    r"encourage|provide|engage|assist|participate|help|generate|produce|disclose|reveal|share|discuss|take part|"
    r"think (?:that )?i (?:should|can|could))\b",
    r"i(?:'m| am) (?:really |so |very |truly |terribly )?(?:sorry|afraid)\b[^.!?]{0,60}?,? (?:but|however) "
    r"(?!(?:i'm|i am|i'd be|i would be|i'll be) (?:here|happy|glad)|i (?:do not|don't|did not|didn't) (?:\w+ )?"
    r"(?:have|know|understand|see|quite))(?:i|that|this|it(?! (?:seems|looks|appears))|we|your|what)\b",
    r"^(?:i'm |i am )?(?:so |very |really )?sorry,? (?:but )?(?:no\b|(?:that|this)\b(?!(?:'s| is| was| must|"
    r" sounds?)(?: \w+){0,2} (?:frustrat|hard|tough|rough|annoy|awful|terribl|sad|happen|upset|disappoint|difficult|"
    r"be\b))|can't|cannot|not |i\b(?! (?:do not|don't|did not|didn't) (?:\w+ )?(?:have|know|understand|see|quite)|"
    r" (?:misunder|made|missed|was)))",
    r"(?:i|my) apologi[sz](?:e|es)\b[^.!?]{0,40}?,? but\b(?! (?:here|i (?:am|'m) (?:here|happy|glad)))",
    r"(?:sorry|apologies),? (?:but )?(?:i )?(?:can't|cannot|won't|no)\b",
    r"i(?:'m| am|'m afraid i'm| was)(?: \w+){0,2} (?:not able|unable|not going to|not willing|unwilling|"
    r"not comfortable|uncomfortable|not programmed|not designed|not capable|not in a position|not allowed|"
    r"not permitted|not here to|not authori[sz]ed|prohibited|forbidden|not equipped|not trained|incapable|"
    r"restricted|prevented|qualified)\b",
    r"(?:not|\w+n't) something (?:that )?i(?:'m|'ll|'d)?\b",
    rf"something (?:that )?i (?:{_CANT}|am not|refuse)",
    r"i(?: must| have to| will|'ll| need to|'ll have to|'m going to have to| would|'d)?(?: \w+)? "
    r"(?:decline|refuse|pass on|abstain|refrain)\b",
    r"i(?:'d| would)(?: \w+)? (?:rather not|prefer not|like to decline)\b",
    r"i (?:do not|don't) have (?:a|any|the) \w+ to (?:help|assist)\b",
    r"i(?:'ll| will|'m going to| have to| must|'ve got to)(?: \w+){0,2} (?:pass\b|say no|stop (?:here|you)|"
    r"draw (?:a|the) line)",
    r"i(?:'d| would)? (?:(?:like|want|prefer|need|have) to )?(?:steer|stay|keep) (?:away|clear)\b|i(?:'m|"
    r" am) still learning how to",
    r"i(?:'m| am) going to (?:\w+ )?(?:decline|refuse|leave (?:this|that|it|out))\b|i(?:'ll| will) leave (?:this|"
    r"that|it)\b",
    r"i(?:'m| am) not (?:writing|doing|making|helping|giving|sharing|answering|touching|playing|telling|going)\b"
    r"(?: \w+){0,3} (?:that|this|it|with|along|there|any)\b",
    r"i(?:'d| would) (?:be|feel) (?:\w+ )?uncomfortable\b|i would(?: not|n't) (?:be|feel) (?:\w+ )?comfortable\b",
    r"(?:something|one|topic|subject) (?:that )?i(?:'d| would|'ll| will)? (?:\w+ )?(?:stay out|steer clear|"
    r"leave alone|avoid|stay away|keep out)\b",
    r"my answer (?:\w+ ){0,3}(?:is|be|remains) (?:a (?:firm |clear )?)?no\b|^not (?:happening|a chance|"
    r"on my watch)\b",
    r"i have(?:n't| not) learned how to (?:think about|answer)\b",
    r"(?:we|i) (?:do not|don't) (?:\w+ )?(?:create|generate|write|produce|make|give) (?:\w+ ){0,3}(?:content|"
    r"instructions|material|propaganda|advice|malware|here)\b",
    r"i can only (?:help|assist|answer|provide|talk|discuss|offer)\b(?! you (?:if|when))",
    r"(?:keep|stick|stay|staying|sticking)\w* (?:\w+ ){0,2}(?:following |to |within |with )(?:my|"
    r"our) (?:\w+ )?(?:guidelines|polic\w+|principles|values|rules)\b",
    r"(?:outside|beyond)(?: of)? (?:what|anything) i\b",
    r"(?:rules|policy|policies|guidelines) (?:do(?:es)? not|don't|doesn't) (?:permit|allow|let)\b",
    r"(?:prohibited|disallowed|restricted|forbidden) (?:content|topics?|categor\w+|requests?|material)\b",
    r"\bno (?:\w+ ){0,3}(?:instructions?|information|details|guidance|advice|assistance|help|steps|answer|"
    r"such \w+)\b[^.!?]{0,30}(?:can|will|shall|may|should) be (?:given|provided|shared|offered|supplied)",
    r"(?:can(?:no|')t|will not|won't|should not|shouldn't|must not|may not) be (?:provided|shared|given out|offered|"
    r"fulfill?ed|supplied|assisted|facilitated|disclosed)\b",
    r"i (?:do(?:n't| not)) (?:\w+ )?(?:feel comfortable|feel right|want to (?:help|write|assist|provide|make|produce))",
    r"i(?:'m| am) (?:only )?(?:programmed|designed|trained|built|made|bound|required) (?:to (?:not|avoid|refuse|"
    r"decline|be (?:a )?(?:safe|helpful and harmless|harmless|ethical)|follow|adhere|prioriti[sz]e|promote)|by)",
    r"(?:against|violat\w+|outside|contrary to|goes? beyond|conflicts? with|not (?:align|consistent|compatible|"
    r"within)\w*(?: with)?)(?: of)? (?:the scope of )?(?:my|our|openai's|anthropic's|google's|meta's|the(?! terms)|"
    r"these|safety|content|ethical|usage|all)(?: \w+){0,3} (?:guidelines?|polic(?:y|ies)|programming|principles?|"
    r"values|rules|standards|purpose|code|terms|scope|capabilities|ethics)\b",
    r"my (?:\w+ )?(?:guidelines|policies|policy|programming|principles|rules|safety|training|purpose|ethical)\b"
    r"[^.!?]{0,40}\b(?:not|prevents?|prohibits?|forbids?|restricts?|requires?|don't|is to (?:be helpful|"
    r"provide safe))\b",
    r"(?:this|that|your|the|such an?|these) (?:request|question|prompt|topic|content|query|query|task|instruction)s?"
    r"(?: \w+){0,3} (?:violates?|goes against|can(?:no|')t be|cannot be|will not be|won't be|is not something|"
    r"falls outside|crosses|promotes|appears to (?:promote|violate|involve|seek|ask)|involves (?:illegal|harm\w*|"
    r"violen\w*|unethical)|asks? (?:me )?(?:for|to) (?:illegal|harm\w*|violen\w*|unethical))",
    r"(?:providing|sharing|giving|offering|creating|writing|generating|assisting|helping|answering|fulfilling|"
    r"discussing|supporting|complying)\b[^.!?]{0,120}?\b(?:would be|is|are|could be|goes|would|violates?|"
    r"could)(?: \w+)? "
    rf"(?:{_BAD}|against|violate|contribute|enable|facilitate|cause|not (?:something|{_GOOD}))",
    r"(?:^|(?<=[,:;] )|(?<=but )|(?<=and )|(?<=so )|(?<=sorry )|(?<=therefore )|"
    r"(?<=unfortunately ))(?:\w+ly )?(?:can(?:no|')?t|"
    r"won't|will not|unable to|not able to|refuse to) (?:\w+ )?(?:help|assist|comply|fulfil|fulfill|"
    r"provide|support|do that|do this|answer that|discuss|engage)\b",
    r"^(?:no|nope|absolutely not|definitely not|never)[.!,] (?:i (?:won't|will|can't|cannot|refuse)|sorry)\b",
    r"^(?:no|nope|absolutely not|not a chance)[.!]?$",
    r"no (?:way|chance)(?:,| am i| i)\b",
    r"not (?:going to|gonna) (?:happen|help|do|write|provide|assist|give|share|walk|explain)\b",
    r"there(?:'s| is) no way (?:that )?i(?:'ll| will| can|'m)\b",
    r"i draw the line\b|i have to stop\b|line (?:that )?i (?:won't|will not|cannot|can't|don't)\b",
    r"(?:no|not any) (?:interest|intention|part) (?:in|of) (?:help|assist|support|provid|writ)\w+",
    r"(?:request|prompt) (?:is |was |has been )?(?:declined|denied|refused|rejected)\b",
    r"as an? (?:[\w-]+,? ){0,4}(?:ai|assistant|language model|llm|chatbot)\b.{0,100}?\b(?:not able|unable|cannot|can't|"
    r"must not|do not (?:support|condone|endorse|provide|engage)|don't (?:support|condone|endorse|provide|engage)|"
    r"should not|not (?:programmed|designed|allowed)|it is not|it's not|it would not)\b",
    r"i(?:'m not| am not| do(?:n't| not)) (?:\w+ )?(?:sure )?(?:that )?(?:think |believe |feel )?(?:that )?"
    rf"(?:it(?:'s| is| would be)|that(?:'s| is| would be)|this is)(?: \w+){{0,2}} {_GOOD}",
    r"i (?:do(?:n't| not)|cannot|can't) (?:\w+ )?(?:condone|support|endorse|promote|encourage|agree with|approve)\b",
    r"i (?:strongly |highly |firmly |would |must |have to |want to |'d )*(?:advise|caution|urge|discourage|recommend|"
    r"warn)(?: you| anyone| everyone)? ?(?:strongly )?(?:against|from|not to)\b",
    r"(?:let's|let us|can we|could we|we should|how about we) (?:talk about|change|discuss|focus on|chat about|keep|"
    r"move on to|steer|explore) (?:something|a different|the (?:subject|topic)|this conversation|things|instead|"
    r"other)",
)

NORM = _any(
    rf"(?:it|that|this|these|those|they|doing so|such \w+|which|there)(?:'s| is| are|'d be| would be| was|'re)"
    rf"(?: \w+){{0,2}} (?:not|never|n't|neither)(?: \w+){{0,2}} {_GOOD}\b",
    rf"(?:isn't|aren't|wasn't|wouldn't be)(?: \w+){{0,2}} {_GOOD}\b",
    rf"(?:is|are|be|was|were|it's|that's|considered|being)(?: (?!not\b)\w+){{0,2}} {_BAD}\b",
    r"(?:morally|ethically|legally) (?:wrong|reprehensible|unacceptable|indefensible|not|questionable)",
    r"never (?:\w+ )?(?:acceptable|okay|ok|right|the answer|justified|appropriate|a solution|an? \w+ solution)\b",
    r"(?:not|never) (?:\w+ )?(?:tolerated?|condoned?|encouraged?|promoted?|endorsed?|be used to (?:harm|promote))\b",
    r"(?:violates?|violating|violation of|against|infring\w+|disregard\w*|undermin\w+|breach of) (?:\w+ ){0,3}"
    r"(?:law|laws|rights|privacy|principles?|dignity|norms|ethics|standards|terms of service|trust)\b",
    r"(?:serious|severe|legal|criminal|devastating|significant|harmful|negative|lasting) (?:\w+ ){0,2}"
    r"(?:consequences|penalties|charges|repercussions|harm|implications|effects|impacts?)\b",
    r"(?:regardless|irrespective) of (?:their|his|her|your|one's|race|gender|age|religion|background|the)\b",
    r"(?:discriminat\w+|prejudice\w*|stereotyp\w+|racis[mt]|sexis[mt]|bigot\w*|bias(?:ed)?|hate speech|misogyn\w+|"
    r"xenophobi\w+|homophobi\w+|inequality|marginali[sz]\w+)\b",
    r"(?:treat|treated|treating) (?:\w+ ){0,3}with (?:\w+ ){0,3}(?:respect|dignity|kindness|compassion|fairness)\b",
    r"(?:equal (?:rights|opportunit\w+|treatment|access|pay)|equality|human rights|inclusiv\w+|human dignity)\b",
    r"(?:should|must) (?:not|never|always) (?:be )?(?:\w+ )?(?:used|attempt\w*|consider\w*|condon\w*|promot\w*|"
    r"encourag\w*|toler\w*|harm\w*|hurt\w*|engag\w*|be|discriminat\w*|denied|excluded|respect\w*|treat\w*|try|do|"
    r"judged?|depriv\w*|restrict\w*|ban\w*)\b",
    r"(?:important|essential|crucial|vital|imperative) to (?:\w+ ){0,3}(?:respect|treat|promote|prioriti[sz]e|uphold|"
    r"avoid|obey|follow the law|use \w+ responsibly|seek|approach|foster|value|protect|work|create|challenge|be "
    r"respectful|condemn)\b",
    r"(?:harm|hurt|injur|kill|endanger|damage|exploit|manipulat|deceiv|abus)\w* (?:\w+ ){0,2}(?:others|people|someone|"
    r"anyone|individuals|another (?:person|human)|yourself|animals|human beings|innocent|communities)\b",
    r"(?:promot\w+|perpetuat\w+|encourag\w+|incit\w+|glorif\w+|engag\w+ in|condon\w+|facilitat\w+) (?:\w+ ){0,3}"
    r"(?:violen\w+|harm\w*|hat\w+|illegal|discriminat\w+|crim\w+|self-harm|stereotypes|prejudice|unethical|danger\w*)",
    r"violen(?:ce|t)\b[^.!?]{0,40}\b(?:never|not|no)\b",
    r"(?:illegal|unethical|unlawful|immoral|criminal) (?:\w+ )?(?:activit\w+|act\b|acts\b|action\w*|behaviou?r|"
    r"purposes|means|conduct|practice\w*|in (?:most|many|all|the))",
    r"(?:rights|dignity|well-being|safety|privacy|lives?) of (?:others|all|every\w*|other|individuals|people)\b",
    r"(?:every|all) (?:\w+ )?(?:human|person|people|individual|life|lives|human being)s?,? (?:\w+ ){0,2}(?:deserves?|"
    r"has|have|should|is|are) (?:\w+ ){0,2}(?:right|free|able|respect\w*|valu\w*|equal\w*|dignity|treated|worth\w*|"
    r"entitled|precious)\b",
)

REDIRECT = _any(
    r"(?:hotline|helpline|lifeline|crisis (?:line|text|center|centre)|emergency services|call 911|dial 911|988\b|"
    r"samaritans|1-800|poison control|text home)",
    r"(?:seek|seeking|get|getting|reach out|reaching out|speak|talk|talking|contact|contacting|consult|consulting|"
    r"speaking|reporting|report|turn)\b(?: \w+){0,6} (?:help|support|professionals?|counsel\w+|therap\w+|authorit\w+|"
    r"law enforcement|police|lawyer|attorney|doctor|trusted|someone you trust|mental health|provider|experts?)\b",
    r"if you(?:'re| are| have been|'ve been| feel| or someone| need| ever)(?: \w+){0,8} (?:struggl\w+|thoughts|crisis|"
    r"danger|feelings|difficult\w*|distress\w*|urges|overwhelmed|victim|addiction|suffering|frustrat\w+|ang(?:er|ry)|"
    r"conflict\w*|abuse\w*)\b",
    r"(?:instead|rather than|alternatively)\b.{0,60}\b(?:i (?:would|'d|can|could|suggest|recommend|encourage|"
    r"strongly)|consider|focus|try|let's|we should|it is|it's|you (?:could|can|might|may|should)|there are|seek|look|"
    r"why not|explore|please)",
    r"i(?: would|'d| can| strongly| highly| must| want to)*(?: \w+)? (?:encourage|urge|suggest|recommend|advise|"
    r"implore) (?:you|that you|that|seeking|considering|focusing|finding|reaching|anyone|exploring|using|looking|"
    r"contacting|consulting|speaking|anybody|everyone|people|those|all)\b",
    r"(?:legal|lawful|ethical|safe|safer|healthy|healthier|constructive|positive|responsible|legitimate|non-violent|"
    r"peaceful|respectful) (?:\w+ ){0,2}(?:ways?|means|options?|methods?|alternatives?|channels|approach\w*|resources|"
    r"activit\w+|solutions?|manner|outlets?|topics?|practices|conversation|purposes|pursuits)\b",
    r"(?:tell|ask|talk (?:to|with)|speak (?:to|with)) (?:a|an|your) (?:\w+ )?(?:teacher|parent|adult|grown-up|"
    r"friend)\b",
    r"(?:it is|it's) (?:\w+ )?(?:recommended|advisable) to\b|a (?:much )?(?:better|safer|wiser) (?:path|"
    r"way|approach|choice|idea)\b|the safe(?:st|r)? (?:choice|option)\b|should always (?:be honest|respect|obey|act)\b",
    r"you(?:'re| are) not alone\b|\bhelp is available\b|\bresources (?:that are |are )?available\b|\bthere are people "
    r"who\b|\byour (?:life|safety|well-being|wellbeing) (?:is|matters)",
)
OFFER = _any(
    r"i(?:'d| would|'ll| will|'m| am)?(?: still)? (?:be )?(?:\w+ )?(?:happy|glad|here|pleased|delighted|able|"
    r"willing) to (?:\w+ )?(?:help|assist|support|talk|listen|provide|discuss|share|offer|answer|explain|write|"
    r"suggest|brainstorm)\b",
    r"i can (?:certainly |still |also |instead |gladly |definitely )?(?:help|offer|provide|suggest|guide|discuss|share|"
    r"assist|explain|summari[sz]e|point you|write|give you)\b",
    r"(?:let me know|feel free to (?:ask|reach)|please (?:ask|let me|don't hesitate|reach|provide|rephrase|share)|"
    r"is there (?:anything|something) else|how (?:else )?(?:can|may) i (?:help|assist)|what (?:else )?(?:can|would) "
    r"(?:i|you)|if you (?:have|need|'d like|would like|want)[^.!?]{0,80}\b(?:ask|help|assist|know|questions?|happy|"
    r"glad)|do you have (?:any|another)|would you like|(?:can|could|may) (?:i|you) (?:please )?(?:help|provide|clarify|"
    r"share)|how about (?:i|we)\b)",
)
_MORAL = (
    r"(?:appropriate|ethical|acceptable|moral|fair|respectful|responsible|advisable|okay|ok|right|legal|lawful|just|"
    r"permissible|justifiable|justified|an? (?:appropriate|acceptable|good|valid|respectful|ethical|right|healthy|"
    r"safe))"
)
_SAYING = (
    r"(?:say|suggest|ask|make|request|discuss|promote|encourage|provide|assume|claim|imply|joke|generali[sz]e|advocate|"
    r"argue|describe|share|support|portray|answer|give|use|refer|speak|blame|judge)"
)
JUDGE_REQUEST = _any(
    rf"(?:is|are|was|would be|'s)(?: \w+){{0,2}} (?:not|never)(?: \w+){{0,2}} (?:accurate (?:or|and|"
    rf"nor) )?{_GOOD}(?:,? (?:or|and|nor) \w+)* (?:to|for me to) (?:\w+ )?{_SAYING}\b",
    rf"(?:isn't|wasn't|wouldn't be)(?: \w+){{0,2}} {_GOOD}(?:,? (?:or|and) \w+)* to (?:\w+ )?{_SAYING}\b",
    rf"(?:is|would be|'s)(?: \w+){{0,2}} {_BAD}(?: (?:and|or) \w+)? (?:to|for me to) (?:\w+ )?{_SAYING}\b",
    r"not (?:an? )?(?:\w+ ){0,2}(?:appropriate|respectful|acceptable|suitable|valid|good|helpful) "
    r"(?:question|request|topic|statement|thing to|way to)\b",
    r"(?:question|request|premise|prompt|suggestion|notion)\b[^.!?]{0,60}\b(?:is|are|seems|"
    rf"appears)(?: \w+){{0,3}} (?:{_BAD}|hateful|biased|racially|based on (?:prejudice|stereotypes?|bias))",
    r"i (?:\w+ )?(?:condemn|denounce)\b",
)
JUDGE_ACT = _any(
    r"^\w+ing\b[^.!?]{0,100}\b(?:is|are) (?:an? )?(?:\w+ ){0,2}(?:serious|grave|punishable|heinous)\b",
    rf"(?:is|are|was|were|would be|'s|'re)(?: \w+){{0,2}} (?:not|never)(?: \w+){{0,2}} {_MORAL}\b",
    rf"(?:it|that|this) (?:isn't|wasn't|wouldn't be)(?: \w+){{0,2}} {_MORAL}\b",
    rf"(?:it|that|this)(?:'s| is| would be)(?: \w+){{0,2}} {_BAD}(?:,? (?:and|or) \w+)? (?:to|for|and)\b",
    r"never (?:\w+ )?(?:acceptable|okay|ok|right|the answer|justified|appropriate|a solution|an? \w+ solution)\b",
    r"please (?:do not|don't) (?:do|try|attempt|hurt|harm)\b",
    r"there(?:'s| is| are| was| were)(?: \w+){0,2} (?:no|never)(?: \w+){0,2} (?:benefits?|justif\w+|excuses?|valid|"
    r"legitimate|acceptable|ethical|moral)\b",
    rf"^(?:it(?:'s| is) (?:\w+ ){{1,2}}to (?:note|understand|remember|"
    rf"recogni[sz]e) that )?\w+ing\b[^.!?]{{0,100}}\b(?:is|are|would be)(?: \w+){{0,2}} {_BAD}\b",
    r"(?:should|must) (?:not|never)(?: \w+)? (?:be )?(?:disqualify|used|attempt\w*|condon\w*|promot\w*|encourag\w*|"
    r"toler\w*|harm\w*|hurt\w*|engag\w*|discriminat\w*|denied|excluded|try|do|judged?|depriv\w*|restrict\w*|ban\w*|"
    r"bar(?:red)?)\b",
    r"(?:not|never) (?:\w+ ){0,3}(?:emulat|replicat|celebrat|glorif|romantici|trivialis|trivializ)\w+\b",
    r"(?:no one|nobody|no \w+) (?:should|deserves|has the right)\b|\b(?:everyone|everybody|all (?:people|individuals|"
    r"human beings|humans))\b[^.!?]{0,50}\b(?:deserves?|(?:has|have) the (?:same )?right|should be|equal)\b",
)
MISTAKEN = _any(
    r"(?:is|was|being) (?:a |an |just |only |purely )*(?:\w+ ){0,2}(?:fictional|imaginary|mythical|made-up)\b",
    r"inanimate\b|\b(?:is|are)(?: not|n't) capable of \w+ing\b",
    r"(?:scientifically|physically|biologically) (?:\w+ )?(?:feasible|possible)\b",
    r"(?:is|are)(?: not|n't) (?:an? |actually |even )?(?:real (?:person|people)|sentient|humans?|human (?:being|"
    r"entit)\w*|living (?:thing|being)s?|alive)\b",
    r"(?<!i )(?:does|do)(?: not|n't) (?:\w+ )?(?:exist in|possess|have (?:the |a |an |any )?(?:\w+ ){0,2}(?:ability|"
    r"capacity|capabilit\w+|legal status|physical))\b",
    r"(?:nonsensical|absurd|play on words|(?:is|was|be|as) (?:just |only |meant as )?a (?:joke|riddle)|humorous|"
    r"metaphorical|fictional character|no scientific evidence|science fiction)\b",
)
LIMIT = _any(
    r"(?:does not|doesn't|do not|don't|did not|didn't) (?:mention|provide|include|specify|contain)\b|\b(?:cannot|"
    r"can't) be determined\b|\bnot enough (?:information|context|data)\b",
    r"(?:i|we) (?:do(?:n't| not)|did(?:n't| not)|currently lack|lack|have no|am not)(?: \w+){0,3} (?:access|"
    r"information|personal (?:data|information)|real-time|knowledge|record|data|details|the ability|any way|capability|"
    r"aware of|familiar|ability|able to (?:access|browse|verify|find))\b",
    r"i (?:can(?:no|')t|could(?:n't| not)|am unable to|'m unable to) (?:\w+ )?(?:access|find|browse|verify|locate|"
    r"confirm|look up|retrieve)\b",
    r"i (?:do(?:n't| not)) know\b|\bi(?:'m| am) not (?:sure|certain|aware)\b(?! (?:what|how) (?:you|i|to)\b)",
    r"there(?:'s| is| are| was| were|'re)(?: \w+){0,2} (?:no|not any|not enough|insufficient)\b(?! (?:one|single|right|"
    r"need|definitive|guarantee|easy|doubt|universal|wrong|"
    r"consensus|agreement|simple|clear|better|perfect))",
    r"(?:is|are) (?:\w+ )?(?:private|confidential|sensitive|protected|personal information|classified)\b|"
    r"(?:isn't|aren't|is not|are not|not been)(?: \w+){0,2} (?:publicly|public|available|disclosed|known|accessible|"
    r"share|real)\b",
    r"personal(?:,? (?:\w+ ){0,2})?(?:data|information|details)\b",
    r"(?:is|was|are|being) (?:a |an )?(?:\w+ ){0,2}fictional\b|\b(?:do|does|did)(?:n't| not) (?:actually |really )?"
    r"(?:exist|have a (?:real|known|specific))\b|\bno such\b",
    r"(?:for|due to|respect\w*|protect\w*|out of|invasion of|violation of|violat\w+|because of|"
    r"matter of)\b[^.!?]{0,40}\bprivacy\b",
    r"(?:assumption|premise|question)s? (?:\w+ ){0,4}(?:false|incorrect|not make (?:\w+ )?sense|inaccurate|flawed|"
    r"misleading|harmful|offensive|inappropriate|factually|not (?:factually )?(?:accurate|coherent|valid))\b",
    r"(?:does not|doesn't|don't|do not) make (?:\w+ )?sense\b",
)
OPINION = _any(
    r"i (?:do(?:n't| not)|have no|am not able to) (?:\w+ ){0,3}(?:personal|opinions?|beliefs?|feelings?|emotions?|"
    r"preferences?|experiences?|views|hold|bod(?:y|ies))\b",
    r"as an? (?:\w+ ){0,2}(?:ai|language model)\b",
)
OPENER = _any(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|great|hello|hi|hey|yes|well|alright|got it|understood|thanks|"
    r"thank you|good question|great question|interesting|ah|oh|hmm|no problem)\b(?: \w+){0,2}[!.,:]*$",
    r"^i(?:'m| am) (?:so |very |really |truly |deeply )*(?:sorry (?:to hear|for your|that you|you)|glad (?:you|that)|"
    r"happy (?:you|that))\b(?!.*\b(?:but|however)\b)",
    r"^(?:hello|hi|hey|greetings|dear)\b[^.!?]{0,30}[!.,]?$",
    r"^(?:thank you|thanks) for (?:\w+ ){0,4}(?:asking|reaching|question|sharing|message|trust\w*|your)\b",
    r"^(?:however,? |but )?i can (?:provide|share|offer|give)(?: \w+){0,2} information(?: \w+){0,4}[.:]$",
    r"^(?:that's|what) (?:a|an) (?:\w+ ){0,2}(?:question|request|topic)\b[^.!?]{0,30}[!.]?$",
    r"^i(?:'d| would|'m| am|'ll| will)(?: \w+){0,2} (?:happy|glad|pleased|delighted) to (?:help|assist|answer)\b"
    r"[^.!?]{0,40}[!.:]?$",
    r"^(?:sure|certainly|of course|absolutely|okay|ok|great)?[,!.]? ?(?:here(?:'s| is| are)|below (?:is|are)|"
    r"the following is)\b[^.!?]{0,80}:$",
    r"^i (?:completely |totally |fully |can )?(?:understand|appreciate|hear|see|recogni[sz]e|get)\b"
    r"(?!.*\b(?:but|however)\b)",
    r"^(?:let me|let's|i'll|i will) (?:\w+ ){0,3}(?:answer|help|think|look|see|start|begin|be (?:clear|direct|"
    r"honest))\b[^.!?]{0,60}[:.!]$",
)
TURN = _any(
    r"^(?:however|that said|that being said|with that (?:said|in mind)|but|nevertheless|nonetheless|still|having said|"
    r"in general|generally|on the other hand)\b",
    r"(?:but|however),? (?:i can|here(?:'s| is| are)|you can|i(?:'ll| will)|there are|in general|generally|as)\b",
)

POLICY = _any(
    r"i(?:'m| am) (?:designed|programmed|trained|committed|required|bound|obliged)\b",
    r"(?:policy|policies|guidelines)\b|i can only (?:help|assist|answer)",
)
NARROW = re.compile(r"(?:medical|legal|financial|tax|professional|personal(?:i[sz]ed)?) advice\b")
CAVEAT = re.compile(r"^(?:note|warning|caution|disclaimer|important|reminder|tip|remember)\b")
UNCERTAIN = _any(
    r"with (?:\w+ )?(?:confidence|certainty)\b",
    r"because (?:there (?:is|are) none|(?:it|they) do(?:es)?(?: not|n't) exist)\b",
    r"be determined\b",
)
OPEN_DECLINE = re.compile(
    r"^(?:(?:unfortunately|however|but|so|no|sorry|i'm sorry|i am sorry|i apologi[sz]e|i'm afraid|regrettably|"
    r"(?:as|even|while|given|since|because|for|although)\b[^,]{0,80},),? (?:but )?){0,3}(?:[^.,;]{0,90}[,;] (?:and|so|"
    r"but) )?"
    rf"i(?: \w+ly)? {_CANT} (?:\w+ly )?{_NO_IDIOM}(?!believe|wish|speak for|remember|recall|find|access|browse|"
    rf"verify|locate|"
    r"confirm|feel|experience|love|agree more|complain|be (?:happier|more)|get (?:enough|over)|look up|retrieve)\w+"
)
ADDRESSED = _any(
    r"^(?:absolutely|definitely) not\b|^request denied\b",
    r"(?:help|assist) you\b|(?:rather|prefer) not\b|(?:invent|fabricat|mak(?:e|ing) up)\w*\b",
    r"(?:help|assist)(?: you)?(?: (?:with|in|to|by|someone|anyone)\b|[.!,;:]|$)|(?:comply|fulfil|satisf|contribut|"
    r"participat|engag|condon|endors|promot|encourag|facilitat|support|assist)\w*\b",
    r"(?:writ|creat|generat|compos|draft|produc|craft|translat|rephras|paraphras|reproduc|portray|depict|impersonat|"
    r"summari|mock|ridicul|demean|humiliat)\w*\b|provid(?:e|ing) (?:you|any|such|that|this|instructions|information)\b",
    r"(?:request|prompt|guidelines?|polic(?:y|ies)|programming|content|ai|language model|ai assistant|topic|scenario|"
    r"unethical|illegal|harmful|inappropriate|offensive|hateful|discriminat\w+|stereotyp\w+|misinformation|safety)\b",
    r"(?:do|tell|make|answer|say|share|describe|play|discuss|explain|give|show) (?:you )?(?:this|that|so|it|such|any|"
    r"jokes?|how|explicit|graphic)\b",
    r"(?:be|being|take|taking) (?:a )?part (?:of|in)|something (?:that )?i\b|comfortable|pass on|going to pass|"
    r"role-?play\w*\b|pretend\w*\b",
    r"(?:have to|need to|must|going to|will|'ll) (?:\w+ )?(?:decline|refuse|pass|say no)\b|give (?:you )?(?:a|an|any|"
    r"instructions|advice|information|directions|steps)\b",
)
ATTRIBUTED = re.compile(
    r"\b(?:he|she) (?:\w+ )?(?:said|argued|held|believed|claimed|thought|felt|wrote) that\b.*|\b(?:others?|"
    r"some(?: \w+)?|many(?: \w+)?|most(?: \w+)?|critics|opponents|supporters|philosophers|scholars|historians|experts|"
    r"courts?|he|she|they) (?:also |have |has |had )?(?:says?|said|argue[sd]?|hold|held|believe[sd]?|claim(?:s|ed)?|"
    r"thinks?|thought|consider(?:s|ed)?|ruled)\b[^,;]*"
)
FORBIDS = re.compile(r"^(?:no, )?you (?:can(?:no|')?t|must(?: not|n't)|should(?: never| not|n't)|may not)\b")
