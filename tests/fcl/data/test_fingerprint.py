from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from monai.transforms import Compose, Lambdad, RandGaussianNoised, ScaleIntensityd, Spacingd

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


def test_description_is_the_same_in_another_process():
    source = "[Compose([Spacingd('a', (2, 2, -1)), Lambdad('a', abs)]), {'x', 'y', 'z'}]"
    code = (
        "from monai.transforms import Compose, Lambdad, Spacingd\n"
        f"from fcl.data.fingerprint import describe\nprint(describe({source}))"
    )
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert there == str(describe([Compose([Spacingd("a", (2, 2, -1)), Lambdad("a", abs)]), {"x", "y", "z"}]))
    assert "0x" not in there
