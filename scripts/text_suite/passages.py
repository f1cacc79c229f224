"""Tasks on phrases and sentences: diagnoses, example sentences, verses, reviews."""

import random
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from zoo.problem import Problem

from text_suite.splits import Text

_VERBS = (
    "body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation", "emotion",
    "motion", "perception", "possession", "social", "stative", "weather",
)  # fmt: skip
# WordNet numbers its kinds: 29 is the first of the verbs.
_FIRST_VERB = 29
# Part of the Bible → its last book, counted from 0.
_PARTS = {
    "law": 4, "history": 16, "wisdom": 21, "major prophets": 26, "minor prophets": 38, "gospels": 42, "acts": 43,
    "letters of Paul": 56, "other letters": 64, "revelation": 65,
}  # fmt: skip


def icd(raw: Path) -> Iterator[Text]:
    """Diagnosis → chapter of ICD-10-CM; at most six of a three-character category."""
    random_order = random.Random(2)
    (path,) = (raw / "simple-icd-10-cm/simple_icd_10_cm/data").glob("*.xml")
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):
        number = int(chapter.findtext("name", ""))
        for section in chapter.iter("section"):
            for category in section.findall("diag"):
                texts = [one.findtext("desc", "") for one in category.iter("diag")]
                random_order.shuffle(texts)
                for text in texts[:6]:
                    if len(text) > 8:
                        yield Text(text, f"chapter {number:02d}", category.findtext("name", ""))


def verb(raw: Path) -> Iterator[Text]:
    """Example sentence of WordNet → kind of its verb."""
    for line in (raw / "wordnet-base/usr/share/wordnet/data.verb").read_text("utf-8").splitlines():
        if not line.startswith(" "):
            left, gloss = line.split("|", 1)
            synset, kind = left.split()[:2]
            for example in re.findall(r'"([^"]{15,})"', gloss):
                yield Text(example, _VERBS[int(kind) - _FIRST_VERB], synset)


def bible(raw: Path) -> Iterator[Text]:
    """Verse → part of the Bible; a chapter stays in one split."""
    command = [str(raw / "bible-kjv/usr/bin/bible"), "-p", str(raw / "bible-kjv-text/usr/lib"), "-f", "gen1:1-rev22:21"]
    try:
        printed = subprocess.run(command, input="", capture_output=True, text=True).stdout
    except OSError as error:
        raise Problem(f"bible: the program of the Debian package bible-kjv does not run here ({error})") from error
    books: list[str] = []
    for line in printed.splitlines():
        if found := re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line):
            book, chapter, _, text = found.groups()
            if not books or books[-1] != book:
                books.append(book)
            part = next(part for part, last in _PARTS.items() if len(books) - 1 <= last)
            yield Text(text, part, book + chapter)


def review(raw: Path) -> Iterator[Text]:
    """Snippet of a film or product review → quartile of its mean rating by twenty people, each source on its own."""
    for kind in ("movieReview", "amazonReview"):
        (path,) = (raw / "vaderSentiment").rglob(f"{kind}*GroundTruth.txt")
        rated = []
        for line in path.read_text("latin1").split("\n"):
            name, *middle, text = line.split("\t") if line.count("\t") >= 2 else ("", "", "")
            if len(text.split()) >= 5:
                rated.append((text, float(middle[0]), name.split("_")[0]))
        ordered = sorted(rating for _, rating, _ in rated)
        cuts = [ordered[len(ordered) * i // 4] for i in (1, 2, 3)]
        for text, rating, group in rated:
            yield Text(text, "abcd"[sum(rating >= cut for cut in cuts)], kind + group)
