"""In which order a question names the columns that its SQL query selects, if it names them all clearly.

The order of the gold queries' own columns is arbitrary in the data here, as in Spider (Yu et al. 2018,
https://aclanthology.org/D18-1425, whose evaluation takes columns as a set), so that only a question can
demand one. It does where it lists all of them: "the name, age and number of songs". Everything else is left
free: a column without a name there, a word that may mean two, two lists that disagree, a list in a condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

Schema = tuple[tuple[str, tuple[str, ...]], ...]  # tables and their columns

QUESTION = re.compile(r"Question:[ \t]*([^\n]+)\s*\Z")
SELECT_LIST = re.compile(r"\s*SELECT\s+(DISTINCT\s+)?(.+?)\s+FROM\s", re.IGNORECASE | re.DOTALL)
EXPRESSION = re.compile(
    r"(?:(count|avg|min|max|sum)\s*\(\s*(distinct\s+)?)?(?:\w+\.)?(\w+|\*)\s*(\))?(?:\s+as\s+\w+)?",
    re.IGNORECASE,
)
SEVERAL_SELECTS = re.compile(r"\b(union|intersect|except)\b", re.IGNORECASE)
TWISTS = re.compile(r"['’]s\b|\bor her\b|\bor his\b", re.IGNORECASE)  # "his or her name", "the singer's age"
WORD = re.compile(r"""["“][^"”]*["”]|(?<!\w)'[^']*'(?!\w)|[^\W_]+|[^\w\s-]""")


def _words(text: str) -> Set[str]:
    return frozenset(text.split())


AGGREGATES: Mapping[str, Set[str]] = {
    "avg": _words("average avg mean"),
    "max": _words("maximum max highest largest greatest biggest"),
    "min": _words("minimum min lowest smallest least"),
    "sum": _words("total sum"),
}
COUNTS = (("how", "many"), ("number", "of"), ("count", "of"))
ABBREVIATIONS = {"num": "number", "nbr": "number"}
DISTINCT = _words("different distinct unique")
FILLING = _words("of the all value number amount")  # between "average" and what it is of

# What may stand between one column of a list and the next: a complement, a joint, words that only point.
JOINTS = {",", "and", "&", "plus", ("as", "well", "as"), ("along", "with"), ("together", "with")}
POINTING = DISTINCT | _words(
    "the a an all any each every its their his her of also then both corresponding respective various total"
)
QUESTIONING = _words("what which is are")  # after more than a comma: "and what is the"
PREPOSITIONS = _words("of for in from at on to")
COMPLEMENT = 5  # words at most: "of all the singers", "use each type"
NO_COMPLEMENT = QUESTIONING | _words("who that whose where with than by was were has have had or not if")
GENERAL = _words("name value")  # as "airline names" says no more than "airlines"
FUNCTION_WORDS = POINTING | PREPOSITIONS | NO_COMPLEMENT | _words("and as me")

# Where a list says what is asked for, and where it belongs to a condition, a grouping or an order.
ASKING = _words("show list give return find tell display what how print include provide")
CONDITIONS = _words(
    "whose where with without having by than that who which when if per between among except excluding "
    "instead not same order ordered sort sorted group grouped alphabetical"
)
GROUPING = _words("for in of by from")  # before "each" and "every"
ENDS = _words(". ? ! ; :")


@dataclass(frozen=True, slots=True)
class Selected:
    """What a query selects: a column (or *) or an aggregate of it."""

    aggregate: str
    distinct: bool
    column: str


@dataclass(frozen=True, slots=True)
class Mention:
    """Words of a question, from `start` to before `end`, that name the expression `which`."""

    start: int
    end: int
    which: int
    strength: int  # 2: by its whole name, 1: by a part, 0: by a part that a later word completes
    completed_by: Set[int] = frozenset()

    @property
    def rank(self) -> tuple[int, int]:
        """More words first, then whole names."""
        return self.end - self.start, self.strength

    def overlaps(self, other: Mention) -> bool:
        """Whether both claim a word."""
        return self.start < other.end and other.start < self.end


def question_of(prompt: str) -> str:
    """The last line of a prompt if it begins with `Question:`; nothing otherwise."""
    found = QUESTION.search(prompt)
    return found[1] if found else ""


def asked_order(question: str, sql: str, schema: Schema) -> tuple[int, ...] | None:
    """Places in the SELECT list in the order in which the question names them; None: any order will do.

    What is selected twice stands for its first place.
    """
    listed = selected(sql)
    distinct = list(dict.fromkeys(listed))
    if len(distinct) < 2:
        return None
    order = _Question(question, distinct, sql, schema).order()
    return None if order is None else tuple(listed.index(distinct[which]) for which in order)


def in_asked_order(question: str, sql: str, schema: Schema) -> str:
    """The query with its SELECT list in the question's order, where that demands one."""
    order, found = asked_order(question, sql, schema), SELECT_LIST.match(sql)
    if order is None or found is None:
        return sql
    items = _split(found[2])
    return sql[: found.start(2)] + ", ".join(items[place] for place in order) + sql[found.end(2) :]


def selected(sql: str) -> list[Selected]:
    """The SELECT list; empty if any of it is more than a column or an aggregate of one."""
    found = SELECT_LIST.match(sql)
    if not found or SEVERAL_SELECTS.search(sql):
        return []
    read = [EXPRESSION.fullmatch(item) for item in _split(found[2])]
    if any(not one or bool(one[1]) != bool(one[4]) or (one[3] == "*" and not one[1]) for one in read):
        return []
    return [Selected((one[1] or "").lower(), bool(one[2]), one[3].lower()) for one in read if one]


def _split(items: str) -> list[str]:
    return [item.strip() for item in re.split(r",(?![^(]*\))", items)]


def stem(word: str) -> str:
    """One form for singular and plural; not always a word."""
    for plural, singular in (("ies", "y"), ("ie", "y")):
        if word.endswith(plural) and len(word) > 4:
            return word.removesuffix(plural) + singular
    if re.search(r"(ss|us|is)$", word) or len(word) < 3:
        return word
    return re.sub(r"(?<=[sxz])es?$|(?<=[cs]h)es?$|s$", "", word)


class _Question:
    """The words of a question, and which of them name what is selected."""

    def __init__(self, question: str, chosen: Sequence[Selected], sql: str, schema: Schema) -> None:
        self._words = [word.lower() for word in WORD.findall(TWISTS.sub("", question))]
        self._stems = [stem(word) for word in self._words]
        self._chosen = chosen
        said = set(re.findall(r"\w+", sql.lower()))
        self._tables = {part for table, _ in schema for part in _parts(table)}
        self._known = (self._tables | set(self._stems)) - FUNCTION_WORDS
        columns = [name.lower() for table, names in schema if table.lower() in said for name in names]
        self._names = {name: self._contents(name) for name in {*columns, *(one.column for one in chosen)}}

    def order(self) -> tuple[int, ...] | None:
        """Of what is selected, if all lists of it agree and none names a thing twice."""
        wanted = set(range(len(self._chosen)))
        lists = [found for found in self._lists() if set(found) == wanted]
        return lists[0] if lists and len(set(lists)) == 1 and len(lists[0]) == len(wanted) else None

    # -- names of columns

    def _contents(self, column: str) -> list[str]:
        """Words of a column's name; one written together is parted where both parts are known words."""
        words: list[str] = []
        for part in _parts(column):
            cuts = [(part[:k], part[k:]) for k in range(3, len(part) - 1) if part not in self._known]
            fitting = [cut for cut in cuts if set(cut) <= self._known and (len(cut[1]) > 2 or cut[1] == "id")]
            words += fitting[0] if len(fitting) == 1 else (part,)
        return words

    def _column_at(self, start: int, column: str) -> Iterator[tuple[int, int]]:
        """Ends and strengths of the mentions of a column that begin at a word."""
        whole = self._names[column]
        for pattern in _orders(whole):
            if self._stems[start : start + len(pattern)] == pattern:
                yield start + len(pattern), 2
        for size in (2, 3):
            if self._reads_as(self._words[start : start + size], column, size):
                yield start + size, 2
        for first in range(len(whole)):
            for last in range(first + 1, len(whole) + 1):
                part = whole[first:last]
                if self._stems[start : start + len(part)] == part and self._is_clear(part, column, last):
                    yield start + len(part), 1

    def _reads_as(self, words: list[str], column: str, size: int) -> bool:
        """Whether life expectancies mean lifeexpectancy, a first name fname, student ids stuid."""
        if len(words) < size or {words[0], words[-1]} & FUNCTION_WORDS or not "".join(words).isalnum():
            return False
        joined, last = "".join(words[:-1]) + stem(words[-1]), stem(words[-1])
        begun = stem(column).removesuffix(last)
        short = size == 2 and len(last) > 1 and begun != stem(column) and begun != ""
        return joined == stem(column) or (short and words[0].startswith(begun))

    def _is_clear(self, part: list[str], column: str, last: int) -> bool:
        """The end of a name is ("name"); other parts if they are in no other column, and no table."""
        whole = self._names[column]
        if len(part) == len(whole) or (len(part) == 1 and part[0] in {"of", "first", "last", "number"}):
            return False
        others = [words for name, words in self._names.items() if name != column]
        return last == len(whole) or not (
            set(part) <= self._tables or any(set(part) <= set(words) for words in others)
        )

    # -- mentions

    def _mentions(self) -> list[Mention]:
        """Of all that is selected, none overlapping; where two of a rank claim a word, neither has it."""
        found = [
            mention
            for start in range(len(self._words))
            for which, one in enumerate(self._chosen)
            for mention in self._mentions_at(start, which, one)
        ]
        kept: list[Mention] = []
        for mention in sorted(found, key=lambda one: one.rank, reverse=True):
            if not any(mention.overlaps(other) for other in kept):
                kept.append(mention)
        doubtful = [
            one
            for one in kept
            if any(one.overlaps(x) and one.rank == x.rank and one.which != x.which for x in found)
        ]
        return sorted((one for one in kept if one not in doubtful), key=lambda one: one.start)

    def _mentions_at(self, start: int, which: int, one: Selected) -> Iterator[Mention]:
        if one.aggregate == "count":
            ends = self._count_at(start, one)
        elif one.aggregate:
            ends = self._aggregate_at(start, one)
        else:
            ends = self._column_at(start, one.column)
        yield from (Mention(start, end, which, strength) for end, strength in ends)
        begun, fellows = self._beginning(one)
        if begun and fellows and self._stems[start : start + len(begun)] == begun:
            yield Mention(start, start + len(begun), which, 0, fellows)
        if one.aggregate in AGGREGATES and self._words[start] in AGGREGATES[one.aggregate]:
            computed = {k: x for k, x in enumerate(self._chosen) if x.aggregate in AGGREGATES and x != one}
            if others := {k for k, x in computed.items() if x.column == one.column}:
                yield Mention(start, start + 1, which, 0, others)

    def _beginning(self, one: Selected) -> tuple[list[str], Set[int]]:
        """What first_name begins with, and all that may bring its end: "the first, middle and last name"."""
        plain = {k: x for k, x in enumerate(self._chosen) if not x.aggregate and x != one}
        *begun, end = self._names[one.column] or [""]
        same = {k for k, x in plain.items() if self._names[x.column][-1] == end}
        return begun, same if not one.aggregate else set()

    def _count_at(self, start: int, one: Selected) -> Iterator[tuple[int, int]]:
        if tuple(self._stems[start : start + 2]) in COUNTS:
            after = start + 2
            if not one.distinct:
                yield after, 2
            while self._words[after : after + 1] and self._words[after] in DISTINCT | {"the", "all"}:
                after += 1
            if one.column != "*":
                yield from self._column_at(after, one.column)
        elif not one.distinct and self._stems[start] in ("count", "number"):
            before, next_word = ("", *self._words)[start], (*self._words, ".")[start + 1]
            of_rows = self._stems[start] == "count" and stem(before) in self._tables
            if of_rows or (before in ("the", "total") and next_word in ENDS | {",", "and"}):
                yield start + 1, 2

    def _aggregate_at(self, start: int, one: Selected) -> Iterator[tuple[int, int]]:
        if self._words[start] in AGGREGATES[one.aggregate]:
            after = start + 1
            while after < len(self._words):
                yield from self._column_at(after, one.column)
                if self._stems[after] not in FILLING:
                    break
                after += 1

    # -- lists of mentions

    def _lists(self) -> Iterator[tuple[int, ...]]:
        """What each list of the question names, lists in conditions left out."""
        run: list[Mention] = []
        for mention in self._mentions():
            if run and not self._are_listed(run[-1], mention):
                yield from self._finished(run)
                run = []
            run.append(mention)
        yield from self._finished(run)

    def _finished(self, run: Sequence[Mention]) -> Iterator[tuple[int, ...]]:
        if run and run[-1].strength and not self._is_condition(run[0].start):
            yield tuple(one.which for one in run)

    def _are_listed(self, one: Mention, other: Mention) -> bool:
        between = self._words[one.end : other.start]
        questioning = False
        while between and (between[-1] in POINTING | QUESTIONING or stem(between[-1]) in self._tables):
            questioning |= between.pop() in QUESTIONING
        left = len(between)
        while between and (size := _joint(between)):
            del between[-size:]
        joints = self._words[one.end + len(between) : one.end + left]
        if between and stem(between[0]) in GENERAL:
            between = between[1:]
        if not joints or (questioning and joints == [","]):
            return False
        if one.completed_by:
            return not between and (other.which in one.completed_by)
        return not between or (joints != [","] and self._complements(between, one))

    def _complements(self, words: list[str], one: Mention) -> bool:
        """Of the singers, after a column; any few words after a count, as in how many documents use it."""
        if words[-1] == ",":
            words = words[:-1]
        fits = self._chosen[one.which].aggregate == "count" or (words and words[0] in PREPOSITIONS)
        plain = all(word.isalpha() and word not in NO_COMPLEMENT for word in words)
        return bool(fits) and plain and len(words) <= COMPLEMENT

    def _is_condition(self, start: int) -> bool:
        """Whether a condition, a grouping or an order begins between what is asked and the list."""
        before = self._words[:start]
        while before and before[-1] not in ENDS:
            word = before.pop()
            first = not before or before[-1] in ENDS
            if word in ASKING:
                return False
            if (word in CONDITIONS and not first) or (
                word in ("each", "every") and before and before[-1] in GROUPING
            ):
                return True
        return False


def _parts(name: str) -> list[str]:
    return [stem(ABBREVIATIONS.get(part, part)) for part in re.findall(r"[^\W_]+", name.lower())]


def _orders(contents: list[str]) -> Iterator[list[str]]:
    """Ways to say a name in full, as membership level, level of membership, number of products."""
    yield contents
    plain = [word for word in contents if word != "of"]
    if len(plain) == 2:
        yield [plain[0], "of", plain[1]]
        yield [plain[1], "of", plain[0]]
    if len(plain) == 2 and plain != contents:
        yield [plain[1], plain[0]]
    if len(plain) > 2 and plain[0] == "number":
        yield ["number", "of", *plain[1:]]


def _joint(words: list[str]) -> int:
    """How many words at the end join one column of a list to the next."""
    if words[-1] in JOINTS:
        return 1
    return next((size for size in (2, 3) if tuple(words[-size:]) in JOINTS), 0)
