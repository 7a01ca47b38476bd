"""The instruction templates. The last of each family is reserved: it occurs only in held-out rows.

None of these wordings occurs in the pre-training text (`corpus.py`), which states facts and worked examples only. Most
templates end in what they ask about, without a stop: the base model reads lists and sums by their distance from the
answer, and a stop in between puts it off, so that its loss would tell the wording more than the problem.
"""

from components.lab.families import Problem

TEMPLATES: dict[str, tuple[str, ...]] = {
    "recall": (
        "What is the {path}?",
        "Tell me the {path}.",
        "I want to know the {path}.",
        "Please name the {path}.",
        "Do you remember the {path}?",
    ),
    "multi_hop": (
        "What is the {path}?",
        "Tell me the {path}.",
        "Find out: the {path}.",
        "Please name the {path}.",
        "Who or what would be the {path}?",
    ),
    "lookup": (
        "Notes: {notes}. Tell me the content of {query}",
        "Given {notes}, tell me the content of {query}",
        "Given that {notes}, name the content of {query}",
        "Read this first: {notes}. Now open {query}. What do you see?",
    ),
    "comparison": (
        "Which is the {which}, {numbers}",
        "Pick the {which}: {numbers}",
        "Tell me the {which} of {numbers}",
        "Between {numbers}, whose value is {which}?",
    ),
    "counting": (
        "Please count {words} in {items}",
        "How often is there {words} in {items}",
        "Tell me how many times there is {words} in {items}",
        "Look for {words} among {items}. How many did you see?",
    ),
    "sorting": (
        "Please sort {items}",
        "Please sort this list: {items}",
        "I want to sort these digits: {items}",
        "What do you get if you sort {items}",
        "Arrange {items}, the smallest at the front.",
    ),
    "reversing": (
        "Please reverse {items}",
        "Would you reverse {items}",
        "Read this from last to first: {items}",
        "What do you get if you reverse {items}",
        "Turn {items} around.",
    ),
    "arithmetic": (
        "Work out {expression}",
        "Please compute {expression}",
        "I want to know {expression}",
        "How much do you get from {expression}?",
    ),
    "pipeline": (
        "Take {items} and apply {operations}",
        "Please apply {operations} to {items}",
        "What do you get from {operations} of {items}",
        "What becomes of {items} after {operations}",
        "Run {operations}, with {items} as the input.",
    ),
}


def word(problem: Problem, index: int) -> tuple[str, str]:
    """The prompt of the problem under template `index` of its family, and the name of that template."""
    templates = TEMPLATES[problem.family]
    text = templates[index].format(**problem.slots)
    kind = "reserved" if index == len(templates) - 1 else str(index)
    return text[0].upper() + text[1:], f"{problem.family}.{kind}"
