from __future__ import annotations

import pytest
import torch
from monai.transforms.utils import create_rotate, create_shear

from fcl.transforms.affine import rotation, shearing


@pytest.mark.parametrize(
    "angles", [[0.3], [-2.0], [0.4, 0.0, 0.0], [0.0, -0.7, 0.0], [0.0, 0.0, 1.1], [0.3, -0.2, 0.9]]
)
def test_rotation_follows_monai(angles):
    dims = 2 if len(angles) == 1 else 3
    expected = torch.as_tensor(create_rotate(dims, angles))[:dims, :dims].float()
    torch.testing.assert_close(rotation(torch.tensor([angles, angles]))[1], expected)


@pytest.mark.parametrize(("dims", "coefficients"), [(2, [0.1, -0.2]), (3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])])
def test_shearing_follows_monai(dims, coefficients):
    expected = torch.as_tensor(create_shear(dims, coefficients))[:dims, :dims].float()
    torch.testing.assert_close(shearing(torch.tensor([coefficients]), dims)[0], expected)
