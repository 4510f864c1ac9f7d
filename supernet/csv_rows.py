"""Rows of a CSV file, whichever program wrote it."""

import codecs
import csv
import io
import stat
from pathlib import Path

from supernet.errors import InputError


def csv_rows(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Reads the rows of a CSV file that are not empty.

    Cells are separated by commas, or by semicolons or tabs if those of the first line are, as spreadsheets write them.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark.

    Returns:
        each row with the number of its last line, and the delimiter.

    Raises:
        InputError: the file cannot be read, is no regular file, or no text.
    """
    try:
        if not path.exists():
            raise InputError(f"there is no file {path}; give a CSV file")
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is not a regular file; give a CSV file")
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if marked else "utf-8-sig")
        header = text.partition("\n")[0]
        delimiter = max(",;\t", key=header.count)  # the comma if there is none
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [(reader.line_num, row) for row in reader if any(map(str.strip, row))], delimiter
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); give a text file with a header line") from error
