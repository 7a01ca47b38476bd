"""Rewards: what a response is worth in training. The verifiers of evaluation, or a function of the user's own.

A function is named in the spec as `package.module:function`; it takes the response and the answer and returns a bool or
a finite number. The spec is the user's, so what it names may run; an example's verifier is never such a name.
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from components.common.digests import digest_file
from components.common.errors import UserError
from components.common.judging import judge
from components.common.judging_process import JUDGES
from components.common.machine import installed_version
from components.common.verifiers import VERIFIERS, verify

_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_PACKAGES = {"boxed_math": "math-verify", "json_schema": "jsonschema", "ifeval": "lm-eval"}
"""The package whose verdict a verifier's is."""
_PROBE = "This is a response. It has two sentences."


def known(name: str) -> bool:
    """Whether a spec may name it: a verifier, or the form `package.module:function` (nothing is imported)."""
    return name in VERIFIERS or _FUNCTION.fullmatch(name) is not None


def reward(name: str, response: str, answer: str) -> float:
    """What a response is worth.

    Args:
        name: A verifier (1.0 or 0.0) or a function (any finite number; True is 1.0).
        response: What the model wrote.
        answer: The gold answer.

    Raises:
        UserError: If the name is neither, or the function fails, or gives something else.
    """
    if name in VERIFIERS or not known(name):
        return float(verify(name, response, answer))
    remedy = "mend the function: it takes (response, answer), two strings, and returns a bool or a finite number"
    try:
        value = _function(name)(response, answer)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the reward {name} failed: {type(error).__name__}: {error}", remedy) from error
    # The booleans of NumPy are no numbers to Python, and comparisons of arrays give them.
    if not isinstance(value, numbers.Real) and type(value).__name__ not in ("bool", "bool_"):
        raise UserError(f"the reward {name} returned {type(value).__name__}, which is no number", remedy)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"the reward {name} returned {number}", remedy)
    return number


def check_reward(name: str) -> None:
    """See early whether a reward can be given: the verifier's packages load, or the function is there to be called.

    Raises:
        UserError: If not, with what to do.
    """
    if not known(name):
        raise UserError(
            f"reward {name[:80]!r} is not known",
            f"use one of {', '.join(sorted(VERIFIERS))}, or the name of a function, `package.module:function`",
        )
    if name in JUDGES:
        judge(name).start()
    elif name not in VERIFIERS:
        _function(name)


def check_answers(name: str, answers: Iterable[str]) -> None:
    """See early whether a verifier can use all answers: what only the library knows of them shows at the first use.

    Args:
        name: A verifier; of a function nothing is checked.
        answers: Gold answers; each one is looked at once.

    Raises:
        UserError: At the first answer that it cannot use, or that needs what is not there (NLTK's data).
    """
    if name in VERIFIERS:
        for answer in dict.fromkeys(answers):
            verify(name, _PROBE, answer)


def describe(name: str) -> dict[str, str]:
    """What a reward is, for a plan and for the key of what is trained with it.

    Returns:
        `name`; `kind` (`verifier` or `function`); and what its verdicts come from: `package` with its version, or
        `source`, the SHA-256 of the file that the function is in (not of what that file imports).

    Raises:
        UserError: As `check_reward`, for a function.
    """
    if name not in VERIFIERS:
        file = Path(getattr(inspect.getmodule(inspect.unwrap(_function(name))), "__file__", None) or ".")
        return {"name": name, "kind": "function", "source": digest_file(file) if file.is_file() else "unknown"}
    if name not in _PACKAGES:
        return {"name": name, "kind": "verifier"}
    # Of an extra that is missing nothing is asked, unless an example names the verifier, which then refuses.
    package = f"{_PACKAGES[name]} {installed_version(_PACKAGES[name]) or 'not installed'}"
    return {"name": name, "kind": "verifier", "package": package}


def _function(name: str) -> Callable[[str, str], Any]:
    """The user's function.

    Raises:
        UserError: If it is not there, or cannot be called with a response and an answer.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        whose = "" if f"{module_name}.".startswith(f"{missing}.") else f", which {module_name} imports,"
        raise UserError(
            f"the reward {name}: the module {missing}{whose} is not found",
            "install it here, or add the folder that it is in to PYTHONPATH",
        ) from error
    except Exception as error:
        raise UserError(
            f"the reward {name}: importing {module_name} failed: {type(error).__name__}: {error}", "mend the module"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        place = getattr(module, "__file__", None) or module_name
        raise UserError(f"the reward {name}: {module_name} has no function {attribute}", f"define it in {place}")
    try:
        inspect.signature(function).bind("", "")
    except TypeError as error:
        raise UserError(
            f"the reward {name} does not take a response and an answer: {error}",
            f"define it as `def {attribute}(response: str, answer: str) -> float`",
        ) from error
    except ValueError:  # written in C, without a signature: it says so itself when it is called
        pass
    return function  # type: ignore[no-any-return]  # getattr gives Any
