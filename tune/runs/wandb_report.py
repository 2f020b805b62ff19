"""A W&B report of a project: `python -m tune.runs wandb_report ENTITY/PROJECT`.

    python -m tune.runs wandb_report me/tune
    python -m tune.runs wandb_report me/tune --tasks emo gtzan
    python -m tune.runs wandb_report me/tune --group paper --title "The study's grid"

One page in the W&B UI, with a section for each task (or for each main metric, so that accuracy is
never averaged with R2): quality against memory, seconds and embedding size, quality by segments and
by aggregator, parallel coordinates; then failed runs with their reasons. New runs of the project
appear in it. Needs a login, and `pip install wandb-workspaces`.
"""

from collections.abc import Sequence

from tune.cli.parser import Parser
from tune.tasks.label_kinds import KINDS

COSTS = {
    "cost/encode_peak_memory_bytes": "peak memory while encoding, bytes",
    "cost/encode_seconds_per_track": "encoding, seconds a track",
    "cost/embedding_dim": "embedding size",
}
SCORE = "test/score"
HALF = {"w": 12, "h": 9}  # of a grid 24 wide


def make_report(path: str, title: str, group: str | None = None, tasks: Sequence[str] = ()):
    """Make the report, without saving it.

    Parameters
    ----------
    path : "ENTITY/PROJECT"
    group : show runs of this W&B group only (a sweep's name)
    tasks : a section for each, by the main metric; without, a section for each main metric

    Returns
    -------
    wandb_workspaces.reports.v2.Report

    Raises
    ------
    ValueError
        When `wandb-workspaces` isn't installed.
    """
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr
    except ModuleNotFoundError:
        raise ValueError("a W&B report needs W&B's package: pip install wandb-workspaces") from None
    entity, project = path.split("/")

    def layout(i):
        return wr.Layout(x=i % 2 * HALF["w"], y=i // 2 * HALF["h"], **HALF)

    def runs(name, task=None, **settings):
        chosen = [expr.Metric("Group") == group] if group else []
        chosen += [expr.Config("task") == task] if task else []
        return wr.Runset(entity, project, name=name, filters=chosen, **settings)

    def section(heading, score, task=None):
        """Quality against cost and by strategy, of runs that one metric scores."""
        score = wr.SummaryMetric(score)
        fronts = [
            wr.ScatterPlot(
                title=f"quality against {text}",
                x=wr.SummaryMetric(cost),
                y=score,
                running_ymax=True,
                layout=layout(i),
            )
            for i, (cost, text) in enumerate(COSTS.items())
        ]
        ways = [wr.Config(key) for key in ("task", "encoder", "seg", "agg")] + [score]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in ways]
        fronts.append(
            wr.ParallelCoordinatesPlot(title="strategies", columns=columns, layout=layout(3))
        )
        means = [
            wr.BarPlot(
                title=f"mean quality by {key}",
                metrics=[score],
                groupby=wr.Config(key),
                groupby_aggfunc="mean",
                layout=layout(4 + i),
            )
            for i, key in enumerate(("seg", "agg"))
        ]
        return [wr.H2(heading), wr.PanelGrid(runsets=[runs("runs", task)], panels=fronts + means)]

    if tasks:
        sections = [block for task in tasks for block in section(task, SCORE, task)]
    else:
        metrics = dict.fromkeys(kind.recipe.main_metric for kind in KINDS.values())
        sections = [b for name in metrics for b in section(f"Runs with {name}", f"test/{name}")]
    curves = [
        wr.LinePlot(title=name, x="epoch", y=[name], layout=layout(i))
        for i, name in enumerate(("val/best_score", "val/loss"))
    ]
    columns = ["summary:failed", "summary:degenerate", "summary:same_as", "summary:skipped"]
    return wr.Report(
        entity=entity,
        project=project,
        title=title,
        description="Segmentation and aggregation of music embeddings",
        width="fluid",
        blocks=[
            wr.TableOfContents(),
            wr.P(
                f"Each dot is a run. test/score is the main metric on the test split "
                f"({main_metrics()}); memory and seconds were taken when the segments were "
                f"encoded. Filter by task before you compare. For significance use compare.py: it "
                f"pairs runs by track."
            ),
            *sections,
            wr.H2("Training"),
            wr.PanelGrid(runsets=[runs("runs")], panels=curves),
            wr.H2("Failed, degenerate and skipped"),
            wr.PanelGrid(
                runsets=[runs("runs", pinned_columns=columns)],
                panels=[wr.RunComparer(diff_only="split")],
            ),
        ],
    )


def main_metrics() -> str:
    """The main metric of each kind of label, in words."""
    return ", ".join(f"{kind.recipe.main_metric} for {name}" for name, kind in KINDS.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Make the report and save it to the project."""
    parser = Parser(prog="python -m tune.runs wandb_report", description=__doc__)
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--title", default="TUNE: which strategy?")
    parser.add_argument("--group", help="runs of this group only: a sweep's name")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="a section for each of these"
    )
    parser.add_argument("--draft", action="store_true", help="save it as a draft")
    args = parser.parse_args(argv)
    if args.project.count("/") != 1 or not all(args.project.split("/")):
        parser.error(f"expected ENTITY/PROJECT, got {args.project!r}")
    report = make_report(args.project, args.title, args.group, args.tasks)
    from tune.runs.tracking import wandb_mode

    if wandb_mode() != "online":
        raise ValueError("a W&B report lives on W&B's server: run `wandb login` first")
    report.save(draft=args.draft)
    print(f"report: {report.url}")
