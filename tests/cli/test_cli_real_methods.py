"""Every method, in every space, merges the real adapters of the examples from the command line."""

import hashlib
from pathlib import Path

import pytest
import torch

from lorakit import load_adapter
from lorakit.discovery import all_methods

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2] / "examples" / "adapters"
EQUAL = [str(ROOT / name) for name in ("icd10", "langid", "wn_noun", "wn_pos", "deb_section")]  # of rank 8
MIXED = [str(ROOT / name) for name in ("icd10", "langid_r16", "wn_noun_r4")]

CASES = [
    pytest.param(info, space, id=f"{info.method}-{space}" if space else info.method)
    for info in all_methods("merger")
    if not info.needs_data
    for space in info.spaces or (None,)
]


def arguments(info, space):
    params = [] if space is None else ["-p", f"space={space}"]
    if space == "delta" and "svd_solver" in info.parameters:
        params += ["-p", "svd_solver=randomized"]  # what large models take; a full SVD of 36 modules takes seconds
    if (info.method, space) == ("sce", "factors"):
        params += ["-p", "density=0.5"]  # of a tenth of A and a tenth of B, the product has a hundredth
    if "n_init" in info.parameters:
        params += ["-p", "n_init=2"]
    return ["--method", info.method, *params]


@pytest.mark.parametrize(("info", "space"), CASES)
def test_real_adapters(lorakit_, lorakit_json, tmp_path, info, space):
    one_rank = space == "factors" or info.needs_equal_ranks
    adapters = EQUAL if one_rank else MIXED
    for k in (4, 8, 16):
        out = tmp_path / str(k)
        if one_rank and k > 8:  # the factors of rank 8 give no more
            result = lorakit_("merge", *adapters, "-o", out, "-k", k, *arguments(info, space), code=2)
            assert "-k 16 is above 8" in result.stderr
            continue
        report = lorakit_json("merge", *adapters, "-o", out, "-k", k, *arguments(info, space))
        assert report["rank_out"] == [k]
        merged = load_adapter(out)
        assert len(merged) == 36
        assert all(torch.isfinite(x).all() for factors in merged.values() for x in factors)
        assert all(-1 <= row["cosine"] <= 1 for row in report["adapters"])
        assert max(row["cosine"] for row in report["adapters"]) > 0.1  # it has something of what went in
    again = tmp_path / "again"
    lorakit_("merge", *adapters, "-o", again, "-k", 8, "--jobs", 2, *arguments(info, space))
    digests = {
        hashlib.sha256((tmp_path / d / "adapter_model.safetensors").read_bytes()).hexdigest() for d in ("8", "again")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("info", [info for info in all_methods("merger") if info.spaces], ids=lambda info: info.method)
def test_mixed_ranks_on_factors_name_the_methods_that_take_them(lorakit_, tmp_path, info):
    result = lorakit_("merge", *MIXED, "-o", tmp_path / "out", "--method", info.method, "-p", "space=factors", code=2)
    assert "langid_r16" in result.stderr
    assert "--method lego, svd and concat, and --param space=delta, take any ranks" in result.stderr
