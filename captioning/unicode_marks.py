"""Characters that belong to the letter before them: vowel signs and accents, as in Hindi and Arabic, and joiners.

Python counts none of them among letters. Those that make emoji what they are have no part in words.
"""

import unicodedata

#: For a set of characters within a regular expression.
MARKS = (
    "".join(
        mark
        for mark in map(chr, range(0x300, 0x1F000))
        if unicodedata.category(mark) in ("Mn", "Mc") and not 0xFE00 <= ord(mark) <= 0xFE0F
    )
    + "\u200c\u200d"
)
