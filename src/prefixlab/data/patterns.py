"""The families' patterns, in English and a few words of other languages; docs/methods.md explains them.

All are matched against sentences in lower case with straight apostrophes (`sentences.normal`). `match` unless a comment
says `search`. Which rule tries which pattern, and on what condition, is in rules.py, answers.py and thinking.py.
"""

import re

DOES = (
    r"(?:help|assist|provid|explain|creat|writ|walk|guid|giv|shar|show|play|generat|break|try|tri|answer|offer|"
    r"summari[sz]|take (?:a|on)|tak(?:e|ing) (?:a|on)|outlin|present|compos|draft|craft|discuss|translat|"
    r"rewrit|revis)"
)
ADVERB = (
    r"(?:(?:certainly|definitely|surely|gladly|happily|just|also|always|be|more than|very|so|really|quite|"
    r"only|now|here) )*"
)
YES = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|alright|all right|got it|no problem|"
    r"no worries|understood|with pleasure|my pleasure|gladly|great|awesome|perfect|wonderful|excellent|"
    r"fantastic|cool|very well|as you wish|yes,? (?:sure|certainly|of course|absolutely)|(?:yes|sure|"
    r"certainly),? i can(?: (?:help|do)(?: you)?(?: with)? that)?)"
)
INTERJECTION = re.compile(rf"{YES}(?=$|[\s,!.:;—–-])[\s,!.:;—–-]*(?:then[,!]? )?")
COURTEOUS = re.compile(r"(?:great|awesome|perfect|wonderful|excellent|fantastic|cool)\b")
THINKING = re.compile(
    r"(?:(?:okay|ok|alright|all right|hm+|so|well|now|right|oh|ah|um|uh|yeah|hey|great|sure|got it|and|"
    r"but|also|anyway|"
    r"interesting|wait|let me see|let's see)(?=$|[\s,!.?…—–-])[\s,!.?…—–-]*)+"
)

GREETING = re.compile(
    r"(?:hello|hi|hey|greetings|good (?:morning|afternoon|evening|day)|welcome|bonjour|hola|hallo|namaste)"
    r"(?: there| again| everyone| friend| dear(?: \w+)?)?[\s,!.]*(?:and (?:thank|welcome).*)?$"
)
THANKS = re.compile(
    r"(?:(?:many )?thanks|thank you)(?: so| very)?(?: much)?(?:[!.,]|$| for (?:asking|reaching out|your (?:\w+ )?"
    r"(?:question|message|inquiry|query|patience|request|interest|curiosity|kind|trust|prompt|concern)|"
    r"(?:providing|sharing|bringing|considering|trusting|letting|using|coming|including) |"
    r"(?:the|your|this) (?!.{0,30}\b(?:review|purchase|visit|business|application|email|letter|order|stay|"
    r"feedback|support)\b)))"
)
QUALITY = (
    r"(?:great|good|excellent|interesting|wonderful|fantastic|fascinating|important|thoughtful|tricky|classic|fun|"
    r"lovely|nice|brilliant|deep|profound|insightful|complex|challenging|tough|amazing|terrific|valid|smart|common|"
    r"creative|delightful|super|timely|big|hard|difficult|unique|intriguing|thought-provoking|exciting|cool)"
)
PRAISE = re.compile(
    r"(?:(?:ah|oh|wow|well|hmm),? )?(?:(?:that|this|it)(?:'s| is| sounds like) |what )?(?:an? |such an? |quite an? |"
    r"indeed an? )?(?:(?:really|very|truly|"
    rf"absolutely|pretty) )?(?:{QUALITY}(?:,? (?:and|but|yet) )?)+ (?:\w+ )?"
    r"(?:question|idea|choice|topic|point|thought|request|challenge|inquiry|query|task|goal|project|"
    r"concept|riddle|puzzle|"
    r"problem|prompt|initiative|observation|one)\b"
)
GLAD = re.compile(
    r"(?:(?:great|good|wonderful|nice|glad) to (?:hear|see|know)|(?:i'm|i am|it's|it is) (?:so |"
    r"very |really |always |truly )*(?:glad|thrilled|excited|delighted|great|"
    r"wonderful|good|sorry|pleased|flattered|honou?red|happy) (?:that |to (?:hear|see|know|learn|meet)|"
    r"you(?:'re|'ve| )|for )"
    r"|i (?:really |truly |do )?(?:appreciate|commend|admire|applaud) (?:your|you|that|the)|"
    r"congratulations|nice to meet you"
    r"|(?:i )?hope (?:you(?:'re| are)|this|that|all)|i (?:completely |totally |can )?(?:understand|hear|get) "
    r"(?:that |how |your |you(?:'re| ))|i can (?:understand|see|imagine) )"
)
OFFER = re.compile(
    rf"(?:and |so |as an? [\w -]{{2,40}}, )?(?:i(?:'d| would| will|'ll| am|'m| can| could)|we(?:'d| would|"
    rf" will|'ll| can)|let me|allow me to|"
    rf"it (?:would|will) be|here to|happy to|glad to|always happy to) {ADVERB}(?:(?:happy|glad|delighted|"
    rf"pleased|honou?red|love|here|able|my pleasure|"
    rf"thrilled|excited|a pleasure) (?:to |for )?(?:be |{ADVERB})?|do my best|try (?:my best|to)|be of|"
    rf"like to )?(?:{DOES}|my best|happy|glad|assistance|be able)"
    r"|i (?:will|'ll|can) (?:do|handle) (?:that|this|it)|happy to help|glad to help|how can i (?:help|assist)"
)
MANNERS = re.compile(
    r"(?:however|but|that (?:being )?said|and|also)?,? ?(?:as an? [^,]{2,60}, )?i (?:must|will|shall|"
    r"need to|should|would like to|"
    r"want to|have to|'ll|strive to|aim to|feel obliged to|am programmed to|am committed to) (?:always |"
    r"also |first )?"
    r"(?:ensure|make sure|approach|answer|respond|do my best|provide|remind|clarify|note|point out|inform|"
    r"emphasi[sz]e|mention|"
    r"let you know|say)\b"
)
BUT_HERE = re.compile(
    r",? (?:but|however),? (?:i can(?!'t|not)|i could(?!n't)|i(?:'ll| will(?! not)| would)|here|let me)\b"
)
APOLOGY = re.compile(
    r"(?:i(?:'m| am)? (?:sincerely |so |very |really )?(?:apologi[sz]e|sorry)|"
    r"(?:my )?(?:sincere )?apologies|sorry)(?: once again| again)? "
    r"(?:for (?:the|any|my|that)|if (?:i|my|there))"
)
# Openers of other languages: a word of consent alone, or a clause up to its colon.
FOREIGN = re.compile(
    r"(?:bien sûr|certainement|voici|avec plaisir|claro|por supuesto|desde luego|aquí (?:tienes|está|"
    r"están|hay)|con gusto|aqui (?:está|estão)|"
    r"com certeza|certo|certamente|ecco|gerne|natürlich|selbstverständlich|klar|hier (?:ist|sind|findest)|"
    r"natuurlijk|конечно|вот|当然|好的|没问题|"
    r"以下是|下面是|当然可以|もちろん|承知|以下は|以下に|はい|물론|네|다음은)"
    r"(?:[!.！。,，、 ]*$|[^.!?。！？]{0,120}[:：]\**$)"
)
BEST = re.compile(r".*\b(?:i(?:'ll| will)|to) (?:do|try) my best\b")
GO = re.compile(
    r"(?:let's|let us|shall we|so,? let's) (?:get (?:started|going|to it)|start|begin|dive (?:right )?in|"
    r"go|do (?:it|this|that)|"
    r"jump (?:right )?in)\b.{0,40}$"
)

HERE = (
    r"here(?:'s| is| are| goes| you go| you are|,? (?:i|we) )|(?:down )?below(?:,)? (?:is|are|you(?:'ll|"
    r" will| can)? (?:find|see)|i(?:'ve| have)?|we)\b|"
    r"(?:the )?following (?:is|are|\w+ (?:is|are)|\w+ \w+ (?:is|are))\b|please (?:find|see)|see below|"
    r"find below|as requested|"
    r"presenting|behold|this is (?:an?|the|my|one) (?:\w+ ){0,3}(?:version|list|example|response|answer|"
    r"summary|draft|way)\b|"
    r"these are (?:some|the|a few)"
)
FRAMING = re.compile(rf"(?:now,? |so,? |well,? |and |then,? )?(?:{HERE})")
INNER_HERE = re.compile(r"\b(?:here(?:'s| is| are)|below (?:is|are)|as follows|the following|these|this)\b")
SUGGEST = re.compile(
    r"(?:i(?:'d| would| can)?|we|you (?:can|could|may|might|should)|one (?:can|could|"
    r"may)) .*\b(?:following|these|below)\b"
)
SEVERAL = re.compile(
    r"(?:there (?:are|is|exists?|can be|could be|have been|may be|might be)|you have|we have|"
    r"(?:people|you) can) (?:also |indeed |actually |quite )*"
    r"(?:an? )?(?:several|many|few|various|numerous|some|number of|multiple|different|plenty|wide|variety|"
    r"countless|lots?|couple|"
    r"handful|range|tons|wealth|ample|lot|wide)\b"
)
INCLUDE = re.compile(
    r"(?:some|several|many|the|a few|other|common|possible|popular|key|among)\b.{0,120}\b(?:include|"
    r"includes|including|are|is|would be|may be|could be|might be)"
    r"(?: (?:the following|as follows|these|that))?:\**$"
)
TO_DO = re.compile(
    r"(?:in order |if you (?:want|would like|wish|need) )?to (?:better |effectively |successfully |"
    r"properly )?[a-z]+\b"
)
THEN = re.compile(
    r",\s*(?:then )?(?:follow|you(?:'ll|'d)?\b|we(?:'ll|'d)?\b|let's|let us|let me|i(?:'ll|'d)?\b|it\b|"
    r"one\b|here\b|use the|consider|try|please|the (?:following|steps|process|approach|procedure)|there|"
    r"a few|some|first)"
)
EMPTY_STEP = re.compile(
    r"\b(?:understand|identify|analy[sz]e|examine|look|consider|recogni[sz]e|think|evaluate|observe|"
    r"break)\b"
)
ADVICE = re.compile(
    r"(?:follow|here|steps|following|break|approach|guide|guidelines|tips|these|this process|as follows|"
    r"simple|method)"
)
STEPS = re.compile(r"\b(?:steps?|following|break|below|these|here)\b")
METHOD = re.compile(r"\b(?:use|apply|employ)\b.*\b(?:approach|method|technique|process|concept|principle)s?\b")
ASKED = re.compile(
    r"(?:so,? )?(?:you(?:'re| are|'ve| have|'d| would| seem to be|'re just|'re also)? (?:ask|"
    r"look(?:ing)? (?:for|to)|wonder|want|like|request|seek|interested)|"
    r"(?:the|your|this|given the) (?:\w+ )?(?:question|problem|task|prompt|user|request|query|riddle|"
    r"puzzle|statement|message|"
    r"goal|objective|given \w+|\w+ given|\w+ you (?:provided|gave|mentioned|described|"
    r"asked)) (?:\w+ )?(?:is (?:about|asking|to)|asks?|wants?|says|gives|requires|"
    r"seems|involves|here|states|we need)|i (?:understand|see) (?:that )?you|it (?:sounds|seems|looks|"
    r"appears) (?:like|that|as if) you|"
    r"(?:we|i)(?:'re|'m| are| have been| am| was| were|'ve been) (?:asked|given|told|tasked|trying|looking|going) |"
    r"(?:we|i|you) (?:need|have|want|must|would like) to |(?:we|i) (?:have|want|will)|when it comes to|"
    r"regarding your)"
)
LEAD = re.compile(
    r"(?:so,? |now,? )?(?:let's|let us|let me|i(?:'ll| will)|we(?:'ll| will| can| need to| should|)|"
    r"shall we|i(?:'m| am) going to|i can|i want to|i need to)"
    r" (?:now |first |try to |also |quickly |carefully |just |begin by |start by |"
    r"take a moment to )*(?:think|reason|work|go|break|walk|figure|analy[sz]|examin|explor|look|"
    r"div|consider|approach|tackle|take|see|delv|address|start|begin|get|find|do|solve|understand|try|"
    r"discuss|clarify|investigat|unpack|review|identif|determin|evaluat|check|assess|"
    r"proceed|follow|organi[sz]e|tak|jump|compare)"
)
AS_AN_AI = re.compile(
    r"(?:(?:i(?:'m| am) (?:very |really |so )?sorry|i apologi[sz]e|unfortunately|please note that|while|"
    r"although|sorry|but|however)[,;]? (?:but )?)*"
    r"(?:as (?:an? )?(?:\w+ )?(?:ai|artificial intelligence|(?:large )?language model|llm|chatbot|virtual|"
    r"digital|text-based|machine|computer)\b|"
    r"as of my (?:last|latest|most recent|current|knowledge)|as a (?:responsible|neutral|helpful|text)|"
    r"i(?:'m| am) (?:just |only |not )?an? "
    r"(?:ai|language model|doctor|lawyer|medical|legal|financial|licensed|expert|professional|machine))"
)
UNABLE = re.compile(
    r"(?:(?:i(?:'m| am) (?:very |really |so )?sorry|i apologi[sz]e|unfortunately|sorry|while|although|but|"
    r"however)[,;]? (?:but )?(?:for (?:any|the) \w+\W+)?)*"
    r"(?:i|we) (?:do not|don't|am not|cannot|can't|may not|have no|lack|could not|"
    r"couldn't)\b.*\b(?:access|information|context|details?|real-time|"
    r"knowledge|ability|expert|expertise|personal|capabl|brows|specific|definitive|enough|able|certain|"
    r"sure|provide|experience)"
)
AS_AN_AI_ONLY = re.compile(
    r"(?:(?:i'm |i am )?(?:sorry|unfortunately),? (?:but )?)?(?:as|i'm(?: just| only)?|i am(?: just|"
    r" only)?) an? (?:\w+ )?"
    r"(?:ai|artificial intelligence|(?:large )?language model|llm)\b(?!.*, but\b)"
    r"(?!.*\b(?:condon|support|promot|encourag|engag|believe|clarify|know that|advisable|"
    r"place)).*(?:n't|\bnot|\bno)\b"
)
ABOUT_ITSELF = re.compile(r"(?:i|my|as|while|it is|it's|please|additionally|therefore|if you|instead|in other words)\b")
NOTE = re.compile(r"(?:please )?(?:note|keep in mind|be aware|remember|bear in mind)(?: that|,|:)|disclaimer")
HOWEVER = re.compile(
    r"(?:however|but|that (?:being )?said|nevertheless|nonetheless|instead|still|with that (?:said|"
    r"in mind)|having said that|even so|in general|generally|based on)\b"
)
ATTEMPT = re.compile(r".*\b(?:can|could|will|'ll|would|'d|let me|here|try|happy|some)\b")
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:\w+ )?sorry,? (?:but )?(?:i|as an|that|this|we)|i apologi[sz]e,? (?:but|however|"
    r"for not|i)|i (?:can(?:no|')t|can not|won't|will not|(?:am|'m) (?:not able|unable)|"
    r"must (?:respectfully )?(?:decline|refuse)|(?:do not|don't) feel comfortable|should not|shouldn't|"
    r"refuse|decline|have to decline|am not (?:going|willing|programmed|comfortable))|"
    r"i'm (?:unable|not able|not comfortable)|(?:it is|it's) not (?:appropriate|ethical|within|"
    r"possible for me)|not something i can|"
    r"(?:cannot|can't) (?:fulfill|assist|comply|help|provide|answer|support|generate|create)|"
    r"no,? i (?:can|will)(?:no|')t)"
)
DECLINES = re.compile(
    r"\b(?:cannot|can't|not (?:able|appropriate|ethical|programmed|allowed|comfortable|going)|unable|"
    r"won't|will not)\b"
    r"(?!.{0,30}\b(?:opinions?|beliefs?|medical|legal|financial|advice|feel|experience|see|hear|browse|"
    r"access|predict|real-time|"
    r"personally|physically|current|eat|taste|have|verify|guarantee|know|make claims|judge|form|hold))"
)
LACKS = re.compile(
    r"(?:i'm sorry,? but |unfortunately,? |sorry,? (?:but )?)?i (?:do not|don't) (?:currently |actually |"
    r"personally )?have\b"
)
REFUSING_NEED = re.compile(r"unfortunately,? i (?:do not|don't|cannot|can't|am (?:not able|unable))")
PREDICATE = re.compile(
    r"\b(?:can|could|should|would|will|you|we|i|let's|is|are|was|were|has|have|be|follow|include|includes|"
    r"need|consider|depends?|involves?|requires?|here|looks?|sounds?|reads?|goes|works?|means?)\b"
)
ASSERTS = re.compile(
    r"^(?:yes|no)\b|, but\b(?! (?:here|there (?:are|is)|these|i can|some|generally))|\b(?:not|cannot|"
    r"can't|isn't|aren't|doesn't|don't|the answer (?:depends|"
    r"is))\b(?!:)"
)
INSTANCES = re.compile(
    r"(?:into|by|like|namely|through|of) (?:\w+ )?\w+, (?:\w+ )?\w+,? (?:and|or) \w+|\d|\b(?:such as|"
    r"including|e\.g|for example|for instance)\b"
)
DATED = re.compile(r"as of my\b")
NEGATES = re.compile(r"n't\b|\b(?:not|no|never|cannot)\b")
OPERATES = re.compile(r"\b(?:lcm|gcd|add|subtract|multiply|divide|calculate|compute|substitute|and then)\b")
"""`search`: a real first step."""
VERDICT = re.compile(r"(?:yes|no)\b")
"""The answer to a question of yes or no."""
DEFINES = re.compile(
    r"\b(?:is|are|was|were|refers? to|known as|called|means?)\b(?: \w+)? (?:an?|the)\b.*\b(?:that|which|"
    r"who|from|in which|made|where)\b|\brefers? to\b|\bmeans (?:to |that |\w+ing )|\bknown as\b|\([^)]{3,}\)"
)
TOPICAL = re.compile(
    r"\b(?:several|many|various|numerous|variety|factors|reasons|ways|depends?|important|challenging|"
    r"rewarding|exciting|fun|essential|crucial|"
    r"valuable|one of the most|great|complex|complicated|multifaceted|wide range|key|difficult|popular|"
    r"significant|different|both|process|can be|can (?:significantly|greatly|often|also|help|offer|"
    r"have|provide|lead|make|open|seem|feel)|could|would|journey|involves|considerations|sounds|"
    r"normal|understandable|natural|commendable|worthwhile|impressive|ambitious|noble|endeavou?r|"
    r"if you|you may|similar|"
    r"popular|choice)\b"
)
FIRST = re.compile(
    r"(?:first(?:ly| off| of all| thing)?\b(?!,? let)|to (?:start|begin)|starting|for (?:example|"
    r"instance)|given that|since |because |if |when |step 1)"
)
BEGINS = re.compile(
    r"(?:first(?:ly| off| of all)?\b(?!,? (?:of all,? )?(?:let me (?:say|thank)|thank))|to (?:start|"
    r"begin)\b)"
)
RECALL = re.compile(
    r"(?:from what i|(?:well,? )?i (?:remember|know|recall|think|believe|guess|mean|suppose|assume|also|"
    r"read|learned|notice|see)|i(?:'ve) (?:heard|seen|read)|maybe|perhaps|"
    r"one |another|in (?:my|the|a|this)|at first|for|there|like|as )"
)
VAGUE = re.compile(
    r".*\b(?:where (?:do|should|to)|how (?:do|should|to)|not (?:too |entirely |exactly |very |really |"
    r"quite |totally |super |completely |100% )?(?:sure|familiar|certain|an expert)|"
    r"a bit (?:rusty|tricky|confus\w+|unsure|fuzzy)|think (?:about |through |it |this |of )*(?:this|it|"
    r"through|carefully|step)|break (?:it|this|that|things) down|figure (?:this|it|that) out|"
    r"step by step|seems? (?:\w+ )*(?:tricky|straightforward|simple|easy|complex|confusing|contradictory|"
    r"counterintuitive|interesting)|don't (?:know|remember)|try to|piece by piece)\b"
)
SELF_TASK = re.compile(
    r"(?:i|we|they|the user|user|someone|this|the|here)(?:'m|'re|'ve|'s| am| are| is| was| have|"
    r" has)?(?: just| really| currently| basically)?(?: been| got| given)? ?"
    r"(?:trying|try|need|needs|have|has|want|wants|supposed|asked|asking|asks|looking|thinking|going|"
    r"gotta|must|should|question|problem|riddle|puzzle|user|"
    r"task|query|analogy|sequence|statement|told|tasked|here|this|to|seems?|requesting|request|wondering|"
    r"wonders|said|says|mentioned|came|come|a\b|an\b)"
)
JUDGE = re.compile(
    r"(?:that|this|it|they|these|sounds|seems|looks)(?:'s|'re| is| are| sounds?| seems?| looks?|"
    r"sounds?|reads?| feels?|"
    r" could| might| was|\b)"
)
SOUNDS = re.compile(r"(?:that|this|it) (?:sounds?|seems?|looks?|sounds?|reads?|feels?)\b(?! (?:correct|right|true))")
CUE = re.compile(
    r"(?:let me|let's|let us|i(?:'ll| will| should| need to| have to| must| want to| gotta|'m going to|"
    r" can)|where (?:do|should|to|can)|how (?:do|should|can|to|would)|"
    r"what (?:do|should|could|would)|i(?:'m| am) (?:not|a bit|pretty|kind|a little|sure|here|supposed)|"
    r"i (?:don't|think i|wonder|remember hearing|want|hope)|time to|my (?:goal|task|job)|we need)"
)
SPECIFIC_START = re.compile(
    r"(?:i(?:'ll| will| should| can| need to)|let(?:'s| me| us)) (?:start|begin)(?:ning)? (?:by|with|off)|"
    r"i (?:should|will|'ll) first"
)


EMPTY_START = re.compile(
    r".*?(?:by|with|off)(?: by)?,? (?:recall|think|understand|break|look|consider|figur|read|analy[sz]|"
    r"clarif|what)"
)
EMPTY_PLAN = re.compile(
    r"\b(?:follow (?:these|the following) steps|start by (?:understanding|clarifying|breaking)|"
    r"break (?:it|this) down)\b"
)
STARTING = re.compile(r"start by|begin by|i'll")
BUT_ANNOUNCES = re.compile(r"^(?!yes|no\b).*, but\b.*\bhere(?:'s| is| are)\b")
COUNTED = re.compile(
    r"\b(?:several|various|many|multiple|numerous|a few|a number of|a variety of|different|key|main|"
    r"following)(?: \w+){1,3}:\**$"
)
"""`search`: a lead-in that ends with "several factors:"."""
TELLS = re.compile(r"(?:point out|inform|note|clarify|remind|mention|emphasi[sz]e|say|let you know)\b")
"""`search`: a sentence about manners that goes on to state something."""
ABOUT_ANSWER = re.compile(
    r"\b(?:my (?:answer|response|reply)|respond|sensitive|respectful|cautious|ethical|responsible)"
)
USAGE = re.compile(
    r"(?:you (?:can|may|might want to|should)|feel free to|just (?:make|be) sure to|"
    r"(?:please )?(?:make|be) sure to|please|remember to)"
    r" (?:further |always |easily )?(?:customi|modif|adjust|adapt|edit|tailor|replace|change|"
    r"personali|fill in|expand|use (?:this|it) as)"
)
CONNECTIVE = re.compile(
    r"(?:however|but|so|nevertheless|nonetheless|that said|that being said|in general|generally),? "
)
SPEAKER = re.compile(r".{0,30}\b(?:i|here|some)\b")
ANNOUNCEMENT = re.compile(
    r"((?:(?:Sure|Certainly|Of course|Absolutely)(?:! Here|, here)|Here|Below)(?: is|'s|’s| are) "
    r"[^.!?:…\n：。]{3,180}:)[ \t]*\n(\s*\n)?(?=\s*\S)"
)
"""Of a text as it stands. Group 2: a blank line follows."""
