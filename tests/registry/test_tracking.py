"""Curves and pictures of a training are kept."""


def test_curves_and_pictures_reach_the_run(registry, run, tmp_path):
    import mlflow
    import numpy as np

    from medstyle import params
    from medstyle.registry.tracking import training_run
    from medstyle.stages.train import Params

    with training_run(params.load(Params, "train", run.params), run.translator) as log:
        for step in range(30):
            log(step, {"generator/l1": 1.0 / (step + 1)})
        log(30, {"validation/sample": np.zeros((8, 8), np.uint8)})
    [found] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "generator/l1")
    assert [point.step for point in history] == list(range(30))
    assert found.data.params["training.steps"] == "40"
    assert len(found.data.tags["medstyle.weights_sha256"]) == 64
    assert list((tmp_path / "mlruns").rglob("*.png"))
