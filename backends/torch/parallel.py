"""Several torch processes that train together, as torchrun starts them: one copy of the weights each, or a part."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ict_backends.environment import check_rendezvous, leave_at_once, share_of_work
from ict_backends.errors import LostProcessError, UserError
from ict_backends.torch.device import check_device

# The first process evaluates and draws while the others wait.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """Those that train together, and which of them this is.

    Attributes:
        device: this one's.
        rank, world: the number of this one, and how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def share(self, network: nn.Module, *, shard: bool) -> nn.Module:
        """What is evaluated in a step: the network, made to have the gradient of all processes' images.

        Args:
            shard: let each process hold a part of every array, which changes `network` itself (FSDP2), and not a
                copy of the whole.
        """
        if self.world == 1:
            return network
        return sharded(network, self.device, self.world) if shard else copied(network, self.device)

    def agree(self, flag: bool) -> bool:
        """True in all processes alike if one of them has passed True; must be called by every process."""
        if self.world == 1:
            return flag
        found = torch.tensor([flag], dtype=torch.int32)  # on the host: no device is waited for
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.agree(False)

    def gather(self, losses: Tensor) -> np.ndarray:
        """[k, b] of each process to [k, world b] on the host, in the order of the processes. All of them ask."""
        if self.world == 1:
            return losses.cpu().numpy()
        parts = [torch.empty_like(losses) for _ in range(self.world)]
        dist.all_gather(parts, losses)
        return torch.cat(parts, dim=1).cpu().numpy()


def copied(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, wrapped so that its gradient is the mean over all processes, which have a copy each."""
    ids = None if device.type == "cpu" else [device.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name of an option, which older versions do not know
        return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def sharded(network: nn.Module, device: torch.device, world: int) -> nn.Module:
    """The network itself, of whose arrays each of `world` processes holds a part from now on (FSDP2)."""
    for parameter in network.parameters():  # FSDP2 takes no other layout; convolutions make theirs anew
        parameter.data = parameter.data.contiguous()
    mesh = dist.device_mesh.init_device_mesh(device.type, (world,))
    for block in _blocks(network):  # one after the other is made whole, used, and let go
        fully_shard(block, mesh=mesh)
    # By default, a root keeps its own arrays whole until a gradient has come: a teacher's would be those of its first
    # pass for ever.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The modules in lists that are evaluated as wholes: residual blocks and attention."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if type(block).forward is not nn.Module.forward]


@contextlib.contextmanager
def joined(name: str) -> Iterator[Processes]:
    """The processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of, joined until this one ends.

    They stay joined after the context: gloo's destructor waits, with Python's lock held, for threads that may want that
    lock to let go of the last exchange's tensors, and neither ever ends.

    Args:
        name: of this process's device, as for `check_device`.

    Raises:
        UsageError: the variables are incomplete, or there is no such device.
        UserError: they do not find each other.
        LostProcessError: one of them ends before its time.
    """
    device = check_device(name)
    rank, world = share_of_work()
    if world == 1 or dist.is_initialized():
        yield Processes(device, rank, world)
        return
    where = check_rendezvous()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    engine = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    try:
        dist.init_process_group(engine, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {rank} of {world} cannot join the others at {where}: {_first_line(error)}") from error
    leave_at_once()  # gloo was seen to hang at exit where the others had left
    try:
        with warnings.catch_warnings():
            # Arrays of 1x1 convolutions are in both memory layouts at once: copying either is not worth a warning.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield Processes(device, rank, world)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise LostProcessError(rank, world, _first_line(error).split(". ")[0]) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(s in text for s in ("connection", "gloo", "nccl", "timed out"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def accumulating(student: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """The context of one of several gradients that add up: processes exchange their sums with the last one."""
    if isinstance(student, DistributedDataParallel) and not last:
        return student.no_sync()
    return contextlib.nullcontext()


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, without gradient."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds a part. All of them ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor, or this process's part of them."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(values)
