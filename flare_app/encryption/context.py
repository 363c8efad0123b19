"""CKKS contexts from startup kits, and ciphertexts as tensors of bytes.

A ciphertext travels, and lies in checkpoints, as a 1-D uint8 tensor: all that moves and stores weights stays as it is.
FLARE's own way, objects of TenSEAL, would send the whole context (0.7 MB) along with every tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.lighter.constants import ProvFileName
from torch import Tensor

from flare_app.aggregation import shape_of

if TYPE_CHECKING:
    import tenseal

SERVER_CONTEXT = str(ProvFileName.SERVER_CONTEXT_TENSEAL)
SITE_CONTEXT = str(ProvFileName.CLIENT_CONTEXT_TENSEAL)

# Of FLARE's HEBuilder, the same as its defaults: 128-bit security (HomomorphicEncryption.org's table allows 218 bits
# at this degree), one multiplication, values below 2**(60 - 40 - 1) after it.
PARAMETERS = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40}
LARGEST = 2.0**17  # of a weight, and of its change in a round: a sum beyond 2**19 would wrap around unseen

_MAKE_KITS = "make kits with 'python -m flare_app.provision create --he'"


class EncryptionError(Exception):
    """Encryption that cannot work here, or a payload that is not what it must be. The message names no path."""


def server_context(fl_ctx: FLContext) -> tenseal.Context:
    """The server's context, which has no secret key.

    Raises:
        EncryptionError: when there is none, or it has one.
    """
    context = _load(SERVER_CONTEXT, fl_ctx)
    if context.is_private():
        raise EncryptionError(f"{SERVER_CONTEXT} holds the secret key, which the server must not have: {_MAKE_KITS}")
    return context


def site_context(fl_ctx: FLContext) -> tenseal.Context:
    """A site's context, with the secret key that all sites share.

    Raises:
        EncryptionError: when there is none, or it lacks the key.
    """
    context = _load(SITE_CONTEXT, fl_ctx)
    if not context.is_private():
        raise EncryptionError(f"{SITE_CONTEXT} holds no secret key: {_MAKE_KITS}")
    return context


def _load(name: str, fl_ctx: FLContext) -> tenseal.Context:
    try:
        from nvflare.app_opt.he.homomorphic_encrypt import load_tenseal_context_from_workspace
    except ImportError as error:
        raise EncryptionError(
            "encrypted weights need the package tenseal, which is not installed here: pip install 'fcl[he]', with "
            "Python 3.12 or older"
        ) from error
    try:
        return load_tenseal_context_from_workspace(name, fl_ctx)
    except Exception as error:  # FLARE's own, or whatever TenSEAL says of a damaged file
        raise EncryptionError(f"the startup kit has no {name} that can be used ({error}): {_MAKE_KITS}") from error


def key_fingerprint(context: tenseal.Context) -> str:
    """Short hash of the secret key: equal at all sites, or they could not read each other's ciphertexts.

    The key has far too many bits to be found from it.
    """
    key = context.serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    return hashlib.sha256(b"fcl key fingerprint" + key).hexdigest()[:16]


def to_bytes(vector: tenseal.CKKSVector) -> Tensor:
    """A ciphertext as a 1-D uint8 tensor."""
    return torch.frombuffer(bytearray(vector.serialize()), dtype=torch.uint8)


def read_vectors(
    context: tenseal.Context, weights: Mapping[str, Tensor], spec: Mapping[str, str]
) -> dict[str, tenseal.CKKSVector]:
    """Ciphertexts that fit ``spec``: the same names, and as many values under each.

    Raises:
        EncryptionError: when they do not fit, or are none.
    """
    import tenseal

    missing, unknown = sorted(spec.keys() - weights.keys()), sorted(weights.keys() - spec.keys())
    if missing or unknown:
        raise EncryptionError(f"missing {missing[:3]}; unknown {unknown[:3]}")
    vectors = {}
    for name, encrypted in weights.items():
        if not is_encrypted(encrypted):
            raise EncryptionError(f"{name} is not encrypted")
        try:
            vectors[name] = tenseal.ckks_vector_from(context, encrypted.numpy().tobytes())
        except (ValueError, RuntimeError) as error:
            raise EncryptionError(f"{name} is no ciphertext of this consortium's parameters") from error
        expected = math.prod(shape_of(spec[name]))
        if vectors[name].size() != expected:
            raise EncryptionError(f"{name} holds {vectors[name].size()} values, not {expected}")
    return vectors


def is_encrypted(tensor: Tensor) -> bool:
    """Whether a tensor has the form of a ciphertext."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1


def is_fresh(vector: tenseal.CKKSVector) -> bool:
    """Whether a ciphertext is as it was encrypted: at the first level, so that it can be added to and multiplied."""
    parts = vector.ciphertext()
    levels = len(PARAMETERS["coeff_mod_bit_sizes"]) - 1  # type: ignore[arg-type]  # the last one is for keys
    slots = PARAMETERS["poly_modulus_degree"] // 2  # type: ignore[operator]
    scale = 2.0 ** PARAMETERS["scale_bits"]  # type: ignore[operator]
    return len(parts) == -(-vector.size() // slots) and all(
        part.coeff_modulus_size() == levels and part.scale == scale for part in parts
    )


def restored(values: Sequence[float], described: str) -> Tensor:
    """Decrypted values in the shape and dtype of ``described``, an entry of a spec such as ``"float32 [2, 3]"``.

    Raises:
        EncryptionError: when they are not as many.
    """
    shape = shape_of(described)
    if len(values) != math.prod(shape):
        raise EncryptionError(f"{len(values)} values do not fill {described}")
    dtype = getattr(torch, described.partition(" ")[0])
    tensor = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return (tensor if dtype.is_floating_point else tensor.round()).to(dtype)
