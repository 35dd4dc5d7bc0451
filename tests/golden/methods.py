"""Cases of series and of the methods over them, also on what an earlier version wrote."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from golden.build import net, of
from golden.running import Case, Source

STEPS = (100, 200, 300, 400, 700)
LOSSES = {100: "0.9", 200: "0.5", 300: "0.3", 400: "0.45", 700: "0.4"}


def run(code: str = "F32", *, losses: bool = True) -> dict[str, Source]:
    """A folder of five checkpoints, whose names sort as their steps."""
    found: dict[str, Source] = {}
    for step in STEPS:
        name = f"step={step}-val_loss={LOSSES[step]}" if losses else f"step-{step}"
        found[f"run/{name}.safetensors"] = partial(net, str(step), code)
    return found


def choosing() -> list[Case]:
    odd: dict[str, Source] = {
        "run/step=500-val_loss=0.1.safetensors.tmp": "x",
        "run/best.safetensors": partial(net, "300"),
        "run/notes.txt": "",
        "run/averaged.safetensors": Path("earlier/mean.safetensors"),
        "run/step=800-val_loss=nan.safetensors": b"broken!!!",
        "log.csv": "step,bleu\n100,20.5\n200,30\n300,nan\n400,10\n",
        "log.jsonl": '{"step": 100, "speed": 1}\n{"step": 700, "speed": 2}\n',
    }
    selections = (
        "", "--last 2", "--from-step 200 --to-step 400", "--every 200", "--every 300 --last 2",
        "--best 2 --metric val_loss", "--best 2 --metric val_loss --mode max", "--last 9",
        "--last 9 --at-most", "--pattern '*step=[123]*'", "--pattern '*.pt'", "--from-step 900",
        "--best 2", "--best 1 --metric bleu --metrics log.csv", "--best 1 --metric speed",
        "--best 1 --metric speed --mode max --metrics log.jsonl", "--metric val_loss",
        "--last 2 --best 1 --metric val_loss", "--mode min", "--from-step 5 --to-step 1",
        "--last 0", "--last x", "--metrics gone.csv --best 1 --metric x",
    )  # fmt: skip
    lines: list[str | tuple[str, bytes]] = [f"list run {more}".strip() for more in selections]
    lines += [f"list run {more} --json" for more in selections[:3]]
    whole = {**run(), **odd}
    cases = [Case("series", "list", whole, lines)]
    clean = {**run(), "log.csv": odd["log.csv"], "log.jsonl": odd["log.jsonl"]}
    lines = [
        f"average run {more} -o {i}.safetensors -v".strip() for i, more in enumerate(selections)
    ]
    cases.append(Case("series", "average", clean, lines))
    first, last = (f"run/step={s}-val_loss={LOSSES[s]}.safetensors" for s in (100, 700))
    lines = [
        f"average {last} {first} -o a.safetensors",
        f"average {last} {first} --keep-order -o b.safetensors",
        f"average {last} {first} -w 0.9 0.1 -o c.safetensors",
        "average run -w .1 .2 .3 .2 .2 -o d.safetensors",
        ("average - -o e.safetensors", f"{last}\n{first}\n\n".encode()),
        (f"average - {first} -w 0.25 0.75 -o f.safetensors", f"{last}\n".encode()),
        ("average -0 - -o g.safetensors", f"{last}\0{first}\0".encode()),
        ("average - -w 0.5 0.5 -0 -o h.safetensors", f"{last}\0{first}\0".encode()),
        ("average -", b"\n"),
        ("average - -", b""),
        ("list - --json", f"{last}\n{first}\n".encode()),
        f"average {first} {first} -o i.safetensors",
        f"ema {last} {first} --decay 0.9 -o j.safetensors",
        f"ema {last} {first} --decay 0.9 --keep-order -o k.safetensors",
    ]
    cases.append(Case("series", "given", run(), lines))
    names = ("epoch=3-step=1200.ckpt", "model_epoch7.pt", "12.pt", "last.pt")
    mixed: dict[str, Source] = {f"m/{name}": Path("torch/lightning/a.pt") for name in names}
    mixed["m/plain.pt"] = Path("torch/flat/b.pt")
    lines = ["list m", "list m --json", "average m --last 2 -o out.pt", "list m/12.pt m/last.pt"]
    cases.append(Case("series", "torch-names", mixed, lines))
    hub: dict[str, Source] = {}
    for step in (500, 1000, 1500):
        log = [{"step": step, "loss": 2.0}, {"step": step, "eval_loss": 1.0 / step}]
        hub[f"run/checkpoint-{step}/model.safetensors"] = partial(net, str(step))
        hub[f"run/checkpoint-{step}/trainer_state.json"] = json.dumps(
            {"global_step": step, "log_history": log}
        )
        hub[f"run/checkpoint-{step}/config.json"] = "{}"
    lines = ["list run", "average run --best 2 --metric eval_loss -o best", "list run --best 1",
             "average run/checkpoint-1500 run/checkpoint-500 -o two --json -q"]  # fmt: skip
    cases.append(Case("series", "hub", hub, lines))
    inside: dict[str, Source] = {
        f"s/{name}.safetensors": partial(net, name, metadata=json.dumps(
            {"step": str(step), "metrics": json.dumps({"acc": step / 10}), "epoch": "1"}))
        for name, step in (("x", 3), ("y", 1), ("z", 2))
    }  # fmt: skip
    lines = ["list s", "list s --best 1 --metric acc --json", "average s --last 2 -o o.safetensors"]
    cases.append(Case("series", "metadata", inside, lines))
    return cases


def emas() -> list[Case]:
    cases = []
    options = (
        "--decay 0.9", "--decay 0.9 --debias", "--decay 0.99 --per-step",
        "--decay 0.99 --per-step --debias", "--half-life 2checkpoints", "--half-life 200steps",
        "--half-life 200", "--half-life 200steps --debias", "--span 5", "--span 500steps",
        "--decay 0.9 --warmup tensorflow", "--decay 0.9 --warmup inverse-gamma",
        "--decay 0.9 --warmup yolo", "--decay 0", "--decay 1.5", "--decay 0.9 --span 3",
        "--decay 0.9 --warmup yolo --debias", "--half-life x", "--half-life 0", "--span 0.5", "",
        "--decay 0.9 --last 2", "--decay 0.9 --best 2 --metric val_loss", "--decay 0.9 --last 1",
    )  # fmt: skip
    for code in ("F32", "BF16"):
        lines = [f"ema run {more} -o {i}.safetensors" for i, more in enumerate(options)]
        lines.append("ema run --decay 0.9 --debias --json -q -o json.safetensors")
        lines.append("ema run --half-life 2checkpoints -n")
        cases.append(Case("ema", f"options-{code}", run(code), lines))
    lines = []
    for index, more in enumerate((
        "--decay 0.9", "--decay 0.9 --debias", "--decay 0.99 --per-step",
        "--decay 0.99 --per-step --debias", "--decay 0.9 --warmup tensorflow",
    )):  # fmt: skip
        early, late = f"early{index}.safetensors", f"late{index}.safetensors"
        lines += [
            f"ema run {more} --to-step 300 --dtype float32 -o {early} -q",
            f"ema run {more} --resume {early} -o {late}",
            f"ema run {more} --resume {late} -o none{index}.safetensors",
        ]
    lines += ["ema run --decay 0.8 --resume early0.safetensors -o o.safetensors",
              "ema run --decay 0.9 --debias --resume early0.safetensors -o o.safetensors",
              "ema run --decay 0.9 --resume run/step=100-val_loss=0.9.safetensors"]  # fmt: skip
    cases.append(Case("ema", "resume", run("BF16"), lines))
    return cases


def running_means() -> list[Case]:
    paths = {s: f"run/step={s}-val_loss={LOSSES[s]}.safetensors" for s in STEPS}
    cases = []
    for code in ("F32", "BF16", "F64"):
        lines = [
            "average run --to-step 300 -o avg.safetensors -q",
            f"update avg.safetensors {paths[400]} -o four.safetensors",
            f"update avg.safetensors {paths[400]} {paths[700]} -o five.safetensors --json -q",
            f"update four.safetensors --add {paths[700]} --drop {paths[100]} -o moved.safetensors",
            f"update four.safetensors --drop {paths[100]} -o less.safetensors",
            f"update four.safetensors --add {paths[700]} -o more.safetensors",
            f"update {paths[100]} {paths[200]}", "update avg.safetensors",
            f"update {paths[100]} {paths[200]} --count 4 -o counted.safetensors",
            f"update avg.safetensors {paths[400]} --dtype keep -o kept.safetensors",
            f"update avg.safetensors {paths[400]} --dtype float16 -o f16.safetensors",
            f"update avg.safetensors {paths[400]} -o dry.safetensors -n",
            "window avg.safetensors five.safetensors -o window.safetensors",
            "window five.safetensors avg.safetensors -o window2.safetensors",
            f"window {paths[100]} {paths[700]} --counts 100 700 -o steps.safetensors -v",
            f"window {paths[100]} {paths[700]} -o none.safetensors",
            "window avg.safetensors five.safetensors --counts 3 3 -o none.safetensors",
            f"update avg.safetensors --drop {paths[100]} --drop {paths[200]} --drop {paths[300]}",
        ]  # fmt: skip
        cases.append(Case("update", code, run(code), lines))
    return cases


def sweeps() -> list[Case]:
    recipes = ("uniform:last=2", "uniform:last=3", "uniform:best=3,metric=val_loss", "uniform",
               "ema:half-life=200steps", "ema:decay=0.9,last=3", "ema:decay=0.9,debias",
               "uniform:from-step=200,to-step=400,every=100", "ema:decay=0.99,per-step",
               "uniform:last=9,at-most", "ema:span=3,warmup=yolo", "uniform:last=1")  # fmt: skip
    every = " ".join(f"-r {recipe}" for recipe in recipes)
    lines = [
        f"sweep run {every} -d out",
        "sweep run -r uniform:last=2 -r uniform:last=3 -d out",
        "sweep run -r uniform:last=2 -d out --force -q",
        "sweep run -r uniform:last=2 -r ema:decay=0.5 -d both --json -q",
        "sweep run -r uniform:last=2 -r ema:decay=0.5 -d dry -n",
        "sweep run -r uniform:last=2 -r ema:decay=0.5 -d wide --dtype float64 -v",
        "sweep run -r uniform", "sweep run -r uniform -r uniform -d o", "sweep run -d o",
        "sweep run -r mean -d o", "sweep run -r uniform:last=x -d o", "sweep run -r ema -d o",
        "sweep run -r uniform:last=9 -d o", "sweep run -r ema:decay=x -d o",
        "sweep run -r uniform:what=1 -d o", "sweep run -r uniform:last=2 -d run/sub",
        "sweep run -r uniform:last=2 -d log.txt/sub -n", "sweep run -r uniform:last=2 -d log.txt",
    ]  # fmt: skip
    intended = "bytes read will be told once, not once per output"
    cases = [
        Case("sweep", "F32", {**run(), "log.txt": ""}, lines, intended=intended),
        Case("sweep", "BF16", run("BF16"), lines[:4], intended=intended),
    ]
    mixed: dict[str, Source] = {
        "run/step-1.safetensors": partial(net, "1", "F32", plus="more"),
        "run/step-2.safetensors": partial(net, "2", "BF16"),
        "run/step-3.safetensors": partial(net, "3", "BF16", plus="more"),
        "run/step-4.safetensors": partial(net, "4", "BF16"),
    }
    recipes = ("uniform:last=2", "uniform:last=3", "uniform", "ema:decay=0.5,last=2")
    every = " ".join(f"-r {recipe}" for recipe in recipes)
    lines = [f"sweep run {every} -d strict"]
    lines += [
        f"sweep run {every} -d {m} --lenient --missing {m}" for m in ("keep", "drop", "average")
    ]
    lines.append(f"sweep run {every} -d ints --lenient --integers max --json -q")
    cases.append(Case("sweep", "mixed", mixed, lines, intended=intended))
    torch: dict[str, Source] = {
        "run/step-1.pt": Path("torch/trainer/a.pt"), "run/step-2.pt": Path("torch/trainer/b.pt"),
        "run/step-3.pt": Path("torch/flat/a.pt"),
        "run/step-4.pt": Path("torch/trainer-legacy/b.pt"),
    }  # fmt: skip
    lines = [
        "sweep run -r uniform:to-step=2 -r uniform:to-step=3 -r uniform -r ema:decay=0.5 -d o",
        "sweep run -r uniform:to-step=2 -r uniform -d ours --dtype bfloat16 -q",
    ]
    cases.append(Case("sweep", "torch", torch, lines, intended=intended))
    ties: dict[str, Source] = {
        "run/step-1.pt": Path("torch/tied/a.pt"), "run/step-2.pt": Path("torch/tied/b.pt"),
        "run/step-3.pt": Path("torch/untied/b.pt"), "run/step-4.pt": Path("torch/untied/a.pt"),
    }  # fmt: skip
    lines = ["sweep run -r uniform:to-step=2 -r uniform:from-step=3 -r uniform -d o",
             "sweep run -r uniform:to-step=2 -r uniform -d d --drop-ties"]  # fmt: skip
    cases.append(Case("sweep", "ties", ties, lines, intended=intended))
    hub: dict[str, Source] = {}
    for step in (1, 2, 3):
        hub[f"run/checkpoint-{step}/model.safetensors"] = partial(net, str(step))
        hub[f"run/checkpoint-{step}/config.json"] = f'{{"step": {step}}}'
    lines = ["sweep run -r uniform:last=2 -r uniform:to-step=2 -d o",
             "sweep run -r uniform:last=2 -r uniform -d s --max-shard-size 100"]  # fmt: skip
    cases.append(Case("sweep", "folders", hub, lines, intended=intended))
    return cases


def posthocs() -> list[Case]:
    lines = [
        "posthoc run --profile 0.1 --sigma-rel 0.1 -o a.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.15 -o b.safetensors -v",
        "posthoc run --profile 0.05 --sigma-rel 0.1 --sigma-rel 0.15 -d emas",
        "posthoc run --profile 0.1 --sigma-rel 0.12 --at-step 400 -o c.safetensors --json -q",
        "posthoc run --profile 0.1 --sigma-rel 0.12 --at-step 350 -o d.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.12 --at-step 50 -o e.safetensors",
        "posthoc run --profile 0.1 --profile 0.2 --sigma-rel 0.12 -o f.safetensors",
        "posthoc run --sigma-rel 0.12 -o g.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.5 -o h.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.1 --sigma-rel 0.2 -o i.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.1 -o j.safetensors -d k",
        "posthoc run --profile 0.1 --sigma-rel 0.1 --last 3 --dtype float16 -o l.safetensors",
        "posthoc run --profile 0.1 --sigma-rel 0.12 -o m.safetensors -n",
    ]
    cases = [Case("posthoc", "given", run(), lines), Case("posthoc", "BF16", run("BF16"), lines)]
    snapshots: dict[str, Source] = {"power": Path("earlier/power")}
    lines = [
        "list power",
        "posthoc power --sigma-rel 0.07 -o a.safetensors",
        "posthoc power --sigma-rel 0.07 --sigma-rel 0.12 -d widths --json -q",
        "posthoc power --sigma-rel 0.1 --at-step 4 -o b.safetensors",
        "posthoc power --sigma-rel 0.1 --pattern '*0.05*' -o c.safetensors",
        "inspect a.safetensors",
    ]
    cases.append(Case("posthoc", "recorded", snapshots, lines))
    return cases


def earlier() -> list[Case]:
    """Going on with what version f48d0c0 wrote, when it was called 0.1.0."""
    files = {**run("BF16"), "old": Path("earlier")}
    new = f"run/step=400-val_loss={LOSSES[400]}.safetensors"
    first = f"run/step=100-val_loss={LOSSES[100]}.safetensors"
    lines = [f"inspect old/{name}.safetensors" for name in ("ema", "mean", "debiased", "warm")]
    lines += [
        f"update old/mean.safetensors {new} -o mean.safetensors",
        f"update old/mean.safetensors --add {new} --drop {first} -o moved.safetensors",
        "ema run --decay 0.9 --resume old/ema.safetensors -o ema.safetensors",
        "ema run --decay 0.99 --per-step --debias --resume old/debiased.safetensors"
        " -o d.safetensors",
        "ema run --decay 0.9 --warmup tensorflow --resume old/warm.safetensors -o w.safetensors",
        "window old/mean.safetensors old/five.safetensors -o window.safetensors --json -q",
        f"update old/five.safetensors {new} -o six.safetensors",
    ]  # fmt: skip
    cases = [Case("earlier", "safetensors", files, lines)]
    files = {"old": Path("earlier"), "a.pt": Path("torch/trainer/a.pt"),
             "b.pt": Path("torch/trainer/b.pt")}  # fmt: skip
    lines = []
    for name in ("mean.pt", "mean-legacy.pt", "plain.pt", "hub", "hub-bin"):
        lines += [f"inspect old/{name} --json", f"update old/{name} b.pt -o {name} --lenient"]
    lines += ["average a.pt old/mean.pt -o again.pt", "average old/mean.pt a.pt -o turned.pt"]
    cases.append(Case("earlier", "torch", files, lines))
    return cases


def looking() -> list[Case]:
    a, b, c = (f"run/step={s}-val_loss={LOSSES[s]}.safetensors" for s in (100, 200, 300))
    nan = of(w=("F32", [float("nan"), 1.0, float("inf")]), x=("F16", [1.0]))
    more: dict[str, Source] = {
        "more.safetensors": partial(net, "m", plus="more"), "nan.safetensors": nan,
        "half.safetensors": partial(net, "100", "F16"), "a.pt": Path("torch/trainer/a.pt"),
        "views.pt": Path("torch/views/a.pt"), "dtypes.pt": Path("torch/dtypes/a.pt"),
        "layers.safetensors": of(**{
            f"layers__{i}__{n}__weight": ("F32", [[i, 1.0]]) for i in range(12) for n in "qkv"
        }),
        "prefixed.safetensors": partial(net, "100", prefix="module."),
    }  # fmt: skip
    shown = (a, "more.safetensors", "nan.safetensors", "a.pt", "views.pt", "dtypes.pt",
             "layers.safetensors")  # fmt: skip
    lines = [
        f"inspect {path}{options}"
        for path in shown
        for options in (
            "",
            " --stats",
            " --tree",
            " --tree --all --stats",
            " --json",
            " --stats --json",
        )
    ]
    lines += [f"inspect {a} --include '*.bias'", f"inspect {a} --include 'zzz'", "inspect gone",
              "inspect run", "inspect a.pt --key optimizer", "inspect"]  # fmt: skip
    cases = [Case("looking", "inspect", {**run(), **more}, lines)]
    lines = []
    for one, other in (
        (a, b), (a, a), (a, "more.safetensors"), (a, "half.safetensors"), (a, "a.pt"),
        (a, "prefixed.safetensors"), ("nan.safetensors", "nan.safetensors"), (c, "gone"),
    ):  # fmt: skip
        lines += [f"diff {one} {other}{more}" for more in ("", " --values", " --values --json")]
    lines += ["diff views.pt dtypes.pt", "diff views.pt dtypes.pt --all", "diff views.pt"]
    cases.append(Case("looking", "diff", {**run(), **more}, lines))
    return cases


CASES = [
    *choosing(), *emas(), *running_means(), *sweeps(), *posthocs(), *earlier(), *looking(),
]  # fmt: skip
