"""The JAX backend."""

from ict_backends.jax.device import check_device, describe_device
from ict_backends.jax.parallel import joined
from ict_backends.jax.sample import Model, load_model
from ict_backends.jax.train import train
from ict_backends.jax.weights import read_flax_checkpoint

__all__ = ["Model", "check_device", "describe_device", "joined", "load_model", "read_flax_checkpoint", "train"]
