"""Private parts of Ray: each test fails when its part is gone."""

from __future__ import annotations

import importlib
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


def test_the_api_server_is_skipped() -> None:
    from ray._private import services

    before = services.start_api_server
    with ray_patches.skip_api_server():
        assert services.start_api_server("any", "arguments") == (None, None)  # type: ignore[call-arg]
    assert services.start_api_server is before


def test_the_uv_setting_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants

    monkeypatch.setattr(ray_constants, ray_patches.UV_SETTING, True)
    monkeypatch.setenv(ray_patches.UV_SETTING, "0")
    with ray_patches.skip_uv_environments():
        assert getattr(ray_constants, ray_patches.UV_SETTING) is False
    assert getattr(ray_constants, ray_patches.UV_SETTING) is True


def test_ray_still_reads_the_uv_setting() -> None:
    from ray._private import ray_constants

    assert isinstance(getattr(ray_constants, ray_patches.UV_SETTING), bool)


def test_the_sigterm_handler_is_kept() -> None:
    from ray._private import utils

    before = utils.set_sigterm_handler
    with ray_patches.skip_sigterm_handler():
        assert utils.set_sigterm_handler(print) is None
    assert utils.set_sigterm_handler is before


def test_the_token_cache_can_be_reset() -> None:
    ray_patches.reset_token_cache()


def test_no_session_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    assert hasattr(worker, "_global_node")
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_patches.session_folder() is None
    ray_patches.before_processes_end(pytest.fail)


def test_an_action_runs_before_the_processes_end(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_parts_of_the_cluster_query_exist(module: str, name: str) -> None:
    assert name in ray_patches.CLUSTER_QUERY
    assert callable(getattr(importlib.import_module(module), name))
