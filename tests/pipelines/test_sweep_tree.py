"""The planner of sweeps: what is granted, in which order, and that nothing is done twice or lost."""

import random
from itertools import permutations

import pytest

from pipelines.sweep_tree import Planner, Work


def chain(*names, seconds=1.0):
    """A trial of phases whose keys tell their way from the root."""
    keys = ["/".join(names[: length + 1]) for length in range(len(names))]
    return [Work(key, keys[place - 1] if place else None, seconds) for place, key in enumerate(keys)]


def drain(planner, slots=1):
    done = []
    while work := planner.grant():
        done.append(work.key)
        planner.finished(work.key)
    return done


def test_a_shared_beginning_is_granted_once():
    planner = Planner()
    for trial in (("a", "b"), ("a", "c"), ("a", "b")):
        planner.add(chain(*trial))
    assert (planner.requested, planner.distinct()) == (6, 3)
    assert drain(planner) == ["a", "a/b", "a/c"]
    assert planner.take_ended() == [0, 2, 1]


def test_all_orders_of_one_to_four_tiers_are_84_distinct_phases():
    planner = Planner()
    for tiers in (1, 2, 3, 4):
        for order in permutations(range(tiers)):
            planner.add(chain(f"{tiers} tiers, {order[0]}", *map(str, order[1:])))
    assert (planner.requested, planner.distinct()) == (119, 84)
    assert len(set(drain(planner))) == 84


def test_a_child_waits_for_its_parent_and_holds_nothing():
    planner = Planner()
    planner.add(chain("a", "b"))
    planner.add(chain("a", "c"))
    assert planner.grant().key == "a"
    assert planner.grant() is None
    planner.finished("a")
    assert {planner.grant().key, planner.grant().key} == {"a/b", "a/c"}


def test_the_longest_path_goes_first_and_then_what_more_trials_wait_for():
    planner = Planner()
    planner.add(chain("short"))
    planner.add(chain("x", "y"))
    planner.add(chain("long", "er", "still"))
    planner.add(chain("p", "q"))
    planner.add(chain("p", "r"))
    assert [planner.grant().key for _ in range(4)] == ["long", "p", "x", "short"]


def test_under_a_budget_trials_are_brought_to_their_end_one_after_another():
    planner = Planner()
    planner.in_order = True
    planner.add(chain("a", "b"))
    planner.add(chain("long", "er", "still"))
    planner.add(chain("a", "c"))
    assert drain(planner) == ["a", "a/b", "long", "long/er", "long/er/still", "a/c"]


def test_without_phases_only_what_measures_them_is_granted():
    planner = Planner()
    planner.add([*chain("a"), Work("measure a", "a", 1.0, counted=False)])
    planner.add(chain("b"))
    assert planner.grant(phases=False) is None
    assert planner.grant().key == "a"
    planner.finished("a")
    assert planner.grant(phases=False).key == "measure a"
    assert planner.grant(phases=False) is None
    assert planner.grant().key == "b"


def test_what_is_stored_is_not_granted():
    planner = Planner({"a", "a/b"})
    assert planner.trial_state(planner.add(chain("a", "b"))) == "done"
    planner.add(chain("a", "c"))
    assert drain(planner) == ["a/c"]
    assert [node.work.key for node in planner.nodes() if node.found] == ["a", "a/b"]


def test_lost_work_is_granted_again():
    planner = Planner()
    planner.add(chain("a", "b"))
    planner.grant()
    planner.lost("a")
    assert drain(planner) == ["a", "a/b"]


def test_a_failure_fails_every_trial_that_wants_what_comes_after_it_and_no_other():
    planner = Planner()
    doomed, fine = [planner.add(chain("a", "b")), planner.add(chain("a", "c"))], planner.add(chain("z", "b"))
    for _ in range(2):
        work = planner.grant()
        planner.failed("a", "it diverged") if work.key == "a" else planner.finished(work.key)
    drain(planner)
    assert [planner.trial_state(trial) for trial in doomed] == ["failed", "failed"]
    assert [planner.reason(trial) for trial in (*doomed, fine)] == ["it diverged", "it diverged", ""]
    assert planner.trial_state(fine) == "done"
    assert planner.trial_state(planner.add(chain("a", "d"))) == "failed"


def test_a_stopped_trial_takes_nothing_from_those_that_share_with_it():
    planner = Planner()
    stopped = planner.add(chain("a", "b", "c"))
    other = planner.add(chain("a", "b", "d"))
    planner.grant()
    planner.stop(stopped)
    planner.finished("a")
    assert drain(planner) == ["a/b", "a/b/d"]
    assert (planner.trial_state(stopped), planner.trial_state(other)) == ("stopped", "done")


def test_a_trial_that_comes_later_shares_what_is_done_and_what_runs():
    planner = Planner()
    planner.add(chain("a", "b"))
    planner.grant()
    planner.add(chain("a", "c"))
    planner.finished("a")
    planner.grant()
    planner.add(chain("a", "b", "e"))
    assert (planner.requested, planner.distinct()) == (7, 4)
    assert planner.grant().key == "a/c"
    planner.finished("a/b")
    assert planner.grant().key == "a/b/e"


def test_a_result_that_is_not_running_cannot_be_finished():
    planner = Planner()
    planner.add(chain("a"))
    with pytest.raises(ValueError, match="a is ready"):
        planner.finished("a")


def test_a_piece_without_its_parent_is_refused():
    with pytest.raises(ValueError, match="nobody has asked for"):
        Planner().add([Work("b", "a", 1.0)])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_or_done_twice_whatever_happens(seed):
    """Against a plain account of what was asked for, under random losses, failures, stops and late trials."""
    draw = random.Random(seed)
    planner, running, finished, stopped, broken = Planner(), [], [], set(), set()
    asked = []
    for step in range(600):
        if step < 300 and draw.random() < 0.3:
            asked.append(chain(*(draw.choice("abc") for _ in range(draw.randint(1, 5))), seconds=draw.random()))
            planner.add(asked[-1])
        if len(running) < 4 and (work := planner.grant()):
            assert work.parent is None or work.parent in finished
            running.append(work.key)
        elif running:
            key = running.pop(draw.randrange(len(running)))
            fate = draw.random()
            if fate < 0.1:
                planner.lost(key)
            elif fate < 0.12:
                planner.failed(key, "no")
                broken.add(key)
            else:
                planner.finished(key)
                finished.append(key)
        if asked and draw.random() < 0.02:
            stopped.add(draw.randrange(len(asked)))
            planner.stop(max(stopped))
    for key in running:
        planner.finished(key)
        finished.append(key)
    finished += drain(planner)
    assert len(finished) == len(set(finished))
    for number, works in enumerate(asked):
        state = planner.trial_state(number)
        assert state in {"done", "failed", "stopped"}
        if state == "done":
            assert {work.key for work in works} <= set(finished)
        if state == "failed":
            assert any(work.key == key or work.key.startswith(key + "/") for work in works for key in broken)
    assert planner.to_do() == planner.longest() == 0
