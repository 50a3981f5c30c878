"""A condition on columns, written as people write one in SQL, and nothing that could run as a program.

    size_bytes > 100000 and (uri like '%.jpg' or tar is not null)

Comparisons (`=` `!=` `<` `<=` `>` `>=`), `like` and `ilike` (`%` any text, `_` one character), `in (…)`,
`between … and …`, `is null`, with `and`, `or`, `not` and parentheses. A value that is not known (null)
fulfils no comparison. Knows columns by a schema and by the names that people give them, and nothing of
what is in them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<name>[^\W\d]\w*)
    |(?P<sign><=|>=|!=|<>|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "like", "ilike", "in", "between", "is", "null", "true", "false"}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda one, other: one == other,
    "==": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<>": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


@dataclass(frozen=True)
class Condition:
    """A condition that was understood: `filter` keeps the rows that it holds for."""

    text: str
    expression: pc.Expression

    @classmethod
    def parse(cls, text: str, schema: pa.Schema | None, names: Mapping[str, str] | None = None) -> "Condition":
        """Understand `text` over the columns of `schema`. Raises `UsageError`, and says where it is wrong.

        `names` are what people call the columns, with their names in the schema. Without a schema
        whatever could name a column passes.
        """
        fields = None
        if schema is not None:
            names = names or {name: name for name in schema.names}
            fields = {name: schema.field(column) for name, column in names.items()}
        try:
            expression = _Parser(text, fields).whole()
            if schema is not None:
                schema.empty_table().filter(expression)
        except (pa.ArrowException, TypeError) as error:
            raise UsageError(
                f"--where {text!r} compares what cannot be compared: {' '.join(str(error).split())} "
                f"The columns: {_listed(fields or {})}."
            ) from error
        except RecursionError:
            raise UsageError("--where has too many parentheses within each other.") from None
        return cls(text, expression)

    def filter(self, table: pa.Table) -> pa.Table:
        """The rows that the condition holds for, in their order."""
        return table.filter(self.expression)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """The key word in small letters, or the sign; nothing for anything else."""
        small = self.text.lower()
        return small if self.kind == "sign" or (self.kind == "name" and small in _WORDS) else ""


class _Parser:
    """By recursive descent, a method a rule."""

    def __init__(self, text: str, fields: Mapping[str, pa.Field] | None) -> None:
        self._text, self._fields = text, fields
        self._tokens = self._split()
        self._next = 0

    def whole(self) -> pc.Expression:
        found = self._either()
        if self._here.kind != "end":
            raise self._wrong("'and', 'or' or the end")
        return found

    def _either(self) -> pc.Expression:
        found = self._both()
        while self._take("or"):
            found = found | self._both()
        return found

    def _both(self) -> pc.Expression:
        found = self._one()
        while self._take("and"):
            found = found & self._one()
        return found

    def _one(self) -> pc.Expression:
        if self._take("not"):
            return ~self._one()
        if self._take("("):
            found = self._either()
            self._demand(")")
            return found
        return self._comparison()

    def _comparison(self) -> pc.Expression:
        left = self._operand()
        if self._take("is"):
            negated = self._take("not")
            self._demand("null")
            return left.is_valid() if negated else left.is_null()
        for sign, compare in _COMPARISONS.items():
            if self._take(sign):
                return compare(left, self._operand())
        negated = self._take("not")
        found = self._membership(left)
        if found is None:
            raise self._wrong("a comparison such as = < like in 'is null'")
        # Not in a list, and not like a pattern, is nothing that is not known either.
        return ~found & left.is_valid() if negated else found

    def _membership(self, left: pc.Expression) -> pc.Expression | None:
        if self._here.word in ("like", "ilike"):
            ignore_case = self._advance().word == "ilike"
            if self._here.kind != "text":
                raise self._wrong("a pattern in quotes, such as '%.jpg'")
            return pc.match_like(left, _unquoted(self._advance().text), ignore_case=ignore_case)
        if self._take("between"):
            least = self._operand()
            self._demand("and")
            return (left >= least) & (left <= self._operand())
        if self._take("in"):
            self._demand("(")
            values = [self._literal()]
            while self._take(","):
                values.append(self._literal())
            self._demand(")")
            # One by one, so that 1 and 1.0 are the same here as elsewhere.
            found = left == values[0]
            for value in values[1:]:
                found = found | (left == value)
            return found
        return None

    def _operand(self) -> pc.Expression:
        token = self._here
        if token.kind != "name" or token.word:
            return self._literal()
        self._advance()
        if self._fields is None:
            return pc.field(token.text)
        if token.text not in self._fields:
            raise UsageError(
                f"--where {self._text!r} names a column {token.text!r}, which the index does not have. "
                f"The columns: {_listed(self._fields)}. (Text goes in quotes: '{token.text}'.)"
            )
        return pc.field(self._fields[token.text].name)

    def _literal(self) -> pc.Expression:
        token = self._here
        if token.kind == "text":
            return pc.scalar(_unquoted(self._advance().text))
        if token.kind == "number":
            digits = self._advance().text.replace("_", "")
            try:
                return pc.scalar(int(digits))
            except (ValueError, OverflowError):
                return pc.scalar(float(digits))
        if token.word in ("true", "false"):
            return pc.scalar(self._advance().word == "true")
        raise self._wrong("a column, a number or a text in quotes")

    @property
    def _here(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _take(self, word: str) -> bool:
        """Go past this key word or sign if it comes next."""
        if self._here.word != word:
            return False
        self._next += 1
        return True

    def _demand(self, word: str) -> None:
        if not self._take(word):
            raise self._wrong(f"{word!r}")

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        text = self._text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise UsageError(f"--where {self._text!r} has something unknown at {text[at:].strip()[:20]!r}.")
            tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            at = match.end()
        return [*tokens, _Token("end", "", len(text))]

    def _wrong(self, wanted: str) -> UsageError:
        at = self._here.at
        found = repr(self._text[at : at + 20]) if self._here.kind != "end" else "the end"
        return UsageError(
            f"--where {self._text!r} cannot be read: {wanted} was expected where there is {found}. "
            "An example: size_bytes > 100000 and uri like '%.jpg'"
        )


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def _listed(fields: Mapping[str, pa.Field]) -> str:
    return ", ".join(f"{name} ({field.type})" for name, field in fields.items())
