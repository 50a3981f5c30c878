"""Tokenises captions for the metrics: Penn Treebank style, lower case, without punctuation.

Reproduces the Java tokeniser of the COCO evaluation (Stanford PTBTokenizer 3.4.1 with `-lowerCase`, then removal of
its list of punctuation), quirks included: brackets survive as `-lrb-` and `-rrb-`, because the list has them in upper
case. 18 of 178,675 Flickr30k captions are tokenised differently (`ft.`, `4:06pm`, `dunkin'`).
"""

import re

from captioning.unicode_marks import MARKS

_PUNCTUATION = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Abbreviations that keep their full stop; those of the second list only before a number.
_ABBREVIATIONS = (
    "mr|mrs|ms|messrs|dr|drs|prof|rev|hon|gov|sen|rep|gen|col|lt|sgt|capt|cpl|maj|cmdr|adm|st|ste|mt|ave|blvd|rd|"
    "jr|sr|bros|inc|ltd|corp|co|assn|univ|dept|vs|etc|al|ph\\.d|esq|"
    "jan|feb|apr|aug|sept|sep|oct|nov|dec|calif|fla|conn|ariz|colo|pa|va|wis"
)
_BEFORE_NUMBERS = "no|nos|fig|figs|p|pp|art"

_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}

_LETTERS = rf"\w[\w{MARKS}]*"
_TOKEN = re.compile(
    rf"""
      (?: https?://\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )      # addresses
    | \.{{2,}} | -{{2,}} | '' | `` | n't\b                   # runs of dots and dashes, quotes, a lone n't
    | '(?: tis | twas )\b
    | 'n' | '(?: s | m | d | re | ve | ll | em | n | \d\ds )\b  # clitics, 'n', '90s
    | (?: [^\W\d_]\. ){{2,}} | \b(?-i: [A-Z]\. )(?! \w | $ )      # u.s., and initials
    | (?: {_ABBREVIATIONS} )\.(?! \w )                       # mr.
    | (?: {_BEFORE_NUMBERS} )\.(?= \s*\d )                   # no. 7
    | {_LETTERS} (?: (?: [-/.&'] | (?<= \d )[:,] (?= \d ) ) {_LETTERS} )*  # words, numbers, and what joins them
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CLITIC = re.compile(r"(.+?)(n't)?('(?:s|m|d|re|ve|ll))?('(?:s|m|d|re|ve|ll))?$")

_CHARACTERS = str.maketrans(
    {"“": "``", "”": "''", "‘": "`", "’": "'", "…": "...", "–": "--", "—": "--", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)


def ptb_tokenize(text: str) -> list[str]:
    """The tokens of a caption, lower case, without punctuation; [] for an empty one."""
    tokens: list[str] = []
    for token in map(str.lower, _TOKEN.findall(text.replace("&amp;", "&").translate(_CHARACTERS))):
        if token in _PUNCTUATION or not token.strip(".") or not token.strip("-"):
            continue
        if token in _SPLIT_WORDS:
            tokens += _SPLIT_WORDS[token]
        elif token in _BRACKETS:
            tokens.append(_BRACKETS[token])
        elif "'" in token[1:] and token != "n't":
            tokens += _split_clitics(token)
        else:
            tokens.append(token)
    return tokens


def _split_clitics(word: str) -> list[str]:
    """`dog's` into `dog` and `'s`, `can't` into `ca` and `n't`; `o'clock` stays."""
    match = _CLITIC.match(word)
    assert match is not None
    return [part for part in match.groups() if part]
