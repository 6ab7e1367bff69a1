"""psql's script language, as far as Postgres's own regression scripts use it (psql's manual page,
"Meta-Commands" and "SQL Interpolation")."""

import re

WORD_START = re.compile(r"[A-Za-z_\x80-\uffff]")
WORD_PART = re.compile(r"[A-Za-z0-9_$\x80-\uffff]")
WORD = re.compile(r"[A-Za-z0-9_$\x80-\uffff]+")
DOLLAR_TAG = re.compile(r"\$([A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*)?\$")
VARIABLE = re.compile(r":(['\"]?)([A-Za-z0-9_]+)\1")
IS_SET = re.compile(r":\{\?([A-Za-z0-9_]+)\}")
COMMAND = re.compile(r"\\([A-Za-z!?+]+)(.*)$")
SENDS = ("g", "gx", "gset", "gexec", "gdesc", "crosstabview", "watch")
TRUE = ("t", "true", "on", "1", "yes")


class Script:
    """Iterates over ("sql", text, end) and ("meta", command, arguments). `end` is ";" or the
    backslash command that sent the text."""

    def __init__(self, text, variables):
        self.lines = text.split("\n")
        self.at = 0
        self.variables = variables
        self.branches = []  # of \if: [this branch runs, one has run]
        self.clear()

    def clear(self):
        """Begins the next statement."""
        self.text = ""
        self.brackets = 0
        self.begins = 0  # BEGIN ATOMIC and CASE in the body of a function
        self.words = []

    def __iter__(self):
        quote = None  # what the text is inside of: ', ", E, $tag$, /*
        depth = 0
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            at = 0
            while at < len(line):
                two = line[at : at + 2]
                if quote == "/*":
                    depth += {"/*": 1, "*/": -1}.get(two, 0)
                    step = 2 if two in ("/*", "*/") else 1
                    quote = quote if depth else None
                    at = self.take(line, at, step)
                elif quote is not None:
                    at, quote = self.quoted(line, at, quote)
                elif two == "--":
                    break
                elif two == "/*":
                    quote, depth = "/*", 1
                    at = self.take(line, at, 2)
                elif (opened := self.opens(line, at)) is not None:
                    quote, step = opened
                    at = self.take(line, at, step)
                elif line[at] == "\\":
                    if two == "\\;":
                        self.text += ";"
                        self.words = []
                        at += 2
                        continue
                    found = COMMAND.match(line[at:])
                    if not found:
                        at += 1
                        continue
                    command, rest = found.groups()
                    rest, separator, more = rest.partition("\\\\")
                    line, at = more if separator else "", 0
                    yield from self.command(command, rest.strip())
                else:
                    at = self.plain(line, at)
                    if self.text.endswith(";") and self.is_whole():
                        if self.is_live() and self.text.strip(" \n\t;"):
                            yield ("sql", self.text, ";")
                        self.clear()
            if self.text:
                self.text += "\n"

    def take(self, line, at, count):
        self.text += line[at : at + count]
        return at + count

    def is_whole(self):
        """The semicolon just read ends the statement."""
        whole = self.ended and self.brackets == 0 and self.begins == 0
        self.ended = False
        return whole

    ended = False

    def quoted(self, line, at, quote):
        if quote.startswith("$"):
            if line.startswith(quote, at):
                return self.take(line, at, len(quote)), None
            return self.take(line, at, 1), quote
        mark = '"' if quote == '"' else "'"
        if quote == "E" and line[at] == "\\" and at + 1 < len(line):
            return self.take(line, at, 2), quote
        if line[at : at + 2] == mark * 2:
            return self.take(line, at, 2), quote
        return self.take(line, at, 1), None if line[at] == mark else quote

    def opens(self, line, at):
        """The quote that begins here, and how long its mark is."""
        letter = line[at]
        if letter == "'":
            escapes = re.search(r"(^|[^A-Za-z0-9_$])[eE]$", self.text)
            return ("E" if escapes else "'"), 1
        if letter == '"':
            return '"', 1
        if letter == "$" and not (self.text and WORD_PART.match(self.text[-1])):
            tag = DOLLAR_TAG.match(line[at:])
            if tag:
                return tag.group(0), tag.end()
        return None

    def plain(self, line, at):
        letter = line[at]
        if letter == ":" and self.is_live():
            if line[at : at + 2] == "::":
                return self.take(line, at, 2)
            found = VARIABLE.match(line[at:])
            if found and (value := self.value(found.group(2), found.group(1))) is not None:
                self.text += value
                return at + found.end()
            found = IS_SET.match(line[at:])
            if found:
                self.text += "TRUE" if found.group(1) in self.variables else "FALSE"
                return at + found.end()
        if letter == "(":
            self.brackets += 1
        elif letter == ")" and self.brackets:
            self.brackets -= 1
        elif letter == ";":
            self.ended = True
        elif WORD_START.match(letter) and not (self.text and WORD_PART.match(self.text[-1])):
            word = WORD.match(line[at:]).group(0)
            self.note(word.lower())
            return self.take(line, at, len(word))
        return self.take(line, at, 1)

    def note(self, word):
        """CREATE FUNCTION with a body of its own has semicolons inside of BEGIN ... END."""
        if len(self.words) < 4:
            self.words.append(word)
        routine = self.words[0] == "create" and {"function", "procedure"} & set(self.words)
        if routine and (word == "begin" and self.brackets == 0 or word == "case" and self.begins):
            self.begins += 1
        elif routine and word == "end" and self.begins:
            self.begins -= 1

    def value(self, name, quote):
        value = self.variables.get(name)
        if value is None or not quote:
            return value
        return quote + value.replace(quote, quote * 2) + quote

    def command(self, command, rest):
        if command in ("if", "elif", "else", "endif"):
            self.branch(command, rest)
        elif not self.is_live() or command in ("p", "print"):
            pass
        elif command in SENDS:
            if self.text.strip():
                yield ("sql", self.text, f"{command} {rest}")
            self.clear()
        elif command in ("r", "reset"):
            self.clear()
        else:
            yield ("meta", command, rest)

    def branch(self, command, condition):
        is_set = lambda found: "true" if found.group(1) in self.variables else "false"
        condition = IS_SET.sub(is_set, condition)
        value = lambda found: self.variables.get(found.group(1), found.group(0))
        holds = re.sub(r":([A-Za-z0-9_]+)", value, condition).lower() in TRUE
        if command == "if":
            self.branches.append([holds, holds])
        elif not self.branches:
            pass  # psql complains and goes on
        elif command == "endif":
            self.branches.pop()
        else:
            branch = self.branches[-1]
            branch[0] = (holds or command == "else") and not branch[1]
            branch[1] = branch[1] or branch[0]

    def is_live(self):
        return all(branch[0] for branch in self.branches)

    def copy_data(self):
        """The lines behind COPY FROM STDIN, up to the end mark."""
        data = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line == "\\.":
                break
            data.append(line + "\n")
        return "".join(data)
