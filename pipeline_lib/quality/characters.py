"""Tables that the word splitter and the line rules read: what each character is, and the words that split in a way of their
own."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

# What a character is, as bits of a uint16.
SPACE, ALPHA, LOWER, UPPER, DIGIT, PREFIX, SUFFIX, MARK, QUOTE, TERMINAL, PUNCTUATION, ICON, TRICKY, CURRENCY, CAPITAL, J = (
    1 << bit for bit in range(16)
)
KNOWN = 0x20000  # code points with an entry: the first two planes; all beyond are ideographs or have no rule
BEYOND = ALPHA | LOWER | UPPER

FACTOR = 0xD1342543DE82EF95  # of the hash over code points (multiplier of Steele & Vigna 2021)
MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio (Knuth 6.4)
SPECIAL_SLOTS = 1 << 12
FILTER_BYTES = 1 << 12
LONGEST_SPECIAL = 11  # characters

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_POINTS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCIES = "$£€¥฿₽﷼₴" + "".join(map(chr, range(0x20A0, 0x20C0)))
# What datatrove counts as punctuation or a control character in a word; the full-width digit one is in its list, too.
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
# Sentence_Terminal of Unicode without a name in `unicodedata`: blocks of scripts that end a sentence with a sign of their own.
_TERMINALS = ".!?‼‽⁇⁈⁉։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿⸮⸼。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡\u1b7d\u1b7e\u2e53\u2e54"


_WHOLE_WORDS = (  # abbreviations that keep their full stop, contractions without a head, common emoticons
    "Mr. Mrs. Ms. Dr. Prof. Rev. Gen. Gov. Sen. Rep. Adm. Messrs. St. Mt. Jr. Bros. Co. co. Corp. Inc. Ltd. Ph.D. "
    "e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. a.m. p.m. D.C. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. Md. Mo. Mont. Jan. Feb. "
    "Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. "
    "Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss. Neb. Nebr. Nev. Okla. Ore. Pa. Tenn. Va. Wash. Wis. 'S 's "
    "'re 'll 'em 'd 'Cause 'cause 'cos 'Cos 'coz 'cuz 'bout 'nuff and/or w/o o'clock O'clock ma'am Ma'am C++ '' ' \\\") "
    "\\n \\t lovin' havin' doin' goin' nothin' ol' :) :-) ;) ;-) :( :-( =) =( (: (= :/ =/ :| =| ): )-: [: [= :] =] :} "
    ":* :> <3 =[ ]= ’ ’s ’S ’’ :1 :3 =3 :0 :P :p :O :o :X :x :D =D ;D 8) 8D xD XD >.< ._. -_- ^_^ 0.0 o.o O.O :()"
)


@cache
def character_table() -> NDArray[np.uint16]:
    """Bits of the first `KNOWN` code points. Letters and categories are those of Python's `unicodedata`."""
    table = np.zeros(KNOWN, np.uint16)
    for code in range(KNOWN):
        char = chr(code)
        category = unicodedata.category(char)
        bits = 0
        if char.isspace():
            bits |= SPACE
        if category[0] == "L":
            bits |= ALPHA | (LOWER if category not in {"Lu", "Lt"} else 0) | (UPPER if category != "Ll" else 0)
        elif category in {"Mn", "Mc"} and code >= 0x0900:  # vowel signs belong to the letters of their script
            bits |= LOWER | UPPER
        elif category[0] == "P":
            bits |= PUNCTUATION
        elif category == "So":
            bits |= ICON | PREFIX | SUFFIX
        elif category == "Cc" and not char.isspace():
            bits |= MARK
        table[code] = bits
    for chars, bits in (
        (_QUOTES, QUOTE | PREFIX | SUFFIX), (_POINTS, PREFIX | SUFFIX), ("—–", PREFIX | SUFFIX), ("§%=", PREFIX),
        (_CURRENCIES, PREFIX | CURRENCY), (_MARKS, MARK), (_TERMINALS, TERMINAL | MARK), ("0123456789", DIGIT),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", CAPITAL), (".+-*^/~|@\\", TRICKY), ("jJ", J),
    ):  # fmt: skip
        for char in chars:
            table[ord(char)] |= bits
    table[(table & (PREFIX | SUFFIX | DIGIT | CURRENCY)) > 0] |= TRICKY
    table.flags.writeable = False
    return table


def spelling_hash(word: str) -> int:
    """Hash of the code points of a word, as the kernel computes it: a polynomial in `FACTOR` modulo 2^64, then mixed."""
    value = 0
    for char in word:
        value = (value * FACTOR + ord(char) + 1) % 2**64
    value = (value ^ (value >> 32)) * MIX % 2**64
    return value ^ (value >> 32)


STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher


def special_words() -> dict[str, tuple[int, ...]]:  # noqa: PLR0912
    """Words that spaCy's English splitter takes as they are or splits in parts of these lengths.

    Contractions with and without their apostrophe, times of day, abbreviations that keep their full stop, common emoticons.
    """
    found: dict[str, tuple[int, ...]] = {}

    def say(word: str, *endings: str) -> None:
        """A contraction, capitalised too, with a straight, a curved and no apostrophe."""
        for head in (word, word.title()):
            for mark in ("'", "’", ""):
                tails = tuple(ending.replace("'", mark) for ending in endings)
                found[head + "".join(tails)] = (len(head), *(len(tail) for tail in tails))

    for pronoun in ("i", "you", "he", "she", "it", "we", "they"):
        endings = [("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")]
        endings += [("'ve",)] if pronoun in {"i", "you", "we", "they"} else [("'s",)]
        endings += [("'re",)] if pronoun in {"you", "we", "they"} else []
        endings += [("'m",), ("'m", "a")] if pronoun == "i" else []
        for ending in endings:
            say(pronoun, *ending)
    for word in ("who", "what", "when", "where", "why", "how", "there", "that", "this", "these", "those"):
        endings = [("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")]
        endings += [("'s",)] if word not in {"these", "those"} else []
        endings += [("'re",), ("'ve",)] if word not in {"that", "this"} else []
        for ending in endings:
            say(word, *ending)
    for verb in (
        "ca",
        "could",
        "do",
        "does",
        "did",
        "had",
        "may",
        "might",
        "must",
        "need",
        "ought",
        "sha",
        "should",
        "wo",
        "would",
    ):
        say(verb, "n't")
        say(verb, "n't", "'ve")
    for verb in ("ai", "are", "is", "was", "were", "have", "has", "dare"):
        say(verb, "n't")
    for verb in ("could", "might", "must", "should", "would"):
        say(verb, "'ve")
    for word in ("ill", "its", "hell", "shell", "shed", "were", "well", "whore"):  # words of their own without the apostrophe
        found.pop(word, None)
        found.pop(word.title(), None)
    for first, second in (("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s")):
        for head in (first, first.title()):
            found[head + second] = (len(head), len(second))
    for hour in range(1, 13):
        for half in ("am", "pm", "a.m.", "p.m."):
            found[f"{hour}{half}"] = (len(str(hour)), len(half))
    for word in _WHOLE_WORDS.split():
        found[word] = (len(word),)
    for letter in "abcdefghijklmnopqrstuvwxyzäöü":
        found[letter + "."] = (2,)
    return found


_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz kmh mph hPa Pa mbar mb MB kb KB gb "
    "GB tb TB T G M K"
)


@cache
def special_table() -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.uint8]]:
    """(keys, values, likely): an open-addressing table of `SPECIAL_SLOTS` by spelling hash, and two filters of `1 << 15` bits.

    The first has a bit for each shape that occurs (first and last character and length: a test before the word is hashed), the
    second for the low bits of each hash.

    A value packs three lengths, five bits each, of the parts of a word (a part of the rest is not listed), then a bit that says
    the word is special to the splitter, and a bit for units of measurement.
    """
    values: dict[str, int] = {}
    for word, lengths in special_words().items():
        packed = 1 << 15
        for place, length in enumerate(lengths[:3]):
            packed |= length << (5 * place)
        values[word] = packed
    for unit in _UNITS.split():
        values[unit] = values.get(unit, 0) | 1 << 16
    keys, packed_values = np.zeros(SPECIAL_SLOTS, np.uint64), np.zeros(SPECIAL_SLOTS, np.int32)
    likely = np.zeros(2 * FILTER_BYTES, np.uint8)
    for word, value in values.items():
        if len(word) > LONGEST_SPECIAL:
            continue
        key = spelling_hash(word)
        at = key >> 52
        while packed_values[at]:
            at = (at + 1) % SPECIAL_SLOTS
        keys[at], packed_values[at] = key, value
        shape = (ord(word[0]) * 61 + ord(word[-1]) * 1021 + len(word) * 4093) & 0x7FFF
        likely[shape >> 3] |= 1 << (shape & 7)
        low = key & 0x7FFF
        likely[FILTER_BYTES + (low >> 3)] |= 1 << (low & 7)
    for table in (keys, packed_values, likely):
        table.flags.writeable = False
    return keys, packed_values, likely
