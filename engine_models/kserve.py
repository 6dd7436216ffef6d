"""Services of KServe beside the runtimes that start their servers (`ServingRuntime`, v1alpha1, and `InferenceService`, v1beta1).

The arguments and the environment of a service's `model` come behind those of its runtime's container, in which the model lies
where `storageUri` is mounted (KServe's `serving_runtime` reconciler, read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
_MOUNTED = "/mnt/models"


def model_of(service: Any) -> Mapping[str, Any] | None:
    """What a service says of its model; None for any other document, or where it has containers of its own."""
    if not isinstance(service, Mapping) or service.get("kind") != "InferenceService":
        return None
    model = _of(service, "spec", "predictor", "model")
    return model if isinstance(model, Mapping) else None


def bounds_of(service: Mapping[str, Any]) -> dict[str, Any]:
    """Least and most copies of a service."""
    predictor = _of(service, "spec", "predictor")
    return {key: predictor[key] for key in ("minReplicas", "maxReplicas") if isinstance(predictor, Mapping) and key in predictor}


def stored_model(model: Mapping[str, Any]) -> str | None:
    """The model that `storageUri` names; None where it lies in a store whose names say nothing."""
    scheme, _, name = str(model.get("storageUri", "")).partition("://")
    return name.partition(":")[0] if scheme == "hf" and name else None


def with_runtimes(documents: list[Any]) -> list[Any]:
    """The documents with each service as its runtime's container, where both stand among them."""
    runtimes = {str(_of(each, "metadata", "name")): each for each in documents if _of(each, "kind") in _RUNTIMES}
    used, found = set(), []
    for document in documents:
        model = model_of(document)
        runtime = str(model.get("runtime")) if model is not None else ""
        containers = _of(runtimes.get(runtime), "spec", "containers")
        if model is None or not isinstance(containers, list) or not containers or not isinstance(containers[0], Mapping):
            found.append(document)
            continue
        used.add(runtime)
        found.append({"services": {str(_of(document, "metadata", "name")): _joined(containers[0], model) | bounds_of(document)}})
    return [each for each in found if not (_of(each, "kind") in _RUNTIMES and str(_of(each, "metadata", "name")) in used)]


def _joined(container: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    words, environment = ([*_listed(container.get(key)), *_listed(model.get(key))] for key in ("args", "env"))
    name = stored_model(model)
    if name is not None:
        words = [str(word).replace(_MOUNTED, name) if str(word).endswith(_MOUNTED) else word for word in words]
    return {**container, "args": words, "env": environment}


def _of(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []
