"""Shell text as commands of words, as far as launch commands are written in it.

Quotes, continuations (also followed by blanks or a comment), comments, redirections, here-documents, assignments, variables
and sums of whole numbers (``$((2 * RANKS))``) are understood; nothing is run. What only a shell could know (``$(...)``,
variables that are not set in the text) stays as it is written; of two branches the first one's assignments count. A line that
begins with a dash continues the one above.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import field

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

_CONTINUED = re.compile(r"[\\^`][ \t]*(#[^\n]*)?\r?\n[ \t]*|\\\Z")
_COMMENT = re.compile(r"#[^\n]*")
_PLACEHOLDER = re.compile(r"<[A-Za-z][^<>\n|&;]*>")
_REDIRECTION = re.compile(r"&?>{1,2}[&|]?|<&")
_TEMPLATE = re.compile(r"\{\{[^{}\n]*\}\}")
_BLANKS = re.compile(r"[ \t]*")
_HEREDOC = re.compile(r"<<-?[ \t]*(['\"\\]?)(\w+)\1")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:\[[@*]\])?(?::?[-=]([^{}]*))?\})")
_SUBSTITUTION = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)|`[^`\n]*`")
_SUM = re.compile(r"\$\(\(((?:[^()\n]|\((?:[^()\n]|\([^()\n]*\))*\))*)\)\)")
_NUMBERS = re.compile(r"[0-9\s+*/%()-]{1,200}")
_COUNTED: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_DASHED_LINE = re.compile(r"\s*(?:#[^\n]*\n\s*)*(?=--?[A-Za-z])")
_SETS = ("export", "declare", "local", "readonly", "set", "ENV", "env")


@dataclass
class Script:
    """Commands of words in their order, the variables set in the text, and here-documents by the file they are written to."""

    commands: list[list[str]] = field(default_factory=list)
    variables: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def assignment(word: str) -> tuple[str, str] | None:
    """Name and value of ``NAME=value``, None for any other word."""
    found = _ASSIGNMENT.fullmatch(word)
    return (found[1], found[3]) if found else None


def _value(node: ast.expr) -> int:
    """The value of a sum of whole numbers, as a shell counts; ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _COUNTED:
        return _COUNTED[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError


def read_script(text: str, variables: Mapping[str, list[str]] | None = None) -> Script:
    """Return the commands of `text`; `variables` are set before. InputError for a quote that is not closed."""
    return _Lexer(text, dict(variables or {})).script()


class _Lexer:
    def __init__(self, text: str, variables: dict[str, list[str]]) -> None:
        self.text = text
        self.at = 0
        self.word: list[str] | None = None  # the pieces of the word being read
        self.words: list[str] = []
        self.target: str | None = None  # file that the command writes to
        self.appends = False
        self.heredocs: list[tuple[str, bool]] = []  # delimiters whose text begins on the next line, whether variables count in it
        self.array: str | None = None  # name of the array being read
        self.second_branch = False
        self.found = Script(variables=variables)

    def script(self) -> Script:
        while self.at < len(self.text):
            self.step()
        self.end_command()
        return self.found

    def step(self) -> None:
        here = self.text[self.at]
        if taken := self.matched(_CONTINUED):
            if taken[-1:] in "\n \t":
                self.end_word()
        elif here in "'\"":
            self.quoted(here)
        elif here == "\\":
            self.put(self.text[self.at + 1 : self.at + 2])
            self.at += 2
        elif here == "#" and self.word is None:
            self.matched(_COMMENT)
        elif here == "\n":
            self.end_line()
        elif here.isspace():
            self.end_word()
            self.at += 1
        elif filling := self.matched(_TEMPLATE):
            self.put(filling)
        elif here in "$`":
            self.expanded(quoted=False)
        elif here in "<>" or self.text.startswith("&>", self.at):
            self.redirected()
        elif here == "(" and self.word and _ASSIGNMENT.fullmatch("".join(self.word)):
            self.at += 1
            appended = self.word[-2:-1] == ["+"]
            self.array, self.word = "".join(self.word).rstrip("+="), None
            before = self.found.variables.get(self.array, []) if appended else []
            self.found.variables[self.array] = [*before]
        elif here == ")" and self.array is not None:
            self.end_word()
            self.at += 1
            self.array = None
        elif here in ";&|()" and self.array is None:
            self.end_command()
            self.at += 1
        else:
            self.put(here)
            self.at += 1

    def matched(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def put(self, piece: str) -> None:
        if self.word is None:
            self.word = []
        self.word.append(piece)

    def quoted(self, quote: str) -> None:
        self.put("")
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != quote:
            here = self.text[self.at]
            if quote == '"' and here == "\\" and self.text[self.at + 1 : self.at + 2] in ("\n", "\r"):
                self.matched(_CONTINUED)
            elif quote == '"' and here == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`"):
                self.put(self.text[self.at + 1])
                self.at += 2
            elif quote == '"' and here in "$`":
                self.expanded(quoted=True)
            else:
                self.put(here)
                self.at += 1
        if self.at >= len(self.text):
            raise InputError("a quote in the launch command is not closed", mend="close the quote")
        self.at += 1

    def expanded(self, *, quoted: bool) -> None:
        """A variable by its value in the text or its default; what is not known stays as it is written."""
        if found := _SUM.match(self.text, self.at):
            self.at = found.end()
            value = self.summed(found[1])
            return self.put(found[0] if value is None else value)
        if taken := self.matched(_SUBSTITUTION):
            return self.put(taken)
        if self.text.startswith("$$", self.at) and _VARIABLE.match(self.text, self.at + 1):
            self.at += 1  # as compose files write a variable of the shell
        found = _VARIABLE.match(self.text, self.at)
        if found is None:
            self.put(self.text[self.at])
            self.at += 1
            return None
        self.at = found.end()
        values = self.found.variables.get(found[1] or found[2])
        if values is None and found[3] is not None:
            values = [found[3].strip("\"'")]
        if values is None:
            return self.put(found[0])
        if not quoted and len(values) == 1 and self.word is None:
            values = values[0].split()
        for i, value in enumerate(values):
            if i:
                self.end_word()
            self.put(value)
        return None

    def summed(self, text: str) -> str | None:
        """The value of a sum whose variables are set in the text or have defaults; None for any other."""

        def number(found: re.Match[str]) -> str:
            values = self.found.variables.get(found[1] or found[2] or found[4])
            return values[0] if values else found[3] or found[0]

        numbers = re.sub(_VARIABLE.pattern + r"|\b([A-Za-z_]\w*)", number, text)
        if not _NUMBERS.fullmatch(numbers):
            return None
        try:
            return str(_value(ast.parse(numbers.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError):
            return None

    def redirected(self) -> None:
        if taken := self.matched(_PLACEHOLDER):
            return self.put(taken)
        if heredoc := _HEREDOC.match(self.text, self.at):
            self.at = heredoc.end()
            self.heredocs.append((heredoc[2], not heredoc[1]))
            return self.end_word()
        if self.word is not None and "".join(self.word).isdigit():
            self.word = None
        self.end_word()
        at_start = not self.words and self.text[self.at] == ">"  # a prompt
        self.appends = self.text.startswith(">>", self.at)
        if not self.matched(_REDIRECTION):
            self.at += 1
        if at_start:
            return None
        self.matched(_BLANKS)
        before, self.words = self.words, []
        while self.at < len(self.text) and self.text[self.at] not in " \t\r\n;&|()<>":
            self.step()
        self.end_word()
        self.target = self.words[0] if self.words else None
        self.words = before
        return None

    def end_word(self) -> None:
        if self.word is None:
            return
        word, self.word = "".join(self.word), None
        if self.array is not None:
            self.found.variables[self.array].append(word)
        elif word != "$" or self.words:  # a prompt
            self.words.append(word)

    def end_line(self) -> None:
        self.end_word()
        self.at += 1
        if self.heredocs:
            self.end_command(self.bodies())
        elif self.array is None and not (self.words and self.matched(_DASHED_LINE)):
            self.end_command()

    def bodies(self) -> str:
        """The text of the here-documents that begin on this line."""
        text = ""
        for delimiter, open_text in self.heredocs:
            end = re.compile(rf"^[ \t]*{delimiter}[ \t]*\r?$", re.MULTILINE).search(self.text, self.at)
            body = self.text[self.at : end.start() if end else len(self.text)]
            text += self.filled(body) if open_text else body
            self.at = end.end() if end else len(self.text)
        self.heredocs = []
        return text

    def filled(self, text: str) -> str:
        """A here-document with the variables and sums that are known."""

        def known(found: re.Match[str]) -> str:
            values = self.found.variables.get(found[1] or found[2])
            return " ".join(values) if values else found[0] if found[3] is None else found[3].strip("\"'")

        return _VARIABLE.sub(known, _SUM.sub(lambda found: self.summed(found[1]) or found[0], text))

    def end_command(self, body: str | None = None) -> None:
        self.end_word()
        words, self.words = self.words, []
        target, self.target = self.target, None
        if body is not None:
            target = target or next((w for w in words[1:] if not w.startswith("-")), None)
            if target is not None:
                self.found.files[target] = self.found.files.get(target, "") * self.appends + body
        if not words:
            return
        if words[0] in ("else", "elif", "fi"):
            self.second_branch = words[0] != "fi"
        self.found.commands.append(words)
        names = words[1:] if words[0] in (*_SETS, "then", "else") else words
        pairs = [_ASSIGNMENT.fullmatch(word) for word in names]
        if all(pairs):
            for pair in pairs:
                if pair is not None and not (self.second_branch and pair[1] in self.found.variables):
                    before = self.found.variables.get(pair[1], [""]) if pair[2] else [""]
                    self.found.variables[pair[1]] = [*before[:-1], before[-1] + pair[3]]
