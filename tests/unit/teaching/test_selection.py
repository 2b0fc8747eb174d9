"""Which good parts to enroll, and which of the enrolled stands out: against literal definitions, and as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime import VisionADError
from visionad_runtime.cli.main import run
from visionad_runtime.inspector import Inspector
from visionad_runtime.teaching.audit import leave_one_out_scores
from visionad_runtime.teaching.selection import MAX_CANDIDATES, k_center_greedy, select_support

from tests.data import part


def write(folder: Path, images: list[np.ndarray]) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    return paths


def test_a_leave_one_out_score_is_the_score_the_image_would_get(
    tiny_model: Path, good: list[Path], tmp_path: Path
) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    inspector.enroll_files("disc", good)
    assert inspector.bank is not None
    matched = inspector.bank.classes["disc"]
    found = leave_one_out_scores(matched, inspector.scoring)
    for k, (path, row) in enumerate(zip(good, found, strict=True)):
        (one,) = inspector.inspect_files([path], class_name="disc", leave_out=k)
        assert one.result is not None
        assert row.score == pytest.approx(one.result.score, abs=2e-6)
        others = [s.score for i, s in enumerate(found) if i != k]
        assert row.ratio == pytest.approx(row.score / float(np.median(others)))
    assert not any(s.is_outlier for s in found)
    assert leave_one_out_scores(matched.leave_out(0).leave_out(0), inspector.scoring) == []


def test_a_defect_among_the_good_is_named(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path / "good", [*(part(i) for i in range(4)), part(9, kind="grid")])
    assert run(["bank", "add", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    assert f"look at {paths[4]}" in said and said.count("look at") == 1
    assert run(["bank", "audit", str(tiny_model), str(tmp_path / "bank"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["pictures"]
    assert [r["odd"] for r in rows] == [False] * 4 + [True]
    command = said[said.index("`visionad ") + 10 : said.rindex("`")].split()
    assert run(command) == 0  # what the hint says to do can be done as it stands
    capsys.readouterr()
    assert run(["bank", "audit", str(tiny_model), str(tmp_path / "bank"), "--class", "disc"]) == 0
    assert "look at" not in capsys.readouterr().out


def test_the_choice_covers_both_kinds(tiny_model: Path, tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [part(0), part(1), part(2), part(3, kind="grid"), part(4), part(5, kind="grid")])
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    chosen = select_support(inspector, "mixed", paths, 2)
    assert {paths.index(p) in (3, 5) for p in chosen} == {True, False}
    assert select_support(inspector, "mixed", paths, 1) == chosen[:1]  # nested, and the same every time
    inspector.enroll_files("mixed", [paths[0]])
    (lacking,) = select_support(inspector, "mixed", paths, 1)
    assert paths.index(lacking) in (3, 5)  # what the class does not hold yet


def test_the_choice_is_the_best_single_one(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    """For one image, greedy is exhaustive: enroll each alone and inspect the rest."""
    means = []
    for path in good:
        inspector = Inspector.open(tiny_model, tmp_path / path.stem)
        inspector.enroll_files("disc", [path])
        rest = [p for p in good if p != path]
        found = inspector.inspect_files(rest, class_name="disc")
        means.append(float(np.mean([one.result.score for one in found if one.result is not None])))
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    assert select_support(inspector, "disc", good, 1) == [good[int(np.argmin(means))]]


def test_many_candidates_are_thinned_out(tiny_model: Path, tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [part(i, kind="grid" if i == 11 else "disc") for i in range(MAX_CANDIDATES + 6)])
    steps: list[int] = []
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    chosen = select_support(inspector, "mixed", paths, 2, step=lambda: steps.append(1))
    assert paths[11] in chosen and len(steps) == len(paths)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_k_center_greedy_takes_the_farthest_each_time(n: int, count: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)
    tokens[seed % n] = tokens[0]  # a duplicate
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    taken = k_center_greedy(tokens, min(count, n))
    assert len(set(taken)) == min(count, n)
    apart = 1 - tokens.astype(np.float64) @ tokens.astype(np.float64).T
    assert apart[taken[0]].sum() == pytest.approx(apart.sum(1).min())
    for i in range(1, len(taken)):
        rest = [j for j in range(n) if j not in taken[:i]]
        gap = {j: apart[j, taken[:i]].min() for j in rest}
        assert gap[taken[i]] == pytest.approx(max(gap.values()))


def test_mistakes(tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = str(tmp_path / "bank")
    add = ["bank", "add", str(tiny_model), bank, "--class", "disc", str(good[0].parent)]
    for args, message in (
        (["--choose", "5"], "expected 1 to 4"),
        (["--choose", "2", "--shots", "2"], "give one of them"),
    ):
        assert run([*add, *args]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "bank").exists()
    assert run([*add, "--choose", "3"]) == 0
    assert run([*add, "--choose", "2"]) == 2
    assert "only 1 of the images" in capsys.readouterr().err
    assert run(["bank", "audit", str(tiny_model), bank, "--class", "nut"]) == 2
    inspector = Inspector.open(tiny_model, bank)
    with pytest.raises(VisionADError, match="at most 24"):
        select_support(inspector, "disc", [*good] * 7, 25)
