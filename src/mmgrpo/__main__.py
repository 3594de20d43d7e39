"""The command line: `python -m mmgrpo plan | grid | report | keep | bench | rehearse`."""

from __future__ import annotations

import gc
import os
import sys
import warnings

import typer

from mmgrpo.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def plan(profile: str = "laptop", tasks: str = "banking77", seeds: str = "") -> None:
    """Say what the cells of PROFILE on TASKS take (hours, GPUs, dollars, disk) and what is missing here. Starts nothing."""
    todo = _cells(profile, tasks, seeds)
    from mmgrpo import plan as planning

    print(planning.table(todo).to_string(index=False))
    for sentence in planning.missing(todo) or ["nothing"]:
        print(f"missing: {sentence}")


@app.command()
def grid(profile: str = "laptop", tasks: str = "banking77", seeds: str = "", jobs: int = 1, ray: str = "") -> None:
    """Run every cell of PROFILE on TASKS (names with commas, or `all`), then write tables and figures.

    SEEDS are numbers with commas, by default the profile's.
    JOBS cells run at a time on this machine, or as many as fit on the Ray cluster at the address RAY (`local`: a new
    one on this machine).
    """
    todo = _cells(profile, tasks, seeds)
    from mmgrpo import grid as running
    from mmgrpo.policy import EMBEDDED

    place = _place(todo, jobs, ray)
    for model in {cell.model for cell in todo} & set(EMBEDDED):
        print(f"Embedded language model: {EMBEDDED[model]()}", flush=True)
    failures = running.run(todo, place)
    if len(failures) < len(todo):
        _report(profile)
    if failures:
        lines = [f"  {failure.cell.name}: {failure.reason}" for failure in failures]
        raise UserError(
            "\n".join([f"{len(failures)} of {len(todo)} cells failed; the same command runs them again:", *lines])
        )


@app.command()
def report(profile: str = "laptop") -> None:
    """Write tables and figures of PROFILE from its records, and those of the committed records."""
    from mmgrpo import paths, profiles
    from mmgrpo import report as reporting
    from mmgrpo.report import frames

    profiles.load(profile)
    if own := reporting.recorded(profile):
        _report(profile)
    committed = reporting.write_committed()
    if not (own or committed):
        raise UserError(frames.NO_RECORDS)
    if not own:
        print(f"This machine has no records of the profile {profile}.")
    if committed:
        print(f"{len(committed)} tables and figures of the committed records in {paths.committed_figures()}")


@app.command()
def keep(profile: str = "laptop") -> None:
    """Copy this machine's records of PROFILE and their notebooks to data/evidence, to be committed."""
    from mmgrpo import paths, profiles
    from mmgrpo.report import evidence

    profiles.load(profile)
    print(f"{len(evidence.keep(profile))} files in {paths.EVIDENCE}; `make report` writes what is shown of them")


@app.command()
def bench(only: str = "", full: bool = False) -> None:
    """Measure speed and memory side by side with TRL, transformers and vLLM (`--full`: the largest step too).

    Goes on from what `figures/bench.json` has; `--only NAME` measures one benchmark again.
    """
    from mmgrpo import bench as benchmarks
    from mmgrpo import paths

    names = benchmarks.chosen(only, full)
    files = benchmarks.run(names, benchmarks.embedded_setup(), paths.figures(), again=bool(only))
    print("\n".join(file.read_text(encoding="utf-8") for file in files if file.suffix == ".md"))
    print(f"{len(files)} files in {paths.figures()}")


@app.command()
def rehearse() -> None:
    """One GRPO step of an 8B model at the paper's size, on a GPU: memory, speed and hours of a run."""
    from mmgrpo.bench import rehearsal

    print(rehearsal.on_gpu() or rehearsal.NO_GPU)


def _cells(profile: str, wanted: str, seeds: str) -> list:
    from mmgrpo import profiles

    settings = profiles.load(profile)  # before the slow imports, so that a typo is answered at once
    from mmgrpo import cells

    return cells.expand(settings, cells.chosen_tasks(settings, wanted), cells.chosen_seeds(seeds))


def _place(todo: list, jobs: int, ray: str):
    if ray:
        from mmgrpo.cluster import Cluster

        return Cluster(ray)
    from mmgrpo.local import Local
    from mmgrpo.plan import MODELS

    if jobs > 1 and (big := [cell.model for cell in todo if MODELS[cell.model].gpus]):
        raise UserError(
            f"{jobs} cells at a time would share one GPU, and {big[0]} takes a whole one: run one at a time "
            "(JOBS=1), or let Ray place them (`python -m mmgrpo grid --ray local`)."
        )
    return Local(jobs)


def _report(profile: str) -> None:
    from mmgrpo import paths
    from mmgrpo import report as reporting

    gc.disable()  # records are needed to the end: searching thousands of them for garbage took a seventh of the time
    try:
        files = reporting.write(profile)
    finally:
        gc.enable()
    print(f"{len(files)} tables and figures in {paths.figures()}", flush=True)
    for file in files:
        if file.suffix == ".md" and file.name.startswith(("table_scores", "table_agreement")):
            print(file.read_text(encoding="utf-8"))


def main() -> None:
    """Run the command line; a mistake of the user's is one sentence on stderr and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except UserError as error:
        print(f"mmgrpo: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if getattr(stop, "code", 130) != 130:  # typer exits with 130 after an interrupt
            raise
        print("mmgrpo: interrupted; the same command goes on where this one stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
