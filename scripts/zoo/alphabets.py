"""The writing systems and their characters; together they are the rows of the class table."""

from itertools import accumulate

ALPHABETS = {
    "digits": "0123456789",
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "lower": "abdefghijkmnqrty",
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "cyrillic": "АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЫЬЭЮЯ",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    "arabic": "ابجدرسصطعفقكلمنهوي",
    "thai": "กขคงจฉชซญฐณดตถทธนบปผฝมยรลวศสหอฮ",
    "devanagari": "अआइउएकखगघचछजझटठडढणतथदधनपफबभमयर",
    "hiragana": "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ",
    "katakana": "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホ",
    "kanji": "日月火水木金土山川田人口目手足車花雨犬鳥魚馬竹米糸学校大小上",
    "hangul": "가나다라마바사아자차카타파하고노도로모보소오조초코토포호구누",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭ",
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտ",
    "bengali": "অআইউএকখগঘচছজঝটঠডঢণতথদধনপফবভমযরল",
    "tamil": "அஆஇஈஉஊஎஏஐஒஓகஙசஞடணதநபமயரலவழளறன",
    "malayalam": "അആഇഉഎഏഒകഖഗഘചഛജഝടഠഡഢണതഥദധനപഫബഭമ",
    "telugu": "అఆఇఉఎఏఒకఖగఘచఛజటఠడఢణతథదధనపఫబభమయ",
    "gujarati": "અઆઇઉએકખગઘચછજઝટઠડઢણતથદધનપફબભમયર",
    "gurmukhi": "ਅੲੳਕਖਗਘਚਛਜਝਟਠਡਢਣਤਥਦਧਨਪਫਬਭਮਯਰਲਵ",
    "khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវស",
    "ethiopic": "ሀለሐመሠረሰሸቀበተቸኀነኘአከኸወዐዘዠየደጀገጠጨጰጸ",
}

CLASSES = sum(map(len, ALPHABETS.values()))
_FIRST = dict(zip(ALPHABETS, accumulate(map(len, ALPHABETS.values()), initial=0), strict=False))


def rows(script: str) -> slice:
    """Where the characters of a script stand in the class table."""
    return slice(_FIRST[script], _FIRST[script] + len(ALPHABETS[script]))
