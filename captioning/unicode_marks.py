"""Combining characters: vowel signs and accents, as in Hindi and Arabic, and joiners.

Python's `\\w` matches none of them. The variation selectors of emoji are not part of words and are left out.
"""

import unicodedata

#: For use in a character class of a regular expression.
MARKS = (
    "".join(
        mark
        for mark in map(chr, range(0x300, 0x1F000))
        if unicodedata.category(mark) in ("Mn", "Mc") and not 0xFE00 <= ord(mark) <= 0xFE0F
    )
    + "\u200c\u200d"
)
