"""The torch backend."""

from ict_backends.torch.device import check_device, describe_device
from ict_backends.torch.features import load_features
from ict_backends.torch.parallel import joined
from ict_backends.torch.sample import Model, load_model
from ict_backends.torch.train import train
from ict_backends.torch.weights import read_state_dict

__all__ = [
    "Model",
    "check_device",
    "describe_device",
    "joined",
    "load_features",
    "load_model",
    "read_state_dict",
    "train",
]
