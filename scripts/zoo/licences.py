"""Which licence a Debian package's fonts are under, read from its copyright file."""

import re
from pathlib import Path

# What the names of licences look like under which pictures of glyphs may be passed on.
_FREE = re.compile(
    r"GPL|OFL|Open.?Font|^SIL|Apache|CC0|CC-BY|Expat|MIT|BSD|ISC|IPA|Bitstream|DejaVu|GUST|LPPL|LaTeX|public.?domain"
    r"|M\+|Sazanami|UmeFont|FSFAP|ParaType|EPL|EDL|Artistic",
    re.I,
)
# Older files are prose; what names the licence there.
_PROSE = (
    (r"SIL OPEN FONT LICENSE|SIL Open Font License", "OFL-1.x"),
    (r"GUST Font License", "GUST-Font-License"),
    (r"GNU\s+Lesser\s+General", "LGPL-2.1+"),
    (r"GNU\s+General\s+Public|GNU GPL", "GPL"),
)
_ONE_OFF = ((r"Unlimited permission is granted to use, copy, and distribute", "permissive (own words)"),)


def licences(copyright_file: Path) -> list[str]:
    """Names of the licences of what is not Debian's own packaging; empty where they are not known."""
    text = copyright_file.read_text("utf-8", errors="replace")
    if not re.search(r"^Format(-Specification)?:", text, re.M):
        return [name for pattern, name in _PROSE if re.search(pattern, text)]
    found: dict[str, None] = {}
    for stanza in re.split(r"\n\s*\n", text):
        files = re.search(r"^Files:\s*(.+(?:\n[ \t].+)*)", stanza, re.M)
        named = re.search(r"^License:[ \t]*(\S.*)", stanza, re.M)
        if files and named and not all(part.startswith("debian/") for part in files[1].split()):
            found[_told(named[1].strip(), stanza)] = None
    return [name for name in found if name]


def holders(copyright_file: Path, most: int = 4) -> list[str]:
    """Who holds the copyright of what is not Debian's own packaging: the first few that the file names."""
    text = copyright_file.read_text("utf-8", errors="replace")
    if re.search(r"^Format(-Specification)?:", text, re.M):
        lines = []
        for stanza in re.split(r"\n\s*\n", text):
            field = re.search(r"^Copyright:(.*(?:\n[ \t]+.+)*)", stanza, re.M)
            if field and re.search(r"^Files:(?!\s*debian/)", stanza, re.M):
                lines += field[1].splitlines()
    else:
        lines = re.findall(r"^\W*Copyright:?(.*\d{4}.*)", text, re.M | re.I)
    names = list(dict.fromkeys(name for line in lines if (name := _holder(line))))
    return names[:most] + (["and others"] if len(names) > most else [])


def _holder(line: str) -> str:
    """The name in a copyright line, bare of years, addresses and reserved font names; empty where there is none."""
    for noise in (
        r"<[^>]*>",
        r"\([^)]*(@|/|\bc\b)[^)]*\)?",
        r"©|\b(copyright|all rights reserved)\b",
        r",? with (the )?reserved.*",
    ):
        line = re.sub(noise, "", line, flags=re.I)
    name = re.sub(r"^by ", "", re.split(r"\d{4}[\d\s,.–-]*", line)[-1].strip()).strip(" \t,.:;*-")
    prose = re.search(r"software|licen[cs]e|reserved font|trademark|@", name, re.I)
    return name if re.match(r"[^\W\da-z]|\w+$", name) and not prose and len(name) > 2 else ""


def _told(name: str, stanza: str) -> str:
    """The licence's name as the package gives it where it is a known one, else what its own words say, else nothing."""
    if _FREE.search(name):
        return name
    return next((said for pattern, said in _ONE_OFF if re.search(pattern, stanza)), "")
