"""Models of KubeAI, which starts a server for each: objects of kind Model, or entries of its chart's catalogue.

Keys and what becomes of them follow `api/k8s/v1/model_types.go`, `internal/modelcontroller/engine_{vllm,ollama}.go` and
`charts/models/values.yaml` (0.21; read 2026-11): the engine's arguments stand in `args`, its environment in `env`, least and most
copies in `minReplicas` and `maxReplicas`. A profile of resources counts devices and sets no flag.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any


def models_of(document: Mapping[str, Any], engine: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and keys of the models that `document` gives to an engine, as KubeAI writes its name."""
    if document.get("kind") == "Model" and str(document.get("apiVersion", "")).startswith("kubeai."):
        around, spec = document.get("metadata"), document.get("spec")
        found = {str(around.get("name", "model") if isinstance(around, Mapping) else "model"): spec}
    else:
        catalogue = document.get("catalog")
        found = {str(name): spec for name, spec in catalogue.items()} if isinstance(catalogue, Mapping) else {}
    for name, spec in found.items():
        if isinstance(spec, Mapping) and isinstance(spec.get("url"), str) and spec.get("engine") == engine:
            yield name, spec


def container(spec: Mapping[str, Any], words: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """A model's server: `words` its command before the model's own arguments, `environment` what KubeAI sets."""
    own, args = spec.get("env"), spec.get("args")
    given = {**environment, **(own if isinstance(own, Mapping) else {})}
    return {
        "command": [*words, *(map(str, args) if isinstance(args, list) else ())],
        "env": [{"name": name, "value": value} for name, value in given.items()],
        **{key: spec[key] for key in ("image", "minReplicas", "maxReplicas") if spec.get(key) is not None},
    }


def model_named(spec: Mapping[str, Any]) -> str:
    """The model of `url`: what follows the scheme, parameters left out."""
    return re.sub(r"^\w+://|\?.*$", "", spec["url"])
