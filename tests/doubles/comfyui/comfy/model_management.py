"""Loaded models and the interrupt, each once per process."""

import torch

OOM_EXCEPTION = torch.OutOfMemoryError
interrupt_processing = False
current_loaded_models = []


class InterruptProcessingException(Exception):  # noqa: N818 (ComfyUI's name)
    pass


def interrupt_current_processing(value=True):
    global interrupt_processing  # noqa: PLW0603 (the fault that the overlay repairs)
    interrupt_processing = value


def processing_interrupted():
    return interrupt_processing


def throw_exception_if_processing_interrupted():
    if interrupt_processing:
        interrupt_current_processing(False)
        raise InterruptProcessingException


class LoadedModel:
    def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
        return None

    def model_unload(self, memory_to_free=None, unpatch_weights=True):
        return True


def get_torch_device():
    return torch.device("cpu")


def cleanup_models():
    return None


def cleanup_models_gc():
    return None


def free_memory(memory_required, device, keep_loaded=()):
    return []


def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None):
    if any(getattr(model, "name", "") == "huge" for model in models):
        raise OOM_EXCEPTION("out of memory (as asked)")


def loaded_models(only_currently_used=False):
    return []


def unload_all_models():
    free_memory(1e30, get_torch_device())


def soft_empty_cache(force=False):
    return None
