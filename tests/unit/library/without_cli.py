"""A process that may not import chinchilla_ds.cli: it imports all else, trains, resumes, and prints what came of it.

python without_cli.py FOLDER
"""

import dataclasses
import importlib
import json
import pkgutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import chinchilla_ds
from chinchilla_ds.objective import DecoderOutput, LossValue, Objective, spec_of

EXTRAS = {"lm_eval", "torchao", "transformer_engine", "datatrove", "spacy", "transformers"}


class _Forbidden:
    """Finds chinchilla_ds.cli and refuses it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> None:
        if name.startswith("chinchilla_ds.cli"):
            raise AssertionError(f"{name} was imported")


@dataclass(kw_only=True)
class Weighted(Objective):
    """Cross entropy times a number: a loss of the script's own."""

    weight: float

    def loss(self, output: DecoderOutput, /) -> LossValue:
        """Return it."""
        return LossValue(loss=self.weight * output.cross_entropy().mean())


def import_everything() -> int:
    names = [
        module.name
        for module in pkgutil.walk_packages(chinchilla_ds.__path__, "chinchilla_ds.", onerror=lambda name: None)
        if not module.name.startswith(("chinchilla_ds.cli", "chinchilla_ds.__main__"))
    ]
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                raise
    return len(names)


def main(folder: Path) -> None:
    sys.meta_path.insert(0, _Forbidden())  # type: ignore[arg-type]
    num_modules = import_everything()
    from chinchilla_ds.config import CheckpointConfig, DataConfig, SaveInterval
    from chinchilla_ds.testing.configs import tiny_plan, tiny_shape

    text = tuple(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:30])
    shape = tiny_shape(num_layers=1, vocab_size=320, padded_vocab_size=320, seq_length=32)
    config = chinchilla_ds.RunConfig(
        data=DataConfig(paths=text, held_out_fraction=0.2),
        output=folder / "runs",
        checkpoint=CheckpointConfig(save_every=SaveInterval(iters=2)),
    )
    ds_config = {"zero_optimization": {"stage": 1}}
    wanted: dict[str, Any] = {"ds_config": ds_config, "plan": tiny_plan(train_iters=4, zero_stage=1, shape=shape)}
    state = chinchilla_ds.train(config, **wanted)
    again = chinchilla_ds.train(config, **wanted)
    objective = Weighted(weight=0.25)
    named = dataclasses.replace(wanted["plan"], objective=spec_of(objective))
    weighted = chinchilla_ds.train(config, **wanted | {"plan": named}, objective=objective)
    assert weighted.step is not None
    assert state.evaluation is not None
    assert again.evaluation is not None
    facts = {
        "modules": num_modules,
        "iteration": state.iteration,
        "folders": [str(state.run_folder), str(again.run_folder)],
        "weighted": [weighted.plan.objective.name, weighted.step.loss, weighted.step.objective_loss],
        "losses": [state.evaluation.loss, again.evaluation.loss],
        "callables": [name for name in chinchilla_ds.__all__ if callable(getattr(chinchilla_ds, name))],
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
