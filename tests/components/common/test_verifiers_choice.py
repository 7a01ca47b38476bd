"""The letter that a response commits itself to."""

import pytest

from components.common.verifiers import verify
from components.common.verifiers_choice import find_choice


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. Paris", "B"),
        ("B) Paris", "B"),
        ("(B) Paris", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("ANSWER: (b)", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B. Paris**", "B"),
        ("Answer - B", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The answer is **B**, since Rome is in Italy.", "B"),
        ("The correct option is: B) Paris", "B"),
        ("The answer is the option B.", "B"),
        ("The answer is A", "A"),
        ("The answer is A.", "A"),
        ("The answer is A because it is the capital.", "A"),
        ("So the answer must be C: it is the largest", "C"),
        (r"Final answer: $\boxed{B}$", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{(B)}", "B"),
        ("I choose D", "D"),
        ("B is correct, and A is wrong.", "B"),
        ("Option C is the right answer", "C"),
        ("The answer is B and A is wrong.", "B"),
        ("Let me think.\nRome is in Italy.\n\nB", "B"),
        ("I would say (C) here.", "C"),
        ("Neither (A) nor (B) holds, so (D)", "D"),
        # The last commitment counts.
        ("The answer is A. No, wait: the answer is B.", "B"),
        ("Answer: A\n\nB", "B"),
        ("A\nAnswer: B", "B"),
        ("A. Rome\nB. Paris\nC. Bern\nAnswer: C", "C"),
        # A list of the options is no answer, nor are an article, a pronoun, a hedge, and a word.
        ("A. Rome\nB. Paris\nC. Bern", None),
        ("A) Rome (B) Paris\nB) Paris", None),
        ("The answer is a dog.", None),
        ("The answer is A dog.", None),
        ("A dog is an animal.", None),
        ("I think so", None),
        ("I'm sure the answer is I think right", None),
        ("The answer is A or B", None),
        ("The answer is A, B and C.", None),
        ("Answer: A/B", None),
        ("The answer is (A) and (C).", None),
        ("The answer is Berlin", None),
        ("The answer is not B", None),
        ("The answer: B-vitamins", None),
        ("Paris", None),
        ("", None),
    ],
)
def test_the_committed_letter(response, letter):
    assert find_choice(response) == letter
    assert verify("multiple_choice", response, "Z") is False
    assert letter is None or verify("multiple_choice", response, letter) is True


@pytest.mark.parametrize("answer", ["B", "b", "(B)", " B. ", "B:"])
def test_answers_are_letters_however_marked(answer):
    assert verify("multiple_choice", "The answer is B", answer) is True
