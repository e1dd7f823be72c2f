"""Arrays on disk, in numpy's format."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import open_regular

if TYPE_CHECKING:
    import numpy.typing as npt


def save_array(path: Path, values: "npt.NDArray[Any]", /) -> None:
    """Write what `numpy.save` writes; on a full disk the error says so, whereas numpy's only counts items.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import numpy as np

    values = np.ascontiguousarray(values)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
        stream.write(values.data)


def check_arrays(folder: Path, /) -> None:
    """Check that every `.npy` file in a folder is a complete array of numbers, before others load it.

    Megatron-core lets numpy unpickle what it loads, which runs the code in a file that is not an array.

    Raises:
        DataError: names the first file that is not.
    """
    import numpy as np

    for path in sorted(folder.glob("*.npy")):
        try:
            with open_regular(path) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                wanted = stream.tell() + dtype.itemsize * math.prod(shape)
                sound = not dtype.hasobject and path.stat().st_size == wanted
        except (ValueError, OSError):
            sound = False
        if not sound:
            raise DataError(f"{path} is damaged; remove the folder {folder}, and it will be rebuilt")
