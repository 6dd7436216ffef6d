"""The scripts that make the lists of flags and that read published commands, on small files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_models.flags import Releases
from tests.engine_flag_lists import lists
from tests.published_commands import main

CONFIG = """
class RowsConfig:
    rows: int = 1
    reuse: bool = True
    sizes: list[int] | None = None
    names: dict[str, list[str]] | None = None

class FrontendArgs:
    port: int = 1
    token: bool | str | None = None
    middleware: list[str] = ()
"""
PARSER = """
rows_kwargs = get_kwargs(RowsConfig)
group.add_argument("--rows", "-r", **rows_kwargs["rows"])
group.add_argument("--reuse-rows", **rows_kwargs["reuse"])
group.add_argument("--sizes", **rows_kwargs["sizes"])
group.add_argument("--names", **rows_kwargs["names"])
parser.add_argument("--quiet", action="store_true")
"""
FIELDS = """
class Some(Struct):
    model_path: A[str, Arg(help="where", aliases=["--model"])]
    fast: A[bool, "quick"] = False
    steps: A[list[int], Arg(help="sizes", nargs="+")] = None
    hidden: A[int, Arg(help="none", no_cli=True)] = 0
    derived: A[int, Derived("none")] = 0
"""


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_list_holds_names_kinds_spellings_and_releases(tmp_path: Path) -> None:
    old = written(tmp_path / "vllm-1.0", {"vllm/config.py": CONFIG, "vllm/engine/arg_utils.py": PARSER})
    newer = PARSER.replace('"--rows",', '"--max-rows", "--rows",').replace("--quiet", "--silent")
    new = written(tmp_path / "vllm-2.0", {"vllm/config/a.py": CONFIG, "vllm/engine/arg_utils.py": newer})
    for folder in (old, new):
        written(folder, {"vllm/entrypoints/openai/cli_args.py": CONFIG})
    assert lists("vllm", [old, new]) == {
        "releases": ["1.0", "2.0"],
        "flags": {
            "max_rows": ["value", "1.0", "2.0"],
            "middleware": ["value", "1.0", "2.0"],
            "names": ["value", "1.0", "2.0"],
            "port": ["value", "1.0", "2.0"],
            "quiet": ["switch", "1.0", "1.0"],
            "reuse_rows": ["pair", "1.0", "2.0"],
            "silent": ["switch", "2.0", "2.0"],
            "sizes": ["list", "1.0", "2.0"],
            "token": ["optional", "1.0", "2.0"],
        },
        "spellings": {"rows": "max_rows"},
        "shorts": {"r": "max_rows"},
        "of_images": [],
    }


def test_fields_annotated_with_their_help_are_flags(tmp_path: Path) -> None:
    folder = written(tmp_path / "sglang-3", {"sglang/srt/arg_groups/fields/a.py": FIELDS})
    found = lists("sglang", [folder])
    assert found["flags"] == {"fast": ["switch", "3", "3"], "model_path": ["value", "3", "3"], "steps": ["list", "3", "3"]}
    assert found["spellings"] == {"model": "model_path"}


@pytest.mark.parametrize(
    ("flag", "release", "there"),
    [
        ("a", "1.0", True),
        ("a", "1.5", True),  # between a release that has it and one that lacks it
        ("a", "2.0", False),
        ("a", None, False),
        ("b", "1.0", False),
        ("b", "1.5.2", True),
        ("b", "2", True),
        ("b", "9", True),
        ("b", None, True),
        ("unlisted", "1.0", True),
    ],
)
def test_releases_have_the_flags_between_first_and_last(flag: str, release: str | None, there: bool) -> None:
    releases = Releases(("1.0", "2.0", "3.0"), {"a": ("1.0", "1.0"), "b": ("2.0", "3.0")})
    assert releases.has(flag, release) == there


def test_published_commands_are_counted_by_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [
        "vllm serve m -tp 2",
        "vllm serve m --max-num-se 4",
        "vllm serve m -pcp 4",
        "vllm serve m --no-such-flag",
        "vllm serve m --max-num-seqs many",
        "curl localhost",
    ]
    page = "\n".join(f"```bash\n{block}\n```\n" for block in blocks)
    main(str(written(tmp_path / "recipes", {"page.md": page, "list.yaml": "# vllm\nargs:\n  - --max-num-seqs\n  - '4'\n"})))
    said = capsys.readouterr().out
    assert said.startswith("recipes: 6 commands, 83.3 % read or refused by their reason: ")
    for count in ("'read': 2", "'notes': 1", "'refused': 1", "'unknown': 1", "'failed': 1"):
        assert count in said.splitlines()[0]
    assert "must be a whole number" in said
