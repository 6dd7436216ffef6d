"""Command lines that a program hands on to others: lists of words, and texts for a shell, in text that is Python.

Applications of Modal, services of BentoML and scripts start servers so (``subprocess.Popen(["vllm", "serve", MODEL, ...])``).
Nothing is run: names that the program sets once stand for their values, what it appends to a list is its end, and what only a
run could know stays as a variable of a shell (``$NAME``), which the reader of the command then asks for.
"""

from __future__ import annotations

import ast
import operator
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine_models.python_calls import constants
from hardware_profiles.records import dataclass

_STARTS = ("Popen", "run", "call", "check_call", "check_output", "system", "spawn", "create_subprocess_shell")
"""Functions whose first argument is a command."""
_DEEPEST = 8  # names that stand for names; assumed, programs need two
_MOST_WORDS = 10_000  # of one command; assumed, far above any
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}
_MODEL = re.compile(r"[\w.-]+/[\w.-]+")
_FROM_ENVIRONMENT = ("os.getenv", "os.environ.get", "environ.get", "getenv")


@dataclass
class Command:
    """A command: its words, or one text for a shell. `unsaid` : on what further words depend that the text does not say."""

    words: list[str]
    unsaid: str = ""


def read_commands(text: str) -> list[Command]:
    """Lists of words, and texts for a shell as one word, in their order; none where the text is no program with imports.

    >>> read_commands("import subprocess\\nM = 'org/m'\\ncmd = ['serve', M]\\ncmd += ['--tp', str(2)]\\nsubprocess.Popen(cmd)")
    [Command(words=['serve', 'org/m', '--tp', '2'], unsaid='')]
    """
    if "import" not in text:
        return []
    try:
        program = ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = list(ast.walk(program))
    if not any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
        return []
    reader = _Reader({**_defaults(nodes), **constants(nodes)})
    try:
        reader.block(program.body)
    except RecursionError:
        return []
    return reader.found


def _defaults(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """What parameters of functions and options of the program's own command line are unless somebody says otherwise."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.arguments):
            late = node.args[len(node.args) - len(node.defaults) :]
            pairs = [*zip(late, node.defaults, strict=True), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            for parameter, default in pairs:
                if default is not None:
                    found.setdefault(parameter.arg, []).append(default)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            flags = [str(flag.value) for flag in node.args if isinstance(flag, ast.Constant) and str(flag.value).startswith("--")]
            said = {keyword.arg: keyword.value for keyword in node.keywords}
            if flags and "required" not in said:
                switch = isinstance(action := said.get("action"), ast.Constant) and action.value == "store_true"
                name = flags[0].lstrip("-").replace("-", "_")
                found.setdefault(name, []).append(said.get("default", ast.Constant(False if switch else None)))
    return {name: values[0] for name, values in found.items() if len({ast.dump(value) for value in values}) == 1}


class _Reader:
    def __init__(self, known: Mapping[str, ast.expr]) -> None:
        self.known = known
        self.named: dict[str, Command] = {}
        self.found: list[Command] = []

    def block(self, statements: list[ast.stmt]) -> None:
        """Statements in their order, those of a condition where it holds."""
        for statement in statements:
            if isinstance(statement, ast.If):
                self.branch(statement)
            elif isinstance(statement, ast.For | ast.AsyncFor | ast.While):
                test = statement.test if isinstance(statement, ast.While) else statement.iter
                self.perhaps(statement.body, f"what `{ast.unparse(test)}` is")
                self.block(statement.orelse)
            else:
                self.statement(statement)
                for name in ("body", "orelse", "finalbody"):
                    inner = getattr(statement, name, None)
                    if isinstance(inner, list):
                        self.block(inner)

    def branch(self, statement: ast.If) -> None:
        holds = self.truth(statement.test)
        if holds is None:
            self.perhaps([*statement.body, *statement.orelse], f"whether `{ast.unparse(statement.test)}`")
        else:
            self.block(statement.body if holds else statement.orelse)

    def perhaps(self, statements: list[ast.stmt], unsaid: str) -> None:
        """Statements of which the text does not say whether, or how often, they run: commands that they change are in doubt."""
        before = {name: list(command.words) for name, command in self.named.items()}
        self.block(statements)
        for name, words in before.items():
            if self.named[name].words != words:
                self.named[name].words[:] = words
                self.named[name].unsaid = unsaid

    def statement(self, statement: ast.stmt) -> None:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.List | ast.BinOp | ast.Name):
            words = self.words(value)
            held = self.named.get(target.id)
            if words is not None and held is not None and isinstance(statement, ast.AugAssign):
                self.extend(held, words)
                return
            if words is not None and isinstance(value, ast.List | ast.BinOp):
                self.named[target.id] = Command(words)
                self.found.append(self.named[target.id])
                return
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Name):
            held = self.named.get(value.func.value.id)
            if held is not None and value.func.attr in ("append", "extend") and len(value.args) == 1:
                if value.func.attr == "append":
                    held.words.append(self.word(value.args[0]))
                elif (more := self.words(value.args[0])) is not None:
                    self.extend(held, more)
                else:
                    held.unsaid = f"what `{ast.unparse(value.args[0])}` is"
                return
        if isinstance(statement, ast.Expr | ast.Assign | ast.Return | ast.AnnAssign) and value is not None:
            self.loose(value)
        for item in getattr(statement, "items", ()):  # with subprocess.Popen(...) as server
            self.loose(item.context_expr)

    def extend(self, held: Command, words: list[str]) -> None:
        held.words.extend(words[: _MOST_WORDS - len(held.words)])

    def loose(self, value: ast.expr) -> None:
        """Lists and texts that stand in an expression by themselves."""
        for node in ast.walk(value):
            if isinstance(node, ast.List) and (words := self.words(node)):
                self.found.append(Command(words))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _STARTS and node.args:
                if isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.Name):
                    said = self.word(node.args[0])
                    if any(blank in said for blank in " \n"):
                        self.found.append(Command([said]))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "create_subprocess_exec":
                self.found.append(Command([self.word(word) for word in node.args]))

    def words(self, value: ast.expr) -> list[str] | None:
        """A list of words; None for anything else."""
        if isinstance(value, ast.Name) and value.id in self.named:
            return list(self.named[value.id].words)
        if isinstance(value, ast.Name) and isinstance(known := self.known.get(value.id), ast.Call):
            value = known
        if isinstance(value, ast.Call) and ast.unparse(value.func) in ("shlex.split", "split") and value.args:
            return self.word(value.args[0]).split()
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "split":
            return None if value.args else self.word(value.func.value).split()
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            left, right = self.words(value.left), self.words(value.right)
            return None if left is None or right is None else [*left, *right][:_MOST_WORDS]
        if isinstance(value, ast.IfExp):
            holds = self.truth(value.test)
            return None if holds is None else self.words(value.body if holds else value.orelse)
        if not isinstance(value, ast.List | ast.Tuple):
            return None
        return [word for item in value.elts for word in self.items(item)][:_MOST_WORDS]

    def items(self, item: ast.expr) -> Iterator[str]:
        if isinstance(item, ast.Starred):
            words = self.words(item.value)
            yield from [f"--*{ast.unparse(item.value)}"] if words is None else words
        else:
            yield self.word(item)

    def word(self, value: ast.expr, depth: int = 0) -> str:
        """A word as far as the text says it."""
        if isinstance(value, ast.Constant):
            return str(value.value)
        if isinstance(value, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in value.values)
            return "".join(self.word(part, depth) for part in parts)
        name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else None
        if name is not None and name in self.known and depth < _DEEPEST:
            return self.word(self.known[name], depth + 1)
        if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and isinstance(value.slice, ast.Constant):
            held = self.known.get(value.value.id)
            for key, of in zip(held.keys, held.values, strict=True) if isinstance(held, ast.Dict) else ():
                if isinstance(key, ast.Constant) and key.value == value.slice.value and depth < _DEEPEST:
                    return self.word(of, depth + 1)
        if isinstance(value, ast.IfExp) and (holds := self.truth(value.test)) is not None:
            return self.word(value.body if holds else value.orelse, depth)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return self.word(value.left, depth) + self.word(value.right, depth)
        if isinstance(value, ast.Call) and value.args:
            called = ast.unparse(value.func)
            if called in ("str", "int", "float"):
                return self.word(value.args[0], depth)
            if called in _FROM_ENVIRONMENT and len(value.args) > 1:
                return self.word(value.args[1], depth)
            only = value.args[0] if len(value.args) == 1 else None
            if isinstance(only, ast.Constant) and _MODEL.fullmatch(str(only.value)):  # an object made of a model's name
                return str(only.value)
        return f"${name or 'VALUE'}"

    def truth(self, test: ast.expr) -> bool | None:
        """Whether a condition holds; None where the text does not say it."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            left, right = self.constant(test.left), self.constant(test.comparators[0])
            compare = _COMPARED.get(type(test.ops[0]))
            if left is None or right is None or compare is None:
                return None
            try:
                return bool(compare(left.value, right.value))
            except TypeError:
                return None
        found = self.constant(test)
        return None if found is None else bool(found.value)

    def constant(self, value: ast.expr) -> ast.Constant | None:
        """A constant, or what a name stands for."""
        for _ in range(_DEEPEST):
            name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else None
            if name is None or name not in self.known:
                break
            value = self.known[name]
        return value if isinstance(value, ast.Constant) else None
