"""Would put functions back."""

import comfy.model_management

HOOK_BREAK = [(comfy.model_management, "cast_to")]
