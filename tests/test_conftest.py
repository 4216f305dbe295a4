"""Which tests run: what make test leaves out, its seed puts back in the end, and --all always has."""
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from conftest import LONGEST, ROOT, pytest_collection_modifyitems, third


def items(*names, **marks):
    """Stand-ins for collected tests; marks: {mark: the names that carry it}."""
    return [Mock(nodeid=name, get_closest_marker=lambda mark, name=name: name in marks.get(mark, ()))
            for name in names]


def test_a_third_of_every_function_and_all_in_the_end(rng):
    cases = items("one", *(f"few[{i}]" for i in range(4)), *(f"many[{i}]" for i in range(30)))
    seeds = rng.integers(2 ** 32, size=100).tolist()
    draws = [{item.nodeid for item in third(cases, seed)} for seed in seeds]
    for drawn in draws:
        assert [sum(name.startswith(function) for name in drawn) for function in ("one", "few", "many")] == [1, 2, 10]
    assert set.union(*draws) == {item.nodeid for item in cases}
    assert draws == [{item.nodeid for item in third(cases, seed)} for seed in seeds]


@pytest.mark.parametrize(("whole", "args", "left"), [
    (False, ["tests"], ["long", "case"]), (True, ["tests"], []), (False, ["x.py::long"], [])])
def test_what_is_left_out(whole, args, left):
    """GPU tests stay, whatever else they are; so does everything if one test is named."""
    names = ["plain", "long", "gpu", "case[0]", "case[1]"]
    found = items(*names, full={"long", "gpu"}, third={"case[0]", "case[1]", "gpu"}, gpu={"gpu"})
    out = []
    config = SimpleNamespace(option=SimpleNamespace(all=whole, third_seed=3), args=args,
                             hook=SimpleNamespace(pytest_deselected=lambda items: out.extend(items)))
    pytest_collection_modifyitems(config, found)
    assert [item.nodeid.split("[")[0] for item in out] == left
    assert [item.nodeid for item in found] == [x for x in names if x not in {item.nodeid for item in out}]


def test_the_longest_files_come_first():
    assert all((ROOT / f"tests/test_{name}.py").exists() for name in LONGEST)
    names = [f"tests/test_{name}.py::{i}" for name in ("addition", LONGEST[2], "viewer", LONGEST[0]) for i in range(2)]
    found = items(*names)
    pytest_collection_modifyitems(SimpleNamespace(option=SimpleNamespace(all=True), args=["tests"]), found)
    assert [item.nodeid for item in found] == names[6:] + names[2:4] + names[:2] + names[4:6]
