"""The grammar of FHIRPath: text becomes a tree. Source: FHIRPath 2.0 (N1), grammar and precedence.

A node is a tuple whose first member says what it is: `literal` (type, value), `name`, `this`, `index`, `total`,
`variable`, `call` (name, arguments), `member` (node, node), `item` (node, node), `negative`, `operation` (sign, node,
node), `type` (sign, node, name). Pure.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from imaging.errors import AppError, Category

Node = tuple[Any, ...]

MOST_CHARACTERS = 4096
MAX_DEPTH = 60  # of brackets within one another
MAX_HEIGHT = 150  # of the tree, to which long chains add, too

_TOKEN = re.compile(
    r"""\s*(?://[^\n]*\n|/\*.*?\*/|
    (?P<date>@T?[0-9][0-9T:.+\-]*Z?)|
    (?P<number>[0-9]+(?:\.[0-9]+)?)|
    (?P<text>'(?:[^'\\]|\\.)*')|
    (?P<word>`[^`]*`|[A-Za-z_][A-Za-z0-9_]*)|
    (?P<special>\$this|\$index|\$total)|
    (?P<variable>%(?:[A-Za-z_][A-Za-z0-9_\-]*|`[^`]*`|'[^']*'))|
    (?P<sign><=|>=|!=|!~|[.()\[\]{},=~<>|+\-*/&]))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}

# from the loosest to the tightest
_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"implies"}),
    frozenset({"or", "xor"}),
    frozenset({"and"}),
    frozenset({"in", "contains"}),
    frozenset({"=", "~", "!=", "!~"}),
    frozenset({"<=", "<", ">", ">="}),
    frozenset({"|"}),
    frozenset({"is", "as"}),
    frozenset({"+", "-", "&"}),
    frozenset({"*", "/", "div", "mod"}),
)
_LEVEL_OF = {sign: level for level, signs in enumerate(_LEVELS) for sign in signs}
_UNITS = frozenset({"year", "month", "week", "day", "hour", "minute", "second", "millisecond"})


@cache
def parse(expression: str) -> Node:
    """Return the tree of an expression. Raises INVALID, saying where it cannot be read."""
    if len(expression) > MOST_CHARACTERS:
        raise AppError(Category.INVALID, f"an expression has at most {MOST_CHARACTERS} characters", where="expression")
    parser = _Parser(expression)
    tree = parser.expression(0)
    parser.expect_end()
    _check_depth(tree)
    return tree


class _Parser:
    """Precedence climbing; every rule returns a node."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.position = 0
        self.depth = 0

    def expression(self, least: int) -> Node:
        """Parse operators that bind as tight as level `least` or tighter."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _too_deep()
        found = self._polarity()
        while (level := self._level()) >= least:
            sign = self._peek()[1]
            self.position += 1
            if sign in {"is", "as"}:
                found = ("type", sign, found, self._type_name())
            else:
                found = ("operation", sign, found, self.expression(level + 1))
        self.depth -= 1
        return found

    def expect_end(self) -> None:
        if self.position != len(self.tokens):
            raise self._unreadable()

    def _level(self) -> int:
        kind, text = self._peek()
        return _LEVEL_OF.get(text, -1) if kind in {"sign", "word"} else -1

    def _polarity(self) -> Node:
        if self._accept("-"):
            return ("negative", self._polarity())
        if self._accept("+"):
            return self._polarity()
        found = self._term()
        while True:
            if self._accept("."):
                found = ("member", found, self._invocation())
            elif self._accept("["):
                found = ("item", found, self.expression(0))
                self._expect("]")
            else:
                return found

    def _term(self) -> Node:
        kind, text = self._peek()
        if kind == "sign" and text == "(":
            self.position += 1
            found = self.expression(0)
            self._expect(")")
            return found
        if kind == "sign" and text == "{":
            self.position += 1
            self._expect("}")
            return ("literal", "", None)
        if kind in _LITERALS:
            self.position += 1
            return self._literal(kind, text)
        if kind == "variable":
            self.position += 1
            return ("variable", text[1:].strip("`'"))
        return self._invocation()

    def _literal(self, kind: str, text: str) -> Node:
        if kind == "text":
            return ("literal", "string", _unescaped(text[1:-1]))
        if kind == "date":
            plain = text[1:]
            name = "time" if plain.startswith("T") else "dateTime" if "T" in plain else "date"
            return ("literal", name, plain.removeprefix("T") if name == "time" else plain.removesuffix("T"))
        value: Any = float(text) if "." in text else int(text)
        following, unit = self._peek()
        if following == "text" or (following == "word" and unit.removesuffix("s") in _UNITS):
            self.position += 1
            return ("literal", "Quantity", {"value": value, "code": unit.strip("'")})
        return ("literal", "decimal" if "." in text else "integer", value)

    def _invocation(self) -> Node:
        kind, text = self._peek()
        if kind == "special":
            self.position += 1
            return (text[1:],)
        if kind != "word":
            raise self._unreadable()
        self.position += 1
        name = text.strip("`")
        if not self._accept("("):
            return ("literal", "boolean", text == "true") if text in {"true", "false"} else ("name", name)
        arguments: list[Node] = []
        if not self._accept(")"):
            arguments.append(self.expression(0))
            while self._accept(","):
                arguments.append(self.expression(0))
            self._expect(")")
        return ("call", name, tuple(arguments))

    def _type_name(self) -> str:
        kind, text = self._peek()
        if kind != "word":
            raise self._unreadable()
        self.position += 1
        name = text.strip("`")
        return f"{name}.{self._type_name()}" if name in {"FHIR", "System"} and self._accept(".") else name

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def _accept(self, sign: str) -> bool:
        is_next = self._peek() == ("sign", sign)
        self.position += is_next
        return is_next

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._unreadable()

    def _tokens(self) -> Iterator[tuple[str, str]]:
        position = 0
        text = self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise AppError(Category.INVALID, f"an expression cannot be read at {position}", where="expression")
            if match.lastgroup:
                yield match.lastgroup, match.group(match.lastgroup)
            position = match.end()

    def _unreadable(self) -> AppError:
        kind, text = self._peek()
        found = "its end" if kind == "end" else repr(text[:20])
        return AppError(Category.INVALID, f"an expression cannot be read at {found}", where="expression")


def _check_depth(tree: Node) -> None:
    height, level = 0, [tree]
    while level:
        height += 1
        if height > MAX_HEIGHT:
            raise _too_deep()
        level = [part for node in level for part in _parts(node)]


def _parts(node: Node) -> list[Node]:
    if node[0] == "call":
        return list(node[2])
    return [part for part in node[1:] if isinstance(part, tuple)]


def _too_deep() -> AppError:
    return AppError(Category.INVALID, f"an expression is nested deeper than {MAX_DEPTH}", where="expression")


_LITERALS = frozenset({"text", "date", "number"})


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1].startswith("u"):
            return chr(int(match[1][1:], 16))
        return _ESCAPES.get(match[1], match[1])

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", one, text)
