"""Another commit of this repository, checked out beside it for as long as it is needed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class MissingCommitError(Exception):
    """The commit is not in this clone, or this is no clone."""


def commit_of(revision: str, root: Path = ROOT) -> str:
    """Return the full hash of a revision; MissingCommitError, with a way out, if it is not there."""
    done = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        shallow = _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        mend = "this clone is shallow: git fetch --unshallow" if shallow else f"git fetch origin {revision}"
        told = f" ({done.stderr.strip()})" if done.stderr.strip() else ""
        raise MissingCommitError(f"commit {revision} is not in {root}{told}; {mend}")
    return done.stdout.strip()


@contextmanager
def worktree(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """Check `revision` out into a temporary folder, which is removed at the end, whatever happens."""
    commit = commit_of(revision, root)
    with tempfile.TemporaryDirectory(prefix="capacity-plan-") as place:
        tree = Path(place).resolve() / "tree"
        done = _git(root, "worktree", "add", "--detach", str(tree), commit)
        try:
            if done.returncode:
                raise RuntimeError(f"git worktree add failed: {done.stderr.strip()}")
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
