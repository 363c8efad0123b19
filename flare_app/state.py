"""What crosses rounds, at the server and at a site."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcl.card import write_card
from fcl.networks.weights import CheckpointError, read_card, read_weights, write_weights
from flare_app.card import Facts
from flare_app.storage import StorageError, alone_in, keep_as, replacing, storing, sync_folder

logger = logging.getLogger(__name__)

LAST = "last.pt"
PREVIOUS = "previous.pt"
BEST = "best.pt"
_NEW = "next.pt"
_RESUME = "resume_{}.pt"  # beside the checkpoint of the same round, which goes on to others: this names the sites


@contextmanager
def open_folder(root: Path, run_dir: Path, checkpoint_dir: str | None, resume: bool) -> Iterator[Path]:
    """The folder for the server's checkpoints and log of rounds, made where it is missing, for this job alone.

    Args:
        root: the server's workspace.
        run_dir: the job's run folder, which takes them when there is no ``checkpoint_dir``.
        checkpoint_dir: relative to ``root``, or absolute (then ``server`` is appended).
        resume: whether earlier checkpoints must lie there; else none may.

    Raises:
        StorageError: when it cannot be made, another job writes there, or it does not hold what it should.
    """
    if checkpoint_dir is None:
        folder = run_dir / "fcl"
    elif Path(checkpoint_dir).is_absolute():
        folder = Path(checkpoint_dir) / "server"
    else:
        folder = root / checkpoint_dir
    with ExitStack() as held:
        with storing(folder, "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
            if checkpoint_dir is not None:
                held.enter_context(alone_in(folder))
        earlier = any((folder / name).exists() for name in (LAST, PREVIOUS))
        if earlier and not resume:
            raise StorageError(
                f"{folder} holds checkpoints of an earlier run: resume it, or give another checkpoint_dir"
            )
        if resume and not earlier:
            raise StorageError(
                f"{folder} holds no checkpoints to resume from: give the checkpoint_dir of the job to go on with, or "
                "leave out resume to begin anew"
            )
        yield folder


@dataclass
class RunState:
    """The server's side.

    The checkpoint holds the weights and their card, fit to be passed on; what only resuming needs, the names of the
    sites among it, lies in a file of its own beside it.

    Args:
        weights: the global weights after ``round`` rounds.
        round: rounds finished.
        config_hash: of the job's configuration at the sites; a resumed run must have the same.
        settings: the job's configuration in plain words, for whoever finds the checkpoint.
        server_settings: those of the server's that shape the weights; a resumed run must have the same.
        best: ``{"round", "value"}`` of the best validation so far.
        sites: per site the rounds in which its result was accepted and those in which it was refused.
        offences: per site how many of its updates were rejected for what they held.
        silences: per site how many tasks it left unanswered since its last usable update.
        averaging: what the averaging keeps from round to round, see :class:`flare_app.averaging.Averaging`.
        facts: what the card is made of.
    """

    weights: dict[str, Tensor]
    round: int = 0
    config_hash: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    server_settings: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    sites: dict[str, dict[str, int]] = field(default_factory=dict)
    offences: dict[str, int] = field(default_factory=dict)
    silences: dict[str, int] = field(default_factory=dict)
    averaging: dict[str, Tensor] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    def state_dict(self) -> dict[str, Any]:
        """All but the weights."""
        state = asdict(replace(self, weights={}, averaging={}))
        del state["weights"]
        return {**state, "averaging": self.averaging}

    @classmethod
    def load_state_dict(cls, weights: dict[str, Tensor], state: Mapping[str, Any]) -> RunState:
        """The state that :meth:`state_dict` described."""
        return cls(weights=weights, **{**state, "facts": Facts(**state["facts"])})

    def card(self) -> dict[str, Any]:
        """What the checkpoint says of itself, to anybody."""
        contributed = sum(1 for counts in self.sites.values() if counts["accepted"])
        return self.facts.card(self.round, contributed, self.config_hash)

    def count_round(self, accepted: Iterable[str], rejected: Iterable[str]) -> None:
        """Remember who took part in a round and whose result was refused."""
        for outcome, names in (("accepted", accepted), ("rejected", rejected)):
            for site in names:
                self.sites.setdefault(site, {"accepted": 0, "rejected": 0})[outcome] += 1

    def save(self, folder: Path) -> None:
        """Write ``last.pt``, which is there at any moment; the one before stays as ``previous.pt``.

        Raises:
            StorageError: when it cannot be written; then both are what they were.
        """
        last, new = folder / LAST, folder / _NEW
        with storing(folder, f"the checkpoint after round {self.round}"):
            with replacing(_resume_file(folder, self.round)) as stream:
                torch.save(self.state_dict(), stream)
            card = self.card()
            write_weights(new, self.weights, card)
            if last.exists():
                keep_as(last, folder / PREVIOUS)
            os.replace(new, last)
            write_card(card, last)
            sync_folder(folder)
            for file in folder.glob(_RESUME.format("*")):
                if file not in (_resume_file(folder, self.round), _resume_file(folder, self.round - 1)):
                    file.unlink()

    def keep_best(self, value: float, folder: Path) -> None:
        """Write ``best.pt`` from the present weights when their validation is better than that of all before.

        Raises:
            StorageError: when it cannot be written; then it is what it was.
        """
        if self.best and value <= self.best["value"]:
            return
        self.best = {"round": self.round, "value": value}
        with storing(folder, "the best checkpoint"):
            card = self.card()
            write_weights(folder / BEST, self.weights, card)
            write_card(card, folder / BEST)

    @classmethod
    def load(cls, folder: Path) -> RunState | None:
        """The newest readable state in ``folder``; None when there is none.

        Raises:
            CheckpointError: when there are checkpoints but none can be read.
        """
        found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
        for file in found:
            try:
                beside = _resume_file(folder, int(read_card(file)["rounds"]))
                return cls.load_state_dict(read_weights(file), torch.load(beside, "cpu", weights_only=True))
            except Exception as error:  # whatever is wrong with the newest file, an older one may be whole
                logger.warning("%s is skipped: %s", file, error)
        if found:
            names = ", ".join(str(file) for file in found)
            raise CheckpointError(f"none of {names} can be read: restore one, or start in a new folder")
        return None


@dataclass
class SiteState:
    """A site's side.

    Args:
        round: rounds finished.
        participant: all that the participant keeps.
        rng: states of the random generators of this process.
        residual: what rounding has kept back of this site's updates, where they travel in fewer bits.
    """

    round: int
    participant: dict[str, Any]
    rng: dict[str, Any]
    residual: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "participant": self.participant,
            "rng": self.rng,
            "residual": self.residual,
        }

    @classmethod
    def load_state_dict(cls, state: Mapping[str, Any]) -> SiteState:
        return cls(**state)


class SiteStates:
    """A site's states of the last rounds on disk.

    The server may go back to an older round than the site's newest: by one when it was killed before its own save, by
    two when its newest checkpoint is damaged as well.

    Args:
        folder: where they lie.
        keep: how many rounds.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep

    def check(self) -> None:
        """Find out now, and not after a round's work, whether states can be saved.

        Raises:
            StorageError: when they cannot.
        """
        probe = self.folder / "writable"
        with storing(self.folder, "this site's state"):
            with replacing(probe) as stream:
                stream.write(b"ok")
            probe.unlink()

    def save(self, state: SiteState) -> None:
        """Write atomically, then remove the oldest, and those of later rounds, which are done anew.

        Raises:
            StorageError: when it cannot be written; then the earlier ones are what they were.
        """
        with storing(self.folder, f"this site's state after round {state.round}"):
            with replacing(self.folder / f"round_{state.round:05d}.pt") as stream:
                torch.save(state.state_dict(), stream)
            files = self.files()
            current = [file for file in files if _round_of(file) <= state.round]
            for file in set(files).difference(current[-self.keep :]):
                file.unlink()

    def load(self, round_number: int) -> SiteState | None:
        """The state after ``round_number`` rounds, or the newest before it, or None."""
        for file in reversed(self.files()):
            if _round_of(file) > round_number:
                continue
            try:
                return SiteState.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except Exception as error:  # whatever is wrong with the newest file, an older one may be whole
                logger.warning("%s is skipped: %s", file, error)
        return None

    def clear(self) -> None:
        """Forget an earlier run."""
        for file in self.files():
            file.unlink()

    def files(self) -> list[Path]:
        """Those that are there, the oldest first."""
        return sorted(self.folder.glob("round_*.pt"))


def _resume_file(folder: Path, round_number: int) -> Path:
    return folder / _RESUME.format(f"{round_number:05d}")


def _round_of(file: Path) -> int:
    return int(file.stem.removeprefix("round_"))


def seed_everything(seed: int) -> None:
    """Seed the random generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """States of the random generators of this process, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` gave."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
