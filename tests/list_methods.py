"""Write the table of methods that ``lorakit methods`` reads, of the estimators as they are.

python tests/list_methods.py
"""

from lorakit._listing import FOLDERS, TABLE, table_of
from lorakit.discovery import all_methods


def table():
    """The table as it should be."""
    return table_of({kind: all_methods(kind) for kind in FOLDERS})


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
