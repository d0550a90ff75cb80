"""Several torch processes that train together, as torchrun starts them: each holds all weights, or a part of them."""

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
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ict_backends.environment import JOINING_SECONDS, check_rendezvous, joining, leave_at_once, share_of_work
from ict_backends.errors import LostProcessError
from ict_backends.torch.device import check_device
from ict_backends.training.split import check_split
from ict_core import Config

# The first process evaluates and draws while the others wait.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and the place of this one among them.

    Attributes:
        device: the device of this process.
        rank: the number of this process, in 0..world-1.
        world: the number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def share(self, network: nn.Module, *, shard: bool) -> nn.Module:
        """The network, or its DDP or FSDP wrapper, whose gradient is the mean over the images of all processes.

        Args:
            network: the network, on this process's device.
            shard: let each process hold only a part of every array (FSDP2); this changes `network` itself.
        """
        if self.world == 1:
            return network
        return sharded(network, self.device, self.world) if shard else copied(network, self.device)

    def check_split(self, config: Config) -> int:
        """The number of micro-batches in which each process computes its share of a batch of these settings.

        Raises UsageError where the batch cannot be split into equal parts.
        """
        return check_split(config.train.batch_size, config.train.micro_batch, self.world, "processes")

    def agree(self, flag: bool) -> bool:
        """True in all processes alike if one of them has passed True; must be called by every process."""
        if self.world == 1:
            return flag
        most = torch.tensor([flag], dtype=torch.int32)  # on the host: no device is waited for
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return bool(most.item())

    def wait(self) -> None:
        """Return when every process has called this."""
        self.agree(False)

    def part(self) -> None:
        """Return when every process has called this, after which each may end."""
        self.wait()

    def exchange(self, text: str) -> list[str]:
        """The texts of all processes, in the order of their numbers; must be called by every process."""
        if self.world == 1:
            return [text]
        mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)  # on the host, as for `agree`
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(mine)]))
        longest = max(int(size) for size in sizes)
        padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(padded, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [p[: int(size)].numpy().tobytes().decode() for p, size in zip(padded, sizes, strict=True)]

    def gather(self, losses: Tensor) -> np.ndarray:
        """Join the losses, [k, b], of all processes to [k, world b] on the host, in the order of the ranks.

        Must be called by every process.
        """
        if self.world == 1:
            return losses.cpu().numpy()
        parts = [torch.empty_like(losses) for _ in range(self.world)]
        dist.all_gather(parts, losses)
        return torch.cat(parts, dim=1).cpu().numpy()


def copied(network: nn.Module, device: torch.device) -> nn.Module:
    """A DDP wrapper of the network, whose gradient is the mean over all processes; each has a copy of the weights."""
    ids = None if device.type == "cpu" else [device.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the new name of an option, which older versions lack
        return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def sharded(network: nn.Module, device: torch.device, world: int) -> nn.Module:
    """Split every array of the network over `world` processes (FSDP2), and return the network itself."""
    for parameter in network.parameters():  # FSDP2 takes no other layout; convolutions restore channels_last themselves
        parameter.data = parameter.data.contiguous()
    mesh = dist.device_mesh.init_device_mesh(device.type, (world,))
    for block in _blocks(network):  # each block is gathered, used and freed on its own
        fully_shard(block, mesh=mesh)
    # By default, a root keeps its own arrays whole until there is a gradient: a teacher, which has none, would keep
    # those of its first pass for ever.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The modules in lists that are called as a whole: residual blocks and attention."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if type(block).forward is not nn.Module.forward]


@contextlib.contextmanager
def joined(name: str) -> Iterator[Processes]:
    """A context that yields the processes which RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe, joined.

    The processes stay joined after the context, until this one ends. Else gloo's destructor would deadlock: it holds
    Python's lock and waits for threads that may need this lock to free the tensors of the last exchange.

    Args:
        name: name of this process's device, as for `check_device`.

    Raises:
        UsageError: the variables are incomplete, or there is no such device.
        UserError: the processes do not find each other.
        LostProcessError: another process ends before its time.
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
    with joining(rank, world, where):
        limit = timedelta(seconds=JOINING_SECONDS)
        store, *_ = next(rendezvous("env://", rank, world, timeout=limit))
        store.set(f"process {rank}", "is here")
        store.wait([f"process {other}" for other in range(world)], limit)
        dist.init_process_group(engine, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    leave_at_once()  # gloo was seen to hang at exit after the other processes had left
    try:
        with warnings.catch_warnings():
            # The arrays of 1x1 convolutions have both memory layouts at once: a copy of them is not worth a warning.
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
    """The context for computing one of several gradients that add up; only in the last one, processes exchange sums."""
    if isinstance(student, DistributedDataParallel) and not last:
        return student.no_sync()
    return contextlib.nullcontext()


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, without gradient; without FSDP2, the whole parameter."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process may hold only a part; must be called by every process then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values, in the shape of the whole tensor, into the part of it that this process holds, or all of it."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(values)
