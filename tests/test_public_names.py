"""What `lorakit` exports, and what importing it costs."""

import subprocess
import sys

import lorakit

PUBLIC = {
    "Adapter",
    "AdapterClassifier",
    "AdapterRetriever",
    "AdapterSet",
    "AllAdapters",
    "AverageMerger",
    "BreadcrumbsMerger",
    "ConcatMerger",
    "CtMMerger",
    "DareMerger",
    "DellaMerger",
    "IsoMerger",
    "LegoMerger",
    "LegoPruner",
    "LoraFactors",
    "MSUKMeans",
    "MagnitudeMerger",
    "ModuleSelector",
    "MultiTaskScorer",
    "NormBalancer",
    "PicoDamper",
    "RankBudget",
    "RegMeanMerger",
    "SVCMerger",
    "SVDMerger",
    "SVDPruner",
    "TSVMerger",
    "TaskArithmeticMerger",
    "TiesMerger",
    "WUDIMerger",
    "WeightSearch",
    "applied",
    "collect_grams",
    "convert_adapter",
    "from_peft",
    "load_adapter",
    "load_adapters",
    "rank_path",
    "results_on_disk",
    "save_adapter",
    "to_peft",
}


def test_public_names():
    assert set(lorakit.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(lorakit, name).__module__.startswith("lorakit."), name


def test_dir_lists_the_public_names():
    assert set(dir(lorakit)) >= PUBLIC


def test_importing_loads_nothing_heavy():
    code = "import lorakit, sys; print(sorted({'torch', 'sklearn', 'numpy', 'rich'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
