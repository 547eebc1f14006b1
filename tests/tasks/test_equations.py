"""Wrong equations in texts: found where they are sure, and nowhere else."""

import pytest

from repro.tasks.equations import wrong_equation


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("3*4=12, 12+5=18, so 17", "12+5=18"),
        ("So 12 + 5 = 18 apples.", "12 + 5 = 18"),
        ("She pays 3 x $4 = $13.\nThe answer is 12.", "3*4 = 13"),
        ("\\(3 \\times 4 = 13\\)", "3*4 = 13"),
        ("(3 + 4) * 2 = 15", "(3 + 4) * 2 = 15"),
        ("1. 1,200 / 4 = 400", "1,200 / 4 = 400"),
        ("- 3 * 4 = 13", "3 * 4 = 13"),
        ("2.5 * 2 = 6", "2.5 * 2 = 6"),
        ("10 / 4 = 2.6", "10 / 4 = 2.6"),
        ("5 - 9 = 4", "5 - 9 = 4"),
        ("**3 + 4 = 8**", "3 + 4 = 8"),
        ("\\frac{1}{2} + 3 = 4.5", "((1)/(2)) + 3 = 4.5"),
        ("2 + 3 = 5 + 4 = 10", "5 + 4 = 10"),
    ],
)
def test_a_wrong_equation_is_found(text, wrong):
    assert wrong_equation(text) == wrong


@pytest.mark.parametrize(
    "text",
    [
        "3*4=12, 12+5=17",
        "She pays 3 x $4 = $12, that is 1,200 * 2 = 2,400 cents.",
        "(3 + 4) * 2 = 14 and (3*4=12)",
        "10 / 3 = 3.33 or 3.4, 20 / 3 = 6.67, 20 / 3 = 6.66, 20 / 3 = 7",
        "5 - 9 = -4, 120 – 80 - 15 = 25",
        "2 + 3 = 5 + 4 = 9",  # equal signs in a row are read one by one
        "\\frac{1}{2} + 3 = 3.5",
        "\\frac{15}{60} = 25\\%",
    ],
)
def test_right_and_rounded_equations_are_left(text):
    assert wrong_equation(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "2x + 3 * 4 = 20",
        "5 apples + 3 * 4 = 17",
        "15 pages x 1/3 = 5 pages, half of 10 + 2 = 7",
        "3 * 2 ^ 3 = 24, 2^3 * 4 = 32, 2**3 * 4 = 32",
        "-3 + 5 = 2",
        "5 / 50 = 10%, 20% of 50 = 10, 50 * 20% = 10",
        "0.5 * 4 = 2, a.5 * 4 = 2",
        "3 * 4 = 12x",
        "1 / 0 = 5",
        "x = 3 and y = 4",
    ],
)
def test_what_isnt_surely_an_equation_of_numbers_isnt_read(text):
    assert wrong_equation(text) is None


def test_what_the_solution_corrects_itself_isnt_wrong():
    assert wrong_equation("12 + 5 = 18. Wait, 12 + 5 = 17.") is None
    assert wrong_equation("12 + 5 = 18. That is a mistake: 12 + 5 = 17") is None
    assert wrong_equation("Wait, let me see. 12 + 5 = 18.") == "12 + 5 = 18"


def test_a_seeded_error_is_found_wherever_it_stands():
    lines = ["She sells 16 - 3 - 4 = 9 eggs.", "She makes 9 * 2 = $18 a day.", "In 7 days: 18 * 7 = 126."]
    assert wrong_equation("\n".join(lines)) is None
    for i, (result, other) in enumerate([("= 9", "= 8"), ("$18", "$19"), ("126", "127")]):
        corrupted = [*lines[:i], lines[i].replace(result, other), *lines[i + 1 :]]
        assert wrong_equation("\n".join(corrupted)) is not None
