"""Private parts of Ray Train (2.60): the start of PyTorch's process group.

Ray Train lets the workers meet through a TCP store of PyTorch.  That store listens on all network
interfaces without authentication, and a caller can take part in the exchange of pickled objects.
Workers on one machine meet through a file in the session's private folder.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import ray
from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_config
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from raykd.compat.ray_patches import session_folder


class _FileBackend(torch_config._TorchBackend):
    """PyTorch's process group of workers on one machine, which meet through a file."""

    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:  # type: ignore[override]
        """Start the process group."""
        folder = session_folder()
        assert folder is not None
        file = folder / f"meeting-{secrets.token_hex(8)}"
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(torch_config._set_torch_distributed_env_vars)
        starts = [
            worker_group.execute_single_async(
                rank,
                torch_config._setup_torch_process_group,
                backend="nccl" if gpus else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method=file.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(starts)  # type: ignore[arg-type]


@dataclass
class FileTorchConfig(TorchConfig):
    """Configuration of a process group whose workers are on one machine."""

    @property
    def backend_cls(self) -> type[_FileBackend]:
        return _FileBackend
