"""The instruction templates. The last of each family is reserved: it occurs only in held-out rows.

None of these wordings occurs in the pre-training text (`corpus.py`), which states facts and worked examples only.
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
        "Notes: {notes}. What is in {query}?",
        "{notes}. Name the content of {query}.",
        "Given that {notes}, tell me what {query} holds.",
        "Read this first: {notes}. Now open {query}. What do you see?",
    ),
    "comparison": (
        "Which is the {which}, {numbers}?",
        "Pick the {which}: {numbers}.",
        "Tell me the {which} number of {numbers}.",
        "Between {numbers}, whose value is {which}?",
    ),
    "counting": (
        "How many of these are {words}: {items}?",
        "Please count {words} in {items}.",
        "Here is a list: {items}. How often is there {words}?",
        "Look for {words} among {items}. How many did you see?",
    ),
    "sorting": (
        "Please sort this list: {items}.",
        "Would you sort {items}?",
        "I want to sort these digits: {items}.",
        "Arrange {items}, the smallest at the front.",
    ),
    "reversing": (
        "Please reverse this list: {items}.",
        "Would you reverse {items}?",
        "I need the reverse of {items}.",
        "Turn {items} around.",
    ),
    "arithmetic": (
        "What is {expression}?",
        "Work out what {expression} makes.",
        "Please compute {expression}.",
        "How much do you get from {expression}?",
    ),
    "pipeline": (
        "Take {items} and apply {operations}.",
        "Apply {operations} to {items}.",
        "Start with {items}. Do {operations}. What is the result?",
        "Run {operations}, with {items} as the input.",
    ),
}


def word(problem: Problem, index: int) -> tuple[str, str]:
    """The prompt of the problem under template `index` of its family, and the name of that template."""
    templates = TEMPLATES[problem.family]
    text = templates[index].format(**problem.slots)
    kind = "reserved" if index == len(templates) - 1 else str(index)
    return text[0].upper() + text[1:], f"{problem.family}.{kind}"
