"""The catalogue's entries against published parameter counts, and the finding of entries by name."""

from __future__ import annotations

import json

import pytest

from engine_models.model.architecture import active_parameters, load_architecture, parameters
from engine_models.model.catalogue import MODELS_FILE, catalogue, find_model, model_names, why_not_modelled
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

# Totals of tensors as Hugging Face states them (the table of llmfit 1.1.17, 2026-10), which corrected or settled these shapes.
TABLED = {
    "poolside/Laguna-M.1": 225_795_725_568,
    "LiquidAI/LFM2-2.6B": 2_569_272_320,
    "LiquidAI/LFM2.5-8B-A1B": 8_467_856_832,
    "LiquidAI/LFM2-24B-A2B": 23_843_661_440,
    "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": 3_973_556_832,
    "ibm-granite/granite-4.1-8b": 8_791_592_960,
    "ibm-granite/granite-4.1-30b": 28_865_728_512,
    "openbmb/MiniCPM5-2B": 2_516_756_480,
    "utter-project/EuroLLM-22B-Instruct-2512": 22_637_328_384,
    "tencent/Hunyuan-4B-Instruct": 4_221_757_440,
    "tiiuae/Falcon-H1-1.5B-Deep-Instruct": 1_554_874_768,
    "tiiuae/Falcon-H1-3B-Instruct": 3_149_392_384,
    "tiiuae/Falcon-H1-Tiny-90M-Instruct": 91_131_072,
    "allenai/Olmo-3-7B-Instruct": 7_298_011_136,
    "allenai/Olmo-3-32B-Think": 32_233_522_176,
    "arcee-ai/AFM-4.5B": 4_619_189_760,
    "google/medgemma-27b-text-it": 27_009_002_240,
    "mistralai/Devstral-2-123B-Instruct-2512": 125_025_988_608,
    "tiiuae/falcon-11B": 11_102_822_400,
    "tiiuae/Falcon-H1-0.5B-Instruct": 521_411_104,
    "tiiuae/Falcon-H1-7B-Instruct": 7_585_654_880,
    "Qwen/Qwen2.5-72B-Instruct-AWQ": 72_957_861_888,
    "internlm/Intern-S1-mini": 8_201_221_120,
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
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom-1b7": 1_722_408_960,
    "bigscience/bloom-3b": 3_002_557_440,
    "facebook/opt-2.7b": 2_651_596_800,
    "microsoft/phi-1_5": 1_418_270_720,
    "mosaicml/mpt-7b": 6_649_286_656,
    "Qwen/Qwen1.5-0.5B": 463_987_712,
    "Qwen/Qwen1.5-1.8B": 1_836_828_672,
    "Qwen/Qwen1.5-4B": 3_950_369_280,
    "Qwen/Qwen1.5-110B": 111_209_914_368,
    "Qwen/Qwen-7B": 7_721_324_544,
    "Qwen/Qwen-14B": 14_167_290_880,
    "01-ai/Yi-Coder-9B-Chat": 8_829_407_232,
    "deepseek-ai/deepseek-coder-1.3b-base": 1_346_471_936,
    "tiiuae/Falcon3-1B-Instruct": 1_669_408_768,
    "tiiuae/Falcon3-3B-Instruct": 3_227_655_168,
    "allenai/OLMo-1B-hf": 1_176_764_416,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "stabilityai/stablelm-2-1_6b": 1_644_515_328,
    "stabilityai/stablelm-zephyr-3b": 2_795_443_200,
    "CohereLabs/aya-expanse-8b": 8_028_033_024,
    "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct": 2_405_327_360,
    "internlm/internlm2-1_8b": 1_889_110_016,
    "google/gemma-3-270m-it": 268_098_176,
    "LiquidAI/LFM2-1.2B": 1_170_340_608,
    "LiquidAI/LFM2-350M": 354_483_968,
    "LiquidAI/LFM2-700M": 742_489_344,
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
    "LGAI-EXAONE/EXAONE-3.5-32B-Instruct": 32.0,
    "ibm-granite/granite-3.0-8b-instruct": 8.17,
    "ibm-granite/granite-4.0-micro": 3.4,
    "ibm-granite/granite-8b-code-base": 8.05,
    "openbmb/MiniCPM-2B-sft-bf16": 2.72,
    "openbmb/MiniCPM3-4B": 4.07,
    "openbmb/MiniCPM4-0.5B": 0.434,
    "nvidia/Mistral-NeMo-Minitron-8B-Base": 8.41,
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2": 12.31,
    "mistralai/Devstral-Small-2-24B-Instruct-2512": 23.6,
    "baidu/ERNIE-4.5-0.3B-PT": 0.36,
    "arcee-ai/Trinity-Mini": 26.1,
    "arcee-ai/Trinity-Large-Thinking": 398,
    "poolside/Laguna-XS.2": 33.4,
    "thinkingmachines/Inkling": 947.0,  # its layers, of a conversion; 952.4 with multi-token prediction
    "inclusionAI/Ling-3.0-flash": 124,
    "skt/A.X-K1": 519,
    "arcee-ai/Trinity-Nano-Preview": 6.12,
    "ibm-granite/granite-4.0-h-tiny": 6.94,
    "ibm-granite/granite-4.0-h-micro": 3.19,
    "ibm-granite/granite-3.1-1b-a400m-instruct": 1.33,
    "ibm-granite/granite-3.1-3b-a800m-instruct": 3.3,
    "ibm-granite/granite-20b-code-base": 20.07,
    "mosaicml/mpt-30b": 29.96,
    "tiiuae/falcon-11B": 11.1,
    "tiiuae/Falcon-H1-7B-Instruct": 7.59,
    "tiiuae/Falcon-H1-0.5B-Instruct": 0.521,
    "internlm/internlm-7b": 7.32,
    "baichuan-inc/Baichuan-7B": 7.0,
    "nvidia/Nemotron-H-8B-Base-8K": 8.1,
    "inceptionai/Jais-2-8B-Chat": 8.09,
    "adept/persimmon-8b-chat": 9.4,
    "sarvamai/sarvam-30b": 32.15,
    "IQuestLab/IQuest-Coder-V1-40B-Instruct": 39.8,
    "facebook/cwm": 32.6,
    "inclusionAI/Ling-2.6-flash": 104,
    "poolside/Laguna-S-2.1": 117.6,
}

# Billions of the whole checkpoints of models with towers, as their pages state them (from memory, and the page of a public
# catalogue, read 2026-11-30), and those of parts that are not counted, by the same pages.
WITH_TOWERS = {
    "Qwen/Qwen3-VL-2B-Instruct": (2.13, 0.0),
    "Qwen/Qwen2-VL-2B-Instruct": (2.21, 0.0),
    "Qwen/Qwen2-VL-7B-Instruct": (8.29, 0.0),
    "Qwen/Qwen2-VL-72B-Instruct": (73.4, 0.0),
    "google/gemma-4-E2B-it": (5.1, 0.3 + 0.038 + 0.016),  # audio; a third matrix in the tower's MLPs, its positions
    "google/gemma-4-E4B-it": (8.0, 0.3 + 0.038 + 0.016),
    "google/gemma-3n-E2B-it": (5.44, 0.3 + 0.68),  # vision, audio
    "google/gemma-3n-E4B-it": (7.85, 0.3 + 0.68),
    "deepseek-ai/DeepSeek-OCR": (3.336, 0.096),  # SAM
    "deepseek-ai/DeepSeek-OCR-2": (3.39, 0.096),
    "stepfun-ai/Step3-VL-10B": (10.0, 0.0),
    "stepfun-ai/Step-3.7-Flash": (198, 0.0),
    "meta-models/Muse-Glimmer-30B": (29.8, 0.0),
    "PaddlePaddle/PaddleOCR-VL": (0.959, 0.038 + 0.015),  # 32,768 positions of the tower, its pooling head
    "OpenGVLab/InternVL2_5-8B": (8.08, 0.0),
    "OpenGVLab/InternVL3-8B": (7.94, 0.0),
    "OpenGVLab/InternVL3-38B": (38.4, 0.0),
    "OpenGVLab/InternVL3_5-8B": (8.53, 0.0),
    "OpenGVLab/InternVL3_5-38B": (38.4, 0.0),
    "OpenGVLab/InternVL3_5-30B-A3B": (30.85, 0.0),
    "OpenGVLab/InternVL3_5-241B-A28B": (240.7, 0.0),
    "XiaomiMiMo/MiMo-VL-7B-RL": (8.31, 0.0),
    "llava-hf/llava-1.5-7b-hf": (7.06, 0.0),
    "llava-hf/llava-v1.6-mistral-7b-hf": (7.57, 0.0),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (8.03, 0.0),
    "openbmb/MiniCPM-V-2_6": (8.10, 0.068),  # its resampler
    "openbmb/MiniCPM-V-4_5": (8.70, 0.088),
    "microsoft/Phi-3.5-vision-instruct": (4.15, 0.0),
    "rednote-hilab/dots.ocr": (3.04, 0.0),
    "zai-org/GLM-4.1V-9B-Thinking": (10.2928, 0.0),
    "zai-org/GLM-4.5V": (107.711, 0.0),
    "mistralai/Mistral-Medium-3.5-128B": (127.704, 0.162),  # its merger and second projection
    "XiaomiMiMo/MiMo-V2.5": (310.775, 0.73 + 0.26 + 0.33 * 3),  # towers of images and sound, multi-token prediction
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": (29.399, 0.0),
    "baidu/ERNIE-4.5-VL-424B-A47B-PT": (423.526, 0.0),
    "stepfun-ai/step3": (320.970, 0.0),
    "zai-org/GLM-5.3-Flash": (321.323, 289 * 3 * 4096 * 2048 / 1e9),  # the experts of multi-token prediction
    "Qwen/Qwen3.8-2.4T-A95B": (2446.183, 513 * 3 * 8192 * 2048 / 1e9),
    "zai-org/GLM-OCR": (1.3253, 0.218),  # a layer of multi-token prediction with tables of its own
}


@pytest.mark.parametrize(("name", "published"), WITH_TOWERS.items())
def test_parameters_with_towers_are_the_published_total(name: str, published: tuple[float, float]) -> None:
    arch = load_architecture(name)
    towers = sum(extra.rows.units * extra.rows.size for extra in arch.extras if extra.name == "vision tower")
    total, uncounted = published
    assert (parameters(arch) + towers) / 1e9 + uncounted == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("inclusionAI/LLaDA2.1-flash", "diffusion"),
        ("nvidia/diffusiongemma-26B-A4B-it-NVFP4", "diffusion"),
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "by diffusion"),
        ("openai/whisper-large-v3", "hears or speaks"),
        ("Qwen/Qwen3-TTS-12Hz-1.7B-Base", "hears or speaks"),
        ("Qwen/Qwen3-Embedding-8B", "generates no tokens"),
        ("BAAI/bge-m3", "generates no tokens"),
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "drafts for another model"),
        ("google/gemma-4-12B-it-assistant", "drafts for another model"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "unequal shape"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "across stacks"),
        ("baidu/Unlimited-OCR", "windows"),
        ("deepseek-ai/DeepSeek-V4.1-Flash", "tables of n-grams"),
        ("nvidia/Qwen3.8-Flash-Next-NVFP4", "tables of n-grams"),
        ("thinkingmachines/Inkling-Small", "heads of its windows"),
    ],
)
def test_what_is_no_decoder_is_refused_by_its_reason(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"is not modelled: .*{reason}"):
        load_architecture(name)


def test_no_entry_bears_a_name_that_is_refused() -> None:
    names = [name for key, entry in catalogue().items() for name in (key, *entry.get("aliases", ()))]
    assert [name for name in names if why_not_modelled(name)] == []
    assert len({name.lower() for name in names}) == len(names)


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


@pytest.mark.parametrize(("name", "published"), (QUOTED | TABLED | REMEMBERED).items())
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
        ("inclusionAI/Ling-2.6-flash", 104e9, 6.8e9, 0.02),  # 7.4 B with the input embedding
        ("inclusionAI/Ling-2.5-1T", 1.0e12, 63e9, 0.03),
        ("poolside/Laguna-S-2.1", 118e9, 8e9, 0.06),
        ("arcee-ai/Trinity-Large-Thinking", 398e9, 13e9, 0.02),
        ("reflection/Beam-1.0-501B-A23B", 501e9, 23e9, 0.02),
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
        ("gg-hf-gg/gemma-4-E2B-it", "google/gemma-4-E2B-it"),
        ("deepseek-ai/DeepSeek-V4-Flash-0731", "deepseek-ai/DeepSeek-V4-Flash"),
        ("zai-org/Glyph-FP8", "zai-org/GLM-4.6V-Flash"),
        ("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4", "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B"),
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
        ("unsloth/Qwen3-14B-unsloth-bnb-4bit", "nf4"),
        ("google/gemma-4-E4B-it-qat-w4a16-ct", "int4"),
        ("amd/gpt-oss-120b-w-mxfp4-a-fp8", "mxfp4"),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "mxfp4"),
        ("mlx-community/gemma-3-27b-it-qat-4bit", "mlx_4bit"),
        ("mlx-community/Qwen3-8B-4bit-AWQ", "mlx_4bit"),
        ("cpatonn/GLM-4.5-Air-AWQ-8bit", "int8_wo"),
        ("Intel/Qwen3-Coder-30B-A3B-Instruct-int4-AutoRound", "int4"),
        ("OpenVINO/Qwen3-8B-int4-ov", "int4"),
        ("OpenVINO/Qwen3-8B-fp16-ov", None),
        ("mlc-ai/Llama-3-8B-Instruct-q4f16_1-MLC", "q4f16_1"),
        ("nytopop/Qwen3-30B-A3B.w8a8", "int8"),
        ("mistralai/Devstral-Small-2-24B-Instruct-2512", "fp8"),
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
        ("llama3.1:8b-instruct-fp16", "'Llama-3.1-8B'"),
        ("someone/Qwen3-9B", "'Qwen3.5-9B'"),
        ("llama-4", "'Llama-4-Maverick-17B-128E-Instruct' or 'Llama-4-Scout-17B-16E-Instruct'"),
        ("quen3-8b", "'Qwen3-8B'"),
    ],
)
def test_the_nearest_name_is_of_the_same_family_and_version(written: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_architecture(written)
    assert f"did you mean {meant}? " in str(caught.value.mend)


def test_no_experts_may_be_written_as_zero() -> None:
    named = catalogue()["ibm-granite/granite-4.0-h-micro"]
    written = {**named, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 8192}
    assert parameters(load_architecture(written)) == parameters(load_architecture("ibm-granite/granite-4.0-h-micro"))


def test_instruct_variants_differ_where_their_configs_do() -> None:
    assert load_architecture("Qwen/Qwen2.5-7B").max_context_tokens == 131072
    assert load_architecture("Qwen/Qwen2.5-7B-Instruct").max_context_tokens == 32768


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # models of the same shapes as others, and of another context (table of llmfit 1.1.17, 2026-10)
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 32768),
        ("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", 32768),
        ("Qwen/QwQ-32B", 40960),
        ("Qwen/Qwen3-8B-Base", 32768),
        ("Qwen/Qwen2-7B", 131072),
        ("Qwen/Qwen2-7B-Instruct", 32768),
        ("microsoft/Phi-4-reasoning-plus", 32768),
        ("deepseek-ai/deepseek-coder-6.7b-instruct", 65536),
        ("internlm/internlm3-8b-instruct", 196608),
        ("internlm/internlm2_5-7b-chat", 65536),
        ("zai-org/GLM-4.6V", 131072),
        ("MiniMaxAI/MiniMax-M2.7", 204800),
        ("CohereLabs/aya-expanse-8b", 8192),
    ],
)
def test_contexts_of_models_that_share_shapes(name: str, tokens: int) -> None:
    assert load_architecture(name).max_context_tokens == tokens


def test_what_was_written_from_memory_is_told() -> None:
    for name in ("mosaicml/mpt-7b", "mpt-30b-chat-AWQ", "Qwen/Qwen2.5-Omni-7B"):
        said = load_architecture(name).assumed[-1]
        assert "from memory" in said
        assert "that file as `model` is exact" in said
    entries = catalogue()
    told = {key for key in entries if any("not all from its config.json" in said for said in load_architecture(key).assumed)}
    assert told == {key for key, entry in entries.items() if "from memory" in entry["source"]}


def test_shapes_that_follow_remembered_ones_are_remembered_too() -> None:
    """An entry that takes another's numbers and no source of its own for them says from memory where that one does."""
    stored = json.loads(MODELS_FILE.read_text(encoding="utf-8"))
    for key, entry in stored.items():
        base = stored.get(entry.get("like", ""), {"source": ""})
        if "from memory" in base["source"] and "config" not in entry["source"]:
            assert "from memory" in entry["source"], (key, entry["source"])


def test_experts_of_images_take_memory_alone() -> None:
    """ERNIE-4.5-VL: 28 billion parameters, 3 of them active, as the language model of its kin without images."""
    text, seen = load_architecture("baidu/ERNIE-4.5-21B-A3B-PT"), load_architecture("baidu/ERNIE-4.5-VL-28B-A3B-PT")
    assert seen.mlp == text.mlp
    assert active_parameters(seen) == pytest.approx(active_parameters(text), rel=0.25)  # and its projector
    assert parameters(seen) - parameters(text) == pytest.approx(64 * 3 * 512 * 2560 * 27, rel=1e-6)


def test_step3_keeps_one_head_and_widens_narrow_queries() -> None:
    """321 billion parameters, 38 of them active, and a cache of one key and one value of 256 a layer (its report)."""
    arch = load_architecture("step3")
    assert active_parameters(arch) / 1e9 == pytest.approx(38, rel=0.01)
    assert [(block.heads, block.kv_heads, block.head_dim) for block in arch.attention] == [(64, 1, 256)]
    assert sum(width.units * width.size for block in arch.attention for width in block.cache) == 2 * 256


def test_gates_of_channels_by_the_key_of_laguna() -> None:
    """Active parameters as the recipes of its servers state them."""
    assert active_parameters(load_architecture("Laguna-M.1")) / 1e9 == pytest.approx(23, rel=0.01)
    assert active_parameters(load_architecture("MiMo-V2.5")) / 1e9 == pytest.approx(15, rel=0.02)
    assert active_parameters(load_architecture("MiMo-V2.5-Pro")) / 1e9 == pytest.approx(42, rel=0.03)
