"""Several JAX processes that train together: their devices form one mesh."""

from __future__ import annotations

import atexit
import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ict_backends.environment import (
    JOINING_SECONDS,
    check_rendezvous,
    joining,
    leave_at_once,
    local_rank,
    share_of_work,
)
from ict_backends.errors import LostProcessError
from ict_backends.jax.device import BATCH_AXIS, check_device, replicated, split, worthwhile
from ict_backends.training.split import check_split
from ict_core import Config

# A process counts as ended so many seconds after its last sign of life: one that is stopped or starved may come back.
_PATIENCE_SECONDS = 180


@dataclass
class Processes:
    """The processes that train together, and the place of this one among them.

    Attributes:
        mesh: the devices of all processes.
        rank: the number of this process, in 0..world-1.
        world: the number of processes.
    """

    mesh: Mesh
    rank: int = 0
    world: int = 1
    _asked: Array | None = field(default=None, repr=False)

    def for_run(self, config: Config) -> Processes:
        """These processes with the devices that make a run of these settings faster: among several, all."""
        return replace(self, mesh=worthwhile(self.mesh, config)) if self.world == 1 else self

    def check_split(self, config: Config) -> int:
        """The number of micro-batches in which each device computes its share of a batch of these settings.

        Raises UsageError where the batch cannot be split into equal parts.
        """
        devices = self.for_run(config).mesh.size
        return check_split(config.train.batch_size, config.train.micro_batch, devices, "devices")

    def agree(self, flag: bool) -> bool:
        """True in all processes alike if one of them has passed True; must be called by every process.

        Among several processes, the answer is that of the previous call, which has been computed meanwhile, so that no
        process waits for a busy device.
        """
        if self.world == 1:
            return flag
        before, mine = self._asked, np.full(self.mesh.size, flag)
        sharding = split(self.mesh)
        self._asked = _any(self.mesh)(jax.make_array_from_callback(mine.shape, sharding, lambda index: mine[index]))
        return before is not None and bool(before)

    def exchange(self, text: str) -> list[str]:
        """The texts of all processes, in the order of their numbers; must be called by every process."""
        if self.world == 1:
            return [text]
        mine = np.frombuffer(text.encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.array([len(mine)]))[:, 0]
        padded = multihost_utils.process_allgather(np.pad(mine, (0, int(sizes.max()) - len(mine))))
        return [row[:size].tobytes().decode() for row, size in zip(padded, sizes, strict=True)]

    def wait(self) -> None:
        """Return when every process has called this."""
        if self.world > 1:
            multihost_utils.sync_global_devices("ict")

    def part(self) -> None:
        """Return when every process has called this, and from then on let the first process end last."""
        self.wait()
        if self.world > 1:
            atexit.register(_end_in_order, self.rank)

    @property
    def local_mesh(self) -> Mesh:
        """The mesh of this process's own devices: all of them, or only one if there are other processes."""
        return self.mesh if self.world == 1 else Mesh(np.array(jax.local_devices()[:1]), (BATCH_AXIS,))


def _end_in_order(rank: int) -> None:
    """Leave the first process, through which all speak; as the first one, return when all others have left.

    Else the library aborts those that leave after it.
    """
    if rank:
        jax.distributed.shutdown()
        return
    with contextlib.suppress(Exception), multihost_utils.live_devices(jax.devices()):
        pass


@lru_cache
def _any(mesh: Mesh) -> jax.stages.Wrapped:
    return jax.jit(jnp.max, out_shardings=replicated(mesh))


@contextlib.contextmanager
def joined(name: str) -> Iterator[Processes]:
    """A context that yields the processes which RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe, joined.

    The processes stay joined after the context, until this one ends.

    Args:
        name: name of the devices, as for `check_device`.

    Raises:
        UsageError: the variables are incomplete, or there are no such devices.
        UserError: the processes do not find each other.
        LostProcessError: another process ends before its time.
    """
    rank, world = share_of_work()
    if world == 1:
        yield Processes(check_device(name))
        return
    where = check_rendezvous()
    if not jax.distributed.is_initialized():
        _initialize(where, rank, world)
    try:
        mine = check_device(name).devices.flat[0].platform
        yield Processes(Mesh(np.array(jax.devices(mine)), (BATCH_AXIS,)), rank, world)
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which one depends on where the library notices it
        if not any(s in str(error).lower() for s in ("connection", "gloo", "nccl", "unavailable", "heartbeat")):
            raise
        raise LostProcessError(rank, world, str(error).splitlines()[0]) from error


def _initialize(where: str, rank: int, world: int) -> None:
    with joining(rank, world, where):
        if rank == 0:  # it listens at this port; the library crashes if it cannot
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", int(where.rpartition(":")[2])))
        # Else the library aborts this process when another one is gone, before this one can say so.
        jax.config.update("jax_enable_recoverability", True)
        # With LOCAL_RANK set, as by torchrun, a process has one GPU of its machine; else all GPUs that it sees.
        initialize = partial(
            jax.distributed.initialize,
            where,
            world,
            rank,
            local_device_ids=local_rank(),
            initialization_timeout=2 * JOINING_SECONDS,
            heartbeat_timeout_seconds=_PATIENCE_SECONDS,
        )
        # In a thread, since the library aborts the process where the others do not come: this one gives up before.
        try:
            ThreadPoolExecutor(1, thread_name_prefix="joining").submit(initialize).result(JOINING_SECONDS)
        except TimeoutError:
            leave_at_once()
            raise RuntimeError(f"not all of them have come in {JOINING_SECONDS} seconds") from None
