"""DP-SGD by patient, for fine-tuning (Abadi et al. 2016, with a whole patient as the unit, as McMahan et al. 2018).

A step takes every patient with the same probability, independently (Poisson sampling); averages the gradients of a
patient's slices; clips that average to a norm; adds Gaussian noise to the sum over patients. So epsilon bounds what
weights tell of one patient, added or removed, with all of its slices. The gradients of single slices are opacus'.

Letters: B slices of a batch, P patients in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.optim import Optimizer

from fcl.data import SliceDataset
from fcl.engines.batches import Augmentation, AugmentBatch
from fcl.privacy.noise import NoiseSource, os_normal


class PatientBatches:
    """Poisson batches of patients; as ``SliceLoader``, but nobody can foretell them, so there is no state to save.

    The accountant's gain from sampling holds only for whoever does not know the sample, and seeds of a job are known to
    the server. Batches are those of :class:`fcl.data.SliceDataset` with ``patient`` (B,) besides, a patient's slices
    side by side, and ``seed`` (B,) of its augmentation. Slices and seed are drawn from a generator that the operating
    system seeds for this patient and step alone, so that they do not depend on who else was drawn. When no patient is,
    the batch is one blank slice of patient -1, whose gradient :class:`PatientOptimizer` leaves out: that step is noise
    alone, and must not be skipped.

    Args:
        dataset: labelled slices.
        sample_rate: probability of a patient to be in a step.
        slices_per_patient: slices of each, drawn at random; with repeats where a patient has fewer. Memory grows with
            slices times weights: gradients are held slice by slice.
        steps: batches per iteration.

    Raises:
        ValueError: on a rate outside (0, 1], or fewer than one slice or step.
    """

    def __init__(self, dataset: SliceDataset, sample_rate: float, slices_per_patient: int, steps: int) -> None:
        if not 0 < sample_rate <= 1 or slices_per_patient < 1 or steps < 1:
            raise ValueError(
                "sample_rate must lie in (0, 1], slices_per_patient and steps must be at least 1; "
                f"got {sample_rate!r}, {slices_per_patient!r} and {steps!r}"
            )
        self.dataset = dataset
        self.sample_rate = sample_rate
        self.slices_per_patient = slices_per_patient
        self.steps = steps
        names = [info.patient for info in dataset.volume_infos]
        self.patients = sorted(set(names))
        of_row = np.array([self.patients.index(name) for name in names])[dataset.volume.numpy()]
        self._rows = [np.flatnonzero(of_row == patient) for patient in range(len(self.patients))]
        self._rng = np.random.default_rng()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.steps):
            yield self._draw()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _draw(self) -> dict[str, Tensor]:
        drawn = np.flatnonzero(self._rng.random(len(self.patients)) < self.sample_rate)
        if len(drawn) == 0:
            batch = self.dataset[[0]]
            blank = {name: torch.zeros_like(batch[name]) for name in ("image", "label")}
            return {**batch, **blank, "patient": torch.tensor([-1]), "seed": torch.tensor([0])}
        rows, seeds = zip(*(self._choose(self._rows[patient]) for patient in drawn), strict=True)
        of_patients = {"patient": torch.from_numpy(drawn), "seed": torch.tensor(seeds)}
        of_slices = {name: value.repeat_interleave(self.slices_per_patient) for name, value in of_patients.items()}
        return {**self.dataset[np.concatenate(rows)], **of_slices}

    def _choose(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        count, rng = self.slices_per_patient, np.random.default_rng()
        return rng.choice(rows, count, replace=len(rows) < count), int(rng.integers(2**63))


class AugmentPatients(AugmentBatch):
    """Augments the slices of each patient of :class:`PatientBatches` by themselves, from that patient's ``seed``.

    Were numbers drawn for the batch as a whole, one patient more would give all the others other numbers, so that all
    their gradients moved, and clipping bounds one patient's only. So, whatever the seeds, the others' slices come out
    the same, to the last bit, with and without a patient. A transform that blends slices finds one patient's only.

    Args:
        augmentation, device: as in the parent class.
    """

    def __init__(self, augmentation: Augmentation | None, device: torch.device | str = "cpu") -> None:
        super().__init__(augmentation, device)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore: every batch brings its seeds."""

    def _augmented(
        self, augmentation: Augmentation, image: Tensor, label: Tensor | None, batchdata: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        assert label is not None  # of slices that are all labelled
        slices = batchdata["patient"].unique_consecutive(return_counts=True)[1].tolist()
        parts = []
        for seed, *own in zip(batchdata["seed"].split(slices), image.split(slices), label.split(slices), strict=True):
            self.generator.manual_seed(int(seed[0]))
            parts.append(augmentation(*own, generator=self.generator))
        images, labels = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(labels)


class PatientOptimizer(DPOptimizer):
    """Opacus' optimizer with a patient where opacus has a sample, and noise from the operating system.

    Hooks on the layers of ``network`` collect the gradient of every slice in training passes; the network itself stays
    what it is. :meth:`group` must be called between ``backward`` and ``step``, else ``step`` refuses.

    Args:
        optimizer: what takes the noised gradients, e.g. AdamW.
        network: whose weights ``optimizer`` holds; no layer of it may mix samples (batch normalisation).
        batches: the loader; its sampling rate and number of patients set the divisor, so that it is no secret.
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: a patient's gradient is clipped to this L2 norm.
        noise: source of the noise.

    Raises:
        ValueError: when a layer of the network is not fit, or the noise or the norm is not above 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        network: nn.Module,
        batches: PatientBatches,
        noise_multiplier: float,
        max_grad_norm: float,
        noise: NoiseSource = os_normal,
    ) -> None:
        if not noise_multiplier > 0 or not max_grad_norm > 0:
            raise ValueError(
                f"noise_multiplier and max_grad_norm must be above 0, got {noise_multiplier!r} and {max_grad_norm!r}"
            )
        if errors := ModuleValidator.validate(network, strict=False):
            raise ValueError(f"DP-SGD cannot train this network, choose another `norm`: {errors[0]}")
        # The image needs no gradient, of which torch would warn; the hooks do not ask for one.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
        self._hooks = GradSampleHooks(network, loss_reduction="mean")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=batches.sample_rate * len(batches.patients),
        )
        self._noise = noise
        self._grouped = False

    def group(self, patient_B: Tensor) -> None:
        """Turn the gradients of slices into those of patients: the mean over the slices of each; -1 is left out."""
        kept = (patient_B >= 0).nonzero()[:, 0]
        patients, place = patient_B[kept].unique(return_inverse=True)
        counts = torch.bincount(place, minlength=len(patients))
        for parameter in self.params:
            of_slices = self._get_flat_grad_sample(parameter)[kept.to(parameter.device)]
            of_patients = of_slices.new_zeros(len(patients), *parameter.shape)
            of_patients.index_add_(0, place.to(parameter.device), of_slices)
            shape = (-1, *[1] * parameter.ndim)
            parameter.grad_sample = of_patients / counts.to(of_patients).reshape(shape)
        self._grouped = True

    def pre_step(self, closure: Any = None) -> bool | None:
        if not self._grouped:
            raise RuntimeError(
                "gradients were not grouped by patient: DP-SGD runs through the config's `participant`, that is in a "
                "federation, not with `monai.bundle run`"
            )
        self._grouped = False
        return super().pre_step(closure)

    def add_noise(self) -> None:
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed = parameter.summed_grad
            # Rounded after the sum, never before: see the noise's source.
            noised = summed.double() + self._noise(summed.shape, std).to(summed.device)
            parameter.grad = noised.to(summed.dtype).view_as(parameter)
