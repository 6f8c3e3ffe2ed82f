"""Where the arrays of a program lie: on one device, or over a mesh with the axes `run` and `data`.

`run` cuts the leading R axis of states and of per-run numbers: its devices train different runs and exchange nothing.
`data` cuts the batch: each of its devices computes the gradient of a part of the examples, and
XLA sums the parts. What a program computes is written once, for whole arrays; the mesh says where its parts are
computed, and changes results by the order of additions only. Dropout masks are functions of the key and the position in
the whole array, so they do not depend on the mesh. The corpus is on every device.
"""

import dataclasses
import glob
import itertools
import math
import os
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from attn_jax.errors import UserError
from attn_jax.shapes import Array, PyTree

AXES = ("run", "data")


class MeshShape(NamedTuple):
    """How many devices each axis has."""

    run: int = 1
    data: int = 1

    def __str__(self) -> str:
        return f"--mesh=run={self.run},data={self.data}"

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """What `run=4,data=2` says; an axis that is not named has one device. Raises UserError."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, size = (word.strip() for word in part.partition("="))
            if axis not in AXES or axis in sizes or not (size.isdecimal() and int(size)):
                raise UserError(f"--mesh={text}: expected run=N,data=N, with numbers of devices above 0, not '{part}'")
            sizes[axis] = int(size)
        return cls(**sizes)


def available_cores() -> int:
    """The cores that the system lets this process use."""
    known = hasattr(os, "sched_getaffinity")
    return (len(os.sched_getaffinity(0)) if known else os.cpu_count()) or 1


def cores() -> int:
    """The cores that a program is trained with: `NPROC`, or all that are available.

    XLA has as many threads, and a CPU as many devices; their number decides in which order large sums are made. So a
    program that is trained elsewhere has the same `NPROC`. Raises UserError if `NPROC` is no such number.
    """
    said = os.environ.get("NPROC")
    if said and not (said.isdecimal() and int(said)):
        raise UserError(f"NPROC={said}: expected a number of cores above 0")
    return int(said) if said else available_cores()


def spread_over_cores() -> bool:
    """Makes every core a device, where JAX computes on CPUs: runs on cores of their own do not wait for each other.

    One run has all cores as before. Changes nothing where the environment says how many there are, nor once JAX has
    looked for its devices; False if only that is why. Raises UserError as `cores` does.
    """
    count = cores()
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not said and "JAX_NUM_CPU_DEVICES" not in os.environ:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:
            return False
    return True


def fitting(runs: int) -> MeshShape:
    """The mesh where none is asked for: as many devices as the runs can be spread over evenly, each batch whole.

    Batches are cut only where that is asked for: it takes large ones to be worth their exchange of gradients.
    """
    count = jax.device_count()
    if jax.process_count() > 1:
        return MeshShape(math.gcd(runs, count))
    return MeshShape(max(part for part in range(1, count + 1) if runs % part == 0))


def check(shape: MeshShape) -> None:
    """Raises UserError unless there are devices for the mesh, and every process has a part in it."""
    wanted, count = math.prod(shape), jax.device_count()
    if wanted > count:
        raise UserError(f"{shape}: needs {wanted} devices, and there {'is' if count == 1 else 'are'} {count}")
    if wanted < count and jax.process_count() > 1:
        raise UserError(f"{shape}: is {wanted} of the {count} devices of {jax.process_count()} processes; use all")


def check_program(shape: MeshShape, runs: int, batch_size: int) -> None:
    """Raises UserError unless a program's runs and batch can be cut so."""
    if runs % shape.run:
        raise UserError(
            f"{shape}: a program of {runs} run(s) cannot be cut in {shape.run} equal parts; choose --seeds and "
            f"--runs_per_program so that every program has a multiple of {shape.run} runs, or another mesh"
        )
    if batch_size % shape.data:
        raise UserError(
            f"{shape}: a batch of {batch_size} cannot be cut in {shape.data} equal parts; choose a --batch_size that "
            f"is a multiple of {shape.data}, or another mesh"
        )


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a program's arrays lie. Without a mesh: on this process's first device, and every method does nothing."""

    mesh: Mesh | None = None

    @classmethod
    def of(cls, runs: int, batch_size: int, shape: MeshShape | None = None) -> "Placement":
        """The placement of a program on the devices of all processes; without a shape the one that fits.

        Raises UserError if the shape does not fit the devices, the runs or the batch.
        """
        if shape is None:
            shape = fitting(runs)
        else:
            check(shape)
            check_program(shape, runs, batch_size)
        wanted = math.prod(shape)
        if jax.process_count() == 1:
            # Devices that have nothing to do are left out; with one, nothing is placed.
            if wanted == 1:
                return cls()
            return cls(jax.make_mesh(shape, AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:wanted]))
        # Every process has to take part: devices that are left over do the work of others again.
        whole = (*shape, jax.device_count() // wanted)
        return cls(jax.make_mesh(whole, (*AXES, "copy"), (AxisType.Auto,) * 3))

    @property
    def devices(self) -> int:
        """How many there are."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def data(self) -> int:
        """Parts of a batch."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    def sharding(self, *axes: str | None) -> NamedSharding | SingleDeviceSharding:
        """The sharding of an array whose first axes are cut so; the others are whole, as all are without axes."""
        if self.mesh is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def put(self, tree: PyTree[Any], *axes: str | None) -> PyTree[Array]:
        """Arrays that every process has whole, placed with their first axes cut so."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = self.sharding(*axes)

        def one(leaf: Any) -> Array:
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                # Keys have no host form of their own.
                return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            host = np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
            return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

        return jax.tree.map(one, tree)

    def place(self, tree: PyTree[Any]) -> PyTree[Array]:
        """Host arrays with a leading R axis, cut along it."""
        return self.put(tree, "run")

    def abstract(self, tree: PyTree[Any], *axes: str | None) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and types of arrays with the sharding that `put` gives: what Orbax restores to."""
        sharding = self.sharding(*axes)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def jit(
        self,
        function: Callable[..., Any],
        into: Sequence[Sequence[str | None]],
        out: Sequence[Sequence[str | None]],
        **options: Any,
    ) -> Any:
        """`jax.jit` of a function done by each device for its own parts of the arguments alone.

        into, out: along which axes the arguments and the parts of the result are cut, whole trees alike. An axis of the
        mesh that none of them names is left to XLA. Nothing is exchanged along the others: the runs of one device wait
        for nobody, neither in a step nor in a search, whose loop may end later than another's.
        """
        if self.mesh is None:
            return jax.jit(function, **options)
        alone = frozenset(axis for axes in (*into, *out) for axis in axes if axis is not None)
        specs = [tuple(PartitionSpec(*axes) for axes in side) for side in (into, out)]
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], axis_names=alone, check_vma=False
        )
        # Without it JAX leaves to XLA whether a result is written over a donated argument.
        return jax.jit(mapped, out_shardings=tuple(self.sharding(*axes) for axes in out), **options)

    def each_run(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function, from a tree with a leading R axis to one, done by each device for its own runs alone."""
        if self.mesh is None:
            return function
        spec = PartitionSpec("run")
        return jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)


def fetch(tree: PyTree[Any]) -> PyTree[np.ndarray]:
    """Whole arrays on the host of every process; all processes must call it in the same order."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that JAX would find for this process, without asking it, which would take hold of them."""
    platforms = (jax.config.jax_platforms or "cuda").split(",")  # type: ignore[attr-defined]
    if not {"cuda", "gpu"} & set(platforms) or not _has_cuda():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # As CUDA reads it: what follows a name that is none, such as -1, does not count.
        names = [name.strip() for name in named.split(",") if name.strip()]
        return list(itertools.takewhile(lambda name: name != "-1", names))
    count = len(glob.glob("/dev/nvidia[0-9]*"))
    return [str(number) for number in range(count)]


def _has_cuda() -> bool:
    """Whether a plugin of JAX for NVIDIA's GPUs is installed: its packages are found as JAX finds them."""
    try:
        import jax_plugins
    except ImportError:
        return False
    return any("cuda" in plugin.name for plugin in pkgutil.iter_modules(jax_plugins.__path__))


def memory_share(part: float) -> dict[str, str]:
    """The environment that gives a process a part of a GPU's memory, unless the user's says something of it."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return {} if any(name in os.environ for name in names) else {names[0]: f"{0.9 * part:.3f}"}
