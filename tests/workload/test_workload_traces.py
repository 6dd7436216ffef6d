from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardware_profiles.errors import InputError
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.spec import WorkloadSpec

OWN = "arrival_s,prompt_tokens,output_tokens\n"


def build(path: Path, seed: int = 0, **spec: Any) -> Workload:
    form = WorkloadSpec.model_validate({"trace": path.name, **spec})
    return build_workload(form, seed=seed, base_dir=path.parent)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def test_own_columns_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "t.csv",
        "arrival_s,prompt_tokens,output_tokens,max_output_tokens,class,request_id\n"
        "0.5,10,3,8,chat,a\n2,20,4,,batch,b\n",
    )
    w = build(path)
    assert w.arrival_s.tolist() == [0, 1.5]
    assert w.prompt_tokens.tolist() == [10, 20]
    assert w.output_tokens.tolist() == [3, 4]
    assert w.max_output_tokens.tolist() == [8, 0]
    assert [w.classes[i].name for i in w.class_index] == ["chat", "batch"]
    assert w.request_ids == ("a", "b")
    assert w.duration_s == 1.5
    assert len(w.source["sha256"]) == 64


def test_the_same_records_in_every_container(tmp_path: Path) -> None:
    text = OWN + "0,10,3\n1,20,4\n"
    records = [
        {"arrival_s": i, "prompt_tokens": p, "output_tokens": o} for i, p, o in ((0, 10, 3), (1, 20, 4))
    ]
    paths = [
        write(tmp_path, "t.csv", text),
        write(tmp_path, "t.jsonl", lines(*records) + "\n"),
        write(tmp_path, "t.json", json.dumps(records)),
        tmp_path / "t.parquet",
        tmp_path / "t.csv.gz",
    ]
    pq.write_table(pa.Table.from_pylist(records), paths[3])
    paths[4].write_bytes(gzip.compress(text.encode()))
    for path in paths:
        w = build(path)
        assert w.arrival_s.tolist() == [0, 1], path
        assert w.prompt_tokens.tolist() == [10, 20], path
        assert w.source["format"] == "columns"


def test_azure(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    )
    w = build(path)
    assert w.source["format"] == "azure"
    assert w.arrival_s == pytest.approx([0, 4.314579])
    later = write(
        tmp_path,
        "2024.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-11 00:00:00+00:00,2399,0\n"
        "2024-05-11 00:00:01+00:00,5,6\n",
    )
    w = build(later)
    assert w.arrival_s == pytest.approx([0, 86400.99007])
    assert "1 of 3 rows dropped" in w.warnings[0]


@pytest.mark.parametrize(
    "header",
    [
        "arrival_s,prompt_tokens,output_tokens",
        "timestamp,input_tokens,output_tokens",
        "timestamp,input_length,output_length",
        "Timestamp,Request tokens,Response tokens",
    ],
)
def test_calendar_times_of_any_format_mind_their_zones(header: str, tmp_path: Path) -> None:
    stamps = ["2026-10-25T02:59:59+02:00", "2026-10-25T02:00:00.5+01:00", "2026-10-25 01:00:02Z", "2026-10-24T20:00:04-0500"]
    w = build(write(tmp_path, "t.csv", "\n".join([header, *(f"{t},5,5" for t in stamps)])), jitter_s=0.0)
    assert w.arrival_s.tolist() == [0, 1.5, 3, 5]


def mooncake(n: int = 40) -> str:
    rows = [
        {"timestamp": 3000 * (i // 4), "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2 + i]}
        for i in range(n)
    ]
    return lines(*rows)


def test_mooncake_blocks_and_jitter(tmp_path: Path) -> None:
    w = build(write(tmp_path, "m.jsonl", mooncake()))
    assert w.source["format"] == "mooncake"
    assert w.source["jitter_s"] == 3.0
    assert len(np.unique(w.arrival_s)) == 40
    assert (np.diff(w.arrival_s) >= 0).all()
    assert w.arrival_s.max() < 30
    c = w.content
    assert c is not None
    assert c.length.tolist() == [1024] * 40  # two shared blocks; the third is private
    exact = build(tmp_path / "m.jsonl", jitter_s=0)
    assert exact.arrival_s.tolist() == [3 * (i // 4) for i in range(40)]
    assert np.array_equal(
        build(tmp_path / "m.jsonl", seed=5).arrival_s, build(tmp_path / "m.jsonl", seed=5).arrival_s
    )


def test_own_parquet_with_hashes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "arrival_s": [0.0, 1.0],
            "prompt_tokens": pa.array([700, 600], pa.int32()),
            "output_tokens": [1, 1],
            "hash_ids": pa.array([[4, 5], [4, 6]], pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    w = build(tmp_path / "p.parquet")
    assert w.content is not None
    assert w.content.length.tolist() == [512, 512]


def test_burstgpt_drops_failures_and_replays_think_time(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "b.csv",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,s1,2,ChatGPT,472,18,490,Conversation log\n"
        "8,s2,1,ChatGPT,10,0,10,Conversation log\n"
        "20,s1,1,ChatGPT,600,30,630,Conversation log\n",
    )
    w = build(path)
    assert w.warnings == ("1 of 3 rows dropped (failed requests, recorded with 0 tokens)",)
    assert w.predecessor.tolist() == [-1, 0]
    assert w.gap_s.tolist() == [0, 13]  # 20 - (5 + 2)
    assert np.isnan(w.arrival_s[1])
    plain = write(
        tmp_path,
        "c.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,API log\n",
    )
    assert build(plain).predecessor.tolist() == [-1]


def test_servegen(tmp_path: Path) -> None:
    flat = write(tmp_path, "s.csv", "request_id,timestamp,input_tokens,output_tokens\n0,0.5,7,2\n1,0.7,8,3\n")
    assert build(flat).prompt_tokens.tolist() == [7, 8]
    nested = write(
        tmp_path,
        "s.jsonl",
        lines({"request_id": 0, "timestamp": 0.5, "data": {"input_tokens": 7, "output_tokens": 2}}),
    )
    assert build(nested).output_tokens.tolist() == [2]


def test_sharegpt_counts_or_estimates(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": "x" * 40},
        {"from": "gpt", "value": "y" * 20},
        {"from": "human", "value": "z" * 8},
        {"from": "gpt", "value": "w" * 4},
    ]
    w = build(write(tmp_path, "s.json", json.dumps([{"id": "a", "conversations": talk}])))
    assert w.prompt_tokens.tolist() == [10, 17]
    assert w.output_tokens.tolist() == [5, 1]
    assert w.predecessor.tolist() == [-1, 0]
    assert any("4 characters a token" in text for text in w.warnings)
    counted = [{**m, "tokens": 3} for m in talk]
    w = build(write(tmp_path, "c.json", json.dumps([{"id": "a", "conversations": counted}])))
    assert w.prompt_tokens.tolist() == [3, 9]
    assert not any("estimated" in text for text in w.warnings)


def test_vllm_bench_result(tmp_path: Path) -> None:
    result = {
        "date": "20250101-000000",
        "input_lens": [5, 6, 7],
        "output_lens": [1, 0, 3],
        "start_times": [100.0, 101.0, 102.5],
        "errors": ["", "boom", ""],
        "ttfts": [0.1, 0, 0.2],
        "duration": 3,
    }
    w = build(write(tmp_path, "r.json", json.dumps(result)))
    assert w.arrival_s.tolist() == [0, 2.5]
    assert w.prompt_tokens.tolist() == [5, 7]
    del result["start_times"]
    assert any("time zero" in t for t in build(write(tmp_path, "q.json", json.dumps(result))).warnings)


def test_bailian_chains_become_sessions(tmp_path: Path) -> None:
    row = {"timestamp": 0.0, "input_length": 40, "output_length": 4, "type": "text"}
    text = lines(
        {**row, "chat_id": 7, "parent_chat_id": -1, "turn": 1, "hash_ids": [1, 2, 3]},
        {**row, "chat_id": 8, "parent_chat_id": -1, "turn": 1, "hash_ids": [1, 9, 10]},
        {**row, "chat_id": 9, "parent_chat_id": 7, "turn": 2, "timestamp": 30.0, "hash_ids": [1, 2, 4]},
    )
    w = build(write(tmp_path, "q.jsonl", text))
    assert w.source["format"] == "bailian"
    assert w.predecessor.tolist() == [-1, -1, 0]
    assert w.turn.tolist() == [0, 0, 1]
    assert w.gap_s.tolist() == [0, 0, 30]
    c = w.content
    assert c is not None
    assert [c.length[a:b].sum() for a, b in zip(c.start[:-1], c.start[1:], strict=True)] == [32, 16, 32]


def test_sessions_absolute(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,session_id,turn\n1,10,5,a,1\n4,30,5,a,2\n5,9,9,,\n"
    w = build(write(tmp_path, "s.csv", text), sessions={"replay": "absolute"})
    assert w.not_before_s.tolist() == [0, 3, 0]
    assert w.gap_s.tolist() == [0, 0, 0]
    gap = build(tmp_path / "s.csv")
    assert gap.gap_s.tolist() == [0, 3, 0]
    assert gap.session_id.tolist() == [0, 0, -1]
    assert gap.duration_s == np.inf


def test_window_scale_limit(tmp_path: Path) -> None:
    text = OWN + "".join(f"{t},{t + 1},1\n" for t in range(20))
    path = write(tmp_path, "t.csv", text)
    w = build(path, window=[5, 15], rate_scale=2)
    assert w.arrival_s.tolist() == [i / 2 for i in range(10)]
    assert w.prompt_tokens.tolist() == list(range(6, 16))
    assert w.duration_s == 5
    assert len(build(path, limit=3)) == 3
    assert len(build(path, requests=4)) == 4
    assert build(path, duration=6.5).arrival_s.max() == 6
    with pytest.raises(InputError, match="no request arrives"):
        build(path, window=[100, 200])


def test_out_of_order_is_sorted_with_a_warning(tmp_path: Path) -> None:
    w = build(write(tmp_path, "t.csv", OWN + "5,1,1\n2,2,1\n3,3,1\n"))
    assert w.arrival_s.tolist() == [0, 1, 3]
    assert w.prompt_tokens.tolist() == [2, 3, 1]
    assert any("out of order" in t for t in w.warnings)


def test_suspicions_are_warnings(tmp_path: Path) -> None:
    w = build(write(tmp_path, "ms.csv", OWN + "0,5,5\n2000000,5,5\n"))
    assert any("milliseconds" in t for t in w.warnings)
    w = build(write(tmp_path, "epoch.csv", OWN + "1700000000,5,5\n1700000002,5,5\n"))
    assert w.arrival_s.tolist() == [0, 2]
    assert any("1970" in t for t in w.warnings)
    w = build(tmp_path / "ms.csv", rate_scale=1000, duration=9000)
    assert any("before the duration" in t for t in w.warnings)
    w = build(write(tmp_path, "long.csv", OWN + "0,10000000,5\n"))
    assert w.prompt_tokens.tolist() == [10_000_000]


def test_limits_cut_outputs(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,max_output_tokens\n0,5,9,4\n1,5,2,4\n"
    w = build(write(tmp_path, "t.csv", text))
    assert w.output_tokens.tolist() == [4, 2]
    assert any("cut at max_output_tokens" in t for t in w.warnings)
    assert build(tmp_path / "t.csv", max_output_tokens="equal").max_output_tokens.tolist() == [9, 2]
    assert build(tmp_path / "t.csv", max_output_tokens=3).output_tokens.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "file is empty"),
        (OWN, "has no request"),
        (OWN + "0,5,5\nnan,5,5\n", "line 3: arrival_s is empty or NaN"),
        (OWN + "0,5,5\n-2e12,5,5\n", r"line 2: arrival_s \(0\) is more than 1e\+12 s after the first request"),
        (OWN + "0,5,5\n1,-5,5\n", r"line 3: prompt_tokens \(-5\) is negative"),
        (OWN + "0,5,0\n", r"line 2: output_tokens \(0\) is zero"),
        (OWN + "0,5.5,1\n", "no whole number"),
        (OWN + "0,5,inf\n", "infinite"),
        (OWN + "0,1e30,5\n", "no plausible number"),
        (OWN + "0,5,5\n1,many,5\n", "line 3: prompt_tokens is 'many', not a number"),
        (OWN + "0,5,5\n1,5\n", "line 3: has 2 fields where the header has 3"),
        ("arrival_s,prompt_token,output_tokens\n0,5,5\n", "lacks prompt_tokens; nearest .* 'prompt_token'"),
        ("a,b\n0,5\n", "no known trace format"),
        ("arrival_s;prompt_tokens;output_tokens\n0,5;5;5\n", "line 1: its columns are separated by ';'"),
        ("arrival_s\tprompt_tokens\toutput_tokens\n0\t5\t5\n", "separated by a tab"),
        ("arrival_s,arrival_s\n0,5\n", "appears twice"),
        (
            "arrival_s,prompt_tokens,output_tokens,request_id\n0,5,5,x\n1,5,5,x\n",
            "line 3: request_id 'x' appears twice, first at line 2",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens,session_id,turn\n0,5,5,x,1\n1,5,5,x,1\n",
            "two turns numbered 1",
        ),
        ("arrival_s,prompt_tokens,output_tokens,prefix_ids\n0,5,5,1 2\n", "how many tokens a block holds"),
        ("version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,5\n", "not a time"),
        (OWN + "2026-02-30T00:00,5,5\n", "arrival_s is '2026-02-30T00:00', not a time"),
    ],
)
def test_csv_errors_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        build(write(tmp_path, "t.csv", text))
    assert caught.match(words)
    assert caught.value.mend


def test_other_files_that_are_no_traces(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            build(path)

    write(tmp_path, "good.csv", OWN + "0,5,5\n")
    refused(tmp_path / "goo.csv", "did you mean 'good.csv'")
    refused(
        write(tmp_path, "t.jsonl", '{"arrival_s": 0, "prompt_tokens": 1, "out'), "line 1: is no valid JSON"
    )
    refused(write(tmp_path, "l.jsonl", "[1, 2]\n"), "is no JSON object")
    refused(write(tmp_path, "t.json", '[{"arrival_s": 0'), "is no valid JSON")
    refused(write(tmp_path, "t.xlsx", "x"), "names no trace format")
    refused(write(tmp_path, "t.parquet", "PAR1 and then nothing"), "no Parquet file")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(OWN.encode() * 50)[:-12])
    refused(tmp_path / "cut.csv.gz", "cut short")
    (tmp_path / "bin.csv").write_bytes(bytes(range(256)))
    refused(tmp_path / "bin.csv", "binary file")
    (tmp_path / "latin.csv").write_bytes((OWN + "0,5,5\n").encode() + b"1,\xe9,5\n")
    refused(tmp_path / "latin.csv", "line 3: is not in UTF-8: there is a byte 0xe9")
    (tmp_path / "wide.csv").write_text(OWN, encoding="utf-16")
    refused(tmp_path / "wide.csv", "UTF-16")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "is a folder")
    with pytest.raises(InputError, match="did you mean 'azure-conv-2023'"):
        build_workload(WorkloadSpec(trace="azure-conv"), seed=0, base_dir=tmp_path)


def test_trace_format_overrides_and_says_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", OWN + "0,5,5\n")
    with pytest.raises(InputError, match="column 'output_length' is missing"):
        build(path, trace_format="mooncake")
