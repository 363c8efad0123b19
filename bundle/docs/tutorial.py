# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Federated contrastive learning at one site, step by step
#
# Made-up hearts, a look at slices and partitions, two views of a slice, a short pre-training without labels, its
# features, fine-tuning on one annotated patient, and Dice on patients that no training saw. A few minutes on a
# laptop; nothing is downloaded.
#
# It runs where the repository is installed (`make setup`, then `source .venv/bin/activate`; a notebook also needs
# `pip install notebook`). This file is `tutorial.py`, and runs as a script too; `make docs` writes the notebook from
# it.
#
# Everything below is done with the configurations in `bundle/configs`, the same files that a federation of hospitals
# runs. Research software: not for diagnosis or treatment.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

import fcl
from fcl.data import ensure_phantom
from fcl.engines.monitors import embed_slices
from fcl.evaluation.features import principal_plane

WORK = Path("runs/tutorial").resolve()  # everything that is written
PATIENTS = 6  # of each hospital
PRETRAIN_EPOCHS = 10  # of 10 steps of 32 slices
FINETUNE_EPOCHS = 8  # of 10 steps of 8 slices

# %% [markdown]
# ## Data
#
# The phantom has the folder layout of ACDC: one folder a patient, volumes at end-diastole and end-systole with label
# maps. `split.json` gives each hospital its patients and cuts them into folds; fold 0 is held out here. Numbers on
# made-up data say that the software works, and nothing about patients.

# %%
dataset_dir = ensure_phantom(WORK, sites=2, patients=PATIENTS, folds=3)
for site, entry in json.loads(Path(dataset_dir, "split.json").read_text())["sites"].items():
    print(site, entry["folds"])

# %% [markdown]
# ## A configuration, opened from Python
#
# `pretrain.json` says what pre-training is, `data/phantom.json` only how this dataset differs. The command line does
# the same:
#
#     python -m monai.bundle run --site site-1 \
#         --config_file "['bundle/configs/pretrain.json','bundle/configs/data/phantom.json']"
#
# From Python every part can be taken out by its name in the file.

# %%
CONFIGS = fcl.bundle_root() / "configs"


def files(stage: str) -> list[str]:
    """The configuration of a stage with the phantom's overlay."""
    return [str(CONFIGS / f"{stage}.json"), str(CONFIGS / "data" / "phantom.json")]


common = {
    "dataset_dir": dataset_dir,
    "site": "site-1",
    "meta_file": str(CONFIGS / "metadata.json"),
    "logging_file": str(CONFIGS / "logging.conf"),
}
pretraining = ConfigWorkflow(
    config_file=files("pretrain"),
    workflow_type="train",
    output_dir=str(WORK / "pretrain"),
    cache_dir=str(WORK / "cache"),
    max_epochs=PRETRAIN_EPOCHS,
    **common,
)
pretraining.initialize()
part = pretraining.parser.get_parsed_content

# %% [markdown]
# ## Slices and partitions
#
# Volumes are preprocessed once into a slice cache: a memory-mapped array with the volume, the position and the
# partition of each slice. A partition is a quarter of the volume along the slice axis. It is all that the method
# knows of anatomy: slices of one partition, of whatever patient, are taken as similar.

# %%
cache = part("slice_cache")
print(
    f"{len(cache.volumes)} volumes, {len(cache)} slices of {cache.images.shape[-2]} x {cache.images.shape[-1]} pixels"
)

first = np.flatnonzero(cache.volume == 0)
figure, axes = plt.subplots(1, len(first), figsize=(1.5 * len(first), 1.9))
for axis, row in zip(axes, first, strict=True):
    axis.imshow(cache.images[row, 0].T.astype(np.float32), cmap="gray")
    axis.set_title(f"partition {cache.partition[row]}", fontsize=8)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Two views of a slice
#
# Augmentation works on whole batches, on the device that trains. The two views of a slice go through the main and the
# momentum encoder.

# %%
middle = torch.from_numpy(cache.images[first[len(first) // 2]].astype(np.float32))[None]
generator = torch.Generator().manual_seed(0)
views = [middle] + [part("augmentation")(middle, None, generator)[0] for _ in range(2)]
figure, axes = plt.subplots(1, 3, figsize=(6, 2.3))
for axis, view, title in zip(axes, views, ("slice", "view 1", "view 2"), strict=True):
    axis.imshow(view[0, 0].T, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Features before pre-training
#
# `monitor` asks of each slice of the held-out patients in which partition its nearest neighbours among the training
# slices lie. An encoder that knows nothing gets some of them right, because slices at the ends of a heart look
# different from those in its middle.

# %%
network, monitor = part("network"), part("train::handlers::1")


def features() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (slices, 256) of the held-out patients, and the partition of each."""
    network.eval()
    vectors, partition = embed_slices(network.embed, monitor.queries, part("device"))
    return vectors.numpy(), partition.numpy()


knn = {"before": monitor.measure()["partition_knn"]}
space = {"before": features()}

# %% [markdown]
# ## Pre-training
#
# No label is read. With one site there is nobody to exchange features with; the rest is the method as the federation
# runs it. The checkpoint, the configuration as it was resolved, and TensorBoard logs are in `runs/tutorial/pretrain`.

# %%
pretraining.run()
pretraining.finalize()

# %%
knn["after"] = monitor.measure()["partition_knn"]
space["after"] = features()
print("partition kNN accuracy of held-out patients:", {when: round(value, 2) for when, value in knn.items()})

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for axis, (when, (vectors, partition)) in zip(axes, space.items(), strict=True):
    plane = principal_plane(vectors)
    for number in range(cache.partitions):
        axis.scatter(*plane[partition == number].T, s=14, label=f"partition {number}")
    axis.set_title(f"{when} pre-training")
    axis.set_xlabel("component 1")
    axis.set_ylabel("component 2")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Fine-tuning on one annotated patient
#
# The encoder starts from the pre-trained weights, the decoder at random. `annotated` limits the labels that training
# may see. Without `pretrained` this is the baseline from random weights: run it too before you believe any gain.

# %%
monai.bundle.run(
    config_file=files("finetune"),
    output_dir=str(WORK / "finetune"),
    cache_dir=str(WORK / "cache"),
    pretrained=str(WORK / "pretrain" / "model.pt"),
    annotated=1,
    batch_size=8,
    steps_per_epoch=10,
    max_epochs=FINETUNE_EPOCHS,
    val_interval=FINETUNE_EPOCHS,
    **common,
)

# %% [markdown]
# ## Dice on held-out patients
#
# Each volume is scored on its own grid against the untouched label file.

# %%
monai.bundle.run(
    config_file=files("evaluate"),
    output_dir=str(WORK / "evaluate"),
    ckpt=str(WORK / "finetune" / "model_last.pt"),
    **common,
)
summary = json.loads((WORK / "evaluate" / "summary.json").read_text())
print("mean Dice", round(summary["mean_dice"], 3), "on", summary["cases"], "volumes")

figure, axis = plt.subplots(figsize=(7, 8))
axis.imshow(plt.imread(next((WORK / "evaluate").glob("overlay_*.png"))))
axis.axis("off")
plt.show()

# %% [markdown]
# ## The same across hospitals
#
# In a federation each hospital runs these configurations on its own data. They exchange weights, counts, mean metrics
# and, for FCL, features: `bundle/docs/privacy.md`. On one machine, in FLARE's simulator (a site is a process):
#
#     python -m flare_app.job run fcl_pretrain --sites 4 --workspace runs/federated --rounds 10
#     python -m flare_app.job run finetune --sites 4 --workspace runs/tuned \
#         --pretrained runs/federated/server/simulate_job/fcl/last.pt
#     fcl report runs/federated
#
# Where to go from here: `bundle/docs/researcher.md` to plan a study, `bundle/docs/datasets.md` for your own data,
# `bundle/docs/methods.md` for other methods.
