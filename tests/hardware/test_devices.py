"""Devices: every file is complete and sourced, the figures are plausible, names are forgiven."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.device import (
    ALIASES,
    DEVICES_DIR,
    Device,
    device_names,
    load_device,
    provenance,
    read_device,
    resolve_device,
)
from hardware_profiles.errors import InputError
from hardware_profiles.quantity import KINDS, Quantity

NAMES = device_names()
UNITS = {"FLOP/s", "OP/s", "byte", "byte/s", "W", "Hz", "device", "multiprocessor", "GPU core", "core"}

#: Names that the contract writes out.
CONTRACT = (
    "a100-sxm-80gb",
    "h100-sxm-80gb",
    "h100-pcie-80gb",
    "h200-sxm-141gb",
    "b200-sxm-180gb",
    "l40s-48gb",
    "rtx-pro-6000-96gb",
    "rtx-4090-24gb",
    "mi300x-192gb",
    "apple-m2-ultra-76c-192gb",
    "xeon-8480-2s",
    "epyc-9654-2s",
)


@pytest.fixture(scope="module", params=NAMES)
def device(request: pytest.FixtureRequest) -> Device:
    return load_device(request.param)


def test_the_names_of_the_contract_exist() -> None:
    assert set(CONTRACT) <= set(NAMES)


def test_every_number_is_sourced(device: Device) -> None:
    records = provenance(device)
    assert len(records) >= 6
    for r in records:
        assert r["unit"] in UNITS, r
        assert r["kind"] in KINDS, r
        assert r["source"].strip(), r
        assert "{" not in r["source"], r
        assert re.fullmatch(r"\d{4}(-\d{2}){0,2}", r["date"]), r
        assert r["value"] > 0, r


def test_provenance_leaves_no_number_out(device: Device) -> None:
    """As many records as numbers in the file for this device: none can be added without provenance."""
    raw = next(p for p in DEVICES_DIR.glob("*.yaml") if _is_file_of(p, device.name))
    data = yaml.safe_load(raw.read_text())
    options = data.pop("options", {})
    data |= options.get(device.name.rsplit("-", 1)[1], {})

    def numbers(node: object) -> int:
        if isinstance(node, dict):
            return 1 if "value" in node else sum(map(numbers, node.values()))
        return 0

    assert len(provenance(device)) == numbers(data)


def _is_file_of(path: Path, name: str) -> bool:
    head, _, last = path.stem.rpartition("-")
    return name in {f"{head}-{o}" for o in last.split("+")}


def test_the_files_hold_no_source_that_nothing_cites() -> None:
    for path in DEVICES_DIR.glob("*.yaml"):
        text = path.read_text()
        for key in yaml.safe_load(text)["sources"]:
            assert f"source: {key}" in text, f"{path.name}: {key}"


def test_options_in_the_file_are_those_in_its_name() -> None:
    for path in DEVICES_DIR.glob("*.yaml"):
        options = yaml.safe_load(path.read_text()).get("options")
        if options is not None:
            assert list(options) == path.stem.rpartition("-")[2].split("+"), path.name


def test_figures_are_plausible(device: Device) -> None:
    bandwidth = device.memory_bandwidth_bytes_per_s.value
    assert 5e10 <= bandwidth <= 1e13
    assert 1e9 <= device.memory_bytes.value <= 2e12
    assert 10 <= device.tdp_w.value <= 2000
    assert device.node_size.value in (1, 2, 8, 72)
    for fmt in device.formats:
        assert device.peak_flops_per_s[fmt].value > 1e11, fmt
    # a chip that could not compute on what it reads, or the reverse, is a slip of a unit
    flops_per_byte = device.peak_flops_per_s[device.formats[0]].value / bandwidth
    assert 5 < flops_per_byte < 1000
    if device.link is not None:
        assert device.link.bytes_per_s_per_direction.value < bandwidth
        assert device.node_size.value > 1
    if device.idle_w is not None:
        assert device.idle_w.value < device.tdp_w.value / 3


def test_label_and_memory_agree(device: Device) -> None:
    """The driver reports 90 % of the label or more (ECC takes 6 % on GDDR); 2/3 or more of shared memory."""
    if match := re.search(r"-(\d+)gb$", device.name):
        share = device.memory_bytes.value / (int(match[1]) << 30)
        lowest = 0.65 if device.kind in ("apple", "apu") else 0.9
        assert lowest <= share <= 1.03


def test_fp8_is_twice_bf16_where_the_matrix_units_have_both(device: Device) -> None:
    peaks = device.peak_flops_per_s
    if "fp8" in device.formats and device.architecture != "gaudi3":  # Gaudi 3 states one rate for both
        assert peaks["fp8"].value == pytest.approx(2 * peaks["bf16"].value, rel=0.02)
    if "fp4" in device.formats:
        assert peaks["fp4"].value > peaks["fp8"].value
    if "tf32" in peaks and device.architecture in ("ampere", "hopper") and peaks["tf32"].value > 1e14:
        assert peaks["bf16"].value == pytest.approx(2 * peaks["tf32"].value, rel=0.02)


def test_fp8_on_ampere_is_weight_only(device: Device) -> None:
    if device.architecture == "ampere":
        assert "fp8" not in device.formats
        assert "fp8" in device.weight_only_formats
    assert not set(device.formats) & set(device.weight_only_formats)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        # NVIDIA's dense peaks, and the nvidia-smi and CUDA totals that engines see
        ("h100-sxm-80gb", "memory_bandwidth_bytes_per_s", 3.35e12),
        ("h100-sxm-80gb", "memory_bytes", 81079 * 2**20),
        ("h100-sxm-80gb", "l2_bytes", 50 * 2**20),
        ("h100-sxm-80gb", "multiprocessors", 132),
        ("h100-sxm-80gb", "tdp_w", 700),
        ("a100-sxm-80gb", "memory_bandwidth_bytes_per_s", 2.039e12),
        ("a100-sxm-80gb", "memory_bytes", 84_974_239_744),
        ("a100-sxm-80gb", "l2_bytes", 40 * 2**20),
        ("a100-sxm-80gb", "multiprocessors", 108),
        ("h200-sxm-141gb", "memory_bytes", 143156 * 2**20),
        ("mi300x-192gb", "memory_bytes", 192 * 2**30 - 16 * 2**20),
        ("apple-m2-ultra-76c-192gb", "memory_bytes", 144 * 2**30),
    ],
)
def test_known_figures(name: str, key: str, value: float) -> None:
    assert getattr(load_device(name), key).value == value


#: Parameters, and KV bytes a token: layers x 2 x KV heads x head width x 2 bytes, of the models' config.json.
MODELS = {
    "meta-llama/Llama-2-7b-hf": (6.738e9, 32 * 2 * 32 * 128 * 2),
    "meta-llama/Llama-2-70b-hf": (68.977e9, 80 * 2 * 8 * 128 * 2),
    "mistralai/Mixtral-8x7B-v0.1": (46.703e9, 32 * 2 * 8 * 128 * 2),
    "codellama/CodeLlama-34b-Instruct-hf": (33.744e9, 48 * 2 * 8 * 128 * 2),
}


def test_the_memory_of_the_h100_explains_measured_kv_blocks() -> None:
    """vLLM fills 0.9 of what the driver reports with weights, KV blocks and less than 2 GB besides."""
    table = (
        Path(__file__).resolve().parents[2].parent / "shared" / "data" / "measured" / "experiments.parquet"
    )
    if not table.exists():
        pytest.skip(f"{table} is absent")
    pd = pytest.importorskip("pandas")
    columns = ["hardware", "model", "tp", "kv_blocks_gpu", "block_size", "gpu_mem_util"]
    rows = pd.read_parquet(table, columns=columns).dropna(subset=["kv_blocks_gpu"]).drop_duplicates()
    assert len(rows) >= 5
    for row in rows.itertuples():
        parameters, kv_bytes_per_token = MODELS[row.model]
        filled = (2 * parameters + row.kv_blocks_gpu * row.block_size * kv_bytes_per_token) / row.tp
        requested = 0.9 * load_device(row.hardware).memory_bytes.value
        assert requested - 2e9 < filled < requested, row


def test_links_of_a_node() -> None:
    h100, mi300x, l40s = (load_device(n) for n in ("h100", "mi300x", "l40s"))
    assert h100.link is not None
    assert (h100.link.topology, h100.link.bytes_per_s_per_direction.value) == ("all_to_all", 450e9)
    assert mi300x.link is not None
    assert mi300x.link.peer_bytes_per_s_per_direction is not None
    assert mi300x.link.topology == "mesh"
    assert mi300x.link.bytes_per_s_per_direction.value == 7 * mi300x.link.peer_bytes_per_s_per_direction.value
    assert l40s.link is not None
    assert l40s.link.topology == "pcie"
    assert load_device("apple-m2-ultra-76c-192gb").link is None


def test_two_sockets_are_twice_one(device: Device) -> None:
    if device.name.endswith("-2s"):
        one = load_device(device.name.removesuffix("-2s") + "-1s")
        for key in ("memory_bandwidth_bytes_per_s", "memory_bytes", "tdp_w", "multiprocessors"):
            assert getattr(device, key).value == 2 * getattr(one, key).value
        for fmt, peak in one.peak_flops_per_s.items():
            assert device.peak_flops_per_s[fmt].value == 2 * peak.value


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("H100", "h100-sxm-80gb"),
        ("H100-SXM", "h100-sxm-80gb"),
        ("H100-80GB", "h100-sxm-80gb"),
        ("H100-SXM-80GB", "h100-sxm-80gb"),
        ("h100_sxm5_80GB", "h100-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "h100-nvl-94gb"),
        ("MacBook Pro M3 Max 64GB", "apple-m3-max-40c-64gb"),
        ("A100", "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("H200-141GB", "h200-sxm-141gb"),
        ("B200-180GB", "b200-sxm-180gb"),
        ("GB200", "gb200-186gb"),
        ("L40S", "l40s-48gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("RTX 4080", "rtx-4080-16gb"),
        ("NVIDIA GeForce RTX 4080 SUPER", "rtx-4080-super-16gb"),
        ("RTX 3090", "rtx-3090-24gb"),
        ("Tesla T4", "t4-16gb"),
        ("GH200", "gh200-96gb"),
        ("V100-PCIE-32GB", "v100-pcie-32gb"),
        ("AMD Radeon AI PRO R9700", "radeon-ai-pro-r9700-32gb"),
        ("RTX-PRO-6000-Blackwell-96GB", "rtx-pro-6000-96gb"),
        ("RTX-PRO-6000-Server", "rtx-pro-6000-96gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("RTX4090", "rtx-4090-24gb"),
        ("MI300X", "mi300x-192gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("Gaudi 3", "gaudi-3-128gb"),
        ("Arc-Pro-B60", "arc-pro-b60-24gb"),
        ("rtx3050", "rtx-3050-8gb"),
        ("GTX 1080 Ti", "gtx-1080-ti-11gb"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop-16gb"),
        ("NVIDIA RTX 5880 Ada Generation", "rtx-5880-ada-48gb"),
        ("Intel Xeon Platinum 8580", "xeon-8580-2s"),
        ("rtx 5060 ti", "rtx-5060-ti-16gb"),
        ("Radeon 780M", "ryzen-7-8845hs-32gb"),
        ("Xeon Platinum 8480+", "xeon-8480-2s"),
        ("EPYC 9654", "epyc-9654-2s"),
        ("Apple M2 Ultra 76c 192 GB", "apple-m2-ultra-76c-192gb"),
        ("Graviton3", "graviton3-1s"),
    ],
)
def test_names_are_forgiven(said: str, meant: str) -> None:
    assert resolve_device(said) == meant
    assert load_device(said).name == meant


def test_aliases_lead_to_devices() -> None:
    assert set(ALIASES.values()) <= set(NAMES)


@given(st.sampled_from(NAMES), st.sampled_from("-_ /"), st.booleans())
def test_case_and_separators_never_matter(name: str, separator: str, upper: bool) -> None:
    said = name.replace("-", separator)
    assert resolve_device(said.upper() if upper else said) == name


@given(st.text(max_size=30))
def test_any_text_is_a_device_or_an_input_error(text: str) -> None:
    found: str | None = None
    try:
        found = resolve_device(text)
    except InputError as error:
        if error.exit_code != 2 or not error.mend:
            found = "an error without a mend"
    assert found is None or found in NAMES


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown hardware 'h1000-sxm-80gb'") as caught:
        load_device("h1000-sxm-80gb")
    assert "did you mean 'h100-sxm-80gb'" in (caught.value.mend or "")
    assert "capacity-plan list hardware" in (caught.value.mend or "")


@pytest.mark.parametrize(
    ("said", "device"),
    [
        ("Mac mini M4 32GB", "apple-m4-10c-32gb"),
        ("Apple M3 Ultra 80-core GPU 512GB", "apple-m3-ultra-80c-512gb"),
        ("M3 Ultra 32-core CPU 60-core GPU 96 GB", "apple-m3-ultra-60c-96gb"),
        ("MacBook Pro M4 Max 40 cores 64GB", "apple-m4-max-40c-64gb"),
    ],
)
def test_a_mac_is_known_by_its_chip_cores_and_memory(said: str, device: str) -> None:
    assert resolve_device(said) == device


def test_a_chip_is_not_its_larger_kin() -> None:
    """M4 Pro and Max are others than M4, whose sizes are named."""
    with pytest.raises(InputError, match="fits several") as caught:
        resolve_device("Mac mini M4")
    assert "apple-m4-10c-24gb" in caught.value.message
    assert not {"pro", "max", "8c"} & set(re.split(r"\W+", caught.value.message))


def test_a_name_that_fits_several_names_them() -> None:
    with pytest.raises(InputError, match="fits several") as caught:
        load_device("M2 Ultra")
    assert "apple-m2-ultra-60c-128gb" in caught.value.message


def test_a_malformed_file_says_where(tmp_path: Path) -> None:
    text = (DEVICES_DIR / "l4-24gb.yaml").read_text()
    cases = {
        "memory_bandwith_bytes_per_s": text.replace(
            "memory_bandwidth_bytes_per_s", "memory_bandwith_bytes_per_s"
        ),
        "kind": text.replace("kind: datasheet", "kind: guessed"),
        "source": text.replace("source: aic,", "source: nowhere,").replace(
            "source: aic}", "source: nowhere}"
        ),
        "value": text.replace("value: 3.0e+11", "value: fast"),
    }
    for word, changed in cases.items():
        assert changed != text, word
        path = tmp_path / f"{word}.yaml"
        path.write_text(changed)
        with pytest.raises(InputError) as caught:
            read_device(path, "l4-24gb")
        assert path.name in (caught.value.where or ""), word


def test_quantities_are_values_with_units() -> None:
    q = Quantity(3.35e12, "byte/s", "datasheet of the vendor", "2023-03", "datasheet", "five stacks")
    assert float(q) == 3.35e12
    assert q.provenance("bandwidth")["what"] == "bandwidth"
    assert q.provenance("bandwidth")["note"] == "five stacks"


def test_loading_one_device_reads_one_file_and_no_heavy_module() -> None:
    code = """
import sys
import hardware_profiles.device as d
read = []
plain = d._read.__wrapped__
d._read = lambda path: read.append(path.name) or plain(path)
d.device_names()
assert not read, read
d.load_device("H100")
assert read == ["h100-sxm-80gb.yaml"], read
heavy = {"pandas", "pydantic", "pyarrow", "scipy", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", ["rtx3040", "gtx1180", "rx 5700", "max1550", "h100 x 0"])
def test_a_letter_of_a_name_counts_no_devices(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown hardware '{name}'"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["2x h100", "h100x2", "02 x h100", "h100 * 2"])
def test_counted_devices_are_told_with_the_keys_that_count_them(name: str) -> None:
    with pytest.raises(InputError, match="counts devices") as caught:
        resolve_device(name)
    assert "h100-sxm-80gb, with tensor_parallel: 2 " in str(caught.value.mend)
