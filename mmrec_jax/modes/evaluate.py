"""Evaluates the best checkpoint of a finished run."""

from __future__ import annotations

from mmrec_jax.modes.run import Run


def evaluate(run: Run):
    """Prints the table and the slices, writes `evaluation.json` and `ranks_test.parquet`; returns the result."""
    from mmrec_jax.evaluation.report import slice_table, table
    from mmrec_jax.training import load_params

    description = run.description()
    params, _ = load_params(run.workdir, run={k: v for k, v in description.items() if k != "info"})
    _, result = run.test(params)
    run.console.print(table({run.config.name: result}, title=f"{run.config.name}: test split, percent"))
    if run.config.evaluation.slices:
        run.console.print(slice_table({run.config.name: result}))
    (run.workdir / "evaluation.json").write_text(result.to_json())
    result.write_ranks(run.workdir / "ranks_test.parquet", run.data.user_ids, run.data.item_ids)
    return result
