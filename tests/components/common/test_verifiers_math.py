"""Boxed mathematics, and what a model may write to keep a computer busy."""

import json
import threading

import pytest

from components.common.verifiers import verify
from components.common.verifiers_math import find_boxed


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"{{ \boxed{5}", "5"),
        (r"}} \boxed {5} }", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{}", ""),
        (r"\\boxed{5}", None),
        (r"\boxed 5", None),
        ("5", None),
        ("", None),
    ],
)
def test_the_last_closed_box(text, inner):
    assert find_boxed(text) == inner


@pytest.mark.parametrize(
    ("inner", "answer", "right"),
    [
        ("72", "72", True),
        ("72.0", "72", True),
        ("1,234", "1234", True),
        (r"\$5", "5", True),
        (r"\frac12", "0.5", True),
        (r"\dfrac{6}{2}", "3", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("1+x^2", "x^2+1", True),
        ("x=5", "5", True),
        ("(1, 2)", "(1,2)", True),
        ("(2, 1)", "(1,2)", False),
        (r"\{2,1\}", r"\{1,2\}", True),
        ("[0,1)", "(0,1)", False),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
        ("5", r"\boxed{5}", True),
        ("5", "$5$", True),
        ("6", "5", False),
        ("12345678901234567891", "12345678901234567890", False),
        ("", "5", False),
        (r"5$ or $6", "5", False),
        ("{" * 100 + "5" + "}" * 100, "5", False),
        ("1+" * 1000 + "1", "1001", False),
    ],
)
def test_boxed_math(inner, answer, right):
    assert verify("boxed_math", rf"Therefore \boxed{{{inner}}}.", answer) is right


def test_what_stands_outside_of_a_box_is_no_answer():
    assert verify("boxed_math", "The answer is 5", "5") is False


@pytest.mark.timeout(120)
@pytest.mark.parametrize("inner", ["9**9**9**9", r"\binom{1000000}{500000}"])
def test_what_never_ends_is_wrong_and_the_next_is_judged(inner):
    assert verify("boxed_math", rf"\boxed{{{inner}}}", "5") is False
    assert verify("boxed_math", r"\boxed{\frac{10}{2}}", "5") is True


def test_nothing_that_a_model_writes_is_run(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for inner in (code, rf"\text{{{code}}}", f"x_{{{code}}}", rf"\operatorname{{{code}}}(1)"):
        assert verify("boxed_math", rf"\boxed{{{inner}}}", "5") is False
    assert not mark.exists()


def test_beside_the_main_thread():
    verdicts = []
    one = threading.Thread(target=lambda: verdicts.append(verify("boxed_math", r"\boxed{\frac{3}{2}}", "1.5")))
    one.start()
    one.join()
    assert verdicts == [True]


def test_the_solutions_of_gsm8k_boxed(shared_data):
    lines = (shared_data / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    for solution in (json.loads(line)["answer"] for line in lines):
        answer = solution.split("####")[1].strip()
        assert verify("boxed_math", rf"{solution} So $\boxed{{{answer}.0}}$.", answer) is True
        assert verify("boxed_math", rf"{solution} So $\boxed{{{answer}1}}$.", answer) is False
