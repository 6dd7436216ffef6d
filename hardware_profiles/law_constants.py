"""Constants of the laws of :mod:`hardware_profiles.device_laws` by class of devices, and which class a device is of.

Fitted to published rates by `benchmarks/laws.py` (soft-L1 least squares on logarithms, every chip counting alike), over the host
times that engines add; `off_pct` are the medians over chips, each left out in turn, `within` holds nine of ten of their values.
Where fewer than five chips tell a width it is assumed, wider than what they show. units: shares of the datasheet's rates,
operations a weight, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hardware_profiles.device import STACKED_MEMORY, Device, sockets
from hardware_profiles.device_laws import Law, Within

#: Formats that dot products take as they are: a scale, or a scale and an offset, for 32 weights each.
_PLAIN = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
_INT4 = ("int4_wo", "nncf_int4")
_IQ2, _IQ3 = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s"), ("iq3_xxs", "iq3_s")

#: Widths of a law that nobody measured: a factor of two. kind: assumed, 2026-11.
WIDE = Within(decode_width=0.7, batch_width=0.7, few_width=0.7, prompt_width=0.7)

#: llama.cpp on Apple's GPUs. kind: fitted, 2026-11, source: the community's table (discussion 4167; 16 chips M1 to M4),
#: benchmarks of 35 models on M1 and M2 Max, of Llama-3 on M1 Max and M2 Ultra. Packed K and I formats are bound by unpacking.
#: Further rows of a product, by eye: Qwen2.5-32B in Q4_K and Q4_1 on M2 Ultra (2024-12: 0.13 to 0.15), Qwen2.5-7B in Q8_0 there
#: (2025-11: 0.31). From the M3 on units compute integers beside floats: K formats unpack in 0.6 of the time, by eye, from 26
#: unverified uploads of one M4 Pro (25 % too slow before, 11 then); tried on one M4 (8B in Q4_K_M, brand-o/normiebench#3).
METAL = Law(
    title="Apple GPUs under llama.cpp",
    off_pct=(5.4, 2.7),
    within=Within(decode_width=0.25, batch_width=0.35, few_width=0.25, prompt_width=0.1),
    read={"": 0.863, "16": 0.864},
    unpack={"": 29.6, "q8_0": 0.0, "q4_0": 0.0, "q4_1": 0.0, "q5_0": 0.0, "q5_1": 0.0, "16": 0.0, "w4a16_mxfp4": 0.0},
    overlap_factor=8.0,
    launch_s=1.25e-5,
    vector={"": 0.15, **dict.fromkeys(_PLAIN, 0.2), "q8_0": 0.33, "16": 0.33},
    matrix={"": 0.625, "16": 0.78, **dict.fromkeys(_PLAIN, 0.684)},
    fill_tokens=0.0,
    expert_fill_tokens=0.0,
    kv_share=0.36,
    attention_share=0.25,
    arithmetic={"": ("fp16", 1.0), "16": ("fp16", 1.0)},
    slower={"ultra": 1.48},
    lighter=dict.fromkeys(("m3", "m4", "m5"), 0.6),
)

#: The same with matrix units (M5), whose rate is one that prompts reached under MLX. kind: by eye, 2026-11: of the shares of
#: other chips llama.cpp's first kernels for them gave three quarters (Llama-2-7B and Mistral-7B in Q4_0 on ten cores, 627 and 608
#: tokens a second; pull request 16634, 2025-10), later ones more: four fifths, tried on phi-2 and TinyLlama there.
METAL_M5 = replace(
    METAL,
    title="Apple GPUs with matrix units under llama.cpp",
    off_pct=(5.4, 20.0),
    within=Within(decode_width=0.25, batch_width=0.4, few_width=0.45, prompt_width=0.4),
    matrix={key: 0.8 * share for key, share in METAL.matrix.items()},
)

#: llama.cpp on NVIDIA cards with GDDR. kind: fitted, 2026-11, source: 25 cards of four generations: GGUF formats
#: of 12 models on RTX 5090 and 3080, scoreboard of Llama-2-7B Q4_0 and gpt-oss, tokens in flight on RTX 3090, benchmarks of
#: Llama-3 (2024). Products of 16 bits are slower the more arithmetic a card has for a watt, as the law of power limits has it: an
#: RTX 6000 Ada, left out, was 34 % too quick without and is 7 off, an RTX 4080 20 too slow and 11. Blackwell's figure is of RTX
#: PRO 6000, whose products reach 0.83 of the peak (`sustained.py`; L40S's, 0.52 there, are 0.55 by this), Turing's assumed to be
#: Ampere's. Kernels of packed weights show none of it (eight cards).
CUDA_GDDR = Law(
    title="NVIDIA cards with GDDR under llama.cpp",
    off_pct=(5.9, 9.0),
    within=Within(decode_width=0.13, batch_width=0.3, few_width=0.3, prompt_width=0.25),
    read={"": 0.879, "16": 0.893},
    unpack={"": 10.3, "16": 0.0, **dict.fromkeys(_PLAIN, 0.0), "q6_k": 2.7, "q5_k": 2.5, "q3_k": 13.6, "q2_k": 15.2},
    launch_s=3.55e-6,
    vector={"": 0.277, **dict.fromkeys(_PLAIN, 0.5), "16": 5.0},
    matrix={"": 0.202, "16": 0.967, **dict.fromkeys(_PLAIN, 0.3), "w4a16_mxfp4": 0.3},
    cool_flops_per_j={"turing": 2.57e11, "ampere": 2.57e11, "ada": 4.43e11, "blackwell": 5.8e11},
    fill_tokens=0.0,
    expert_fill_tokens=49.0,
    kv_share=0.95,
    attention_share=0.41,
    arithmetic={"": ("int8", 1.0), "16": ("int8", 0.5)},
    start_s=2.8e-5,
    slower={"ampere": 1.67, "turing": 1.67, "ada": 1.15},
)

#: On processors with LPDDR memory is read less well. kind: fitted, 2026-11, source: decoding of 13 models on DGX Spark (uploads,
#: the scoreboard), each left out 6 % off in the median, nine of ten within 16; tried on 12 with recurrent layers. Prompts by eye,
#: three quarters of the cards' shares, less in formats of more bits (perhaps since a cache of 24 MB holds less of their weights
#: for the next tile): 2,048 tokens of five models after up to 32,768 (ggml-org/llama.cpp@4c7e9893 benches/dgx-spark.md, build
#: 6918), off by 10 % in the median. Later builds, which multiply in FP4, are
#: quicker with gpt-oss (assumed: from memory, no figure of them was found).
CUDA_LPDDR = replace(
    CUDA_GDDR,
    title="NVIDIA processors with LPDDR under llama.cpp",
    off_pct=(8.0, 16.0),
    within=Within(decode_width=0.25, batch_width=0.35, few_width=0.4, prompt_width=0.45),
    read={"": 0.73, "16": 0.8, **dict.fromkeys(_PLAIN, 0.81), "w4a16_mxfp4": 0.95},
    launch_s=2.7e-6,
    matrix={"": 0.156, "16": 0.55, **dict.fromkeys(_PLAIN, 0.21), "q8_0": 0.15, "w4a16_mxfp4": 0.15},
    attention_share=0.34,
    start_s=5.06e-5,
    cool_flops_per_j={},
)

#: The same before June 2024: prompts widen the weights and multiply in 16 bit, attention is not fused, launches take longer.
CUDA_GDDR_2024 = replace(
    CUDA_GDDR,
    title="NVIDIA cards with GDDR under llama.cpp of early 2024",
    launch_s=5.75e-6,
    kv_share=0.57,
    attention_share=0.092,
    widened_bytes=4.15,
    matrix={"": 0.483, "16": 0.967},
)

#: llama.cpp on NVIDIA GPUs with stacked memory, from the same. kind: fitted, 2026-11, source: H100 PCIe (2024) and H100
#: (2025): two chips; the attention of prompts is that of the cards.
CUDA_HBM = replace(
    CUDA_GDDR,
    title="NVIDIA GPUs with stacked memory under llama.cpp",
    off_pct=(13.1, 3.5),
    within=Within(decode_width=0.3, batch_width=0.5, few_width=0.5, prompt_width=0.32),
    read={"": 0.646, "16": 0.627},
    launch_s=6.6e-6,
    matrix={"": 0.0845, "16": 0.351},
    kv_share=0.3,
    slower={},
    arithmetic={"": ("fp16", 2.0), "16": ("fp16", 1.0)},
    attention_share=0.34,
    start_s=5.06e-5,
    cool_flops_per_j={},
)
#: V100, whose matrix units have no 8-bit arithmetic, and on which attention reaches half the share. kind: fitted by eye, 2026-11,
#: source: 1 to 256 tokens of DeepSeek-V2-Lite after 32,768: one model. From 64 rows on weights are widened to 16 bit and a
#: library multiplies (``ggml_cuda_should_use_mmq``: matrix units of 16 bit alone); it reaches the share of the cards' products
#: of 16-bit weights, and widening moves what it does there (assumed). Tried on 64 to 512 tokens of Llama-3-8B in Q5_0 (pull
#: request 24127).
CUDA_VOLTA = replace(
    CUDA_HBM,
    title="V100 under llama.cpp",
    off_pct=(30.0, 30.0),
    within=Within(decode_width=0.4, batch_width=0.5, few_width=0.5, prompt_width=0.5),
    attention_share=0.17,
    widened_bytes=4.55,
    library_rows=64,
    library_share=0.5 * 0.733,
    library_alone=True,
)
#: Cards before Turing's, which have no matrix units: dot products of bytes, and 32 bits where weights have 16; what unpacks
#: takes the place of arithmetic there. kind: by eye, 2026-11, source: a Tesla P40 (llama-7B in six formats, llama.cpp pull
#: request 4766, 2024-01) and a GTX 1050 Ti (uploads of 35 models in Q4_K_M, AlexsJones/llmfit@3f44fd3), which ask for 20 and 31
#: operations a weight.
CUDA_PASCAL = replace(
    CUDA_GDDR,
    title="NVIDIA cards without matrix units under llama.cpp",
    off_pct=(15.0, 30.0),
    within=Within(decode_width=0.3, batch_width=0.5, few_width=0.5, prompt_width=0.5),
    unpack={"": 26.0, "16": 0.0, **dict.fromkeys(_PLAIN, 22.0), "q2_k": 50.0, "q3_k": 52.0},
    vector={"": 0.277, **dict.fromkeys(_PLAIN, 0.5), "16": 0.08},
    matrix={"": 0.24, "16": 0.7, **dict.fromkeys(_PLAIN, 0.28), "w4a16_mxfp4": 0.28},
    arithmetic={"": ("int8", 1.0), "16": ("fp32", 1.0)},
    slower={"pascal": 3.0, "turing-16": 1.67},
    attention_share=0.34,
    start_s=5.06e-5,
)
CUDA_HBM_2024 = replace(
    CUDA_HBM,
    title="NVIDIA GPUs with stacked memory under llama.cpp of early 2024",
    kv_share=0.125,
    attention_share=0.039,
    widened_bytes=4.55,
    matrix={"": 0.174, "16": 0.348},
)

#: llama.cpp on AMD's processors with a GPU inside (Vulkan and ROCm builds alike: their median). kind: fitted, 2026-11, source:
#: llama-bench on Ryzen AI Max+ 395, builds of 2026, 9 models, further rows of a product from builds of 2025; left out: models.
#: Attention of prompts by ROCm's rows: tiles of 16 tokens (22 fitted) pass over all keys beyond the 32 MB of the last cache;
#: heads wider than 256 run without matrix units (ggml-cuda/fattn.cu, in the sources that llama-cpp-python 0.3.36 ships). Experts:
#: kind: by eye, 2026-11: prompts of eight models with 512 and 2,048 tokens at once (Qwen3.5-35B-A3B: 1.2 to 1.35 times as quick).
AMD_APU = Law(
    title="AMD processors with a GPU inside under llama.cpp",
    off_pct=(8.9, 18.3),
    within=Within(decode_width=0.33, batch_width=0.4, few_width=0.55, prompt_width=1.0),
    read={"": 0.804, "16": 0.844, "q8_0": 0.95, "q4_0": 0.95, "w4a16_mxfp4": 0.95},
    unpack={"": 1.27},
    launch_s=7.4e-6,
    vector={"": 0.11, **dict.fromkeys(_PLAIN, 0.4), "w4a16_mxfp4": 0.4, "16": 1.0},
    matrix={"": 0.33, "16": 0.49, "w4a16_mxfp4": 0.48},
    fill_tokens=0.0,
    expert_share=0.4,
    expert_fill_tokens=8.0,
    kv_share=0.55,
    attention_share=0.208,
    latent_share=0.116,
    tile_tokens=22.0,
    held_bytes=3.2e7,
    arithmetic={"": ("fp16", 1.0), "16": ("fp16", 1.0)},
    start_s=5e-6,
)
AMD_APU_ROCM = replace(
    AMD_APU,
    title="AMD processors with a GPU inside under llama.cpp by ROCm",
    off_pct=(8.9, 19.1),
    within=Within(decode_width=0.33, batch_width=0.4, few_width=0.55, prompt_width=0.75),
)
#: By Vulkan: each query head passes by itself, 16 tokens at a time (ggml-vulkan, `coopmat_block_rows`; kind: fitted, 2026-11, the
#: same rows, RADV alone; AMD's own driver, withdrawn, is a factor of 2 to 4 slower in builds of 2026). Operations start sooner:
#: decoding of six models, each left out 5 to 22 % off (ROCm's ask for 7.5 us). Products of bf16 have no matrix units there, those
#: of fp16 are taken to be ROCm's (assumed); experts in bf16 have no kernel for few rows (`ggml_vk_use_mul_mat_vec_id` in the
#: sources that llama-cpp-python 0.3.36 ships), and a row of one costs a tile (kind: by eye, decoding of two models).
AMD_APU_VULKAN = replace(
    AMD_APU,
    title="AMD processors with a GPU inside under llama.cpp by Vulkan",
    off_pct=(8.9, 30.7),
    within=Within(decode_width=0.33, batch_width=0.4, few_width=0.55, prompt_width=0.75),
    launch_s=5.3e-6,
    matrix={"": 0.32, "16": 0.49, "w4a16_mxfp4": 0.48},
    attention_share=0.171,
    latent_share=0.0,
    grouped=False,
)
AMD_APU_VULKAN_BF16 = replace(
    AMD_APU_VULKAN, matrix={"": 0.32, "16": 0.112}, expert_tile_tokens=110.0, expert_tile_from=1
)

#: The same before 2026, when products of packed weights did not use the matrix units well. kind: fitted, 2026-11, source: builds
#: of July 2025, 7 models, by Vulkan and ROCm alike.
AMD_APU_2025 = replace(
    AMD_APU,
    title="AMD processors with a GPU inside under llama.cpp of 2025",
    off_pct=(5.4, 18.3),
    within=Within(decode_width=0.2, batch_width=0.4, few_width=0.77, prompt_width=1.1),
    read={"": 0.711, "16": 0.95, "q8_0": 0.853, "q4_0": 0.767, "w4a16_mxfp4": 0.767},
    launch_s=2.3e-6,
    matrix={"": 0.147, "16": 0.221, **dict.fromkeys(_PLAIN, 0.203), "w4a16_mxfp4": 0.203},
    expert_share=1.0,
    expert_fill_tokens=21.0,
    kv_share=0.31,
    decode_kv_share=(0.12, 0.12),
    attention_share=0.038,
    latent_share=0.0,
    tile_tokens=0.0,
)
#: Attention was not fused unless asked for (`--flash-attn`; the default from build 6325 on, from memory), and decoding rows read
#: their keys many times slower so. kind: fitted by eye, 2026-11, source: steps after 64 and after 2,000 to 4,000 tokens with and
#: without: what Llama-2-7B and Llama-3.1-8B ask for fits Mistral Small, dots.llm1 and Scout; eight heads and more that share a
#: key read slower by ROCm (0.065). Fused it differs by build (ROCm: a factor of two between July and August 2025).
#: By Vulkan K formats are read a tenth quicker, and experts have a kernel for one token alone: two and more are padded to tiles
#: (kind: by eye, 2 to 64 tokens of two models); by ROCm kernels for packed weights serve up to 63 rows,
#: from 64 on weights are widened and a library multiplies (ggml-cuda's `MMQ_DP4A_MAX_BATCH_SIZE`): hipBLASLt, or, by default
#: on these, rocBLAS's own kernels, a factor of four slower. kind: fitted, 2026-11, the same rows, 6 models, each left out: 6
#: and 21 % in the median.
AMD_APU_2025_VULKAN = replace(
    AMD_APU_2025,
    title="AMD processors with a GPU inside under llama.cpp of 2025 by Vulkan",
    off_pct=(5.4, 20.8),
    within=Within(decode_width=0.2, batch_width=0.4, few_width=1.1, prompt_width=0.64),
    read={**AMD_APU_2025.read, "": 0.79},
    expert_tile_tokens=32.0,
    decode_kv_share=(0.125, 0.17),
)
AMD_APU_2025_ROCM = replace(
    AMD_APU_2025,
    title="AMD processors with a GPU inside under llama.cpp of 2025 by ROCm with hipBLASLt",
    off_pct=(5.4, 6.0),
    within=Within(decode_width=0.2, batch_width=0.4, few_width=0.3, prompt_width=0.62),
    matrix={"": 0.221, "16": 0.286, **dict.fromkeys(_PLAIN, 0.275), "w4a16_mxfp4": 0.275},
    expert_fill_tokens=17.2,
    widened_bytes=4.55,
    library_rows=64,
    library_share=0.286,
    decode_kv_share=(0.12, 0.085),
)
AMD_APU_2025_ROCBLAS = replace(
    AMD_APU_2025_ROCM,
    title="AMD processors with a GPU inside under llama.cpp of 2025 by ROCm without hipBLASLt",
    off_pct=(5.4, 21.2),
    within=Within(decode_width=0.2, batch_width=0.4, few_width=0.45, prompt_width=0.5),
    library_share=0.064,
)

#: llama.cpp on AMD's cards. kind: fitted, 2026-11, source: scoreboard (Vulkan) and uploads of RX 7900 XT, 7900 XTX, 9070, 9070
#: XT and R9700: bandwidth and matrix shares; the rest is the APU's, the last cache 64 MB (assumed). Experts by eye: the R9700's
#: prompts below.
AMD_CARD = replace(
    AMD_APU,
    title="AMD cards under llama.cpp",
    off_pct=(4.8, 10.1),
    within=Within(decode_width=0.33, batch_width=0.4, few_width=0.3, prompt_width=0.28),
    read={"": 0.819, "16": 0.85, "q8_0": 0.9, "q4_0": 0.95, "w4a16_mxfp4": 0.95},
    launch_s=5.45e-6,
    matrix={"": 0.32, "16": 0.399, **dict.fromkeys(_PLAIN, 0.399), "w4a16_mxfp4": 0.48},
    expert_share=0.35,
    expert_fill_tokens=6.0,
    held_bytes=6.4e7,
)
#: By Vulkan: attention as on the processors. Launches: kind: by eye, 2026-11, Llama-2-7B in Q4_0 on four cards (the scoreboard);
#: tried on an R9700: Qwen3.5-35B-A3B and 27B (llama.cpp discussion 21043, 2026): decoding 4 and 5 % off, prompts of 128 to 8,192
#: tokens 2 to 19, 30 and 36 with 2,048 tokens at once. By ROCm: kind: by eye, RX 7900 XTX, two models
#: (issue 20934, 2026-03), gpt-oss-20b on an RX 7900 XT.
AMD_CARD_VULKAN = replace(
    AMD_CARD,
    title="AMD cards under llama.cpp by Vulkan",
    launch_s=3.0e-6,
    attention_share=0.171,
    latent_share=0.0,
    grouped=False,
)
AMD_CARD_ROCM = replace(
    AMD_CARD,
    title="AMD cards under llama.cpp by ROCm",
    off_pct=(15.0, 20.0),
    read={"": 0.73, "16": 0.8, "q8_0": 0.82, "q4_0": 0.86, "w4a16_mxfp4": 0.8},
    launch_s=7.4e-6,
    matrix={"": 0.42, "16": 0.45, **dict.fromkeys(_PLAIN, 0.47), "w4a16_mxfp4": 0.7},
)

#: llama.cpp on AMD's GPUs with stacked memory: 8-bit arithmetic, of which MI50 (dot products) and MI100 (matrix units) reach the
#: same share. kind: fitted by eye, 2026-11, source: few tokens and prompts on these two: none is left out. Products of formats
#: with one scale a block but Q8_0, which was measured, reach half as much again, as on NVIDIA's cards (assumed). Tried on newer
#: builds (pull requests 22051 and 27841), twice as quick as those fitted to: Llama-3-8B in Q4_0, IQ4 and Q4_K, 11 to 31 % too
#: slow.
AMD_HBM = replace(
    AMD_CARD,
    title="AMD GPUs with stacked memory under llama.cpp",
    off_pct=(30.0, 40.0),
    within=Within(decode_width=0.3, batch_width=0.5, few_width=0.4, prompt_width=0.5),
    read={"": 0.6, "16": 0.6},
    vector={"": 0.3, **dict.fromkeys(_PLAIN, 0.5), "16": 1.0},
    matrix={"": 0.15, "16": 0.3, **dict.fromkeys((*_PLAIN, "iq4_nl", "iq4_xs"), 0.225), "q8_0": 0.15},
    arithmetic={"": ("int8", 1.0), "16": ("fp16", 1.0)},
    fill_tokens=20.0,
    expert_share=1.0,
    expert_fill_tokens=26.5,
    attention_share=0.12,
    latent_share=0.0,
    tile_tokens=0.0,
)

#: What nobody measured under llama.cpp: shares between the classes above. kind: assumed, 2026-11.
GENERIC = replace(
    AMD_APU,
    title="other accelerators under llama.cpp",
    off_pct=(40.0, 50.0),
    within=WIDE,
    read={"": 0.6, "16": 0.7},
    matrix={"": 0.33, "16": 0.51},
    expert_share=1.0,
    expert_fill_tokens=26.5,
    attention_share=0.12,
    latent_share=0.0,
    tile_tokens=0.0,
)

#: llama.cpp on Intel's Xe2 by SYCL. From nine rows on weights are widened to 16 bit and oneDNN multiplies, experts one after the
#: other, a conversion, a copy and a product each (``ggml_sycl_mul_mat``, ``ggml_sycl_mul_mat_id`` in the sources that
#: llama-cpp-python 0.3.36 ships); elementwise operations are not fused and work in 32 bits. kind: fitted, 2026-11, source: 17
#: rates of six models on one Arc Pro B70, builds of 2026-04 without flash attention, where that of prompts reaches 0.016
#: (PMZFX/intel-arc-pro-b70-benchmarks@daddb70); with it, as servers have it by default, 16,384 tokens of a 27B model on an Arc
#: Pro B65 take 20.5 s (snowopsdev/b65-benchmarks@ffe1bb18, 2026-10): 0.2 by eye. Further rows and launches by eye between that
#: and Qwen2.5-3B in Q4_K_M, one to eight at once (release b10427, 2026-08). Nothing was fitted to: Qwen3.5 of 9B, 27B and
#: 35B-A3B on the B70, decoding 14 % off in the median (at most 28), prompts of 512 tokens 15 (at most 27); two prompts on a B390
#: by Vulkan 17 and 17 (pull request 27471); a B580 by a fork of 2025 (intel/ipex-llm#12991), a 7B model 3 and 8, a 1.5B one 74
#: and 62.
XE2 = replace(
    GENERIC,
    title="Intel's Xe2 cards under llama.cpp",
    off_pct=(20.0, 25.0),
    read={"": 0.84, "16": 0.8, "q8_0": 0.8, "q6_k": 0.63},
    unpack={"": 0.0},
    launch_s=1.1e-5,
    vector={"": 0.21, **dict.fromkeys(_PLAIN, 0.4), "16": 1.0},
    attention_share=0.2,
    widened_bytes=4.55,
    library_rows=9,
    library_share=0.49,
    library_alone=True,
    library_start_s=3.5e-5,
    traffic_factor=4.1,
)
#: Without matrix units for it, or before builds that use them well. kind: fitted by eye, 2026-11, source: Llama-2-7B in Q4_0 and
#: Qwen3.5-9B in Q4_K_M on one A770 (llama.cpp's SYCL page, pull request 22066): one chip, two rates.
XE_HPG = replace(
    GENERIC,
    title="Intel's first Arc cards under llama.cpp",
    off_pct=(25.0, 50.0),
    read={"": 0.32, "16": 0.4},
    matrix={"": 0.2, "16": 0.35},
)

#: Shares of a CPU's matrix kernels by format, over that of the others: some are rewritten for several rows of weights at once
#: when they are loaded, the I formats look their weights up. kind: fitted, 2026-11, source: prompts of Llama-3.1-8B in 16 formats
#: on one Ryzen 7950X.
CPU_FORMATS = {
    **dict.fromkeys(("q4_0", "iq4_nl"), 1.63),
    "q5_0": 1.39,
    "q2_k": 1.53,
    "q4_k": 1.35,
    "q8_0": 3.05,
    **dict.fromkeys(_IQ2, 0.57),
    **dict.fromkeys(_IQ3, 0.39),
}


def cpu_matrix(share: float) -> Mapping[str, float]:
    """Shares of a CPU's matrix kernels by a share of its 32-bit rate; of packed formats over four times that, bytes' products."""
    return {"": share / 4, "16": share, **{fmt: ratio * share / 4 for fmt, ratio in CPU_FORMATS.items()}}


#: llama.cpp on servers' CPUs. kind: fitted, 2026-11, source: batches on five servers (Milan, Genoa, Ice Lake in two sockets,
#: Sapphire Rapids, AmpereOne), all threads in one process, and of eight rows and more in up to 24 processes with a share of the
#: cores each (a quarter of the weight); prompts, formats and threads of one Ryzen 7950X. The threads of a process disturb each
#: other: of 96 each computes 0.55 of what it does alone. Every sequence scans the cells of all: its time goes by heads and cells.
CPU_SERVER = Law(
    title="servers' CPUs under llama.cpp",
    off_pct=(15.0, 17.5),
    within=Within(decode_width=0.85, batch_width=0.45, few_width=0.84, prompt_width=0.7),
    read={"": 0.519},
    unpack={"": 2.92, "q8_0": 5.44, "16": 0.0, "q5_0": 5.97, "iq4_nl": 5.97, **dict.fromkeys((*_IQ2, *_IQ3), 7.16)},
    launch_s=1.2e-5,
    core_launch_s=2.83e-7,
    core_bytes_per_s=3.04e10,
    crowding_share=0.0085,
    vector={"": 0.704, "q8_0": 1.57},
    vector_rows=4,
    matrix=cpu_matrix(0.591),
    fill_tokens=0.0,
    expert_fill_tokens=0.0,
    kv_share=0.95,
    attention_share=0.2,
    attend=(0.46, 763.0),
    arithmetic={"": ("fp32", 4.0), "16": ("fp32", 1.0)},
)
#: Two sockets: half of the shares of one for weights, reading keys and values and attention's arithmetic, whose cells lie at
#: either (kind: fitted, 2026-11, the rows of Ice Lake alone). Desktops, by two memory channels: 0.77 (the Ryzen's).
CPU_TWO = replace(
    CPU_SERVER, title="CPUs in two sockets under llama.cpp", read={"": 0.261}, kv_share=0.478, attend=(0.231, 763.0)
)
CPU_DESKTOP = replace(
    CPU_SERVER,
    title="desktop CPUs under llama.cpp",
    off_pct=(15.0, 25.0),
    within=Within(decode_width=0.28, batch_width=0.6, few_width=0.4, prompt_width=0.35),
    read={"": 0.765},
)

#: MLX on Apple's GPUs. kind: fitted, 2026-11, source: mlx_lm.benchmark and Rapid-MLX on two M3 Ultra, MLX-LM on M1 and M2 Max.
#: Packed keys and values: from where they pay, 6,000 tokens of Qwen2.5-7B on an M2 Ultra (ml-explore/mlx-examples#1075, where
#: decoding after 128,000 is half as quick again; four bits as quick as eight). Further rows unpack a weight again, from the M3 on
#: beside floats as in METAL: 1 / 0.6, inferred, and tried on what drafts gain: of a 32B model (by its rate) in 4 and 8 bits on
#: M4 Max 1.56 and 1.93, on M3 Ultra (60 cores) 1.30 and 1.49, three drafts a step (ml-explore/mlx-examples#1281, 2025-04,
#: acceptance not told): 0.12 to 0.21 of the 32-bit rate where nearly all are accepted; on M2 Ultra 0.10 (#1155, 2025-01).
MLX = replace(
    METAL,
    title="Apple GPUs under MLX",
    latent_prompts=False,
    off_pct=(3.7, 12.2),
    within=Within(decode_width=0.32, batch_width=0.45, few_width=0.6, prompt_width=0.46),
    read={"": 0.813},
    unpack={"": 5.0, "16": 0.0},
    launch_s=7.2e-6,
    vector={"": 0.1, "16": 1.0},
    matrix={"": 0.754},
    expert_fill_tokens=16.0,
    kv_share=0.76,
    attention_share=0.79,
    slower={"ultra": 1.04},
    older={"m1": 0.56, "m2": 0.46},
    lighter={},
    quicker=dict.fromkeys(("m3", "m4", "m5"), 1 / 0.6),
    narrow_kv_s=9.5e-6,
)

#: ExLlamaV2 on NVIDIA cards. kind: fitted, 2026-11, source: one RTX 3090 Ti, 12 models, decoding alone (in the fit: 3 % in the
#: median); the rates of prompts and batches are assumed.
EXL = replace(
    CUDA_GDDR,
    title="NVIDIA cards under ExLlamaV2",
    latent_prompts=False,
    off_pct=(10.0, 40.0),
    within=Within(decode_width=0.18, batch_width=0.4, few_width=0.6, prompt_width=0.6),
    read={"": 0.904},
    unpack={"": 7.5, "16": 0.0},
    launch_s=5.1e-6,
    slower={},
    vector={"": 0.4, "16": 5.0},
    matrix={"": 0.6, "16": 0.7},
    expert_fill_tokens=16.0,
    kv_share=0.9,
    arithmetic={"": ("int8", 0.5), "16": ("int8", 0.5)},
    attention_share=0.34,
    start_s=2e-5,
    cool_flops_per_j={},
)

#: OpenVINO on Intel's CPUs with matrix units and on its cards: a token costs its arithmetic beside the reading of the weights,
#: not behind it, whether it is of a prompt or of a row that decodes. kind: fitted by eye, 2026-11, source: its server by rate,
#: 0.2 to 2 requests a second of some 220 tokens, on Xeon 8480+ (two models), Arc A770 and B580 (one), each in two formats: one
#: share of the 16-bit peak for all three, which two of them put at 0.35 to 0.42. Shares of the bandwidth are each card's own; a
#: CPU unpacks 8-bit weights at 190e9 a second beside reading them, and those of 4 bits at twice that (assumed). Attention is
#: GENERIC's.
OPENVINO_CARD = replace(
    GENERIC,
    title="Intel's cards under OpenVINO",
    off_pct=(20.0, 30.0),
    within=Within(decode_width=0.4, batch_width=0.45, few_width=0.7, prompt_width=0.7),
    read={"": 0.95, **dict.fromkeys(_INT4, 0.86)},
    unpack={"": 0.0},
    launch_s=1e-6,
    vector_rows=1,
    matrix={"": 0.37},
    fill_tokens=0.0,
    arithmetic={"": ("fp16", 1.0), "16": ("fp16", 1.0)},
    latent_prompts=False,
)
OPENVINO_FIRST_ARC = replace(
    OPENVINO_CARD, title="Intel's first Arc cards under OpenVINO", read={"": 0.475, **dict.fromkeys(_INT4, 0.38)}
)
#: Inside of processors, whose memory is the CPU's: one share of the bandwidth, by eye, of Qwen3-8B in 4 bits on Core Ultra 9 185H
#: (SearchSavior/OpenArc#43, 2025-10) and on 285H with DDR5-5600 (openvinotoolkit/openvino#36270, 2026-06), and of a 27B model on
#: 285H with LPDDR5X (discussion 40307), which all put at 0.63 to 0.66. Without matrix units dot products of bytes reach 0.44 of
#: their rate (the 185H: one prompt).
OPENVINO_INSIDE = replace(
    OPENVINO_CARD,
    title="GPUs inside of Intel's processors under OpenVINO",
    off_pct=(20.0, 40.0),
    within=WIDE,
    read={"": 0.65},
)
OPENVINO_DOTS = replace(
    OPENVINO_INSIDE, title="GPUs without matrix units inside of Intel's processors under OpenVINO", matrix={"": 0.88}
)
OPENVINO_CPU = replace(
    OPENVINO_CARD,
    title="CPUs with matrix units under OpenVINO",
    read={"": 0.785},
    unpack={"": 38.6, "16": 0.0, **dict.fromkeys(_INT4, 19.3)},
    arithmetic={"": ("bf16", 1.0), "16": ("bf16", 1.0)},
)
#: Of two sockets one server uses one, to which the library binds its load (datasheet: model server's documentation of scaling on
#: dual sockets, 2025): half of the shares of the machine's peaks, and twice the operations of a core's.
OPENVINO_CPU_TWO = replace(
    OPENVINO_CPU,
    title="CPUs in two sockets under OpenVINO, which uses one",
    read={key: share / 2 for key, share in OPENVINO_CPU.read.items()},
    unpack={key: 2 * count for key, count in OPENVINO_CPU.unpack.items()},
    matrix={key: share / 2 for key, share in OPENVINO_CPU.matrix.items()},
    kv_share=OPENVINO_CPU.kv_share / 2,
    attend=(OPENVINO_CPU.attend[0] / 2, OPENVINO_CPU.attend[1]),
    attention_share=OPENVINO_CPU.attention_share / 2,
)

#: MLC-LLM's compiled kernels on NVIDIA cards. kind: fitted, 2026-11, source: Llama-2 of 7B and 13B in 4 bits on an RTX 3090 Ti
#: (llm-perf-bench, 2023-10): two rates, two constants; the rates of prompts and batches are assumed. Elsewhere: llama.cpp's laws
#: without its unpacking, assumed.
MLC = replace(
    EXL,
    title="NVIDIA cards under MLC-LLM",
    read={"": 0.95, "16": 0.92},
    unpack={"": 0.0},
    launch_s=2.1e-6,
)

#: Kernels that widen blocks of weights while they multiply a row, and before they multiply many. kind: assumed, 2026-11,
#: source: 12 tokens a second of 34B parameters in 4 bits on an RTX 4090, a fifth of the bandwidth, half of the KV in host memory
#: (inferflow/inferflow@14ff95e, docs/34b40b_models_on_24gb_vram.md).
BLOCKWISE = replace(
    EXL,
    title="NVIDIA cards under Inferflow",
    off_pct=(40.0, 50.0),
    within=WIDE,
    read={"": 0.25, "16": 0.7},
    unpack={"": 0.0},
    widened_bytes=4.5,
    launch_s=5e-6,
    kv_share=0.5,
)

#: Bandwidth below which a CPU is a desktop's [byte/s]: two channels. kind: assumed, 2026-11.
DESKTOP_BYTES_PER_S = 1.2e11


BACKENDS = ("vulkan", "vulkan-bf16", "rocm", "rocblas")
"""Ways to compute on AMD's that a family's name may end with: Vulkan, the same in bf16, ROCm with hipBLASLt and without."""
_APU: Mapping[bool, Mapping[str, Law]] = {
    False: {
        "vulkan": AMD_APU_VULKAN,
        "vulkan-bf16": AMD_APU_VULKAN_BF16,
        "rocm": AMD_APU_ROCM,
        "rocblas": AMD_APU_ROCM,
    },
    True: {
        "vulkan": AMD_APU_2025_VULKAN,
        "vulkan-bf16": AMD_APU_2025_VULKAN,
        "rocm": AMD_APU_2025_ROCM,
        "rocblas": AMD_APU_2025_ROCBLAS,
    },
}


_FUSED: Mapping[bool, tuple[float, float]] = {True: (0.78, 0.41), False: (0.5, 0.25)}
"""`decode_kv_share` of fused attention in builds of 2025, by Vulkan and by ROCm (or where no backend is named)."""


def _backend_of(framework: str) -> tuple[str, str]:
    """A family of kernels, and how it computes on AMD's; "" where it does not say."""
    family, _, backend = framework.rpartition("_")
    return (family, backend) if backend in BACKENDS else (framework, "")


def law_of(device: Device, framework: str) -> Law | None:
    """The law of a device under a family of kernels; None where that has none."""
    framework, backend = _backend_of(framework)
    fused = framework.endswith("_fused")
    framework = framework.removesuffix("_fused")
    old, before_2026 = framework.endswith("_2024"), framework.endswith(("_2024", "_2025"))
    stacked = device.name.startswith(STACKED_MEMORY)
    if framework == "mlx":
        return MLX if device.kind == "apple" else None
    if framework == "exllamav2":
        return EXL if device.vendor == "nvidia" else None
    if framework == "blockwise":
        return BLOCKWISE
    if framework == "openvino":
        if device.kind == "cpu":
            if "bf16" not in device.peak_flops_per_s:
                return None
            return OPENVINO_CPU_TWO if sockets(device.name) == 2 else OPENVINO_CPU
        if device.vendor != "intel":
            return None
        if device.kind == "apu":
            return OPENVINO_DOTS if device.architecture == "xe-lpg" else OPENVINO_INSIDE
        return OPENVINO_FIRST_ARC if device.architecture == "xe-hpg" else OPENVINO_CARD
    if framework == "mlc":
        if device.vendor == "nvidia":
            return MLC
        near = law_of(device, "llama_cpp")
        return near and replace(near, title=f"{near.title}, taken for MLC-LLM's", off_pct=(40.0, 50.0), within=WIDE,
                                unpack={"": 0.0})  # fmt: skip
    if framework not in ("llama_cpp", "llama_cpp_2025", "llama_cpp_2024"):
        return None
    if device.kind == "cpu":
        if device.memory_bandwidth_bytes_per_s.value < DESKTOP_BYTES_PER_S:
            return CPU_DESKTOP
        return CPU_TWO if sockets(device.name) == 2 else CPU_SERVER
    if device.kind == "apple":
        return METAL_M5 if device.architecture == "m5" else METAL
    if device.vendor == "nvidia":
        if device.architecture in ("volta", "pascal-100") and not old:
            return CUDA_VOLTA
        if device.architecture in ("pascal", "turing-16") and not old:
            return CUDA_PASCAL
        if device.kind == "apu" and not old:
            return CUDA_LPDDR
        return (CUDA_HBM_2024 if old else CUDA_HBM) if stacked else (CUDA_GDDR_2024 if old else CUDA_GDDR)
    if device.vendor == "amd":
        if device.kind == "apu":
            law = _APU[before_2026].get(backend, AMD_APU_2025 if before_2026 else AMD_APU)
            return replace(law, decode_kv_share=_FUSED[backend.startswith("vulkan")]) if fused else law
        if stacked:
            return AMD_HBM
        return AMD_CARD_VULKAN if backend.startswith("vulkan") else AMD_CARD_ROCM if backend else AMD_CARD
    return {"xe2": XE2, "xe3": XE2, "xe-hpg": XE_HPG}.get(device.architecture, GENERIC)


FAMILIES = ("llama_cpp", "mlx", "exllamav2", "mlc", "openvino")
"""Families of kernels that have laws of the newest builds, but those that are assumed whole."""


def laws_of(device: Device) -> dict[str, Law]:
    """The laws of a device by family."""
    found = {family: law_of(device, family) for family in FAMILIES}
    return {family: law for family, law in found.items() if law is not None}


__all__ = ["law_of", "laws_of"]
