"""The forms in which English claims something: one rule each, from a plain clause to claims. Pure functions.

The first rule of `RULES` that fits a clause says what it claims; a clause that none fits claims nothing, and so takes the
place of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from .claims import (
    ME,
    MOMENT,
    NAME_WORD,
    NUMBER,
    NUMBERS,
    YOU,
    Claim,
    Clause,
    words_of,
)
from .words import terms, words_in

_PEOPLE = frozenset(
    words_of(
        """
    me mum mom mother dad father parent parents sister brother son daughter child kid kids wife husband spouse partner
    fiance fiancee girlfriend boyfriend friend cousin aunt uncle niece nephew grandma grandmother grandpa grandfather
    boss manager colleague coworker neighbour neighbor roommate flatmate ex teacher doctor landlord
    """
    )
)
PEOPLE_STEMS = frozenset(terms(" ".join(_PEOPLE)))
_SEVERAL = frozenset(
    words_of(
        """
    sister brother son daughter child kid friend cousin aunt uncle niece nephew colleague coworker neighbour neighbor
    cat dog pet rabbit horse hamster bird fish book hobby language roommate flatmate song game plant
    """
    )
)
"""What one may well have two of: a second is not instead of the first."""
_PLAN = frozenset(
    terms(
        "trip flight holiday vacation visit journey tour plan plans going go planning want intend booking reservation"
    )
)
"""Words of a plan that need not be in both tellings of it."""
_DIETS = "vegan|vegetarian|pescatarian|flexitarian|omnivore|carnivore|keto|paleo|gluten-free|halal|kosher|teetotal"
_COUPLES = {
    "single": "single",
    "divorced": "single",
    "separated": "single",
    "widowed": "single",
    "engaged": "engaged",
    "married": "married",
    "dating": "dating",
    "seeing": "dating",
    "in a relationship": "dating",
    "together with": "dating",
    "girlfriend": "dating",
    "boyfriend": "dating",
    "partner": "dating",
    "fiance": "engaged",
    "fiancee": "engaged",
    "wife": "married",
    "husband": "married",
}
_COUPLE = "|".join(_COUPLES)
_COUPLE_WORDS = " ".join(max(status.split(), key=len) for status in _COUPLES)
_TRADES = re.compile(
    r"(?:\w+(?:[^aeo]er|eer|or|ist|ian|ician|ect|grapher|logist|mechanic|man|woman)|nurse|chef|cook|pilot|"
    r"student|clerk|"
    r"judge|principal|paramedic|surgeon|vet|intern|apprentice|consultant|accountant|assistant|attorney|ceo|cto|coach|"
    r"freelance\w*|lead|head|guide|guard|monk|priest|nanny|trainee|scientist|analyst|professor|teacher|"
    r"officer|dealer)",
    re.IGNORECASE,
)
_NO_TRADE = re.compile(
    r"(?:mother|father|brother|sister|daughter|lover|hater|member|supporter|owner|user|runner|reader|sleeper|riser|"
    r"swimmer|hiker|gamer|beginner|visitor|believer|stranger|sinner|winner|loser|survivor|neighbor|senior|"
    r"junior|customer|"
    r"vegetarian|pescatarian|flexitarian|christian|italian|canadian|australian|brazilian|norwegian|indian|german|"
    r"human|woman|man|person|early bird|night owl|fan)",
    re.IGNORECASE,
)

LONG_AGO = re.compile(
    r"\b(?:(?:in|until|till|back in|from|between) (?:19|20)\d\d|years ago|decades ago|back then|as a (?:child|"
    r"kid|student|boy|"
    r"girl|teen\w*)|when i was|in my (?:youth|childhood|twenties|teens)|for a (?:day|week|month|year)|once)\b",
    re.IGNORECASE,
)

# -- rules ------------------------------------------------------------------------------------------------------------

_WHO = (
    rf"(?P<who>i|we|(?:my|our|the) [\w'-]+(?: {NAME_WORD}){{0,2}}|{NAME_WORD}(?: from [\w'-]+|"
    rf" {NAME_WORD}){{0,2}})"
)
_THING = (
    r"(?P<who>(?:my|our|his|her|the|[A-Z][\w-]*'s) (?:[\w'.-]+ ){0,5}?[\w'.-]+|(?:dinner|lunch|breakfast|coffee) with \w+|"
    r"the \w+ (?:of|for|with) [\w ]+?)"
)
_AUX = r"(?:(?:am|is|are|have|has|had to|been|got|be|was|were)\s+)*"
_ARTICLE = r"(?:a|an|the)\s+"
_NAME = re.compile(rf"\b{NAME_WORD}")
_BETWEEN = re.compile(r"[\s.,-]+")
"""What may stand between the digits of a number."""

Found = re.Match[str]
Maker = Callable[[Found, Clause], Iterator[Claim]]


def _claim(slot: str, who: frozenset[str], value: str, clause: Clause, **more: object) -> Claim:
    value = value.strip(" ,.;!")
    made = Claim(
        slot,
        who,
        frozenset(terms(value)),
        value,
        holds=not clause.denied,
        changed=clause.changed,
        numbers=frozenset(_BETWEEN.sub("", number).casefold() for number in NUMBER.findall(value)),
        moments=frozenset(moment.casefold() for moment in MOMENT.findall(value)),
        names=frozenset(word.casefold() for word in _NAME.findall(value)),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def who_is(text: str) -> frozenset[str]:
    """The stems that name somebody or something: "my sister Anna" -> {sister, anna}; the speaker is ME."""
    text = text.casefold()
    if text in ("i", "we", "me", "us"):
        return ME
    return frozenset(terms(re.sub(r"'s\b", "", text)))


def _is_someone(found: Found) -> bool:
    who = found["who"]
    head = re.sub(r"^(?:my|our|the) ", "", who, flags=re.IGNORECASE).split()[0].casefold()
    return who.casefold() in ("i", "we") or head in _PEOPLE or not re.match(r"(?:my|our|the) ", who, re.IGNORECASE)


def _home(found: Found, clause: Clause) -> Iterator[Claim]:
    value = found["value"]
    if _is_someone(found) and not (found["moved"] and LONG_AGO.search(value)):
        value = re.split(r",| (?:with|because|since|for|after|last|on|when|near|and)\b", value)[0]
        yield _claim("home", who_is(found["who"]), value, clause, only=True)


def _works_at(found: Found, clause: Clause) -> Iterator[Claim]:
    if not _is_someone(found) or LONG_AGO.search(found[0]):
        return
    who, groups = who_is(found["who"]), found.groupdict()
    changed = clause.changed or bool(groups.get("event"))
    if groups.get("firm"):
        yield _claim("employer", who, groups["firm"], clause, only=True, changed=changed)
    if groups.get("trade"):
        yield _claim("trade", who, groups["trade"], clause, only=True, changed=changed)


def _is_a(found: Found, clause: Clause) -> Iterator[Claim]:
    head = re.split(r" (?:at|in|for|of|with|who|and|from)\b|,", found["value"])[0]
    event = bool(found["event"])
    last = head.split()[-1] if head.split() else ""
    if _TRADES.fullmatch(last) and not _NO_TRADE.fullmatch(last) and _is_someone(found):
        changed = clause.changed or event
        yield _claim("trade", who_is(found["who"]), head, clause, only=changed, changed=changed)
    elif not event:
        yield from _does(found, clause)


def _out_of_work(found: Found, clause: Clause) -> Iterator[Claim]:
    who = who_is(found["who"])
    place = found["value"] or ""
    for slot in ("employer",) if place else ("employer", "trade"):
        yield _claim(slot, who, place, clause, holds=False, ends=True, changed=True)


def _without_work(found: Found, clause: Clause) -> Iterator[Claim]:
    for slot in ("employer", "trade"):
        yield _claim(slot, who_is(found["who"]), found["value"], clause, only=True, changed=True)


def _couple(found: Found, clause: Clause) -> Iterator[Claim]:
    status = _COUPLES[found["status"].casefold()]
    other = " ".join(found[name] or "" for name in ("other", "with") if name in found.re.groupindex)
    yield _claim("couple", ME, f"{status} {other}", clause, only=True)


def _parted(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("couple", ME, "single", clause, only=True, changed=True)


def _wed(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim(
        "couple", ME, _COUPLES[found["status"].casefold()] + " " + found["other"], clause, only=True, changed=True
    )


def _diet(found: Found, clause: Clause) -> Iterator[Claim]:
    who = who_is(found["who"])
    yield _claim("diet", who, found["value"], clause, only=True)
    if not clause.denied and re.match("veg", found["value"], re.IGNORECASE):
        yield _claim("do", who, "eat meat", clause, holds=False)


def _age(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("age", who_is(found["who"]), found["value"], clause, only=True)


def _weight(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("weight", who_is(found["who"]), found["value"], clause, only=True)


def _called(found: Found, clause: Clause) -> Iterator[Claim]:
    """What something is called: of two cats, each; so only a correction or a change takes a name's place."""
    who = who_is(found["who"])
    several = bool(who & _stems(_SEVERAL))
    yield _claim("name", who, found["value"], clause, only=clause.changed or not several)
    if not several:
        yield from _is(found, clause)


def _call_me(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("call", ME, found["value"], clause, only=True)


def _number(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("is", frozenset(terms("phone number")), found["value"], clause, only=True, changed=True)


def _born(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("born", who_is(found["who"]), found["value"], clause, only=clause.changed)


def _answers_in(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("answer in", YOU, found["value"], clause, only=True)


def _orders(found: Found, clause: Clause) -> Iterator[Claim]:
    denied = clause.denied or found["how"].casefold().startswith(("never", "do not", "stop"))
    yield _claim("do", YOU, found["value"], clause, holds=not denied)


def _prefers(found: Found, clause: Clause) -> Iterator[Claim]:
    pair = " ".join(sorted(terms(found["value"]) + terms(found["than"])))
    yield _claim(f"prefer {pair}", who_is(found["who"]), found["value"], clause, only=True)


def _likes(found: Found, clause: Clause) -> Iterator[Claim]:
    how = found["how"].casefold()
    likes = not how.startswith(("hate", "dislike", "detest"))
    slot = "allergy" if how.startswith("allergic") else "like"
    yield _claim(slot, who_is(found["who"]), found["value"], clause, holds=likes != clause.denied)


def _is(found: Found, clause: Clause) -> Iterator[Claim]:
    """ "my X is V": a later V of the same sort takes its place; of a colour, a mood or a description there may be many."""
    who, value = who_is(found["who"]), found["value"]
    if who and who != ME and not value.casefold().startswith(("going", "planning")):
        if frozenset(terms("name")) & who and len(who) > 1:
            yield from (replace(claim, slot="name", who=who - {"name"}) for claim in [_claim("is", who, value, clause)])
            return
        claim = _claim("is", who, value, clause)
        sorted_out = bool(claim.numbers or claim.moments or claim.names)
        functional = bool(
            re.search(r"\b(?:name|favorite|boss|manager|address|email|number|code|password)\b", found["who"])
        )
        several = bool(who & _stems(_SEVERAL)) and not clause.changed
        only = (sorted_out or functional or clause.changed) and not several
        yield replace(claim, only=only, functional=functional)


def _changes(found: Found, clause: Clause) -> Iterator[Claim]:
    """Somebody moves, raises, renames a thing: to what."""
    if found["value"]:
        yield _claim("is", who_is(found["who"]), found["value"], clause, only=True, changed=True)


def _gets_new(found: Found, clause: Clause) -> Iterator[Claim]:
    yield _claim("is", who_is(found["who"]), found["value"] or "", clause, only=True, changed=True)


def _switches(found: Found, clause: Clause) -> Iterator[Claim]:
    who = who_is(found["who"]) if found["who"] else ME
    yield _claim("any", who, found["old"], clause, holds=False, ends=True, changed=True)
    if found["value"]:
        yield _claim("do", who, found["value"], clause, changed=True)


def _ends(found: Found, clause: Clause) -> Iterator[Claim]:
    gone = " ".join(word for word in found["gone"].split() if word.casefold() not in ("my", "our", "the"))
    claim = _claim("cancel", frozenset(), gone, clause, holds=False, ends=True, changed=True)
    if specific := claim.value - _PLAN:
        yield replace(claim, value=specific)


def _plans(found: Found, clause: Clause) -> Iterator[Claim]:
    claim = _claim("plan", who_is(found["who"]), found["value"], clause)
    yield replace(claim, value=claim.value - _PLAN or claim.value)


def _died(found: Found, clause: Clause) -> Iterator[Claim]:
    yield replace(_claim("do", ME, found["who"], clause, holds=False, ends=True, changed=True), slot="have")


def _does(found: Found, clause: Clause) -> Iterator[Claim]:
    """Anything that somebody does, is or has: over when it is denied, and updated by the same with another number."""
    groups = found.groupdict()
    verb = groups.get("verb") or ""
    value = f"{verb} {found['value']}".strip()
    if _PAST.fullmatch(verb) or LONG_AGO.search(value):
        return
    old = re.search(r"\binstead of (?:\w+ing )?(?P<old>[\w ]+)", value)
    if old:
        yield _claim("any", who_is(found["who"]), old["old"], clause, holds=False, ends=True, changed=True)
        value = value[: old.start()]
    slot = "have" if re.fullmatch("have|has|own|owns", verb, re.IGNORECASE) else "do"
    claim = _claim(slot, who_is(found["who"]), value, clause, ends=clause.over)
    yield replace(claim, value=claim.value - _PLAN or claim.value)


_PAST = re.compile(
    r"\w{2,}ed|ran|went|bought|ate|met|saw|got|took|drank|paid|did|made|had|was|were|came|found|gave|wrote|read|won|"
    r"lost|felt|left|spent|told|said|thought|heard|learned|slept|drove|flew|sang|swam|grew|knew|began|broke|"
    r"sold|sent|"
    r"been|done|gone|become|became",
    re.IGNORECASE,
)


def _rule(words: str, pattern: str, make: Maker) -> tuple[frozenset[str], re.Pattern[str], Maker]:
    """`words`: one of them is in every clause that fits, so the others need not be tried ("": none is)."""
    return frozenset(words.split()), re.compile(pattern, re.IGNORECASE), make


_PLACE = (
    rf"(?:{_ARTICLE}|our |my )?(?:{NAME_WORD}|(?:\w+ )?(?:flat|house|apartment|place|home|city|town|"
    r"village|suburbs|country\w*)\b)"
)
_FIRM = r"(?P<firm>(?:the |a |an )?[^,.;]+?)"
RULES: tuple[tuple[frozenset[str], re.Pattern[str], Maker], ...] = (
    _rule(
        "live lives living reside resides based settled rent share",
        rf"{_WHO} {_AUX}(?:live|lives|living|reside|resides|based|settled|rent (?:a|an) \w+|share (?:a|an) \w+)"
        rf"(?: together| alone| permanently)? (?:in|at|on|near)(?P<moved>\b) (?P<value>.+)",
        lambda found, clause: _home(found, clause),
    ),
    _rule(
        "moved relocated emigrated",
        rf"{_WHO} {_AUX}(?P<moved>moved|relocated|emigrated)(?: back| out| house| permanently| home| here)?"
        rf"(?: from [\w ]+?)? (?:to|into|in) (?P<value>{_PLACE}.*)",
        _home,
    ),
    _rule(
        "quit left resigned lost fired laid",
        rf"{_WHO} {_AUX}(?:quit|left|resigned from|lost|fired from|laid off(?: from| by)?)"
        rf"(?: (?:my|his|her|the|a) (?:job|position|work))?(?: (?:at|with|in|from) (?P<value>.+))?$",
        _out_of_work,
    ),
    _rule("left", rf"{_WHO} {_AUX}left (?P<value>{NAME_WORD})\b.*", _out_of_work),
    _rule(
        "retired unemployed out between",
        rf"{_WHO} {_AUX}(?P<value>retired|unemployed|out of work|between jobs)\b.*",
        _without_work,
    ),
    _rule(
        "job position",
        rf"{_WHO} {_AUX}(?P<event>found|started|landed|took|accepted|have|begun|began)(?: a| an|"
        rf" my)?(?: new)? (?:job|position)"
        rf"(?: (?:at|with|for|in) {_FIRM})?(?: as (?:a |an |the )?(?P<trade>[^,.;]+))?$",
        _works_at,
    ),
    _rule(
        "work works working employed started",
        rf"{_WHO} {_AUX}(?:work|works|working|employed|started) as (?:a |an |"
        rf"the )?(?P<trade>[^,.;]+?)(?: (?:at|for|with) {_FIRM})?$",
        _works_at,
    ),
    _rule(
        "work works working employed",
        rf"{_WHO} {_AUX}(?:work|works|working|employed) (?:at|for|by|with) {_FIRM}(?: as (?:a |an |"
        rf"the )?(?P<trade>[^,.;]+))?$",
        _works_at,
    ),
    _rule(
        "promoted started hired become became retrained",
        rf"{_WHO} {_AUX}(?P<event>promoted|started|hired|become|became|retrained)(?: to| as)? (?:a |an |"
        rf"the )?(?P<value>.+)",
        _is_a,
    ),
    _rule(
        "broke split separated",
        rf"(?P<who>i|we|\w+) (?:and i )?{_AUX}(?:broke|split|separated)(?: up)?(?: with \w+)?$",
        _parted,
    ),
    _rule("broke split separated", r"(?P<other>\w+) and i (?:broke|split|separated)(?: up)?\b.*", _parted),
    _rule(
        "married engaged divorced dating",
        r"(?P<other>\w+) and i (?:are |got |have |been )+(?P<status>married|engaged|divorced|dating)\b.*",
        _wed,
    ),
    _rule(
        _COUPLE_WORDS,
        rf"i {_AUX}(?:a |an |my )?(?P<status>{_COUPLE})\b(?: to| with)?(?P<other>(?: {NAME_WORD})?)",
        _couple,
    ),
    _rule(
        _COUPLE_WORDS,
        rf"i have (?:a |an )?(?:new )?(?P<status>{_COUPLE})\b(?P<other>(?: (?:called|named) {NAME_WORD})?)",
        _couple,
    ),
    _rule(
        "girlfriend boyfriend partner wife husband fiance fiancee",
        rf"my (?P<status>girlfriend|boyfriend|partner|wife|husband|fiancee?) is (?:called |"
        rf"named )?(?P<other>{NAME_WORD})$",
        _couple,
    ),
    _rule(
        _DIETS.replace("|", " ").replace("-", " "),
        rf"{_WHO} {_AUX}(?:(?:became|become|went|turned|on) )?(?:a |"
        rf"an )?(?:strict )?(?P<value>{_DIETS})\b.*",
        _diet,
    ),
    _rule("", rf"{_WHO} {_AUX}(?:turned )?(?P<value>\d{{1,3}}|{'|'.join(NUMBERS)})(?: years? old| today)?$", _age),
    _rule(
        "weigh weighs down up",
        rf"{_WHO} {_AUX}(?:weigh|weighs|down to|up to) (?P<value>[\d.,]+ ?(?:kg|kilos?|lbs?|pounds|stone)).*",
        _weight,
    ),
    _rule("call", r"(?:please )?call me (?P<value>.+)", _call_me),
    _rule(
        "use call text reach dial",
        r"(?:please )?(?:use|call|text|reach me (?:at|on)|dial) (?P<value>\+?[\d][\d ()-]{5,}).*",
        _number,
    ),
    _rule(
        "reach call text",
        r"(?:you can )?(?:reach|call|text) me (?:at|on|under) (?P<value>\+?[\d][\d ()-]{5,}).*",
        _number,
    ),
    _rule("born", rf"{_WHO} {_AUX}born (?:in|on) (?P<value>.+)", _born),
    _rule(
        "answer reply respond write speak talk",
        r"(?:please |always )*(?:answer|reply|respond|write|speak|talk)(?: to me| me)? (?:in|with) (?P<value>.+)",
        _answers_in,
    ),
    _rule(
        "please always never do stop",
        r"(?P<how>please(?: do not| always| never)?|always|never|do not|stop) (?P<value>\w+ .+)",
        _orders,
    ),
    _rule("prefer prefers", rf"{_WHO} prefers? (?P<value>.+?) (?:to|over|rather than) (?P<than>.+)", _prefers),
    _rule(
        "like likes love loves enjoy enjoys adore adores hate hates dislike dislikes detest detests stand fond into allergic",
        rf"{_WHO} {_AUX}(?P<how>likes?|loves?|enjoys?|adores?|hates?|dislikes?|detests?|stand|fond of|into|"
        rf"allergic to) (?P<value>.+)",
        _likes,
    ),
    _rule(
        "switched changed moved migrated converted",
        r"(?:(?P<who>i|we|(?:my|our|the) \w+) )?(?:have |has |had to )?(?:switched|changed|moved|migrated|converted) "
        r"(?:over )?from (?P<old>.+?) to (?P<value>.+)",
        _switches,
    ),
    _rule(
        "traded swapped exchanged replaced",
        r"(?:(?P<who>i|we|(?:my|our|the) \w+) )?(?:have |has )?(?:traded|swapped|exchanged|replaced)(?: in)? "
        r"(?:my |our |the )?(?P<old>.+?) (?:for|with|by) (?P<value>.+)",
        _switches,
    ),
    _rule(
        "sold gave rid rehomed",
        r"(?P<who>i|we|(?:my|our|the) \w+) (?:have |has )?(?:sold|gave away|got rid of|rehomed) (?:my |our |the )?"
        r"(?P<old>.+?)(?: and (?:got|bought|have) (?P<value>.+))?$",
        _switches,
    ),
    _rule(
        "canceled cancelled off happening abandoned scrapped",
        r"(?P<gone>.+?) (?:(?:is|are|was|were|has|have|been|got) )+(?:cancell?ed|called off|off|happening|"
        r"abandoned|scrapped)\b.*",
        lambda found, clause: _ends(found, clause) if clause.denied or "happening" not in found[0] else iter(()),
    ),
    _rule(
        "cancel canceled cancelled called dropped backed scrapped",
        r"(?:i|we|they) (?:have |had to )?(?:cancell?ed|called off|dropped out of|backed out of|scrapped|"
        r"cancel) (?P<gone>.+)",
        _ends,
    ),
    _rule("fell canceled cancelled", r"(?P<gone>.+?) (?:fell through|got cancell?ed)\b.*", _ends),
    _rule("died passed put ran", rf"{_THING} {_AUX}(?:died|passed away|put down|ran away|put to sleep)\b.*", _died),
    _rule(
        "new",
        r"(?:i|we) (?:have|got|bought|chose) (?:a|an) new (?P<who>(?:phone number|[\w-]+))(?:[,:]? (?:it is |"
        r"called |named |a |an |the )*(?P<value>[^,].*))?$",
        _gets_new,
    ),
    _rule(
        "changed gone went rose risen increased dropped fell raised lowered moved rescheduled postponed pushed brought "
        "delayed renamed grown",
        rf"{_THING} (?:(?:is|has|have|been|was|got|had) )*(?:changed|gone up|went up|rose|risen|increased|"
        rf"dropped|fell|gone down|"
        r"went down|raised|lowered|moved|rescheduled|postponed|pushed|brought forward|delayed|renamed|grown)"
        r"(?: up| down| back| forward)? (?:to|for|until|till) (?P<value>.+)",
        _changes,
    ),
    _rule(
        "to for until till",
        r"(?:\w+|the \w+|my \w+) (?:have |has |had to )?(?:change|move|reschedule|postpone|push|raise|put|"
        r"increase|lower|reduce|set|delay|"
        r"update|rename|bring)d?(?:ed)? (?P<who>(?:my|our|the) [\w' -]+?)(?: up| down| back| forward)? (?:to|"
        r"for|until|till) (?P<value>.+)",
        _changes,
    ),
    _rule("called named", rf"{_THING} (?:is|are) (?:called|named) (?P<value>.+)", _called),
    _rule(
        "is are", rf"{_THING} (?:is|are)(?: at| on| in| for| planned for| set for| scheduled for)? (?P<value>.+)", _is
    ),
    _rule("am is are", rf"{_WHO} (?:am|is|are) (?P<event>)(?:a|an|the) (?P<value>.+)", _is_a),
    _rule(
        "am is are will want wants plan plans intend signed enrolled registered booked reserved got",
        rf"{_WHO} (?:(?:am|is|are) (?:going|planning|flying|driving|travelling|traveling|intending|hoping) to|will|"
        rf"(?:want|wants|plan|plans|"
        r"intend) to|signed up for|enrolled in|registered for|booked|reserved|got tickets for) (?P<value>.+)",
        _plans,
    ),
    _rule(
        "planning organising organizing preparing hosting throwing",
        rf"{_WHO} (?:am|is|are) (?:planning|organi[sz]ing|preparing|hosting|throwing) (?P<value>(?:a|an|the|our|my) .+)",
        _plans,
    ),
    _rule("am is are", rf"{_WHO} (?:am|is|are) (?P<verb>\w+ing) (?:to )?(?P<value>.+)", _does),
    _rule("", rf"{_WHO} (?:can |have to )?(?P<verb>[a-z]+)\b(?P<value>.*)", _does),
)
_BY_WORD = {
    word: frozenset(number for number, (words, _, _) in enumerate(RULES) if word in words)
    for word in frozenset[str]().union(*(words for words, _, _ in RULES))
}
"""The numbers of the rules for which a word is a reason to try them."""
_ANYWHERE = frozenset(number for number, (words, _, _) in enumerate(RULES) if not words)
_OF_NOBODY = frozenset({"any", "cancel"})
"""What may be said to be over without saying whose it was."""


def claims_of(clause: Clause) -> Iterator[Claim]:
    """What a plain clause claims."""
    said = words_in(clause.text)
    for number in sorted(_ANYWHERE.union(*(_BY_WORD[word] for word in said if word in _BY_WORD))):
        _, pattern, make = RULES[number]
        if found := pattern.match(clause.text):
            made = [
                claim
                for claim in make(found, clause)
                if (claim.value or claim.ends) and (claim.who or claim.slot in _OF_NOBODY)
            ]
            if made:
                yield from made
                return


@lru_cache(maxsize=8)
def _stems(words: frozenset[str]) -> frozenset[str]:
    return frozenset(terms(" ".join(words)))
