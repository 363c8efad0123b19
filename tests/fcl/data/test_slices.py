from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from fcl.data import SliceCache, SliceDataset, SliceLoader, build_slice_cache, read_acdc


@pytest.fixture
def cache(acdc, preprocessing, tmp_path) -> SliceCache:
    return build_slice_cache(read_acdc(acdc(patients=2, cine=3)), preprocessing, tmp_path / "cache")


class Rows:
    """Stands for a dataset of ``count`` slices, to test orders alone."""

    def __init__(self, count: int, volumes: str = "v") -> None:
        self.count = count
        self.volumes_digest = volumes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows) -> list[int]:
        return [int(row) for row in rows]


def test_batch_equals_the_cache_row_by_row(cache):
    volumes = ["patient002_frame03", "patient001_frame01", "patient002_4d_t01"]
    dataset = SliceDataset(cache, volumes)
    assert [info.volume for info in dataset.volume_infos] == [i.volume for i in cache.volumes if i.volume in volumes]
    cache_rows = [row for row in range(len(cache)) if cache.volumes[cache.volume[row]].volume in volumes]
    assert len(dataset) == len(cache_rows) == 18
    rows = [17, 0, 5, 5, 9]
    batch = dataset[rows]
    assert batch["row"].tolist() == rows
    for b, row in enumerate(rows):
        there = cache_rows[row]
        assert np.array_equal(batch["image"][b], cache.images[there].astype(np.float32))
        assert np.array_equal(batch["label"][b], cache.labels[there])
        assert dataset.volume_infos[int(batch["volume"][b])] == cache.volumes[cache.volume[there]]
        assert int(batch["partition"][b]) == cache.partition[there] == dataset.partition[row]
        assert float(batch["position"][b]) == cache.position[there] == dataset.position[row]
    assert {key: value.dtype for key, value in batch.items()} == {
        "image": torch.float32,
        "label": torch.int64,
        "row": torch.int64,
        "volume": torch.int64,
        "partition": torch.int64,
        "position": torch.float32,
    }


def test_a_batch_is_a_copy(cache):
    dataset = SliceDataset(cache)
    before = dataset[[0]]["image"].clone()
    dataset[[0]]["image"].add_(1)
    assert torch.equal(dataset[[0]]["image"], before)


def test_a_slab_is_its_slice_amid_its_neighbours_and_repeats_the_outermost(cache):
    volumes = ["patient001_frame01", "patient002_frame03"]
    slabs, slices = (SliceDataset(cache, volumes, slab_depth=depth) for depth in (5, None))
    assert len(slabs) == len(slices) == 12
    # Volumes have 6 slices: row 0 begins the first, 5 ends it, 6 begins the second, and so on.
    neighbours = {0: [0, 0, 0, 1, 2], 1: [0, 0, 1, 2, 3], 3: [1, 2, 3, 4, 5], 5: [3, 4, 5, 5, 5], 6: [6, 6, 6, 7, 8]}
    rows = [5, 0, 6, 0, 3, 1]
    batch = slabs[rows]
    assert batch["image"].shape == batch["label"].shape == (6, 1, 16, 16, 5)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.int64)
    for b, row in enumerate(rows):
        for place, neighbour in enumerate(neighbours[row]):
            expected = slices[[neighbour]]
            assert torch.equal(batch["image"][b, ..., place], expected["image"][0])
            assert torch.equal(batch["label"][b, ..., place], expected["label"][0])
    middle = slices[rows]
    for key in ("row", "volume", "partition", "position"):
        assert torch.equal(batch[key], middle[key])


@pytest.mark.parametrize("depth", [1, 3, 15])
def test_slabs_of_any_odd_depth_keep_to_their_volume(cache, depth):
    dataset = SliceDataset(cache, slab_depth=depth)
    batch = dataset[range(len(dataset))]
    assert batch["image"].shape == (len(cache), 1, 16, 16, depth)
    for row in range(len(cache)):
        own = np.flatnonzero(cache.volume == cache.volume[row])
        z = np.clip(np.arange(row - depth // 2, row + depth // 2 + 1), own[0], own[-1])
        expected = np.moveaxis(cache.images[z], 0, -1).astype(np.float32)
        assert np.array_equal(batch["image"][row], expected)


def test_slabs_are_batched_and_resumed_like_slices(cache):
    first, second = (SliceLoader(SliceDataset(cache, slab_depth=3), 4, steps=3, seed=2) for _ in range(2))
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(one["image"], two["image"]) for one, two in zip(first, second, strict=False))


@pytest.mark.parametrize("depth", [0, -3, 4])
def test_slabs_without_a_slice_in_the_middle_are_refused(cache, depth):
    with pytest.raises(ValueError, match=f"odd number of slices, so that one lies in the middle.*Got {depth}"):
        SliceDataset(cache, slab_depth=depth)


def test_labels_only_where_there_are_some(cache):
    cine = [info.volume for info in cache.volumes if info.phase == "cine"]
    assert "label" not in SliceDataset(cache, cine)[[0]]
    mixed = SliceDataset(cache)
    unlabelled = torch.tensor([not info.labelled for info in mixed.volume_infos])[mixed.volume]
    labels = mixed[range(len(mixed))]["label"]
    assert (labels[unlabelled] == 255).all()
    assert (labels[~unlabelled] < 4).all()
    assert all(info.labelled for info in SliceDataset(cache, labelled_only=True).volume_infos)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"volumes": ["patient009_frame01"]}, "lacks 1 volumes: \\['patient009_frame01'\\]"),
        ({"volumes": []}, "no volume among the 0"),
        ({"volumes": ["patient001_4d_t01"], "labelled_only": True}, "no labelled volume among the 1"),
    ],
)
def test_unusable_choice_of_volumes(cache, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        SliceDataset(cache, **arguments)


def test_indexed_by_sequences_only(cache):
    with pytest.raises(TypeError, match="sequence of rows, got 3"):
        SliceDataset(cache)[3]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (12, 4), (7, 7), (7, 6), (5, 8)])
def test_each_permutation_gives_whole_batches_of_different_rows(count, batch_size):
    loader = SliceLoader(Rows(count), batch_size, steps=None, seed=3)
    size = min(count, batch_size)
    assert len(loader) == count // size
    passes = [list(loader) for _ in range(4)]
    for batches in passes:
        rows = [row for batch in batches for row in batch]
        assert [len(batch) for batch in batches] == [size] * (count // size)
        assert len(set(rows)) == len(rows)
    assert len({str(batches) for batches in passes}) == 4


def test_iterations_continue_inside_a_permutation():
    whole = list(SliceLoader(Rows(10), 3, steps=12, seed=1))
    loader = SliceLoader(Rows(10), 3, steps=4, seed=1)
    assert [batch for _ in range(3) for batch in loader] == whole
    assert len(loader) == 4


@pytest.mark.parametrize("done", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_restored_state_continues_bit_for_bit(done, shuffle):
    def endless() -> SliceLoader:
        return SliceLoader(Rows(10), 3, steps=20, seed=5, shuffle=shuffle)

    expected = list(endless())[done:]
    first, second = endless(), endless()
    list(islice(first, done))
    second.load_state_dict(first.state_dict())
    assert list(islice(second, 20 - done)) == expected


def test_real_batches_are_restored_too(cache):
    dataset = SliceDataset(cache)
    first, second = (SliceLoader(dataset, 8, steps=6, seed=2) for _ in range(2))
    batches = iter(first)
    next(batches)
    second.load_state_dict(first.state_dict())
    for batch, again in zip(batches, second, strict=False):
        assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_state_of_another_loader_is_refused():
    state = SliceLoader(Rows(10), 3, steps=4, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"'seed': 1.*'seed': 2"):
        SliceLoader(Rows(10), 3, steps=4, seed=2).load_state_dict(state)


def test_state_of_other_volumes_of_as_many_slices_is_refused(cache):
    loaders = [SliceLoader(SliceDataset(cache, [f"patient00{n}_frame01"]), 2) for n in (1, 2)]
    state = loaders[0].state_dict()
    assert "patient" not in str(state)
    with pytest.raises(ValueError, match="'volumes'"):
        loaders[1].load_state_dict(state)


def test_in_order_with_a_short_last_batch_from_the_first_row_each_time():
    loader = SliceLoader(Rows(7), 3, shuffle=False)
    assert len(loader) == 3
    next(iter(loader))
    assert list(loader) == list(loader) == [[0, 1, 2], [3, 4, 5], [6]]


def test_seeds_differ():
    assert list(SliceLoader(Rows(50), 5, seed=0)) != list(SliceLoader(Rows(50), 5, seed=1))


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 1, "steps": 0}])
def test_unusable_arguments(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        SliceLoader(Rows(3), **arguments)
