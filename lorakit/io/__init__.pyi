# The public names of lorakit.io: read by type checkers, and by lazy_loader when lorakit.io is imported.
from .convert import convert_adapter as convert_adapter
from .load import load_adapter as load_adapter
from .load import load_adapters as load_adapters
from .save import check_output as check_output
from .save import save_adapter as save_adapter
