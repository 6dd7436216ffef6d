"""Documents of products that start vLLM by keys of their own, as documents with containers.

They are the values of the production stack's Helm chart (`helm/templates/deployment-vllm-multi.yaml`, read 2026-11: without
`enablePrefixCaching` it turns the prefix cache off wherever `vllmConfig` stands), those of llm-d's chart of model services
(`llm-d-modelservice`, `templates/_helpers.tpl`, read 2026-11), KServe's services of both kinds, models of KubeAI, and the
configurations of Ray Serve (`ray.serve.llm.LLMConfig`; read 2026-11), as a call, in an application's file or in a RayService.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine_models import kserve
from engine_models.engines import kubeai
from hardware_profiles.errors import InputError

_HARMLESS = ("v0", "v1", "prometheusMultiprocDir")
_PARALLELISM = {
    "tensor": "--tensor-parallel-size",
    "pipeline": "--pipeline-parallel-size",
    "data": "--data-parallel-size",
}
RAY = "ray.serve.llm.LLMConfig"
_ROUTER = {"routingLogic": "--routing-logic", "sessionKey": "--session-key", "prefixMinMatchLength": "--prefix-min-match-length"}


def as_containers(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document as one with containers, by the name of each server; itself where it is none of these products'."""
    stack = document.get("servingEngineSpec")
    models = stack.get("modelSpec") if isinstance(stack, Mapping) else None
    if isinstance(models, list):
        found = [model for model in models if isinstance(model, Mapping) and model.get("enabled") is not False]
        services = {str(model.get("name", f"model-{i}")): _of_chart(model) for i, model in enumerate(found)}
        return {"services": {**services, **_router(document.get("routerSpec"))}}
    spec = document.get("spec")
    served = list(_of_ray(_applications(spec) if document.get("kind") == "RayService" else document))
    if served:
        return {"services": {str(model.get("name", f"model-{i}")): model for i, model in enumerate(served)}}
    if isinstance(document.get("modelArtifacts"), Mapping):
        return {"services": dict(_of_values(document))}
    of_kubeai = {name: _of_model(model) for name, model in kubeai.models_of(document, "VLLM")}
    if of_kubeai:
        return {"services": of_kubeai}
    model = kserve.model_of(document)
    if model is not None and _is_of_vllm(model):
        return {"services": {"main": _of_predictor(model) | kserve.bounds_of(document)}}
    if document.get("kind") == "LLMInferenceService" and isinstance(spec, Mapping):
        return {"services": dict(_of_service(spec, document.get("metadata")))}
    return document


def _of_chart(model: Mapping[str, Any]) -> dict[str, Any]:
    """The container of one model of the chart's values."""
    config, cache = (_group(model.get(key)) for key in ("vllmConfig", "lmcacheConfig"))
    words = ["vllm", "serve", str(model.get("modelURL", ""))] + ["--enable-lora"] * bool(model.get("enableLoRA"))
    environment = _listed(model.get("env"))
    if config is not None:
        words += ["--enable-prefix-caching" if config.get("enablePrefixCaching") else "--no-enable-prefix-caching"]
        for key, value in config.items():
            if key not in (*_HARMLESS, "enablePrefixCaching", "extraArgs"):
                words += _flag(re.sub(r"(?<!^)([A-Z])", r"-\1", str(key)).lower(), value)
        words += _words(config.get("extraArgs"))
        if str(config.get("v0")) == "1":
            environment.append({"name": "VLLM_USE_V1", "value": "0"})
    if cache is not None and cache.get("enabled"):
        role = str(cache.get("kvRole", "kv_both"))
        words += ["--kv-transfer-config", json.dumps({"kv_connector": "LMCacheConnectorV1", "kv_role": role})]
        for key, variable in (("cpuOffloadingBufferSize", "CPU"), ("diskOffloadingBufferSize", "DISK")):
            if str(cache.get(key) or 0) not in ("0", "0.0"):
                environment.append({"name": f"LMCACHE_MAX_LOCAL_{variable}_SIZE", "value": str(cache[key])})
    scaled = model.get("keda")
    scaled = scaled if isinstance(scaled, Mapping) and scaled.get("enabled") else {}
    return {
        "image": f"{model.get('repository', 'vllm/vllm-openai')}:{model.get('tag', 'latest')}",
        "command": words,
        "env": environment,
        "scale": model.get("replicaCount"),
        **{bound: scaled.get(bound) for bound in ("minReplicaCount", "maxReplicaCount")},
    }


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _words(value: Any) -> list[str]:
    """Arguments as a list, or as one text."""
    return [str(word) for word in value] if isinstance(value, list) else str("" if value is None else value).split()


def _group(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict | list) else str(value)]


def _router(spec: Any) -> dict[str, Any]:
    if not isinstance(spec, Mapping) or spec.get("enableRouter") is False:
        return {}
    words = [word for key, flag in _ROUTER.items() if spec.get(key) for word in (flag, str(spec[key]))]
    return {"router": {"command": ["vllm-router", *words]}} if words else {}


def _of_ray(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Containers of the configurations of models that Ray Serve starts."""
    applications = document.get("applications")
    for application in applications if isinstance(applications, list) else ():
        args = application.get("args") if isinstance(application, Mapping) else None
        configs = args.get("llm_configs") if isinstance(args, Mapping) else None
        for config in configs if isinstance(configs, list) else ():
            if isinstance(config, Mapping):
                yield from _of_ray(config)
    loaded, flags = (_group(document.get(key)) for key in ("model_loading_config", "engine_kwargs"))
    if loaded is None:
        return
    deployed = _group(document.get("deployment_config")) or {}
    scaled = _group(deployed.get("autoscaling_config")) or {}
    words = ["vllm", "serve", str(loaded.get("model_source") or loaded.get("model_id", ""))]
    for key, value in (flags or {}).items():
        words += _flag(str(key).replace("_", "-"), value)
    copies = deployed.get("num_replicas")
    yield {
        "name": loaded.get("model_id"),
        "command": words,
        "scale": copies if isinstance(copies, int) else None,
        **{bound: scaled.get(bound) for bound in ("min_replicas", "max_replicas")},
    }


def _applications(spec: Any) -> Mapping[str, Any]:
    """What a RayService serves; InputError where that is a program, whose flags do not stand in it."""
    from engine_models.launch import flags_of_file

    text = spec.get("serveConfigV2") if isinstance(spec, Mapping) else None
    served = flags_of_file(text, "serveConfigV2") if isinstance(text, str) else {}
    if not any(True for _ in _of_ray(served)):
        listed = _listed(served.get("applications"))
        named = [str(each.get("import_path")) for each in listed if isinstance(each, Mapping)]
        raise InputError(
            f"the RayService serves `{', '.join(named) or 'nothing'}`: a program, whose flags do not stand in the text",
            where="serveConfigV2",
            mend="paste the call in that program that starts the engine, or write its flags as keys of engine_args",
        )
    return served


def _of_values(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The servers of llm-d's model service: those that decode, or do all, and those that only prefill."""
    artifacts = document["modelArtifacts"]
    scheme, _, place = str(artifacts.get("uri", "")).partition("://")
    source = "/".join(place.split("/")[-2:]) if scheme == "pvc+hf" else place.strip('"') if scheme == "hf" else ""
    model = str(artifacts.get("name", "")) if not source or re.search("[<{]", source) else source
    for side in ("decode", "prefill"):
        part = document.get(side)
        containers = part.get("containers") if isinstance(part, Mapping) and part.get("create") is not False else None
        if isinstance(part, Mapping) and isinstance(containers, list) and containers and isinstance(containers[0], Mapping):
            yield side, {"scale": part.get("replicas"), **_of_side(containers[0], model, _group(part.get("parallelism")) or {})}


def _of_side(container: Mapping[str, Any], model: str, ranks: Mapping[str, Any]) -> dict[str, Any]:
    """A container as the chart completes it, which states its ranks in the command or, of its own command, in the environment."""
    tensor, near, workers = (ranks.get(key) or 1 for key in ("tensor", "dataLocal", "workers"))
    data = ranks.get("data") or (near * workers if isinstance(near, int) and isinstance(workers, int) else near)
    sizes = {"TP_SIZE": tensor, "DP_SIZE": data, "DP_SIZE_LOCAL": ranks.get("dataLocal") or data}
    environment = [*({"name": name, "value": str(size)} for name, size in sizes.items()), *_listed(container.get("env"))]
    if container.get("modelCommand", "custom") == "custom":
        return {**container, "env": environment}
    words = ["vllm", "serve", model, "--tensor-parallel-size", str(tensor)]
    words += ["--data-parallel-size", str(data)] * (data != 1) + _words(container.get("args"))
    image = {"image": container["image"]} if "image" in container else {}
    return {**image, "command": words, "env": environment}


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The server of a model of KubeAI."""
    words = ["vllm", "serve", kubeai.model_named(model)] + ["--enable-lora"] * bool(model.get("adapters"))
    return kubeai.container(model, words, {})


def _of_service(spec: Mapping[str, Any], metadata: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The containers of a service of KServe: its own, and that of its prefill servers."""
    named, split = spec.get("model"), spec.get("prefill")
    name = str(metadata.get("name", "main")) if isinstance(metadata, Mapping) else "main"
    for side, part in ((name, spec), (f"{name}-prefill", split)):
        if isinstance(part, Mapping):
            yield side, _of_part(part, named if isinstance(named, Mapping) else {})


def _is_of_vllm(model: Mapping[str, Any]) -> bool:
    """Whether the server of a service's model is vLLM: by its runtime, or KServe's own for models of Hugging Face."""
    named = model.get("modelFormat")
    kind = str(named.get("name", "")).lower() if isinstance(named, Mapping) else ""
    return kind in ("vllm", "huggingface") or "vllm" in str(model.get("runtime", "")).lower()


def _of_predictor(model: Mapping[str, Any]) -> dict[str, Any]:
    """The server of a service's model; InputError where its arguments ask for the transformers library instead."""
    words = []
    given = iter(_words(model.get("args")))
    for word in given:
        name, equals, value = word.partition("=")
        if name == "--backend":
            if (value if equals else next(given, "")) == "huggingface":
                raise InputError(
                    "the service asks for KServe's backend over the transformers library",
                    where="--backend",
                    mend="describe it with the engine `transformers` and flags of its own",
                )
            continue
        words.append(word.replace("--max_length", "--max_model_len", 1) if name == "--max_length" else word)
    stored = kserve.stored_model(model)
    image = {"image": model["image"]} if isinstance(model.get("image"), str) else {}
    return {**image, "command": ["vllm", "serve", *([stored] if stored else []), *words], "env": _listed(model.get("env"))}


def _of_part(part: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    template, ranks = part.get("template"), part.get("parallelism")
    containers = template.get("containers") if isinstance(template, Mapping) else None
    container = dict(containers[0]) if isinstance(containers, list) and containers and isinstance(containers[0], Mapping) else {}
    words = ["vllm", "serve", str(model.get("uri", model.get("name", ""))).removeprefix("hf://")]
    for key, value in ranks.items() if isinstance(ranks, Mapping) else ():
        if key in _PARALLELISM:
            words += [_PARALLELISM[key], str(value)]
        elif key == "expert" and value:
            words += ["--enable-expert-parallel"]
    environment = [item for item in _listed(container.get("env")) if isinstance(item, Mapping)]
    added = next((str(item.get("value", "")) for item in environment if item.get("name") == "VLLM_ADDITIONAL_ARGS"), "")
    words += [*_words(container.get("args")), *added.split()]
    return {
        "image": container.get("image", "vllm/vllm-openai"),
        "command": words,
        "env": [item for item in environment if item.get("name") != "VLLM_ADDITIONAL_ARGS"],
        "scale": part.get("replicas"),
    }
