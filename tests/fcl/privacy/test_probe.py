from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.nn.functional import normalize

from fcl.data import SliceCache
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder
from fcl.privacy import epsilon_of
from fcl.privacy.attacks import Rows
from fcl.privacy.probe import QUESTIONS, Cohort, Mode, Settings, collect, configuration, epsilon, probe, show, write
from fcl.transforms import BatchCompose, BatchRandSpatial

SETTINGS = Settings(releases=2, rows_per_patient=8, repeats=3, bootstrap=40)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Two sites of six patients, two held out at each, with two volumes of eight slices; patients differ somewhat."""
    generator = torch.Generator().manual_seed(0)
    patient = torch.arange(12).repeat_interleave(16)
    own = torch.randn(12, 16, generator=generator)[patient]
    features = normalize(torch.randn(len(patient), 16, generator=generator) + own, dim=1)
    row, site = torch.arange(len(patient)), torch.arange(12) // 6
    rows = Rows(features, row % 4, patient, site[patient], row // 8)
    return Cohort(rows, torch.rand(12, generator=generator), torch.arange(12) % 6 < 4, site, 4)


def test_plain_features_give_everything_away_and_strong_noise_hides_it(cohort: Cohort) -> None:
    plain, noised = probe(cohort, Mode("features"), SETTINGS), probe(cohort, Mode("features", 100.0), SETTINGS)
    assert plain["member, same scan"].value == 1.0
    assert plain["same patient"].low > 0.6
    assert plain["same patient, other scan"].low > 0.6
    for question in ("member, same scan", "same patient", "hospital"):
        low, high = noised[question].low, noised[question].high
        assert low <= 0.5 <= high, question


def test_modes_answer_what_they_can(cohort: Cohort) -> None:
    answered = {
        mode.name: [question for question, answer in probe(cohort, mode, SETTINGS).items() if answer is not None]
        for mode in (Mode("none"), Mode("prototypes"), Mode("prototypes", 1.0), Mode("control"), Mode("features", 1.0))
    }
    both = ["member, same scan", "member, other scan"]
    assert answered == {
        "none": both[:1],
        "prototypes": [*both, "hospital"],
        "prototypes + noise 1": [*both, "hospital"],
        "control": both,
        "features + noise 1": [*both, "same patient", "hospital"],
    }


def test_epsilon_is_promised_with_noise_alone() -> None:
    assert [epsilon(Mode(kind), SETTINGS) for kind in ("none", "prototypes", "features", "control")] == [None] * 4
    assert epsilon(Mode("features", 1.0), SETTINGS) == pytest.approx(epsilon_of([(1.0, 1.0, 2)], 1e-5))


def test_results_are_the_same_for_a_seed_and_are_written_in_full(cohort: Cohort, tmp_path) -> None:
    mode = Mode("prototypes", 0.5)
    results = [{"mode": mode.name, "epsilon": epsilon(mode, SETTINGS), **probe(cohort, mode, SETTINGS)} for _ in "ab"]
    assert results[0] == results[1]
    write(results[:1], cohort, SETTINGS, tmp_path)
    content = json.loads((tmp_path / "probe.json").read_text())
    assert content["chance_hospital"] == 0.5
    assert content["modes"][0]["hospital"]["value"] == results[0]["hospital"].value
    with open(tmp_path / "probe.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["question"] for line in lines] == [name for name in QUESTIONS if results[0][name]]
    console = Console(record=True, width=200)
    show(results[:1], cohort, SETTINGS, console)
    text = console.export_text()
    assert "8 patients trained on, 4 held out, 2 sites" in text
    assert "prototypes + noise 0.5" in text


def test_patients_of_all_sites_are_collected(cache: SliceCache) -> None:
    torch.manual_seed(0)
    network = ContrastiveNetwork(UNetEncoder(2, 1, (4, 8), "instance"), ProjectionHead(8, 8, 6))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    splits = {"a": (["v0", "v1"], ["v2"]), "b": (["v3"], ["v4", "v5"])}

    def configure(site):
        train, held_out = splits[site]
        records = [SimpleNamespace(patient=f"p{volume[1:]}") for volume in train]
        split = SimpleNamespace(train=records, train_volumes=train, validation_volumes=held_out)
        parts = {"network": network, "augmentation": BatchCompose([BatchRandSpatial(flip_prob=0.5)])}
        parts |= {"device": torch.device("cpu"), "seed": 0, "partitions": 4}
        parts |= {"site_split": split, "slice_cache": cache, "slab_depth": None}
        return SimpleNamespace(get_parsed_content=parts.__getitem__)

    found = collect(configure, ["a", "b"], weights)
    assert found.member.tolist() == [True, True, False, True, False, False]
    assert found.site.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(found.rows.patient, torch.arange(6).repeat_interleave(8))
    assert torch.equal(found.rows.volume, found.rows.patient)
    image = torch.from_numpy(cache.images[16:24].astype("float32"))
    with torch.no_grad():
        assert torch.allclose(found.rows.features[16:24], network.eval()(image), atol=1e-5)
    assert (found.view_alignment <= 1.0).all()


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="pixdimm"):
        configuration(None, None, None, {"pixdimm": [1, 1]})(None)
