"""The language of `filter_function` and `goodness_function`, a safe one: no loops, no names of Python.

    expression  = either ["?" expression ":" expression]
    either      = both {("or" | "||") both}           both = negation {("and" | "&&") negation}
    negation    = "not" negation | comparison
    comparison  = sum {("==" | "!=" | "<=" | ">=" | "<" | ">") sum}     a < b < c as in mathematics
    sum         = product {("+" | "-") product}       product = sign {("*" | "/" | "%") sign}
    sign        = ("-" | "+" | "!") sign | primary
    primary     = NUMBER[KiB|MiB|GiB|TiB|PiB] | "text" | true | false | "(" expression ")"
                | ("min" | "max") "(" expression {"," expression} ")" | "abs" "(" expression ")"
                | ("stats" | "capabilities" | "volume" | "extra") {"." NAME | "[" "text" "]"}

It follows cinder/scheduler/evaluator/evaluator.py without its power operator; `and`, `or` and `?:`
look only at what they need. Text that spells a number is that number, `true` and `false` are 1 and 0.
`parse` raises `ConfigError` with the position, from 1; what it gives raises only `EvaluationError`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from volctl.errors import ConfigError
from volctl.records import record
from volctl.scheduler.pools import FIELDS
from volctl.scheduler.specs import number

Value = int | float | str | bool
Scope = Mapping[str, Any]
Node = Callable[[Scope], Value]

ROOTS = ("stats", "capabilities", "volume", "extra")
MAX_LENGTH = 2000
MAX_DEPTH = 30
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(?:\s*(?P<unit>[KMGTP]iB)\b)?
    |(?P<name>[A-Za-z_]\w*) |(?P<text>"[^"]*"|'[^']*')
    |(?P<sign>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]]) |(?P<end>\Z))""",
    re.VERBOSE | re.ASCII,
)
_BLANKS = re.compile(r"\s*", re.ASCII)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int | float]] = {"min": min, "max": max, "abs": abs}


class EvaluationError(ValueError):
    """An expression has no value for this pool: division by zero, an unknown figure, text as a number."""


@record
class Token:
    """`kind` is number, unit, name, text, sign or end; `position` is from 1."""

    kind: str
    text: str
    position: int


class _Wrong(Exception):
    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message, self.position = message, position


@lru_cache(maxsize=256)
def parse(source: str, what: str = "the expression") -> Node:
    """The expression as a function of its scope, a mapping of `ROOTS`. `ConfigError` if it is none."""
    try:
        if len(source) > MAX_LENGTH:
            raise _Wrong(f"longer than {MAX_LENGTH} characters", MAX_LENGTH + 1)
        return _Parser(_tokens(source)).whole()
    except _Wrong as wrong:
        message = f"{what}, position {wrong.position}: {wrong.message}"
        raise ConfigError(message, details={"position": wrong.position}) from None


def evaluate(source: str, scope: Scope) -> Value:
    """The value; `EvaluationError` if there is none."""
    try:
        return parse(source)(scope)
    except (ArithmeticError, TypeError) as error:
        raise EvaluationError(str(error)) from error


def truth(value: Value) -> bool:
    """Not false, not 0, not empty text; a NaN is false."""
    return bool(value) and value == value


def _tokens(source: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(source, at)
        if not found or not found.lastgroup:
            at = _BLANKS.match(source, at).end()  # type: ignore[union-attr]  # it matches the empty text too
            raise _Wrong(_strange(source[at]), at + 1)
        kind = "number" if found["number"] else found.lastgroup
        tokens.append(Token(kind, found[kind], found.start(kind) + 1))
        if found["unit"]:
            tokens.append(Token("unit", found["unit"], found.start("unit") + 1))
        at = found.end()
    return tokens


def _strange(char: str) -> str:
    return f"a text that begins with {char} does not end" if char in "\"'" else f"{char!r} is not expected"


class _Parser:
    """Recursive descent over the tokens; `depth` bounds the nesting and so the stack."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def word(self) -> str:
        """The current sign, or name in lower case; empty for anything else."""
        if self.token.kind == "name":
            return self.token.text.lower()
        return self.token.text if self.token.kind == "sign" else ""

    def take(self) -> Token:
        token = self.token
        self.at += token.kind != "end"
        return token

    def accept(self, *words: str) -> str | None:
        word = self.word()
        if word not in words:
            return None
        self.take()
        return word

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            raise self.unexpected(f"{sign!r} is expected")

    def unexpected(self, wanted: str) -> _Wrong:
        found = "the end" if self.token.kind == "end" else repr(self.token.text)
        return _Wrong(f"{wanted}, not {found}", self.token.position)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Wrong(f"nested deeper than {MAX_DEPTH}", self.token.position)

    def whole(self) -> Node:
        node = self.expression()
        if self.token.kind != "end":
            raise self.unexpected("the end or an operator is expected")
        return node

    def expression(self) -> Node:
        self.deeper()
        node = self.either()
        if self.accept("?"):
            then = self.expression()
            self.expect(":")
            node = _choice(node, then, self.expression())
        self.depth -= 1
        return node

    def either(self) -> Node:
        nodes = [self.both()]
        while self.accept("or", "||"):
            nodes.append(self.both())
        return nodes[0] if len(nodes) == 1 else lambda scope: any(truth(node(scope)) for node in nodes)

    def both(self) -> Node:
        nodes = [self.negation()]
        while self.accept("and", "&&"):
            nodes.append(self.negation())
        return nodes[0] if len(nodes) == 1 else lambda scope: all(truth(node(scope)) for node in nodes)

    def negation(self) -> Node:
        turns = 0
        while self.accept("not"):
            turns += 1
        node = self.comparison()
        return node if not turns else lambda scope: truth(node(scope)) is (turns % 2 == 0)

    def comparison(self) -> Node:
        first, rest = self.sum(), []
        while sign := self.accept(*_ORDER):
            rest.append((sign, self.sum()))
        return _compared(first, rest) if rest else first

    def sum(self) -> Node:
        first, rest = self.product(), []
        while sign := self.accept("+", "-"):
            rest.append((_ARITHMETIC[sign], self.product()))
        return _reckoned(first, rest) if rest else first

    def product(self) -> Node:
        first, rest = self.sign(), []
        while sign := self.accept("*", "/", "%"):
            rest.append((_ARITHMETIC[sign], self.sign()))
        return _reckoned(first, rest) if rest else first

    def sign(self) -> Node:
        signs = []
        while sign := self.accept("-", "+", "!"):
            signs.append(sign)
        node = self.primary()
        return _signed(tuple(reversed(signs)), node) if signs else node

    def primary(self) -> Node:
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "text":
            return _constant(self.take().text[1:-1])
        if self.accept("("):
            node = self.expression()
            self.expect(")")
            return node
        if word := self.accept("true", "false"):
            return _constant(word == "true")
        if token.kind == "name" and token.text in _FUNCTIONS:
            return self.call()
        return self.attribute()

    def number(self) -> Node:
        token = self.take()
        value = number(token.text)
        if value is None:
            raise _Wrong("a number of too many digits", token.position)
        return _constant(value * UNITS[self.take().text] if self.token.kind == "unit" else value)

    def call(self) -> Node:
        name = self.take()
        self.expect("(")
        arguments = [self.expression()]
        while self.accept(","):
            arguments.append(self.expression())
        self.expect(")")
        if name.text == "abs" and len(arguments) > 1:
            raise _Wrong("abs takes one value", name.position)
        return _called(name.text, arguments)

    def attribute(self) -> Node:
        root = self.token
        if root.kind != "name":
            raise self.unexpected("a value is expected")
        if root.text not in ROOTS:
            raise _Wrong(f"{root.text!r} is none of {', '.join((*ROOTS, *_FUNCTIONS))}", root.position)
        self.take()
        keys = [self.key(root.text)]
        while self.word() in (".", "["):
            keys.append(self.key())
        return _attribute(root.text, tuple(keys))

    def key(self, root: str | None = None) -> str:
        """`.name` or `["text"]`; right after `stats` and `volume` it must be one of theirs."""
        sign = self.accept(".", "[")
        if not sign:
            raise self.unexpected(f"'.' and a name are expected after {root}")
        if self.token.kind != ("name" if sign == "." else "text"):
            raise self.unexpected("a name is expected" if sign == "." else "a key in quotes is expected")
        token = self.take()
        key = token.text if sign == "." else token.text[1:-1]
        if root in FIELDS and key not in FIELDS[root]:
            raise _Wrong(f"there is no {root}.{key}; there are {' '.join(FIELDS[root])}", token.position)
        if sign == "[":
            self.expect("]")
        return key


def _constant(value: Value) -> Node:
    return lambda scope: value


def _choice(condition: Node, then: Node, otherwise: Node) -> Node:
    return lambda scope: then(scope) if truth(condition(scope)) else otherwise(scope)


def _compared(first: Node, rest: list[tuple[str, Node]]) -> Node:
    def node(scope: Scope) -> bool:
        left = first(scope)
        for sign, other in rest:
            right = other(scope)
            if not _holds(left, sign, right):
                return False
            left = right
        return True

    return node


def _holds(left: Value, sign: str, right: Value) -> bool:
    one, two = _as_number(left), _as_number(right)
    if one is not None and two is not None:
        return _ORDER[sign](one, two)
    if isinstance(left, str) and isinstance(right, str):
        return _ORDER[sign](left, right)
    if sign in ("==", "!="):
        return sign == "!="
    raise EvaluationError(f"{left!r} {sign} {right!r} compares text with a number")


def _reckoned(first: Node, rest: list[tuple[Callable[[Any, Any], int | float], Node]]) -> Node:
    def node(scope: Scope) -> int | float:
        value = _needed(first(scope))
        for reckon, other in rest:
            value = reckon(value, _needed(other(scope)))
        return value

    return node


def _signed(signs: tuple[str, ...], inner: Node) -> Node:
    def node(scope: Scope) -> Value:
        value = inner(scope)
        for sign in signs:
            value = not truth(value) if sign == "!" else _needed(value) * (-1 if sign == "-" else 1)
        return value

    return node


def _called(name: str, arguments: list[Node]) -> Node:
    def node(scope: Scope) -> int | float:
        values = [_needed(argument(scope)) for argument in arguments]
        return _FUNCTIONS[name](values if name != "abs" else values[0])

    return node


def _attribute(root: str, keys: tuple[str, ...]) -> Node:
    shown = ".".join((root, *keys))

    def node(scope: Scope) -> Value:
        value: Any = scope[root]
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                raise EvaluationError(f"there is no {shown}")
            value = value[key]
        if value is None:
            raise EvaluationError(f"{shown} is unknown")
        if not isinstance(value, (int, float, str)):
            raise EvaluationError(f"{shown} is neither a number nor text")
        return value

    return node


def _as_number(value: Value) -> int | float | None:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return int(value.lower() == "true")
    return int(value) if isinstance(value, bool) else value if isinstance(value, float) else number(value)


def _needed(value: Value) -> int | float:
    if (found := _as_number(value)) is None:
        raise EvaluationError(f"{value!r} is not a number")
    return found
