"""One site's side of federated contrastive pre-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fcl.data import SliceDataset
from fcl.engines.fcl_method import FCL
from fcl.engines.hosting import HostedTraining
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.engines.schedule import WarmupCosine
from fcl.federation import FeatureKind, FeatureSet, TrainReport
from fcl.networks.federated import NormStats, federated_weights, load_federated_weights
from fcl.privacy import FeaturePolicy, FeaturePublisher
from fcl.privacy.mechanisms import mixes_samples


class PretrainParticipant(HostedTraining[FCL]):
    """Hosts a trainer of :class:`FCL` for the life of a federation (see :class:`fcl.federation.Participant`).

    A round is one epoch of the trainer's loader; the learning rate follows the schedule over all rounds.
    At the start of a round the momentum encoder may become a copy of the averaged encoder
    (``momentum_sync="global"``), and before the site publishes or trains the bank's local rows are made afresh with it
    in one forward pass, so that the features which the sites exchange share one space; features from each site's own
    drifted encoder do not. Both are ours, not the paper's.

    Args:
        trainer: its loader is this site's slices, which its method also refreshes the bank from; ``max_epochs``,
            iteration and epoch are set from the round number.
        schedule: learning-rate schedule attached to the trainer.
        monitor: measures partition kNN accuracy.
        max_shared_rows: features shown to peers in a round, at most; None shows one per slice.
        norm_stats: whether running statistics of batch normalisation are averaged or stay local; without such buffers
            no matter.
        momentum_sync: ``"global"`` or ``"local"`` (from this site's second round on the momentum encoder goes on as it
            is).
        seed: of the choice of rows to show.
        feature_policy: how features are shared; None: as :class:`fcl.privacy.FeaturePolicy` has it by default.

    Raises:
        ValueError: on an unknown ``momentum_sync``, a method without slices, a bank whose rows are not those of the
            slices that are trained on, or when noise is asked for where its guarantee would not hold.
    """

    shares_features = True

    def __init__(
        self,
        trainer: PretrainTrainer[FCL],
        schedule: WarmupCosine,
        monitor: PartitionKNN,
        max_shared_rows: int | None = 512,
        norm_stats: NormStats = "average",
        momentum_sync: Literal["global", "local"] = "global",
        seed: int = 0,
        feature_policy: FeaturePolicy | None = None,
    ) -> None:
        if momentum_sync not in ("global", "local"):
            raise ValueError(f"momentum_sync must be 'global' or 'local', got {momentum_sync!r}.")
        if trainer.method.slices is None:
            raise ValueError("the trainer's method has no slices to refresh the bank from: give it `slices`.")
        policy = feature_policy or FeaturePolicy()
        if policy.noise_multiplier is not None and (momentum_sync, norm_stats) != ("global", "average"):
            raise ValueError(
                "noise_multiplier needs momentum_sync 'global' and norm_stats 'average', got "
                f"{momentum_sync!r} and {norm_stats!r}: an encoder that keeps what it learnt here makes every feature "
                "depend on every patient, and the noise would cover less than it claims."
            )
        if policy.noise_multiplier is not None and mixes_samples(trainer.network):
            raise ValueError(
                "noise_multiplier needs a network that looks at each slice by itself: set norm to 'instance', or to "
                "'batch' with running statistics (no track_running_stats: false). A batch's own statistics let every "
                "patient into the features of every other, and the noise would cover less than it claims."
            )
        super().__init__(trainer, schedule, monitor)
        self.norm_stats = norm_stats
        self.momentum_sync = momentum_sync
        dataset: SliceDataset = self.loader.dataset
        filled_from = getattr(trainer.method.slices, "dataset", None)
        # Least cohort, rows of a patient and noise all count by these labels.
        if filled_from is not dataset or not trainer.method.bank.is_of(dataset.partition, dataset.volume):
            raise ValueError(
                "the method's `slices`, the trainer's loader, and `partition` and `volume` of the bank must name one "
                "dataset, as in pretrain.json: else the bank's rows would count for other volumes and patients than "
                "they are from."
            )
        self.generator = torch.Generator().manual_seed(seed)
        patients = [info.patient for info in dataset.volume_infos]
        self.publisher = FeaturePublisher(trainer.method.bank, patients, policy, max_shared_rows, self.generator)
        self._begun = False  # a round, in which this site has not trained yet
        self._bank_is_stale = False
        self._trained = False

    def describe(self) -> dict[str, int | float | str]:
        return {
            **super().describe(),
            "feature_length": self.trainer.method.bank.feature_length,
            "partitions": self.trainer.method.bank.partitions,
        }

    def weights(self) -> dict[str, Tensor]:
        return federated_weights(self.trainer.network, self.norm_stats)

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        trainer = self.trainer
        load_federated_weights(trainer.network, weights, self.norm_stats)
        # Until it has trained, the site has random weights of its own, which tell nothing about the average.
        if self.momentum_sync == "global" or not self._trained:
            trainer.sync_momentum_network()
        # Made anew when first needed: a site that only validates this round needs no bank.
        self._begun = self._bank_is_stale = True
        trainer.method.bank.expire(round_number)
        self.schedule.begin_round(self.trainer, round_number, total_rounds, len(self.loader))

    def publish(self, kind: FeatureKind) -> FeatureSet:
        if not self._begun:
            # Trained on, rows come from an encoder that this site's other patients have moved.
            raise RuntimeError("features are published between begin_round and train, and this site is not there.")
        self._refresh_bank()
        return self.publisher.publish(kind)

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self.trainer.method.bank.set_remote(site, features, round_number)

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        self._refresh_bank()
        self._begun, self._trained = False, True
        metrics = self.run(should_stop)
        metrics["bank_remote_rows"] = float(self.trainer.method.bank.remote_rows)
        return TrainReport(self.weights(), len(self.loader.dataset), metrics)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.training_state(),
            "trained": self._trained,
            "snapshot_rng": self.generator.get_state(),
            "privacy": self.publisher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.restore(state)
        self._begun = self._bank_is_stale = False
        self._trained = bool(state["trained"])
        self.generator.set_state(state["snapshot_rng"])
        self.publisher.load_state_dict(state["privacy"])

    def _refresh_bank(self) -> None:
        if not self._bank_is_stale:
            return
        trainer = self.trainer
        # The guarantee of noise counts a patient's own rows: no other patient's may depend on that patient.
        trainer.method.refresh_bank(trainer, independent=self.publisher.policy.noise_multiplier is not None)
        self._bank_is_stale = False
