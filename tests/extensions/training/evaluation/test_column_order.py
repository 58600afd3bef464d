"""A question that lists what is selected demands that order; every other one leaves it free."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.execution.column_order import (
    asked_order,
    in_asked_order,
    question_of,
    selected,
    stem,
)
from recipes.execution.metric import is_right, is_right_anywhere
from recipes.execution.sql import QueryJudge, same_result
from router.extensions.training.data import TrainingRow

SCHEMA = (
    ("singer", ("singer_id", "name", "song_name", "age", "country", "net_worth_millions")),
    ("concert", ("concert_id", "concert_name", "theme", "year", "level_of_noise")),
    ("student", ("stuid", "fname", "lname", "first_name", "middle_name", "last_name", "city", "state")),
    ("trip", ("id", "start_city", "end_city", "price", "num_seats", "capacity", "lifeexpectancy")),
    ("airlines", ("airline", "abbreviation", "airportname", "airportcode")),
)

# What is selected, as the question lists it; golds have it in all orders.
LISTED = [
    ("What are the names and ages of all singers?", "singer", ["name", "age"]),
    ("Show the id and name of every singer.", "singer", ["singer_id", "name"]),
    ("Show the name and id of every singer.", "singer", ["name", "singer_id"]),
    ("Show singer ids and their names.", "singer", ["singer_id", "name"]),
    ("Give the names and song names of the singers", "singer", ["name", "song_name"]),
    ("Give the song names and names of the singers", "singer", ["song_name", "name"]),
    ("List the countries, the ages, and the names.", "singer", ["country", "age", "name"]),
    ("What is the net worth and country of each singer?", "singer", ["net_worth_millions", "country"]),
    ("What are the theme and level of noise of the concerts?", "concert", ["theme", "level_of_noise"]),
    ("What are the noise levels and themes?", "concert", ["level_of_noise", "theme"]),
    (
        "List the first, middle, and last names of students",
        "student",
        ["first_name", "middle_name", "last_name"],
    ),
    ("What is the first name and city of each student?", "student", ["fname", "city"]),
    ("Show the student ids and the states", "student", ["stuid", "state"]),
    ("What are the start and end cities of the trips?", "trip", ["start_city", "end_city"]),
    ("Show the number of seats and the price.", "trip", ["num_seats", "price"]),
    ("Show life expectancies along with prices.", "trip", ["lifeexpectancy", "price"]),
    (
        "What are all airline abbreviations and what airlines have them?",
        "airlines",
        ["abbreviation", "airline"],
    ),
    ("List all airline names and their abbreviations.", "airlines", ["airline", "abbreviation"]),
    ("Give the airport code and name.", "airlines", ["airportcode", "airportname"]),
    ("What are the minimum and maximum age of the singers?", "singer", ["min(age)", "max(age)"]),
    ("What are the largest, average and smallest price?", "trip", ["max(price)", "avg(price)", "min(price)"]),
    ("Show the average age and the total net worth", "singer", ["avg(age)", "sum(net_worth_millions)"]),
    ("Show the average number of seats and the capacity", "trip", ["avg(num_seats)", "capacity"]),
    ("Show the age and the maximum age.", "singer", ["age", "max(age)"]),
    ("Show each country and how many singers it has.", "singer", ["country", "count(*)"]),
    ("Show all countries and the number of singers in each country.", "singer", ["country", "count(*)"]),
    ("List the number of singers and the country for each country.", "singer", ["count(*)", "country"]),
    ("Show the country, average age and number of singers.", "singer", ["country", "avg(age)", "count(*)"]),
    ("Show the countries and singer counts.", "singer", ["country", "count(*)"]),
    (
        "How many singers does each country have? List country and the count.",
        "singer",
        ["country", "count(*)"],
    ),
    ("Show the count of singers and of the number of different countries", "singer", ["count(*)"]),
    (
        "Show the number of different countries and the average age",
        "singer",
        ["count(DISTINCT country)", "avg(age)"],
    ),
    ("How many singers and how many countries are there?", "singer", ["count(*)", "count(DISTINCT country)"]),
    ("Show the name and age of singers, sorted by age and country.", "singer", ["name", "age"]),
    ("Find the age and name of singers whose name and age are known.", "singer", ["age", "name"]),
    ("For singers with a name and an age, show the age and name.", "singer", ["age", "name"]),
    ("Sort the trips by price and return the capacity and price of each.", "trip", ["capacity", "price"]),
    ("Return the singer's age and name.", "singer", ["age", "name"]),
    ("List his or her age, name and country.", "singer", ["age", "name", "country"]),
    (
        "Show the name and theme of the concerts and the number of singers",
        "concert",
        ["concert_name", "theme", "count(*)"],
    ),
]
FREE = [
    "SELECT name FROM singer -- Show the name of every singer.",
    "SELECT name, name FROM singer -- Show the name and the name.",
    "SELECT name, age FROM singer -- Show the singers.",
    "SELECT name, age FROM singer -- Show the name and birth date of singers.",
    "SELECT name, age FROM singer -- What is the name of the singer? How old is the age?",
    "SELECT name, age FROM singer -- Show the name but not the age.",
    "SELECT name, age FROM singer -- Show the name or age.",
    "SELECT name, age FROM singer -- Show 'name and age' of singers",
    "SELECT name, age FROM singer -- Show the name and age, and the age and name.",
    "SELECT name, age FROM singer -- Show the name and age and the name.",
    "SELECT name, age FROM singer ORDER BY age, name -- List singers in order of age and name.",
    "SELECT name, age FROM singer WHERE age = ? -- List the singers whose age and name are known.",
    "SELECT name, age FROM singer -- Show the age of the singer with the most songs and name.",
    "SELECT start_city, end_city FROM trip -- Show the cities and prices of the trips.",
    "SELECT start_city, end_city FROM trip -- Show the city and the city.",
    "SELECT country, count(*) FROM singer GROUP BY country -- How many singers are from each country?",
    "SELECT country, count(*) FROM singer GROUP BY country -- For each country, how many singers are there?",
    "SELECT country, age, count(*) FROM singer GROUP BY 1, 2 -- For each age and country, how many singers?",
    "SELECT country, count(*) FROM singer GROUP BY country -- Count the singers by country.",
    "SELECT country, avg(age) FROM singer GROUP BY country -- What is the average age for each country?",
    "SELECT avg(age), avg(price) FROM trip -- What is the average age and price?",
    "SELECT name, age + 1 FROM singer -- Show the age and name.",
    "SELECT * FROM singer -- Show the age and name.",
    "SELECT name, age FROM singer UNION SELECT age, name FROM singer -- Show the age and name.",
    "WITH s AS (SELECT * FROM singer) SELECT name, age FROM s -- Show the age and name.",
    "no query -- Show the age and name.",
    "SELECT city, state FROM student -- Which students share city and state? Give state and city.",
    "SELECT name, age FROM singer -- What is the name, what is the age?",
    "SELECT name, age FROM singer -- Find the age and list the name.",
    "SELECT theme, year FROM concert -- Show me the years.",
]


def query(listed: Sequence[str], table: str) -> str:
    return f"SELECT {', '.join(listed)} FROM {table}"


@pytest.mark.parametrize(("question", "table", "listed"), LISTED)
def test_listed_columns_have_the_question_s_order(question: str, table: str, listed: list[str]) -> None:
    for gold in (listed, listed[::-1], listed[1:] + listed[:1]):
        assert in_asked_order(question, query(gold, table), SCHEMA) == query(listed, table)
        order = asked_order(question, query(gold, table), SCHEMA)
        assert (order is None) == (len(listed) == 1)
        assert order is None or [gold[place] for place in order] == listed


@pytest.mark.parametrize("case", FREE)
def test_all_else_is_free(case: str) -> None:
    sql, question = case.split(" -- ")
    assert asked_order(question, sql, SCHEMA) is None
    assert in_asked_order(question, sql, SCHEMA) == sql


def test_selected_twice_stands_once() -> None:
    sql = "SELECT DISTINCT age, name, age FROM singer WHERE age > ? ORDER BY age"
    assert asked_order("Show name and age.", sql, SCHEMA) == (1, 0)
    assert in_asked_order("Show name and age.", sql, SCHEMA) == sql.replace("age, name, age", "name, age")


def test_the_question_is_the_last_line() -> None:
    assert question_of("Tables: singer(age, name)\nQuestion: Name and age?") == "Name and age?"
    assert not question_of("Question: Name and age?\nTables: singer(age, name)")
    assert not question_of("Tables: singer(age, name). Show all.")


def test_singular_and_plural_are_one() -> None:
    for pair in (
        "city cities",
        "name names",
        "box boxes",
        "status statuses",
        "price prices",
        "size sizes",
        "id ids",
    ):
        one, many = pair.split()
        assert stem(one) == stem(many)
    assert stem("address") == "address"


# -- properties

WORDS = ["theme", "price", "colour", "weight", "grade", "owner", "brand", "salary", "city", "box"]
TABLE = (("thing", tuple(WORDS)),)
some_words = st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique=True)


def listing(words: Sequence[str], many: bool) -> str:
    said = [word.replace("y", "ie") + "s" if many and word.endswith("ty") else word for word in words]
    return f"Show the {', '.join(said[:-1])} and {said[-1]} of all things."


@given(some_words, st.randoms(use_true_random=False), st.booleans())
def test_a_list_is_found_whatever_the_gold_s_order(words: list[str], rng: object, many: bool) -> None:
    gold = sorted(words, key=lambda _: rng.random())  # type: ignore[attr-defined]
    assert in_asked_order(listing(words, many), query(gold, "thing"), TABLE) == query(words, "thing")


@given(some_words, st.sampled_from(WORDS))
def test_one_that_is_not_named_leaves_all_free(words: list[str], missing: str) -> None:
    named = [word for word in words if word != missing]
    if len(named) >= 2:
        assert asked_order(listing(named, False), query([missing, *named], "thing"), TABLE) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_read(question: str, sql: str) -> None:
    assert asked_order(question, sql, SCHEMA) in (None, (0, 1), (1, 0))
    assert isinstance(selected(sql), list)


PIECES = [
    *WORDS,
    "and",
    ",",
    "the",
    "of",
    "average",
    "count",
    "number",
    "first",
    "by",
    "?",
    "'",
    "how",
    "many",
]
EXPRESSIONS = [*WORDS[:4], "avg(price)", "max(price)", "count(*)", "count(DISTINCT city)"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=25),
    st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=4),
)
def test_an_order_holds_all_that_is_selected_once(words: list[str], listed: list[str]) -> None:
    question, sql = " ".join(words), query(listed, "thing")
    order = asked_order(question, sql, TABLE)
    again = in_asked_order(question, sql, TABLE)
    if order is not None:
        assert sorted({listed[place] for place in order}) == sorted(set(listed))
        assert len(order) == len(set(listed))
    assert in_asked_order(question, again, TABLE) == again
    if len({"(" in expression for expression in listed}) == 1:  # others have no definite result
        assert QueryJudge(TABLE, sql, order).accepts(again)


# -- the judge


def row(question: str, gold: str) -> TrainingRow:
    return TrainingRow(f"Tables: …\nQuestion: {question}", gold, "data.jsonl:7", schema=SCHEMA)


def test_the_question_s_order_is_right_and_the_gold_s_is_not() -> None:
    asked = row("Show the name and age of singers.", "SELECT age, name FROM singer")
    assert is_right("SELECT name, age FROM singer", asked)
    assert is_right("SELECT name, age, name FROM singer ORDER BY age", asked)
    assert not is_right("SELECT age, name FROM singer", asked)
    assert is_right_anywhere("Sure: SELECT name, age FROM singer;", asked)
    assert not is_right_anywhere("Sure: SELECT age, name FROM singer;", asked)


def test_sorted_rows_and_groups_too() -> None:
    gold = "SELECT count(*), country FROM singer GROUP BY country ORDER BY count(*) DESC LIMIT ?"
    asked = row("Show the country with the most singers and the number of singers.", gold)
    free = row("Which country has the most singers, and how many has it?", gold)
    other = gold.replace("count(*), country", "country, count(*)")
    assert is_right(gold, free)
    assert is_right(other, free)
    assert asked_order(question_of(asked.prompt), gold, SCHEMA) is None  # "with" may begin a condition
    listed = row("List the country and the number of singers.", gold)
    assert is_right(other, listed)
    assert not is_right(gold, listed)


def test_columns_keep_their_order_and_rows_stay_together() -> None:
    assert same_result([(1, 2), (2, 1)], [(2, 1), (1, 2)], ordered=False, columns=(1, 0))
    assert same_result([(1, 5), (2, 6)], [(5, 1), (6, 2)], ordered=True, columns=(1, 0))
    assert not same_result([(1, 5), (2, 6)], [(1, 5), (2, 6)], ordered=False, columns=(1, 0))
    assert not same_result([(1, 5), (2, 6)], [(6, 1), (5, 2)], ordered=False, columns=(1, 0))
    assert same_result([], [], ordered=False, columns=(1, 0))
