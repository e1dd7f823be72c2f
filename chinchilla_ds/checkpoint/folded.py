"""FoldedReader: a checkpoint read as a plain decoder's, its objective's own weights folded into the others."""

from pathlib import Path

from torch import Tensor

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.objective import Objective, is_own, make_objective, own_name


class FoldedReader(CheckpointReader):
    """An intact checkpoint for users of the plain decoder: generation, evaluation, export."""

    def __init__(self, checkpoint: Path) -> None:
        """Read plan, state and the list of tensors of a checkpoint's folder.

        Raises:
            CheckpointError: a part of it is missing or invalid, or its objective has its own weights
                and cannot be loaded, or does not fold them.
        """
        super().__init__(checkpoint)
        own = [name for name in super().names() if is_own(name)]
        self._objective = self._folding(own) if own else None

    def _folding(self, own: list[str]) -> Objective:
        what = f"{self.folder} holds {len(own)} weights of its objective {self.plan.objective}, such as {own[0]}"
        try:
            objective = make_objective(self.plan.objective)
        except ConfigError as error:
            raise CheckpointError([f"{what}, which only that objective can fold", *error.problems]) from None
        if unfolded := [name for name in own if not objective.folds(name)]:
            raise CheckpointError(
                f"{what}, and it does not fold {unfolded[0]} into the decoder's, which compute another function without"
            )
        return objective

    def names(self) -> tuple[str, ...]:
        """Return the global names of the decoder's weights."""
        return tuple(name for name in super().names() if not is_own(name))

    def read_rows(self, name: str, /, *, rows: slice, state: str | None = None) -> Tensor:
        """Return some rows of a weight, the objective's own weights folded in; `state` as training left it.

        Args:
            name: global name of the weight.
            rows: consecutive rows.
            state: name of an optimizer state, as training left it; None: the weight.
        """
        if self._objective is None or state is not None:
            return super().read_rows(name, rows=rows, state=state)
        whole = super().read_rows(name, rows=slice(None))
        return self._objective.fold(name, whole, _OwnWeights(self))[rows]

    def read_own(self, name: str, /) -> Tensor:
        """Return one of the objective's weights, in fp32."""
        return super().read_rows(name, rows=slice(None))


class _OwnWeights:
    """Reads weights for `Objective.fold`."""

    def __init__(self, reader: FoldedReader) -> None:
        self._reader = reader

    def read(self, parent: str, name: str, /) -> Tensor:
        return self._reader.read_own(own_name(parent, name))
