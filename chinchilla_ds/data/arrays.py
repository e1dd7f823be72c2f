"""Arrays on disk, as numpy writes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


def save_array(path: Path, values: "npt.NDArray[Any]", /) -> None:
    """Write what `numpy.save` writes; on a full disk the error says so, where numpy's only counts items.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import numpy as np

    values = np.ascontiguousarray(values)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
        stream.write(values.data)
