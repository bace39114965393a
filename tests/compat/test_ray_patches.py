"""Private parts of Ray: each test fails when its part is gone."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from raykd.compat import ray_patches

pytest.importorskip("ray")


def test_tune_actors_inherit_their_environment() -> None:
    """Tune's variables are back afterwards."""
    from ray.tune.execution import class_cache

    before = dict(class_cache.DEFAULT_ENV_VARS), set(class_cache.ENV_VARS_TO_PROPAGATE)
    assert all(before), "the patch is not needed any more"
    with ray_patches.inherit_environment():
        assert class_cache.DEFAULT_ENV_VARS == {}
        assert set() == class_cache.ENV_VARS_TO_PROPAGATE
    assert before == (class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE)


def test_process_ended_for_memory_is_dead_actor() -> None:
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    errors: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: errors.append(error))
    task: Any = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager: Any = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda **arguments: None)
    error = OutOfMemoryError("the node runs low on memory")
    with pytest.raises(RuntimeError):  # otherwise the patch is not needed any more
        RayActorManager._actor_task_failed(manager, task, error)
    with ray_patches.count_every_loss_as_dead_actor():
        RayActorManager._actor_task_failed(manager, task, error)
        with pytest.raises(RuntimeError):
            RayActorManager._actor_task_failed(manager, task, KeyError("a defect"))
    [lost] = errors
    assert isinstance(lost, RayActorError)
    assert "OutOfMemoryError: the node runs low on memory" in str(lost)


def test_figures_of_ended_trial_are_dropped() -> None:
    """All that Tune keeps by metric; its state can still be written."""
    from ray.tune.experiment.trial import Trial

    trial = Trial("some", stub=True)
    trial.update_last_result({"accuracy": 0.5, "outcome": object(), "config": {"a": [1]}})
    metadata = trial.run_metadata
    sizes = {name: len(value) for name, value in vars(metadata).items() if isinstance(value, dict)}
    assert {name for name, size in sizes.items() if size} == {
        *("last_result", "metric_analysis", "metric_n_steps")
    }, "Tune keeps other figures"
    ray_patches.forget_figures(trial)
    assert not metadata.metric_analysis and not metadata.metric_n_steps
    assert trial.last_result["accuracy"] == 0.5
    assert {"outcome", "config"}.isdisjoint(trial.last_result)
    assert "0.5" in metadata.get_json_state()


def test_api_server_is_skipped() -> None:
    from ray._private import services

    before = services.start_api_server
    with ray_patches.skip_api_server():
        assert services.start_api_server("any", "arguments") == (None, None)  # type: ignore[call-arg]
    assert services.start_api_server is before


@pytest.mark.parametrize("lives", [True, False])
def test_a_raylet_that_lives_is_waited_for(lives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    node, nodes = {"labels": {}}, list[dict[str, Any]]()

    def get_node(address: str, node_id: str) -> dict[str, Any]:
        nodes.append(node)
        if len(nodes) < 3:
            raise RuntimeError("the node is not there yet")
        return node

    raylet = SimpleNamespace(process=SimpleNamespace(poll=lambda: None if lives else 1))
    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(services, "start_raylet", lambda: raylet)
    with ray_patches.wait_for_raylet(60):
        services.start_raylet()  # type: ignore[call-arg]
        if lives:
            assert services.get_node("any", "any") == node
        else:
            with pytest.raises(RuntimeError):
                services.get_node("any", "any")
    assert len(nodes) == (3 if lives else 1) and services.get_node is get_node


def test_ray_binds_to_loopback() -> None:
    from ray._private import ray_constants, services

    assert ray_constants.ENABLE_RAY_CLUSTER is True, "the patch is not needed any more"
    with ray_patches.bind_to_loopback():
        assert services.resolve_ip_for_localhost("localhost") == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER is True


def test_agent_listens_on_free_port() -> None:
    from ray._private import parameter

    before = parameter.RayParams
    assert before().dashboard_agent_listen_port, "the patch is not needed any more"
    with ray_patches.choose_agent_port():
        assert parameter.RayParams(num_cpus=1).dashboard_agent_listen_port == 0
    assert parameter.RayParams is before


def test_workers_on_one_machine_meet_in_file() -> None:
    from ray.train.torch import config

    from raykd.compat.ray_process_group import FileTorchConfig

    assert FileTorchConfig(timeout_s=5).backend_cls is not config.TorchConfig().backend_cls
    assert issubclass(FileTorchConfig().backend_cls, config._TorchBackend)
    assert callable(config._setup_torch_process_group)
    assert callable(config._set_torch_distributed_env_vars)


def test_uv_setting_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants

    monkeypatch.setattr(ray_constants, ray_patches.UV_SETTING, True)
    monkeypatch.setenv(ray_patches.UV_SETTING, "0")
    with ray_patches.skip_uv_environments():
        assert getattr(ray_constants, ray_patches.UV_SETTING) is False
    assert getattr(ray_constants, ray_patches.UV_SETTING) is True


def test_ray_still_reads_uv_setting() -> None:
    from ray._private import ray_constants

    assert isinstance(getattr(ray_constants, ray_patches.UV_SETTING), bool)


def test_sigterm_handler_is_kept() -> None:
    from ray._private import utils

    before = utils.set_sigterm_handler
    with ray_patches.skip_sigterm_handler():
        assert utils.set_sigterm_handler(print) is None
    assert utils.set_sigterm_handler is before


def test_token_cache_can_be_reset() -> None:
    ray_patches.reset_token_cache()


def test_no_session_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    assert hasattr(worker, "_global_node")
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_patches.session_folder() is None
    ray_patches.before_processes_end(pytest.fail)


def test_action_runs_before_processes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker
    from ray._private.node import Node

    assert hasattr(Node, "kill_all_processes") and hasattr(Node, "get_session_dir_path")
    calls: list[str] = []

    class FakeNode:
        def kill_all_processes(self, **kwargs: Any) -> None:
            calls.append(f"end {kwargs}")

    node = FakeNode()
    monkeypatch.setattr(worker, "_global_node", node)
    ray_patches.before_processes_end(lambda: calls.append("action"))
    node.kill_all_processes(check_alive=False)
    assert calls == ["action", "end {'check_alive': False}"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray._common.usage.usage_lib", "get_cluster_metadata"),
        ("ray._private.services", "canonicalize_bootstrap_address"),
        ("ray._raylet", "GcsClient"),
        (
            "ray._private.authentication.authentication_token_setup",
            "maybe_enable_token_auth_if_token_available",
        ),
    ],
)
def test_parts_of_cluster_query_exist(module: str, name: str) -> None:
    assert name in ray_patches.CLUSTER_QUERY
    assert callable(getattr(importlib.import_module(module), name))


def test_session_without_control_service_can_be_killed() -> None:
    from ray._private import node, worker
    from ray.tune import registry

    assert callable(worker.shutdown) and callable(registry._unregister_all)
    assert callable(node.Node.kill_all_processes) and callable(node.Node.get_logs_dir_path)
    assert ray_patches.local_processes() == {} and ray_patches.log_folder() == ""
