"""The verifier `ifeval`: the constraints of IFEval ("at least 300 words", "no comma"), checked by lm-eval's own code.

lm-eval's module asks NLTK for its data `punkt_tab` when it is imported, and downloads them where they are missing. Only
the constraints that split sentences need them, so it is imported beside an empty folder of that name: nothing is asked
for, and a constraint that does need them says so when it is checked.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.judging import judge

LONGEST = 1 << 20
"""Characters of a response beyond which it is wrong unread."""
_DRAWS = 8
"""Times that a constraint is built, to see whether lm-eval draws what the answer leaves open at random."""


def ifeval(response: str, answer: str) -> bool:
    """Whether a response follows every constraint (IFEval's strict accuracy of a prompt). An empty one follows none.

    Args:
        response: What the model wrote.
        answer: JSON as in the data of IFEval: `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`; keys that are
            null count as absent.

    Raises:
        UserError: If lm-eval or the data of NLTK that a constraint needs are not there, or a constraint is not known.
    """
    return len(response) <= LONGEST and judge("ifeval").ask(response, answer)


def answer_fault(answer: str) -> str | None:
    """What is wrong with the form of an answer, None where nothing is; the constraints' names only lm-eval knows."""
    try:
        read(answer)
    except ValueError as error:
        return str(error)
    return None


def read(answer: str) -> list[tuple[str, dict[str, Any]]]:
    """The constraints of an answer: name and arguments.

    Raises:
        ValueError: If the answer is of another form.
    """
    form = 'an object with "instruction_id_list" and "kwargs", lists of the same length'
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError(f"it is not JSON; IFEval's answers are {form}") from None
    names, arguments = (
        given.get(key) if isinstance(given, dict) else None for key in ("instruction_id_list", "kwargs")
    )
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
        raise ValueError(f"it is not {form}")
    if not all(isinstance(name, str) for name in names) or not all(isinstance(one, dict | None) for one in arguments):
        raise ValueError("its instruction_id_list holds names, and its kwargs hold objects")
    return [
        (name, {key: value for key, value in (one or {}).items() if value is not None})
        for name, one in zip(names, arguments, strict=True)
    ]


def load() -> Callable[[str, str], bool]:
    """The checks, for a process of its own: keywords are regular expressions, which can take for ever.

    Raises:
        UserError: If lm-eval is not installed.
    """
    known = _import_checks()
    import langdetect

    langdetect.DetectorFactory.seed = 0  # unseeded, it guesses anew each time
    langdetect.detect("the languages are read when it is first asked")

    def followed(response: str, answer: str) -> bool:
        constraints = [_built(known, name, arguments) for name, arguments in read(answer)]
        # Each is asked, also after one has failed: what is missing is said whatever the response.
        verdicts = [_follows(constraint, response) for constraint in constraints]
        return bool(response.strip()) and all(verdicts)

    return followed


def _import_checks() -> dict[str, Any]:
    try:
        import nltk

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "tokenizers", "punkt_tab").mkdir(parents=True)
            nltk.data.path.append(folder)  # the last one: data that are there are found first
            try:
                from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
            finally:
                nltk.data.path.remove(folder)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the verifier ifeval uses lm-eval's checks, and {error.name} is not installed",
            "install phasetune with its extra: pip install 'phasetune[ifeval]'",
        ) from None
    return dict(INSTRUCTION_DICT)


def _built(known: dict[str, Any], name: str, arguments: dict[str, Any]) -> Any:
    if name not in known:
        raise UserError(
            f"IFEval has no constraint {name[:80]!a}", f"lm-eval's are: {', '.join(sorted(known))}; mend the answer"
        )
    # Where an argument is missing or of no use to it, lm-eval draws one: the prompt cannot have asked for that.
    settled = []
    for seed in range(_DRAWS):
        random.seed(seed)
        constraint = known[name](name)
        try:
            constraint.build_description(**arguments)
        except Exception as error:
            raise UserError(
                f"the constraint {name} does not take {json.dumps(arguments)[:200]}: {error}",
                "mend the answer's kwargs",
            ) from None
        settled.append(constraint.get_instruction_args())
    if any(drawn != settled[0] for drawn in settled):
        raise UserError(
            f"the constraint {name} is not settled by {json.dumps(arguments)[:200]}: lm-eval would draw the rest",
            f"give all of {', '.join(constraint.get_instruction_args_keys())} in the answer's kwargs",
        )
    return constraint


def _follows(constraint: Any, response: str) -> bool:
    try:
        return bool(constraint.check_following(response))
    except LookupError as error:
        if type(error) is not LookupError:  # an index or a key of the check's own
            return False
        raise UserError(
            f"the constraint {constraint.id} splits sentences with NLTK's data punkt_tab, which are not found here",
            "where there is a network, run `python -m nltk.downloader punkt_tab`; copy the folder nltk_data here, let "
            "nobody else write to it, and set NLTK_DATA to its path; or leave out the rows with this constraint",
        ) from None
    except Exception:  # of the response: lm-eval's checks expect less than a model can write
        return False
