"""The conditions of `--where`: a small part of SQL, parsed into an Arrow expression, never evaluated as code.

    size_bytes > 100000 and (uri like '%.jpg' or tar is not null)

Comparisons (`=` `!=` `<` `<=` `>` `>=`), `like` and `ilike` (`%` any text, `_` one character), `in (…)`,
`between … and …`, `is null`, with `and`, `or`, `not` and parentheses. Null satisfies no comparison, nor its
negation.
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
_KEYWORDS = {"and", "or", "not", "like", "ilike", "in", "between", "is", "null", "true", "false"}
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
    """A parsed condition: `filter` keeps the rows that satisfy it."""

    text: str
    expression: pc.Expression

    @classmethod
    def parse(cls, text: str, schema: pa.Schema | None, names: Mapping[str, str] | None = None) -> "Condition":
        """Parse `text` over the columns of `schema`. Raises `UsageError` with the position of a syntax error.

        `names` maps the names that users write to those in the schema. Without a schema any name is accepted
        as a column.
        """
        fields = None
        if schema is not None:
            names = names or {name: name for name in schema.names}
            fields = {name: schema.field(column) for name, column in names.items()}
        try:
            expression = _Parser(text, fields).parse()
            if schema is not None:
                schema.empty_table().filter(expression)
        except (pa.ArrowException, TypeError) as error:
            raise UsageError(
                f"--where {text!r} cannot be evaluated: {' '.join(str(error).split())} "
                f"The columns: {_column_list(fields or {})}."
            ) from error
        except RecursionError:
            raise UsageError("--where has too many nested parentheses.") from None
        return cls(text, expression)

    def filter(self, table: pa.Table) -> pa.Table:
        """The rows that satisfy the condition, in order."""
        return table.filter(self.expression)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def keyword(self) -> str:
        """The keyword in lower case, or the sign; "" for any other token."""
        lower = self.text.lower()
        return lower if self.kind == "sign" or (self.kind == "name" and lower in _KEYWORDS) else ""


class _Parser:
    """A recursive-descent parser with one method per rule of the grammar."""

    def __init__(self, text: str, fields: Mapping[str, pa.Field] | None) -> None:
        self._text, self._fields = text, fields
        self._tokens = self._tokenise()
        self._next = 0

    def parse(self) -> pc.Expression:
        found = self._or_expression()
        if self._current.kind != "end":
            raise self._syntax_error("'and', 'or' or the end")
        return found

    def _or_expression(self) -> pc.Expression:
        found = self._and_expression()
        while self._accept("or"):
            found = found | self._and_expression()
        return found

    def _and_expression(self) -> pc.Expression:
        found = self._not_expression()
        while self._accept("and"):
            found = found & self._not_expression()
        return found

    def _not_expression(self) -> pc.Expression:
        if self._accept("not"):
            return ~self._not_expression()
        if self._accept("("):
            found = self._or_expression()
            self._expect(")")
            return found
        return self._comparison()

    def _comparison(self) -> pc.Expression:
        left = self._operand()
        if self._accept("is"):
            negated = self._accept("not")
            self._expect("null")
            return left.is_valid() if negated else left.is_null()
        for sign, compare in _COMPARISONS.items():
            if self._accept(sign):
                return compare(left, self._operand())
        negated = self._accept("not")
        found = self._membership(left)
        if found is None:
            raise self._syntax_error("a comparison such as =, <, like, in or is null")
        # As in SQL, null satisfies neither a test nor its negation.
        return ~found & left.is_valid() if negated else found

    def _membership(self, left: pc.Expression) -> pc.Expression | None:
        if self._current.keyword in ("like", "ilike"):
            ignore_case = self._advance().keyword == "ilike"
            if self._current.kind != "text":
                raise self._syntax_error("a pattern in quotes, such as '%.jpg'")
            return pc.match_like(left, _unquoted(self._advance().text), ignore_case=ignore_case)
        if self._accept("between"):
            least = self._operand()
            self._expect("and")
            return (left >= least) & (left <= self._operand())
        if self._accept("in"):
            self._expect("(")
            values = [self._literal()]
            while self._accept(","):
                values.append(self._literal())
            self._expect(")")
            # As a chain of comparisons, in which 1 equals 1.0 as elsewhere.
            found = left == values[0]
            for value in values[1:]:
                found = found | (left == value)
            return found
        return None

    def _operand(self) -> pc.Expression:
        token = self._current
        if token.kind != "name" or token.keyword:
            return self._literal()
        self._advance()
        if self._fields is None:
            return pc.field(token.text)
        if token.text not in self._fields:
            raise UsageError(
                f"--where {self._text!r} names an unknown column {token.text!r}. "
                f"The columns: {_column_list(self._fields)}. (Text goes in quotes: '{token.text}'.)"
            )
        return pc.field(self._fields[token.text].name)

    def _literal(self) -> pc.Expression:
        token = self._current
        if token.kind == "text":
            return pc.scalar(_unquoted(self._advance().text))
        if token.kind == "number":
            digits = self._advance().text.replace("_", "")
            try:
                return pc.scalar(int(digits))
            except (ValueError, OverflowError):
                return pc.scalar(float(digits))
        if token.keyword in ("true", "false"):
            return pc.scalar(self._advance().keyword == "true")
        raise self._syntax_error("a column, a number or text in quotes")

    @property
    def _current(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, word: str) -> bool:
        """Consume this keyword or sign if it is next; whether it was."""
        if self._current.keyword != word:
            return False
        self._next += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._syntax_error(f"{word!r}")

    def _tokenise(self) -> list[_Token]:
        tokens, at = [], 0
        text = self._text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise UsageError(f"--where {self._text!r} has unexpected text at {text[at:].strip()[:20]!r}.")
            tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            at = match.end()
        return [*tokens, _Token("end", "", len(text))]

    def _syntax_error(self, wanted: str) -> UsageError:
        at = self._current.at
        found = repr(self._text[at : at + 20]) if self._current.kind != "end" else "the end"
        return UsageError(
            f"--where {self._text!r} cannot be parsed: expected {wanted}, found {found}. "
            "An example: size_bytes > 100000 and uri like '%.jpg'"
        )


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def _column_list(fields: Mapping[str, pa.Field]) -> str:
    return ", ".join(f"{name} ({field.type})" for name, field in fields.items())
