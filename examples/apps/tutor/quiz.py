"""Questions back: a sentence of the text with a key word left out, the same ones each time. No model is asked."""

import re
from collections import Counter
from typing import NamedTuple

COMMON = frozenset(
    "about above after again against also although always among another because become becomes been before begins "  # noqa: SIM905
    "behind being below best between both bring called cannot could does doing done down during each easily either "
    "even ever every fast faster fastest first from gives goes good hardly have having here however into itself just "
    "keeps kind know large last less like likes little long made make makes many mind more most mostly much must "
    "never often once only other others over same several should since slowly some still such takes than that their "
    "them then there therefore these they thing things this those though three through time together under until upon "
    "very what when where whether which while whole whose will with within without would years your".split()
)
USUAL = set(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
    "面而方后多定行学法所民得经之进着等部度家电力里如化高自二理起小现物心前两只因由那它些被把从向叫做约段"
    "平均最三四五六七八九十天"
)


class Gap(NamedTuple):
    """A sentence that lacks a word, and where it stands in the text."""

    before: str
    word: str
    after: str
    start: int
    end: int


def gaps(text: str, sentences: list[tuple[int, int]]) -> list[Gap]:
    """Return a question for each sentence that has a word worth asking for, in the order of the text."""
    counts = Counter(word.lower() for word in re.findall(r"[A-Za-z]{4,}", text))
    found, used = [], set()
    for start, end in sentences:
        sentence = text[start:end]
        is_long = 40 <= len(sentence) <= 240 or (re.search("[一-鿿]", sentence) and 12 <= len(sentence) <= 90)
        place = _key(sentence, text, counts, used) if is_long and not sentence.startswith("#") else None
        if place is not None:
            first, last = place
            word = sentence[first:last]
            used.add(word.lower())
            found.append(Gap(_line(sentence[:first]), word, _line(sentence[last:]), start, end))
    return found


def _key(sentence: str, text: str, counts: Counter[str], used: set[str]) -> tuple[int, int] | None:
    """Return where the word stands that the text speaks of most; of several the longest."""
    words = [(one.start(), one.end()) for one in re.finditer(r"[A-Za-z]{4,}", sentence) if one[0].lower() not in COMMON]
    if words:
        fresh = [(a, b) for a, b in words if sentence[a:b].lower() not in used]
        ranked = [(min(counts[sentence[a:b].lower()], 4), b - a, -a, b) for a, b in fresh]
        return (-max(ranked)[2], max(ranked)[3]) if ranked else None
    pieces = [
        (text.count(sentence[a:b]), b - a, -a, b)
        for b in range(2, len(sentence) + 1)
        for a in range(max(0, b - 4), b - 1)
        if re.fullmatch("[一-鿿]+", sentence[a:b])
        and not USUAL & set(sentence[a:b])
        and not any(sentence[a:b] in one or one in sentence[a:b] for one in used)
    ]
    best = max((one for one in pieces if one[0] > 1), key=lambda one: (one[1], one[0], one[2]), default=None)
    return None if best is None else (-best[2], best[3])


def _line(text: str) -> str:
    return re.sub(r" *\n *", " ", text)
