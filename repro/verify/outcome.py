"""The four outcomes of grading one answer against one reference."""

from enum import Enum


class Outcome(str, Enum):
    """What is known after grading; a `str`, so that it goes into JSON and compares with its plain value."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE_ANSWER = "unreadable_answer"
    UNREADABLE_REFERENCE = "unreadable_reference"

    def __str__(self) -> str:
        return self.value
