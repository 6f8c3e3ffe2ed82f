"""Trains one small program on several meshes and prints the largest differences from one device.

The program (tests/on_devices.py) has four runs and does 20 steps, with dropout, two buckets, a run that stops early,
and one that overflows and is left out of the table. Devices are virtual ones of the CPU; two processes meet on this
machine.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WORKER = Path(__file__).resolve().parent.parent / "tests" / "on_devices.py"
MESHES = ["run=1", "run=2", "data=2", "run=4", "run=2+data=2", "data=4", "run=4+data=2", "run=2+data=4"]
OF_TWO_PROCESSES = ["run=2+data=2", "data=4"]


def started(devices: int, *flags: str) -> subprocess.Popen:
    """The worker, with so many devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen([sys.executable, str(WORKER), *flags], env=environment, stdout=subprocess.DEVNULL)


def trained(folder: Path, bits: int) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """What came out, by number of processes and mesh."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = [f"--bits={bits}", f"--results={folder}/PROCESS.npz"]
    group = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--meshes={','.join(OF_TWO_PROCESSES)}"]
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for processes, workers in (
        (1, lambda: [started(8, *common, f"--meshes={','.join(MESHES)}")]),
        (2, lambda: [started(2, *common, *group, f"--process_id={number}") for number in range(2)]),
    ):
        for worker in workers():
            if worker.wait():
                sys.exit(f"a process ended with exit code {worker.returncode}")
        for name, value in np.load(folder / "0.npz").items():
            mesh, _, name = name.partition(":")
            found.setdefault((processes, mesh), {})[name] = value
    return found


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """The largest one of a parameter of the runs that do not overflow."""
    names = [name for name in wanted if name.startswith("params/")]
    return max(float(np.abs(found[name][:3] - wanted[name][:3]).max()) for name in names)


def main() -> None:
    """Prints the table."""
    print(f"{'processes':<11}{'devices':<9}{'mesh':<16}{'float64':>10}{'float32':>10}")
    rows: dict[tuple[int, str], list] = {}
    for bits in (64, 32):
        with tempfile.TemporaryDirectory() as folder:
            found = trained(Path(folder), bits)
        for key, results in found.items():
            rows.setdefault(key, [results["exact/devices"]]).append(difference(results, found[1, "run=1"]))
    for (processes, mesh), (devices, double, single) in rows.items():
        print(f"{processes:<11}{devices:<9}{mesh.replace('+', ','):<16}{double:>10.1e}{single:>10.1e}")


if __name__ == "__main__":
    main()
