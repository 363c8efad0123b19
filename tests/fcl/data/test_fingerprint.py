from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from monai.transforms import Compose, Lambdad, RandGaussianNoised, ScaleIntensityd

from fcl.data import read_acdc
from fcl.data.fingerprint import cache_key, describe


def key(records, transform, **changes):
    return cache_key(records, transform, **{"partitions": 4, "labels": {"rv": 1}, "version": 1, **changes})


@pytest.mark.parametrize("change", [{"partitions": 5}, {"labels": {"rv": 2}}, {"labels": None}, {"version": 2}])
def test_key_changes_with_each_setting(acdc, preprocessing, change):
    records = read_acdc(acdc(patients=1))
    assert key(records, preprocessing) != key(records, preprocessing, **change)


def test_key_changes_with_files_records_and_transforms(acdc, preprocessing):
    records = read_acdc(acdc(patients=2))
    before = key(records, preprocessing)
    assert before == key(records, preprocessing)
    assert before != key(records[:-1], preprocessing)
    assert before != key(records, Compose(preprocessing.transforms[:-1]))
    status = os.stat(records[0].label)
    os.utime(records[0].label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert before != key(records, preprocessing)


def test_names_of_structures_do_not_matter(acdc, preprocessing):
    records = read_acdc(acdc(patients=1))
    assert key(records, preprocessing) == key(records, preprocessing, labels={"right ventricle": 1})


def test_running_the_transforms_does_not_change_the_key(acdc, preprocessing):
    records = read_acdc(acdc(patients=1, cine=2))
    before = key(records, preprocessing)
    for record in records:
        preprocessing(record.as_item())
    assert before == key(records, preprocessing)


def test_description_tells_settings_and_code_apart_but_not_random_states():
    assert describe(ScaleIntensityd("image", 0, 1)) != describe(ScaleIntensityd("image", 0, 2))
    assert describe(Lambdad("image", lambda x: x + 1)) != describe(Lambdad("image", lambda x: x + 2))
    one, other = (RandGaussianNoised("image").set_random_state(seed) for seed in (0, 1))
    assert describe(one) == describe(other)
    loop: list = [1]
    loop.append(loop)
    assert describe(loop) == [1, "(itself)"]
    assert describe({"a": {3, 1}, "b": np.array([1.5])}) == {"a": ["1", "3"], "b": ["ndarray", [1.5]]}


def times(factor):
    return lambda x: x * factor


def compiled(source):
    """A function whose name and code are those of any other of the same text but for its defaults."""
    return eval(source, {})


class Window:
    def __init__(self, low):
        self.low = low
        self.bound = self.clip  # a circle, as in a transform that chooses among its own methods

    def clip(self, x):
        return np.maximum(x, self.low)


APART = {
    "defaults": (compiled("lambda x, low=-100.0: x + low"), compiled("lambda x, low=-900.0: x + low")),
    "keyword defaults": (compiled("lambda x, *, low=1: x + low"), compiled("lambda x, *, low=2: x + low")),
    "closure": (times(2), times(3)),
    "closure over functions": (times(times(2)), times(times(3))),
    "keywords of a partial": (partial(np.clip, a_min=0, a_max=1), partial(np.clip, a_min=-5, a_max=1)),
    "arguments of a partial": (partial(int, "1"), partial(int, "2")),
    "function of a partial": (partial(np.clip, a_min=0), partial(np.flip, a_min=0)),
    "owner of a method": (Window(0).clip, Window(1).clip),
    "owner of a built-in method": ([1].count, [2].count),
    "built-in functions": (abs, max),
    "slices": (slice(1, 5), slice(2, 5)),
    "bytes": (b"a", b"b"),
}


@pytest.mark.parametrize("case", APART)
def test_what_a_function_holds_counts(case):
    one, other = APART[case]
    assert describe(Lambdad("image", one)) != describe(Lambdad("image", other))
    assert describe(one) == describe(copy.deepcopy(one))


def test_function_that_refers_to_itself_or_to_nothing_yet():
    def down(x):
        return down(x - 1) if x else later

    assert describe(down)[2] == {"__closure__": [["(itself)"], []]}
    later = 1
    assert describe(down)[2] == {"__closure__": [["(itself)"], [later]]}


def test_function_that_holds_nothing_is_described_as_ever():
    """Caches built before defaults and closures counted are found again."""
    assert len(describe(compiled("lambda x: x + 1"))) == 2


def test_description_is_the_same_in_another_process():
    source = (
        "[Compose([Spacingd('a', (2, 2, -1)), Lambdad('a', abs)]), {'x', 'y', 'z'}, "
        "Lambdad('a', partial(np.clip, a_min=0, a_max=1)), Lambdad('a', (lambda k: lambda x, low={1}: x * k)(2)), "
        "Lambdad('a', ScaleIntensityd('a').scaler.__call__)]"
    )
    head = (
        "from functools import partial\nimport numpy as np\n"
        "from monai.transforms import Compose, Lambdad, ScaleIntensityd, Spacingd\n"
        "from fcl.data.fingerprint import describe\n"
    )
    command = [sys.executable, "-c", f"{head}print(describe({source}))"]
    one, other = (
        subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    )
    assert one.stdout == other.stdout
    assert "0x" not in one.stdout
