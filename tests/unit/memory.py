"""Where a model's numbers lie in memory, on which the last bit of some kernels depends."""

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter


def in_one_vector(model: nn.Module) -> nn.Module:
    """Lay a model's trained parameters out as an agent does: one after another, in the order of their numbers.

    A matrix times a vector may be summed up in another order where it begins at another address (seen with AVX2).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(isinstance(parameter, UninitializedParameter) for parameter in trained):
        return model
    flat = torch.cat([parameter.detach().flatten() for parameter in trained])
    for parameter, own in zip(trained, flat.split([parameter.numel() for parameter in trained]), strict=True):
        parameter.data = own.view(parameter.shape)
    return model
