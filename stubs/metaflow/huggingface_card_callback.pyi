from typing import Any

# Its base is of transformers, which checkers would read for minutes.
MetaflowHuggingFaceCardCallback: Any
