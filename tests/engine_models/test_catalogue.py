"""The catalogue's entries against published parameter counts, and the finding of entries by name."""

from __future__ import annotations

import pytest

from engine_models.model.architecture import active_parameters, load_architecture, parameters
from engine_models.model.catalogue import catalogue, find_model, model_names
from hardware_profiles.errors import InputError

# Tensor totals of the published checkpoints, exact: the Hub's safetensors metadata as public repositories
# quote it (the model registries of a memory planner and of a licence checker, read in stored copies).
QUOTED = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "qwen3-coder-next": 79_674_391_296,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2": 235_741_434_880,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "minimax-m2.7": 228_689_764_864,
    "ibm-granite/granite-3.3-8b-instruct": 8_170_864_640,
    "ibm-granite/granite-3.3-2b-instruct": 2_533_539_840,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
}

# The same for checkpoints of which no quotation was found; the figures are remembered.
REMEMBERED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "google/gemma-7b": 8_537_680_896,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/Phi-3.5-MoE-instruct": 41_873_153_344,
    "01-ai/Yi-34B": 34_388_917_248,
    "bigcode/starcoder2-7b": 7_173_923_840,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "bigscience/bloom": 176_247_271_424,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-125m": 125_239_296,
    "openai-community/gpt2": 124_439_808,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "CohereLabs/c4ai-command-r-v01": 34_980_831_232,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "huggyllama/llama-13b": 13_015_864_320,
    "huggyllama/llama-65b": 65_285_660_672,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}

ROUNDED = {  # billions, as model cards and Hugging Face's counts of tensors state them (from memory)
    "Qwen/Qwen1.5-7B": 7.72,
    "Qwen/Qwen1.5-14B": 14.2,
    "Qwen/Qwen1.5-32B": 32.5,
    "Qwen/Qwen1.5-MoE-A2.7B": 14.3,
    "Qwen/Qwen2-57B-A14B-Instruct": 57.4,
    "Qwen/Qwen3.5-397B-A17B": 397,
    "zai-org/GLM-4-9B-0414": 9.4,
    "zai-org/GLM-4-32B-0414": 32.6,
    "zai-org/GLM-4.7-Flash": 30,
    "mistralai/Mistral-Small-Instruct-2409": 22.2,
    "tiiuae/Falcon3-7B-Instruct": 7.46,
    "tiiuae/Falcon3-10B-Instruct": 10.3,
    "allenai/OLMo-2-1124-13B": 13.7,
    "allenai/OLMo-2-0325-32B": 32.2,
    "nvidia/Nemotron-4-340B-Instruct": 341,
    "CohereLabs/c4ai-command-r-plus": 103.8,
    "CohereLabs/aya-expanse-32b": 32.3,
    "internlm/internlm3-8b-instruct": 8.8,
    "HuggingFaceTB/SmolLM3-3B": 3.08,
    "ByteDance-Seed/Seed-OSS-36B-Instruct": 36.2,
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct": 7.82,
    "upstage/SOLAR-10.7B-Instruct-v1.0": 10.7,
    "deepseek-ai/deepseek-llm-7b-base": 6.91,
    "deepseek-ai/deepseek-llm-67b-base": 67.4,
    "deepseek-ai/deepseek-coder-33b-base": 33.3,
    "deepseek-ai/deepseek-moe-16b-base": 16.4,
    "moonshotai/Moonlight-16B-A3B-Instruct": 16.0,
    "XiaomiMiMo/MiMo-7B-RL": 7.63,
    "OpenGVLab/InternVL3-78B": 72.7,
    "LiquidAI/LFM2-8B-A1B": 8.34,
    "mistralai/Mistral-Large-3-675B-Instruct-2512": 673,
    "mistralai/Devstral-2-123B-Instruct-2512": 122.6,
    "mistralai/Mistral-Small-4-119B-2603": 119,
    "mistralai/Pixtral-12B-2409": 12.25,
    "CohereLabs/c4ai-command-a-03-2025": 111,
    "CohereLabs/c4ai-command-r7b-12-2024": 8.03,
    "databricks/dbrx-instruct": 132,
    "ai21labs/AI21-Jamba-Mini-1.7": 51.6,
    "ai21labs/AI21-Jamba-Large-1.7": 398,
    "LGAI-EXAONE/EXAONE-4.0-32B": 32.0,
    "LGAI-EXAONE/EXAONE-4.0-1.2B": 1.28,
    "LGAI-EXAONE/K-EXAONE-236B-A23B": 236,
    "swiss-ai/Apertus-70B-Instruct-2509": 70.6,
    "swiss-ai/Apertus-8B-Instruct-2509": 8.05,
    "tencent/Hunyuan-A13B-Instruct": 80.4,
    "tencent/Hunyuan-7B-Instruct": 7.5,
    "tencent/Hy3-preview": 295,
    "inclusionAI/Ling-1T": 1000,
    "inclusionAI/Ling-flash-2.0": 103,
    "inclusionAI/Ling-mini-2.0": 16.3,
    "rednote-hilab/dots.llm1.inst": 142.8,
    "MiniMaxAI/MiniMax-Text-01": 456,
    "ibm-granite/granite-4.0-h-small": 32.2,
    "tiiuae/Falcon-H1-34B-Instruct": 33.6,
    "stabilityai/stablelm-2-12b": 12.14,
    "allenai/Olmo-3-7B-Instruct": 7.3,
    "allenai/Olmo-3-32B-Think": 32.2,
    "baichuan-inc/Baichuan2-13B-Chat": 13.9,
    "baichuan-inc/Baichuan2-7B-Chat": 7.51,
    "THUDM/chatglm3-6b": 6.24,
    "openbmb/MiniCPM4-8B": 8.19,
    "arcee-ai/AFM-4.5B": 4.62,
    "codellama/CodeLlama-70b-hf": 68.98,
    "nvidia/Minitron-4B-Base": 4.19,
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": 8.89,
    "speakleash/Bielik-11B-v2.3-Instruct": 11.2,
    "upstage/Solar-Open-100B": 102.6,
}


@pytest.mark.parametrize(("name", "billions"), ROUNDED.items())
def test_parameters_round_to_the_published_total(name: str, billions: float) -> None:
    assert parameters(load_architecture(name)) / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        # channel-wise scales: vLLM ships expert kernels tuned for 192 columns a rank, which blocks of 128 do not divide
        ("zai-org/GLM-4.6-FP8", "fp8"),
        ("Qwen/Qwen3-32B-FP8", "fp8_block"),
        ("MiniMax-M2.5-FP8", "fp8_block"),
        ("deepseek-r1-fp8", "fp8_block"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "int8_wo"),
        ("RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8", "int8"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "nf4"),
        ("dsr1", "fp8_block"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "nvfp4"),
        ("amd/DeepSeek-R1-MXFP4-Preview", "mxfp4"),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", "fp8"),
        ("gptoss-120b", "mxfp4"),
    ],
)
def test_names_say_how_weights_are_stored(name: str, quantization: str) -> None:
    assert load_architecture(name).quantization == quantization


@pytest.mark.parametrize(("name", "published"), (QUOTED | REMEMBERED).items())
def test_parameters_equal_the_published_tensor_total(name: str, published: int) -> None:
    assert parameters(load_architecture(name)) == published


@pytest.mark.parametrize(
    ("name", "total", "active", "tolerance"),
    [
        # total and active as the model cards state them; active without the input embedding
        ("deepseek-ai/DeepSeek-V3", 671.03e9, 37.0e9, 0.02),
        ("openai/gpt-oss-120b", 116.83e9, 5.13e9, 0.001),
        ("openai/gpt-oss-20b", 20.91e9, 3.61e9, 0.001),
        ("moonshotai/Kimi-K2-Instruct", 1.026e12, 32e9, 0.02),
        ("MiniMaxAI/MiniMax-M2", 229e9, 10e9, 0.05),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7e9, 12.9e9, 0.02),
        ("zai-org/GLM-4.5-Air", 106e9, 12e9, 0.08),
        ("Qwen/Qwen3-235B-A22B", 235e9, 22e9, 0.02),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 400e9, 17e9, 0.06),
        ("deepseek-ai/DeepSeek-V4-Flash", 284e9, 13e9, 0.03),
        ("deepseek-ai/DeepSeek-V4-Pro", 1.6e12, 49e9, 0.02),
        ("zai-org/GLM-5", 744e9, 40e9, 0.03),
        ("moonshotai/Kimi-K3", 2.78e12, 104e9, 0.005),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 48e9, 3e9, 0.04),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6e9, 3.2e9, 0.02),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 120e9, 12e9, 0.02),
        ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 550e9, 55e9, 0.01),
        ("stepfun-ai/Step-3.5-Flash", 196e9, 11e9, 0.05),
        ("baidu/ERNIE-4.5-300B-A47B-PT", 300e9, 47e9, 0.01),
        ("meituan-longcat/LongCat-Flash-Chat", 560e9, 27e9, 0.01),
        ("XiaomiMiMo/MiMo-V2-Flash", 309e9, 15e9, 0.02),
        ("google/gemma-4-12B-it", 11.96e9, 11.96e9, 0.005),
        ("google/gemma-4-26B-A4B-it", 25.2e9, 3.8e9, 0.02),
        ("Qwen/Qwen3.5-122B-A10B", 122e9, 10e9, 0.1),
    ],
)
def test_mixtures_match_their_model_cards(name: str, total: float, active: float, tolerance: float) -> None:
    arch = load_architecture(name)
    assert parameters(arch) == pytest.approx(total, rel=tolerance)
    assert active_parameters(arch) == pytest.approx(active, rel=tolerance)


def test_language_model_plus_named_rest_is_the_checkpoint() -> None:
    # Both Llama 4 checkpoints carry the same vision tower and projector.
    scout = 108_641_793_536 - parameters(load_architecture("Llama-4-Scout-17B-16E"))
    maverick = 401_583_781_376 - parameters(load_architecture("Llama-4-Maverick-17B-128E"))
    assert scout == maverick == 871_932_416
    # Qwen3-Next: one multi-token-prediction layer (MoE layer, two input norms, a 2h -> h projection).
    h, width, experts = 2048, 512, 512
    moe = (experts + 1) * 3 * h * width + h * experts + h
    attention = h * (2 * 16 + 2 * 2) * 256 + 16 * 256 * h + 2 * 256
    layer = moe + attention + 2 * h * h + 5 * h
    assert parameters(load_architecture("Qwen3-Next-80B-A3B-Instruct")) + layer == 81_324_862_720

    # GLM-4.5: one such layer too, which brings its own embedding and head; GLM-4.5-Air likewise.
    for name, total, (h, width, experts) in (
        ("GLM-4.5", 358_337_791_296, (5120, 1536, 160)),
        ("GLM-4.5-Air", 110_468_824_832, (4096, 1408, 128)),
    ):
        arch = load_architecture(name)
        rest = total - parameters(arch)
        mixture = (experts + 1) * 3 * h * width + h * experts
        attention = h * (2 * 96 + 2 * 8) * 128
        assert rest == pytest.approx(mixture + attention + 2 * h * h + 2 * 151552 * h, rel=1e-4)


def test_every_entry_is_readable_and_sourced() -> None:
    assert len(model_names()) >= 45
    for name in model_names():
        arch = load_architecture(name)
        assert arch.layers == len(arch.layout)
        assert sum(b.layers for b in arch.attention) == sum(len(found) for found, _ in arch.layout)
        assert sum(b.layers for b in arch.mlp) == sum(len(mlps) for _, mlps in arch.layout)
        assert catalogue()[name]["source"]


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
        ("codellama/CodeLlama-34b-Instruct-hf", "codellama/CodeLlama-34b-hf"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "meta-llama/Llama-3.3-70B-Instruct"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
        ("mistralai/Ministral-3-14B-Reasoning-2512", "mistralai/Ministral-3-14B-Instruct-2512"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-R1"),
        ("gemma-3-27b", "google/gemma-3-27b-it"),
        ("QWEN/qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_names_are_forgiven(spelling: str, key: str) -> None:
    found = find_model(spelling)
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize(
    ("spelling", "quantization"),
    [
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "nvfp4"),
        ("RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic", "fp8"),
        ("Qwen/Qwen3-32B-FP8", "fp8_block"),
        ("Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4", "gptq"),
        ("amd/Llama-3.1-70B-Instruct-FP8-KV", "fp8"),
        ("unsloth/gpt-oss-20b-BF16", None),
        ("openai/gpt-oss-20b", "mxfp4"),
        ("deepseek-ai/DeepSeek-V3", "fp8_block"),
        ("meta-llama/Llama-3.1-8B", None),
        ("mlx-community/Qwen3-4B-4bit", "mlx_4bit"),
        ("lmstudio-community/Qwen3-8B-MLX-6bit", "mlx_6bit"),
        ("mlx-community/Qwen3-30B-A3B-4bit-DWQ", "mlx_4bit"),
        ("unsloth/Llama-3.1-8B-Instruct-bnb-4bit", "nf4"),
        ("LoneStriker/Llama-2-70b-hf-2.4bpw-h6-exl2", "exl2_2.4"),
        ("turboderp/Llama-3.1-8B-Instruct-exl2-4.65bpw", "exl2_4.65"),
    ],
)
def test_a_format_suffix_sets_the_stored_format(spelling: str, quantization: str | None) -> None:
    assert load_architecture(spelling).quantization == quantization


@pytest.mark.parametrize("unknown", ["deepseek-v3.9", "qwen3.7-27b", "phi-9", "Llama-9-8B", "gpt-4"])
def test_another_version_is_another_model(unknown: str) -> None:
    assert find_model(unknown) is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="not in the catalogue") as caught:
        load_architecture("Llama-3.1-8")
    assert caught.value.mend is not None
    assert "Llama-3.1-8B" in caught.value.mend


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("DeepSeek-V4", "'DeepSeek-V4-Pro' or 'DeepSeek-V4-Flash'"),  # not V3, which is nearer by its letters
        ("llama3.1:8b", "'Llama-3.1-8B'"),
        ("someone/Qwen3-9B", "'Qwen3.5-9B'"),
        ("llama-4", "'Llama-4-Maverick-17B-128E-Instruct' or 'Llama-4-Scout-17B-16E-Instruct'"),
        ("quen3-8b", "'Qwen3-8B'"),
    ],
)
def test_the_nearest_name_is_of_the_same_family_and_version(written: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_architecture(written)
    assert f"did you mean {meant}? " in str(caught.value.mend)


def test_instruct_variants_differ_where_their_configs_do() -> None:
    assert load_architecture("Qwen/Qwen2.5-7B").max_context_tokens == 131072
    assert load_architecture("Qwen/Qwen2.5-7B-Instruct").max_context_tokens == 32768
